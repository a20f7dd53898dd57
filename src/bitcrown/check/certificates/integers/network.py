"""An integer network in plain Python, from its canonical JSON form.

Used by the certificate checker only; shares no code with the prover. Node kinds: ``input``,
``dense``, ``conv``, ``sum``, ``gather`` (``affine``), ``staircase`` and ``maxpool`` (``nodes``).
Every tensor is flat in C order. Integers have no width here, so no sum can wrap and no threshold
means "never" but by its size.

``MOST_SUMMANDS`` and ``_MOST_ELEMENTS`` bound what a few letters of a form can ask for.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import product
from math import prod
from typing import Any

from bitcrown.check.certificates.documents import integer, integer_list, need
from bitcrown.check.certificates.integers.affine import (
    MOST_SUMMANDS,
    Integers,
    LinearRows,
    affine_node,
)
from bitcrown.check.certificates.integers.nodes import Pool, StepNode

CircuitNode = LinearRows | StepNode | Pool
_MOST_ELEMENTS = 1 << 20
_MOST_SUMS = 1 << 20


def _size_of(shape: Any) -> int:
    need(type(shape) is list and 0 < len(shape) <= 8, "a shape is not a list of 1 to 8 integers")
    size = prod(integer_list(shape, len(shape), "a shape", 1))
    need(size <= _MOST_ELEMENTS, f"a node has more than {_MOST_ELEMENTS} elements")
    return size


class IntegerCircuit:
    """The canonical JSON form of an integer network, compiled; malformed ones raise (Reject,
    KeyError, TypeError, ...).

    ``low``/``high``: an interval for every element of every node, over the whole declared range of
    the input. ``terms``: how many weights, thresholds and window members there are, which is what
    one pass over the network costs.
    """

    def __init__(self, form: dict[str, Any]) -> None:
        need(form["format"] == "bitcrown-integer-network-1", "the network has an unknown format")
        self.nodes = form["nodes"]
        self.output = integer(form["output"])
        need(0 <= self.output < len(self.nodes), "the output is no node")
        self.sizes = [_size_of(node["shape"]) for node in self.nodes]
        need(
            sum(self.sizes) <= _MOST_ELEMENTS,
            f"the network has more than {_MOST_ELEMENTS} elements",
        )
        self.compiled: dict[int, CircuitNode] = {}
        """By number, in order; the input, node 0, computes nothing."""
        self.terms = 0
        for number, node in enumerate(self.nodes):
            need((node["op"] == "input") == (number == 0), "node 0, and no other, is the input")
            if number:
                self.compiled[number] = self._compile(number, node)
                self.terms += self.compiled[number].terms
            few = f"the network has more than {MOST_SUMMANDS} weights and thresholds"
            need(self.terms <= MOST_SUMMANDS, few)
        first = self.nodes[0]
        low = integer_list(first["low"], self.sizes[0], "the low end of the input")
        high = integer_list(first["high"], self.sizes[0], "the high end of the input")
        need(all(a <= b for a, b in zip(low, high, strict=True)), "the input has an empty range")
        self.low, self.high = self.enclosure(low, high)
        for step in self.compiled.values():
            if isinstance(step, StepNode):
                self._require_order(step)

    def enclosure(self, low: Integers, high: Integers) -> tuple[list[Integers], list[Integers]]:
        """Least and greatest integer of every element of every node over a box of inputs; at one
        input, a single value wherever the arithmetic is pinned down."""
        lows, highs = [low], [high]
        for step in self.compiled.values():
            least, most = step.image(lows, highs)
            lows.append(least)
            highs.append(most)
        return lows, highs

    def _require_order(self, step: StepNode) -> None:
        """Early thresholds behind late ones only where no accumulator lies: wherever one does, a
        value has to exist.

        Elements with the same thresholds and factors are looked at together, over all of their
        ranges.
        """
        found: dict[tuple[Any, ...], list[range]] = {}
        first: dict[tuple[Any, ...], int] = {}
        for e, (early, late) in enumerate(zip(step.early, step.late, strict=True)):
            if early is late or all(a <= b for a, b in zip(early, late, strict=True)):
                continue
            parts, constant = self._summands(step.source, e)
            key = id(early), id(late), tuple(f for f, _ in parts), constant
            wide = found.get(key, [part for _, part in parts])
            found[key] = [
                range(min(r.start, part.start), max(r.stop, part.stop))
                for r, (_, part) in zip(wide, parts, strict=True)
            ]
            first.setdefault(key, e)
        for key, ranges in found.items():
            need(
                prod(map(len, ranges)) <= _MOST_SUMS,
                "an early threshold is later than the late one",
            )
            early, late = step.early[first[key]], step.late[first[key]]
            for summands in product(
                *([f * v for v in r] for f, r in zip(key[2], ranges, strict=True))
            ):
                a = key[3] + sum(summands)
                fits = bisect_right(late, a) <= bisect_right(early, a)
                need(fits, f"an early threshold is later than the late one at the accumulator {a}")

    def _summands(self, number: int, e: int) -> tuple[list[tuple[int, range]], int]:
        """Factors and ranges whose sums, with a constant, are all that one element of a sum can
        be."""
        factor, constant = 1, 0  # the element is factor * (element e of node number) + constant
        while True:
            step = self.compiled.get(number)
            if not isinstance(step, LinearRows) or self.nodes[number]["op"] != "sum":
                terms = [(number, e, 1)]
                break
            constant += factor * step.bias[e]
            terms = step.rows[e]
            if len(terms) != 1:
                break
            ((number, e, weight),) = terms
            factor *= weight
        return [
            (factor * w, range(self.low[s][i], self.high[s][i] + 1)) for s, i, w in terms
        ], constant

    def _compile(self, number: int, node: dict[str, Any]) -> CircuitNode:
        op, size = node["op"], self.sizes[number]
        sources = node["sources"] if op in ("sum", "gather") else [node["source"]]
        need(
            all(0 <= integer(s) < number for s in sources) and len(sources) > 0,
            "a node reads one that comes later",
        )
        if op == "staircase":
            need(self.sizes[sources[0]] == size, "a staircase has another size than its source")
            return StepNode(node, size)
        if op == "maxpool":
            return Pool(node, size, self.sizes[sources[0]])
        return affine_node(node, size, sources, self.sizes)
