"""Integers as bit-vectors: what both arithmetics share.

A ``Number`` is an integer quantity of the network with the range it is known to have. Its value is
``origin`` plus what the bits of ``term`` say (unsigned in ``offset_bits``, two's complement with
origin 0 in ``signed_bits``); a number whose range is one point has no term. ``Arithmetic`` is what
the encoder asks of either way of writing integers.

A ``Steps`` is the part of a staircase that a range can reach: ``base`` at the low end, then
``jumps[k]`` more at each distinct threshold ``at[k]``. Rounding shifts leave a regular trace in it:
thresholds equidistant by a power of two,

    base + #{k < n : a >= t + k 2^s} = clip((a - t + (base + 1) 2^s) >> s, base, base + n),

so that shift-and-clip arithmetic is recognised without knowing which format it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bitcrown.quant.network.affine_rows import passed
from bitcrown.quant.network.graph import Ints


@dataclass(frozen=True, slots=True)
class Number:
    """An integer in ``low .. high``; ``term`` is None exactly when ``low == high``."""

    term: int | None
    origin: int
    low: int
    high: int

    @classmethod
    def of(cls, value: int) -> Number:
        return cls(None, value, value, value)


Parts = Sequence[tuple[Number, int]]
"""(number, coefficient): the summands of a weighted sum."""


@dataclass(frozen=True, slots=True)
class Accumulator:
    """``constant + sum coefficient * number``, known to lie in ``low .. high``."""

    parts: Parts
    constant: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Steps:
    """A staircase over a range: ``base`` + the jumps at the thresholds passed, thresholds strictly
    increasing."""

    base: int
    at: tuple[int, ...]
    jumps: tuple[int, ...]

    def shift(self) -> int | None:
        """``s`` if the thresholds are at least two, 2^s apart, one step each; otherwise None."""
        gaps = {b - a for a, b in zip(self.at, self.at[1:], strict=False)}
        if len(gaps) != 1 or set(self.jumps) != {1}:
            return None
        gap = gaps.pop()
        return gap.bit_length() - 1 if gap & (gap - 1) == 0 else None

    def levels(self) -> list[int]:
        """The values taken, from ``base`` upward: one more than there are thresholds."""
        values = [self.base]
        for jump in self.jumps:
            values.append(values[-1] + jump)
        return values


def reachable_steps(base: int, thresholds: Ints, low: int, high: int) -> Steps:
    """The staircase ``base + #{k: a >= thresholds[k]}`` for ``low <= a <= high``; thresholds: [K],
    nondecreasing."""
    first, last = passed(thresholds, low), passed(thresholds, high)
    at: list[int] = []
    jumps: list[int] = []
    for threshold in thresholds[first:last].tolist():
        if at and at[-1] == threshold:
            jumps[-1] += 1
        else:
            at.append(threshold)
            jumps.append(1)
    return Steps(base + first, tuple(at), tuple(jumps))


class Arithmetic(Protocol):
    """One way of writing integers as bits. Ranges are the caller's promise; overflow is the
    arithmetic's duty."""

    def variable(self, name: str, low: int, high: int) -> tuple[Number, list[int]]:
        """A free integer in ``low .. high``, and the assertions that keep it there."""

    def total(self, accumulator: Accumulator) -> Number:
        """The weighted sum."""

    def staircase(self, accumulator: Accumulator, steps: Steps) -> Number:
        """``steps`` of the weighted sum; there is at least one step, and all are inside the
        range."""

    def larger(self, a: Number, b: Number) -> Number:
        """The maximum; the ranges overlap."""

    def at_most(self, parts: Parts, bound: int) -> int:
        """Bool term: ``sum coefficient * number <= bound``."""
