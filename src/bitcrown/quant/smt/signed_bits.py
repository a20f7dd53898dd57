"""Published arithmetic: two's complement, products by constants, balanced sums, arithmetic shift,
clip.

"How Many Bits Does it Take to Quantize Your Neural Network?" (Giacobbe, Henzinger, Lechner, TACAS
2020) writes every neuron as the hardware computes it: products of full width, a *balanced* tree of
additions, a rounding shift and a clip. "Scalable Verification of Quantized Neural Networks"
(Henzinger, Lechner, Zikelic, AAAI 2021, arXiv 2012.08185) adds three reductions from an interval
analysis of the box: *dead branches* of a clip are removed, every variable gets its *minimal number
of bits*, and *redundant multiplications* are avoided: products of one neuron by c and by c 2^k
differ by a shift. ``is_reduced`` says whether the three are applied; the encoder then also chooses
the box (and not the whole input format) as the source of ranges. Rounded, shifted and clipped is
what ``Steps.shift`` recognises: clip((a + r) >> s, base, base + n) with r = (base + 1) 2^s - t.
"""

from __future__ import annotations

from bitcrown.quant.smt.integer_bits import Accumulator, Number, Parts, Steps
from bitcrown.quant.smt.terms import TermBuilder

_Ranged = tuple[int, int, int]
"""(term, low, high): a two's complement bit-vector and its range."""


def _signed_width(low: int, high: int) -> int:
    """The fewest bits in which two's complement holds ``low`` and ``high``."""
    return (
        max((low if low >= 0 else ~low).bit_length(), (high if high >= 0 else ~high).bit_length())
        + 1
    )


class SignedArithmetic:
    """See the module; ``builder`` collects the terms. Numbers have origin 0."""

    def __init__(self, builder: TermBuilder, is_reduced: bool) -> None:
        self._builder = builder
        self._is_reduced = is_reduced

    def variable(self, name: str, low: int, high: int) -> tuple[Number, list[int]]:
        build = self._builder
        width = _signed_width(low, high)
        term = build.variable(name, width)
        limits = [
            build.compare("bvsle", build.constant(low, width), term),
            build.compare("bvsle", term, build.constant(high, width)),
        ]
        return Number(term, 0, low, high), limits

    def total(self, accumulator: Accumulator) -> Number:
        width = _signed_width(accumulator.low, accumulator.high)
        summands = self._products(accumulator.parts, accumulator.constant, width)
        return Number(
            self._fitted(self._sum(summands, width), width), 0, accumulator.low, accumulator.high
        )

    def staircase(self, accumulator: Accumulator, steps: Steps) -> Number:
        shift = steps.shift()
        levels = steps.levels()
        low, high = levels[0], levels[-1]
        if shift is None:
            return Number(self._compared(self.total(accumulator), steps, levels), 0, low, high)
        build = self._builder
        rounding = ((steps.base + 1) << shift) - steps.at[0]
        least, greatest = accumulator.low + rounding, accumulator.high + rounding
        rounded = Accumulator(accumulator.parts, accumulator.constant + rounding, least, greatest)
        total = self.total(rounded)
        assert total.term is not None
        level = build.extract(total.term, shift, build.width(total.term) - shift)
        width = max(build.width(level), _signed_width(low, high))
        level = build.sign_extended(level, width)
        if greatest >> shift > high or not self._is_reduced:
            top = build.constant(high, width)
            level = build.ite(build.compare("bvsle", level, top), level, top)
        if least >> shift < low or not self._is_reduced:
            floor = build.constant(low, width)
            level = build.ite(build.compare("bvsle", floor, level), level, floor)
        return Number(self._fitted(level, _signed_width(low, high)), 0, low, high)

    def larger(self, a: Number, b: Number) -> Number:
        build = self._builder
        low, high = max(a.low, b.low), max(a.high, b.high)
        width = _signed_width(min(a.low, b.low), high)
        left, right = self._written(a, width), self._written(b, width)
        chosen = build.ite(build.compare("bvsle", left, right), right, left)
        return Number(self._fitted(chosen, _signed_width(low, high)), 0, low, high)

    def at_most(self, parts: Parts, bound: int) -> int:
        build = self._builder
        least = greatest = 0
        for number, factor in parts:
            ends = factor * number.low, factor * number.high
            least += min(ends)
            greatest += max(ends)
        width = _signed_width(min(least, bound), max(greatest, bound))
        total = self._fitted(self._sum(self._products(parts, 0, width), width), width)
        return build.compare("bvsle", total, build.constant(bound, width))

    def _products(self, parts: Parts, constant: int, width: int) -> list[_Ranged]:
        """The summands; not reduced, every one already has the width of the sum."""
        build = self._builder
        summands: list[_Ranged] = []
        for number, factor in parts:
            if number.term is None:
                constant += factor * number.low
                continue
            ends = sorted((factor * number.low, factor * number.high))
            if self._is_reduced:
                term = self._shared_product(number, factor)
            else:
                term = build.mul(self._written(number, width), build.constant(factor, width))
            summands.append((term, ends[0], ends[1]))
        summands.append(
            (
                build.constant(constant, self._chosen_width(constant, constant, width)),
                constant,
                constant,
            )
        )
        return summands

    def _shared_product(self, number: Number, factor: int) -> int:
        """``+- odd * 2^k * number``: the product by the odd part is built once for every weight
        that has it."""
        build = self._builder
        magnitude = abs(factor)
        twos = (magnitude & -magnitude).bit_length() - 1
        odd = magnitude >> twos
        term = self._written(number, _signed_width(number.low, number.high))
        if odd > 1:
            width = _signed_width(odd * number.low, odd * number.high)
            term = build.mul(self._fitted(term, width), build.constant(odd, width))
        term = build.shifted(term, twos)
        if factor > 0:
            return term
        width = max(
            build.width(term), _signed_width(-magnitude * number.high, -magnitude * number.low)
        )
        return build.negate(self._fitted(term, width))

    def _sum(self, summands: list[_Ranged], limit: int) -> int:
        """A balanced tree in the given order."""
        build = self._builder
        while len(summands) > 1:
            paired: list[_Ranged] = []
            for (a, a_low, a_high), (b, b_low, b_high) in zip(
                summands[::2], summands[1::2], strict=False
            ):
                low, high = a_low + b_low, a_high + b_high
                width = self._chosen_width(low, high, limit)
                paired.append(
                    (build.add(self._fitted(a, width), self._fitted(b, width)), low, high)
                )
            summands = paired + summands[len(summands) & ~1 :]
        return summands[0][0]

    def _chosen_width(self, low: int, high: int, limit: int) -> int:
        return min(limit, _signed_width(low, high)) if self._is_reduced else limit

    def _written(self, number: Number, width: int) -> int:
        if number.term is None:
            return self._builder.constant(number.low, width)
        return self._fitted(number.term, width)

    def _fitted(self, term: int, width: int) -> int:
        """More copies of the sign, or fewer bits where the range allows it or arithmetic is modulo
        2^width anyway."""
        build = self._builder
        if build.width(term) <= width:
            return build.sign_extended(term, width)
        return build.extract(term, 0, width)

    def _compared(self, number: Number, steps: Steps, levels: list[int]) -> int:
        """Threshold by threshold, the highest one passed decides."""
        build = self._builder
        assert number.term is not None
        bits = build.width(number.term)
        width = _signed_width(levels[0], levels[-1])
        chosen = build.constant(levels[0], width)
        for threshold, level in zip(steps.at, levels[1:], strict=True):
            passed = build.compare("bvsle", build.constant(threshold, bits), number.term)
            chosen = build.ite(passed, build.constant(level, width), chosen)
        return chosen
