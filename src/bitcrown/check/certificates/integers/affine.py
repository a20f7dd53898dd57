"""The affine nodes of an integer network (``dense``, ``conv``, ``sum``, ``gather``) as sparse
rows of (source, element, weight).

A form is taken apart here once; after that all sizes agree, and indices are inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from bitcrown.check.certificates.documents import integer, integer_list, need

Integers = list[int]
SparseRow = list[tuple[int, int, int]]
MOST_SUMMANDS = 1 << 24
"""Weights, thresholds and window members that a network may have."""


class LinearRows:
    """``out[i] = bias[i] + sum w * v[s][e]`` for (s, e, w) in ``rows[i]``."""

    def __init__(self, rows: list[SparseRow], bias: Integers, sources: set[int]) -> None:
        self.rows, self.bias, self.sources = rows, bias, sources
        need(len(rows) == len(bias), "an affine node has another number of biases than outputs")

    def image(self, low: list[Integers], high: list[Integers]) -> tuple[Integers, Integers]:
        """Output intervals, given those of all nodes before."""
        return self.ends(low, high), self.ends(high, low)

    def ends(self, first: list[Integers], second: list[Integers]) -> Integers:
        """Positive weights take ``first``, negative ones ``second`` (low/high gives the lower
        ends)."""
        return [
            b + sum(w * (first if w > 0 else second)[s][e] for s, e, w in row)
            for row, b in zip(self.rows, self.bias, strict=True)
        ]

    @property
    def terms(self) -> int:
        """What looking at every row once costs."""
        return len(self.rows) + sum(map(len, self.rows))


def affine_node(node: dict[str, Any], size: int, sources: list[int], sizes: Integers) -> LinearRows:
    """The rows of a node that reads ``sources``; ``sizes`` of all nodes before it."""
    op = node["op"]
    if op == "dense":
        rows, bias = _dense_rows(node, size, sizes[sources[0]])
    elif op == "conv":
        pairs = list(_conv_rows(node, sizes[sources[0]]))
        rows, bias = [row for row, _ in pairs], [b for _, b in pairs]
    elif op == "sum":
        rows, bias = _sum_rows(node, size, sources, sizes)
    else:
        need(op == "gather", f"unknown node {op!r}")
        places = [(s, e) for s in sources for e in range(sizes[s])]
        index = integer_list(node["index"], size, "an index", 0)
        need(max(index) < len(places), "an affine node reads beyond its source")
        rows, bias = [[(*places[i], 1)] for i in index], [0] * size
    need(len(rows) == size, "an affine node has another number of rows than outputs")
    return LinearRows(rows, bias, set(sources))


def _dense_rows(
    node: dict[str, Any], size: int, source_size: int
) -> tuple[list[SparseRow], Integers]:
    need(len(node["weight"]) == size, "an affine node has another number of rows than outputs")
    lines = [integer_list(line, len(line), "a row of weights") for line in node["weight"]]
    fits = all(len(line) <= source_size for line in lines)
    need(fits, "an affine node reads beyond its source")
    rows = [[(node["source"], e, w) for e, w in enumerate(line) if w] for line in lines]
    return rows, integer_list(node["bias"], size, "a bias")


def _sum_rows(
    node: dict[str, Any], size: int, sources: list[int], sizes: Integers
) -> tuple[list[SparseRow], Integers]:
    factors = integer_list(node["factors"], len(sources), "the factors of a sum")
    need(all(sizes[s] == size for s in sources), "a sum has another size than its sources")
    parts = [(s, f) for s, f in zip(sources, factors, strict=True) if f]
    bias = node["bias"] * size if len(node["bias"]) == 1 else node["bias"]
    return [[(s, e, f) for s, f in parts] for e in range(size)], integer_list(bias, size, "a bias")


def _conv_rows(node: dict[str, Any], source_size: int) -> Iterator[tuple[SparseRow, int]]:
    """The rows of a convolution, with the bias that padding contributes."""
    source, pad_value, groups = node["source"], integer(node["pad_value"]), integer(node["groups"])
    height, width = integer_list(node["plane"], 2, "a plane", 1)
    sh, sw = integer_list(node["strides"], 2, "strides", 1)
    dh, dw = integer_list(node["dilations"], 2, "dilations", 1)
    top, left, _, _ = integer_list(node["padding"], 4, "padding", 0)
    outs, out_h, out_w = integer_list(node["shape"], 3, "the shape of an image", 1)
    weights, biases = node["weight"], integer_list(node["bias"], outs, "the bias of a convolution")
    need(
        len(weights) == outs and groups > 0 and outs % groups == 0,
        "groups do not fit a convolution",
    )
    ins, kh, kw = len(weights[0]), len(weights[0][0]), len(weights[0][0][0])
    reach = [dh * (kh - 1) + 1, dw * (kw - 1) + 1]
    need(
        [out_h, out_w] == windows_of(node, reach),
        "a convolution does not have one output per window",
    )
    need(ins * groups * height * width == source_size, "a plane does not fit its source")
    need(
        outs * out_h * out_w * ins * kh * kw <= MOST_SUMMANDS,
        f"a convolution has more than {MOST_SUMMANDS} terms",
    )
    for weight in weights:
        need(
            len(weight) == ins and all(len(plane) == kh for plane in weight),
            "a kernel is not rectangular",
        )
        for line in (line for plane in weight for line in plane):
            integer_list(line, kw, "a line of a kernel")
    for o, y, x in product(range(outs), range(out_h), range(out_w)):
        row, bias = [], biases[o]
        first = (o // (outs // groups)) * ins
        for c, plane in enumerate(weights[o]):
            for i, line in enumerate(plane):
                for j, weight in enumerate(line):
                    r, s = y * sh + i * dh - top, x * sw + j * dw - left
                    if 0 <= r < height and 0 <= s < width:
                        if weight:
                            row.append((source, ((first + c) * height + r) * width + s, weight))
                    else:
                        bias += weight * pad_value
        yield row, bias


def windows_of(node: dict[str, Any], reach: Integers) -> Integers:
    """How many windows of that extent fit below and beside each other; strides and padding are
    known to be numbers."""
    top, left, bottom, right = node["padding"]
    room = [
        h + p - r
        for h, p, r in zip(node["plane"], (top + bottom, left + right), reach, strict=True)
    ]
    return [r // s + 1 if r >= 0 else 0 for r, s in zip(room, node["strides"], strict=True)]
