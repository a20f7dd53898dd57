"""Improved arithmetic: an integer is the low end of its range plus an unsigned offset of just
enough bits.

A pixel that may move by one level is two bits, a neuron that reaches five of its 64 levels is
three, and what cannot change is no bit at all. A weighted sum becomes, with q_i = origin_i + u_i,

    sum_i c_i q_i = constant' + P - N,   P = sum_{c_i > 0} c_i u_i,   N = sum_{c_i < 0} |c_i| u_i,

in which equal coefficients are collected first: summands of two bits are added before they are
multiplied, and there is one product for each distinct |c|, not one for each input. The low ends all
go into one constant. Since the result minus its origin is known to lie in 0 .. 2^w - 1, arithmetic
modulo 2^w is exact: no bit above w is ever built. Sums are trees that add the two narrowest
operands first, each with just enough width for its largest value.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable

from bitcrown.quant.smt.integer_bits import Accumulator, Number, Parts, Steps
from bitcrown.quant.smt.terms import TermBuilder

_Unsigned = tuple[int, int]
"""(term, greatest value): an unsigned bit-vector that never exceeds the second."""


class OffsetArithmetic:
    """See the module; ``builder`` collects the terms."""

    def __init__(self, builder: TermBuilder) -> None:
        self._builder = builder

    def variable(self, name: str, low: int, high: int) -> tuple[Number, list[int]]:
        build = self._builder
        width = (high - low).bit_length()
        term = build.variable(name, width)
        full = high - low == (1 << width) - 1
        limit = [] if full else [build.compare("bvule", term, build.constant(high - low, width))]
        return Number(term, low, low, high), limit

    def total(self, accumulator: Accumulator) -> Number:
        return self._total(accumulator, accumulator.low)

    def staircase(self, accumulator: Accumulator, steps: Steps) -> Number:
        shift = steps.shift()
        if shift is not None:
            return self._shifted(accumulator, steps, shift)
        number = self._total(accumulator, accumulator.low)
        return self._selected(number, steps)

    def larger(self, a: Number, b: Number) -> Number:
        build = self._builder
        low, high = max(a.low, b.low), max(a.high, b.high)
        origin = min(a.origin, b.origin)
        left, right = self._aligned(a, origin, high), self._aligned(b, origin, high)
        return Number(
            build.ite(build.compare("bvule", left, right), right, left), origin, low, high
        )

    def at_most(self, parts: Parts, bound: int) -> int:
        """P <= N + rest, with the constant on the side where it is positive; no width is cut, so
        nothing wraps."""
        build = self._builder
        rest = bound - sum(factor * number.origin for number, factor in parts)
        left, right = self._sides(parts, None)
        (left if rest < 0 else right).append(self._known(abs(rest)))
        (a, _), (b, _) = self._sum(left, None), self._sum(right, None)
        width = max(build.width(a), build.width(b))
        return build.compare("bvule", self._fitted(a, width), self._fitted(b, width))

    def _total(self, accumulator: Accumulator, origin: int) -> Number:
        """The sum with its bits counted from ``origin <= low``."""
        build = self._builder
        width = (accumulator.high - origin).bit_length()
        rest = accumulator.constant - origin
        rest += sum(factor * number.origin for number, factor in accumulator.parts)
        plus, minus = self._sides(accumulator.parts, width)
        term = self._fitted(self._sum(plus, width)[0], width)
        if minus:
            # P - N = P + not(N) + 1 modulo 2^w, and the 1 costs nothing beside the constant
            term = build.add(
                term, build.complement(self._fitted(self._sum(minus, width)[0], width))
            )
            rest += 1
        return Number(
            build.add(term, build.constant(rest, width)), origin, accumulator.low, accumulator.high
        )

    def _sides(self, parts: Parts, limit: int | None) -> tuple[list[_Unsigned], list[_Unsigned]]:
        """P and N as summands: one for each bit of each distinct coefficient."""
        groups: dict[int, list[_Unsigned]] = defaultdict(list)
        for number, factor in parts:
            if number.term is not None:
                groups[factor].append((number.term, number.high - number.origin))
        sides: tuple[list[_Unsigned], list[_Unsigned]] = ([], [])
        for factor, members in sorted(groups.items()):
            term, greatest = self._sum(members, limit)
            magnitude = abs(factor)
            for bit in range(magnitude.bit_length()):
                if magnitude >> bit & 1:
                    sides[factor < 0].append((self._builder.shifted(term, bit), greatest << bit))
        return sides

    def _sum(self, summands: Iterable[_Unsigned], limit: int | None) -> _Unsigned:
        """Narrowest first, each sum just wide enough; ``limit`` is a width above which bits do not
        matter."""
        build = self._builder
        heap = [(greatest, term) for term, greatest in summands]
        if not heap:
            return self._known(0)
        heapq.heapify(heap)
        while len(heap) > 1:
            (small, a), (great, b) = heapq.heappop(heap), heapq.heappop(heap)
            greatest = small + great
            width = greatest.bit_length()
            if limit is not None and width > limit:
                width = limit
                greatest = (1 << limit) - 1
            heapq.heappush(
                heap, (greatest, build.add(self._fitted(a, width), self._fitted(b, width)))
            )
        greatest, term = heap[0]
        return term, greatest

    def _known(self, value: int) -> _Unsigned:
        return self._builder.constant(value, max(1, value.bit_length())), value

    def _fitted(self, term: int, width: int) -> int:
        """``term`` modulo 2^width: more zeros on top, or fewer bits."""
        build = self._builder
        if build.width(term) <= width:
            return build.zero_extended(term, width)
        return build.extract(term, 0, width)

    def _aligned(self, number: Number, origin: int, high: int) -> int:
        """The bits of ``number - origin`` in the width of ``high - origin``."""
        width = (high - origin).bit_length()
        if number.term is None:
            return self._builder.constant(number.low - origin, width)
        gap = self._builder.constant(number.origin - origin, width)
        return self._builder.add(self._fitted(number.term, width), gap)

    def _shifted(self, accumulator: Accumulator, steps: Steps, shift: int) -> Number:
        """Bits counted from a multiple of 2^s below the first threshold: the step count is the
        upper bits, clipped."""
        build = self._builder
        count = len(steps.at)
        origin = steps.at[0] - (1 << shift)
        below = max(0, -((accumulator.low - origin) >> shift))
        total = self._total(accumulator, origin - (below << shift))
        assert total.term is not None
        upper = build.width(total.term) - shift
        level = build.extract(total.term, shift, upper)
        greatest = (accumulator.high - total.origin) >> shift
        top = build.constant(count + below, upper)
        if greatest > count + below:
            level = build.ite(build.compare("bvule", level, top), level, top)
        if below:
            floor = build.constant(below, upper)
            level = build.ite(build.compare("bvule", level, floor), floor, level)
            level = build.add(level, build.constant(-below, upper))
        return Number(
            self._fitted(level, count.bit_length()), steps.base, steps.base, steps.base + count
        )

    def _selected(self, number: Number, steps: Steps) -> Number:
        """A binary search over the thresholds, as a tree of choices between levels."""
        build = self._builder
        assert number.term is not None
        bits = build.width(number.term)
        levels = steps.levels()
        width = (levels[-1] - levels[0]).bit_length()
        chosen = [build.constant(level - steps.base, width) for level in levels]
        reached = [
            build.compare("bvule", build.constant(threshold - number.origin, bits), number.term)
            for threshold in steps.at
        ]
        return Number(_search(build, reached, chosen), steps.base, steps.base, levels[-1])


def _search(build: TermBuilder, reached: list[int], chosen: list[int]) -> int:
    """``chosen[#true among reached]`` for conditions that turn false once and stay so."""
    if not reached:
        return chosen[0]
    middle = len(reached) // 2
    return build.ite(
        reached[middle],
        _search(build, reached[middle + 1 :], chosen[middle + 1 :]),
        _search(build, reached[:middle], chosen[: middle + 1]),
    )
