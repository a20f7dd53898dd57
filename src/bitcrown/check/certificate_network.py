"""An integer network in plain Python, from its canonical JSON form; and the intervals that a proof works on.

Used by the certificate checker only; shares no code with the prover. Node kinds: ``input``, ``dense``, ``conv``,
``sum``, ``gather`` (all affine: sparse rows of (source, element, weight)), ``staircase`` and ``maxpool``. Every tensor
is flat in C order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import product
from typing import Any

Row = list[int]
WIDE = 2**62


class Reject(Exception):
    """The certificate is not a proof; the message says where."""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise Reject(message)


def integer(value: Any) -> int:
    need(type(value) is int, f"{str(value)[:40]!r} is not an integer")
    return int(value)


def size_of(shape: list[int]) -> int:
    size = 1
    for extent in shape:
        size *= integer(extent)
    return size


class Affine:
    """``out[i] = bias[i] + sum w * v[s][e]`` for (s, e, w) in ``rows[i]``."""

    def __init__(self, rows: list[list[tuple[int, int, int]]], bias: Row, sources: set[int]) -> None:
        self.rows, self.bias, self.sources = rows, bias, sources
        need(len(rows) == len(bias), "an affine node has another number of biases than outputs")

    def ends(self, first: list[Row], second: list[Row]) -> Row:
        """Positive weights take ``first``, negative ones ``second`` (low/high gives the lower ends)."""
        return [
            b + sum(w * (first if w > 0 else second)[s][e] for s, e, w in row)
            for row, b in zip(self.rows, self.bias, strict=True)
        ]


class Stairs:
    """A staircase node: thresholds and base per element."""

    def __init__(self, node: dict[str, Any], size: int) -> None:
        self.source = integer(node["source"])
        base, late, early = node["base"], node["late"], node["early"]
        need(len(base) == len(late) == len(early) > 0 and size % len(base) == 0, "staircase channels do not fit")
        for low, high in zip(early, late, strict=True):
            need(len(low) == len(high), "staircase rows differ in length")
            need(all(a <= b for a, b in zip(low, high, strict=True)), "an early threshold is later than the late one")
            need(low == sorted(low) and high == sorted(high), "staircase thresholds decrease")
        each = size // len(base)
        self.base = [base[e // each] for e in range(size)]
        self.late = [late[e // each] for e in range(size)]
        self.early = [early[e // each] for e in range(size)]

    def image(self, low: Row, high: Row) -> tuple[Row, Row]:
        """Output intervals, given those of the source."""
        return (
            [b + bisect_right(t, a) for b, t, a in zip(self.base, self.late, low, strict=True)],
            [b + bisect_right(t, a) for b, t, a in zip(self.base, self.early, high, strict=True)],
        )

    def preimage(self, low: Row, high: Row) -> tuple[Row, Row]:
        """Source intervals that output intervals leave; an impossible output leaves none."""
        lows, highs = [], []
        for e, (least, most) in enumerate(zip(low, high, strict=True)):
            needed, allowed, steps = least - self.base[e], most - self.base[e], len(self.late[e])
            lows.append(WIDE if needed > steps else self.early[e][needed - 1] if needed > 0 else -WIDE)
            highs.append(-WIDE if allowed < 0 else self.late[e][allowed] - 1 if allowed < steps else WIDE)
        return lows, highs

    def block(self, e: int, mu: int, slope: int, low: int, high: int) -> int:
        """``min { mu S(a) - slope a : low <= a <= high }``; the staircase that makes it smaller where two are known."""
        steps = (self.late if mu >= 0 else self.early)[e]
        first, last = bisect_right(steps, low), bisect_right(steps, high)
        best = mu * (self.base[e] + first) - slope * low
        best = min(best, mu * (self.base[e] + last) - slope * high)
        for k in range(first, last):
            start, before = steps[k], steps[k] - 1
            if start <= high:
                best = min(best, mu * (self.base[e] + bisect_right(steps, start)) - slope * start)
            if before >= low:
                best = min(best, mu * (self.base[e] + bisect_right(steps, before)) - slope * before)
        return int(best)


class Pool:
    """A maximum over windows: ``members[i]`` are the source elements of output i."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.source = integer(node["source"])
        (height, width), (kh, kw), (sh, sw) = node["plane"], node["kernel"], node["strides"]
        top, left, _, _ = node["padding"]
        channels, out_h, out_w = node["shape"]
        self.places: list[list[tuple[int, int]]] = []
        for c, y, x in product(range(channels), range(out_h), range(out_w)):
            found = []
            for place, (i, j) in enumerate(product(range(kh), range(kw))):
                row, column = y * sh + i - top, x * sw + j - left
                if 0 <= row < height and 0 <= column < width:
                    found.append((place, (c * height + row) * width + column))
            need(bool(found), "a pooling window is empty")
            self.places.append(found)
        self.members = [[e for _, e in found] for found in self.places]

    def image(self, low: Row, high: Row) -> tuple[Row, Row]:
        """Output intervals, given those of the source."""
        return [max(low[e] for e in m) for m in self.members], [max(high[e] for e in m) for m in self.members]

    @staticmethod
    def block(mu: int, slopes: Row, low: Row, high: Row) -> int:
        """``min { mu m - slopes x : low <= x <= high, m = max x }``: concave between upper ends, so those decide."""
        floor = max(low)
        best: int | None = None
        for top in {floor, *(h for h in high if h > floor)}:
            free = [min(h, top) if s > 0 else a for s, a, h in zip(slopes, low, high, strict=True)]
            regret = min(0 if s > 0 else -s * (top - a) for s, a, h in zip(slopes, low, high, strict=True) if h >= top)
            value = mu * top - sum(s * x for s, x in zip(slopes, free, strict=True)) + regret
            best = value if best is None else min(best, value)
        assert best is not None
        return best


def conv_rows(node: dict[str, Any]) -> Iterator[tuple[list[tuple[int, int, int]], int]]:
    """The rows of a convolution, with the bias that padding contributes."""
    source, (height, width), (sh, sw), (dh, dw) = node["source"], node["plane"], node["strides"], node["dilations"]
    top, left, _, _ = node["padding"]
    outs, out_h, out_w = node["shape"]
    per_out = outs // node["groups"]
    for o, y, x in product(range(outs), range(out_h), range(out_w)):
        row, bias = [], node["bias"][o]
        first = (o // per_out) * len(node["weight"][o])
        for c, plane in enumerate(node["weight"][o]):
            for i, line in enumerate(plane):
                for j, weight in enumerate(line):
                    r, s = y * sh + i * dh - top, x * sw + j * dw - left
                    if 0 <= r < height and 0 <= s < width:
                        if weight:
                            row.append((source, ((first + c) * height + r) * width + s, weight))
                    else:
                        bias += weight * node["pad_value"]
        yield row, bias


class Network:
    """The canonical JSON form of an integer network, compiled; malformed ones raise (KeyError, TypeError, ...)."""

    def __init__(self, form: dict[str, Any]) -> None:
        need(form["format"] == "bitcrown-integer-network-1", "the network has an unknown format")
        all_integers(form["nodes"])
        self.nodes = form["nodes"]
        self.output = integer(form["output"])
        self.sizes = [size_of(node["shape"]) for node in self.nodes]
        self.compiled: list[Affine | Stairs | Pool | None] = []
        for number, node in enumerate(self.nodes):
            self.compiled.append(self._compile(number, node))

    def _compile(self, number: int, node: dict[str, Any]) -> Affine | Stairs | Pool | None:
        op, size = node["op"], self.sizes[number]
        sources = node["sources"] if "sources" in node else [node["source"]] if "source" in node else []
        need(all(0 <= s < number for s in sources), "a node reads one that comes later")
        need((op == "input") == (number == 0), "node 0, and no other, is the input")
        if op == "input":
            return None
        if op == "staircase":
            return Stairs(node, size)
        if op == "maxpool":
            return Pool(node)
        rows: list[list[tuple[int, int, int]]]
        if op == "dense":
            rows = [[(sources[0], e, w) for e, w in enumerate(line) if w] for line in node["weight"]]
            bias = node["bias"]
        elif op == "conv":
            pairs = list(conv_rows(node))
            rows, bias = [row for row, _ in pairs], [b for _, b in pairs]
        elif op == "sum":
            factors = node["factors"]
            rows = [[(s, e, f) for s, f in zip(sources, factors, strict=True) if f] for e in range(size)]
            bias = node["bias"] if len(node["bias"]) == size else node["bias"] * size
        else:
            need(op == "gather", f"unknown node {op!r}")
            places = [(s, e) for s in sources for e in range(self.sizes[s])]
            rows, bias = [[(*places[i], 1)] for i in node["index"]], [0] * size
        need(len(rows) == size, "an affine node has another number of rows than outputs")
        need(all(0 <= e < self.sizes[s] for row in rows for s, e, _ in row), "an affine node reads beyond its source")
        return Affine(rows, bias, set(sources))

    def outputs(self, point: Row) -> tuple[Row, Row]:
        """The output at one input, as an interval (one value wherever the arithmetic is pinned down)."""
        low, high = [point], [point]
        for step in self.compiled[1:]:
            if isinstance(step, Affine):
                ends = step.ends(low, high), step.ends(high, low)
            else:
                assert step is not None
                ends = step.image(low[step.source], high[step.source])
            low.append(ends[0])
            high.append(ends[1])
        return low[self.output], high[self.output]


def all_integers(content: Any) -> None:
    """Every number in the network is an integer."""
    if isinstance(content, dict):
        for value in content.values():
            all_integers(value)
    elif isinstance(content, list):
        for value in content:
            all_integers(value)
    else:
        need(type(content) in (int, str), "the network holds something other than integers")


class State:
    """``low[n][e]``/``high[n][e]``; lists are replaced, never changed, so that a copy is cheap."""

    def __init__(self, low: list[Row], high: list[Row], dirty: set[int]) -> None:
        self.low, self.high, self.dirty = low, high, dirty

    def copy(self) -> State:
        return State(list(self.low), list(self.high), set(self.dirty))

    def meet(self, node: int, low: Row, high: Row) -> None:
        old = self.low[node], self.high[node]
        new = (
            [max(a, b) for a, b in zip(old[0], low, strict=True)],
            [min(a, b) for a, b in zip(old[1], high, strict=True)],
        )
        if new != old:
            self.low[node], self.high[node] = new
            self.dirty.add(node)

    def narrow(self, node: int, element: int, low: int, high: int) -> None:
        lows, highs = list(self.low[node]), list(self.high[node])
        lows[element], highs[element] = max(lows[element], low), min(highs[element], high)
        self.low[node], self.high[node] = lows, highs
        self.dirty.add(node)

    def is_empty(self) -> bool:
        return any(
            a > b for lows, highs in zip(self.low, self.high, strict=True) for a, b in zip(lows, highs, strict=True)
        )
