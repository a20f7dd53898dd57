"""Axes of a drawing: numbers to places, and the few numbers that are written beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0)
_GREATEST_POWER = 307


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` lie between the places ``start`` and ``end``; what lies
    outside is put on the nearer end, and NaN on ``start``."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        if not value > self.low:
            return self.start
        if value >= self.high:
            return self.end
        share = self._of(value, self.low) / self._of(self.high, self.low)
        return self.start + (self.end - self.start) * share

    def _of(self, value: float, low: float) -> float:
        return math.log(value / low) if self.is_log else value - low

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Places and words of at most ``most`` round numbers on the axis."""
        values = _powers(self.low, self.high, most) if self.is_log else self._rounds(most)
        return [(self.place(value), f"{value:g}") for value in values]

    def _rounds(self, most: int) -> list[float]:
        width = self.high - self.low
        raw = width / max(1, most - 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((k * power for k in _STEPS if k * power >= raw), 10 * power)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _powers(low: float, high: float, most: int) -> list[float]:
    """1, 2, 5, 10 ... between ``low`` and ``high``; powers of ten, or every second one, every
    fourth ..., where these are too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors: tuple[float, ...] = _STEPS
    stride = 1
    while True:
        powers = range(first, min(last, _GREATEST_POWER) + 1, stride)
        numbers = [factor * 10.0**power for power in powers for factor in factors]
        found = [one for one in numbers if low <= one * 1.0001 and one <= high * 1.0001]
        if len(found) <= most:
            return found
        factors, stride = (1.0,), stride * 2 if len(factors) == 1 else 1


def axis_over(
    values: Iterable[float], start: float, end: float, is_log: bool = False, floor: float = 0.0
) -> Axis:
    """An axis that holds all finite ``values``: from ``floor``, or from a round number below them
    where it is logarithmic. ``floor`` is then the least value that is told apart."""
    finite = [value for value in values if math.isfinite(value)]
    if not is_log:
        low, high = min([floor, *finite]), max([floor, *finite])
        return Axis(low, high if high > low else low + 1.0, start, end)
    low = max(min(finite, default=floor), floor)
    high = max(max(finite, default=low), low)
    low = 10.0 ** math.floor(math.log10(low) + 1e-9)
    return Axis(low, high if high > low else 10 * low, start, end, True)
