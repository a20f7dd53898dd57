"""How the worst open bound moved while an instance ran: a short curve, whatever the run's length.

Searches report thousands of times. Kept are at most ``_MOST`` points at equal distances: when they
are full, every second one goes and the distance doubles. The first point and the latest one are
always there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST = 48
_OPEN = ("open", "left")
"""What searches call the number of open subproblems."""

_Point = tuple[float, float | None, int | None]


class BoundCurve:
    """Points ``(seconds, worst bound or None, open subproblems or None)``, in order of time."""

    def __init__(self) -> None:
        self._kept: list[_Point] = []
        self._latest: _Point | None = None
        self._gap = 0.0

    def add(self, seconds: float, facts: Mapping[str, Any]) -> None:
        """Facts of a phase at ``seconds``; those without a bound or a count say nothing here."""
        worst, count = facts.get("worst"), next((facts[k] for k in _OPEN if k in facts), None)
        is_bound = isinstance(worst, float) and math.isfinite(worst)
        is_count = isinstance(count, int) and count >= 0
        if not (is_bound or is_count) or not math.isfinite(seconds):
            return
        point = round(seconds, 3), worst if is_bound else None, count if is_count else None
        self._latest = point
        if self._kept and seconds < self._kept[-1][0] + self._gap:
            return
        self._kept.append(point)
        if len(self._kept) >= _MOST:
            self._gap = max(2 * self._gap, 2 * (seconds - self._kept[0][0]) / _MOST)
            self._kept = self._kept[::2]

    def points(self) -> list[_Point]:
        if self._latest is None or self._latest == self._kept[-1]:
            return list(self._kept)
        return [*self._kept, self._latest]
