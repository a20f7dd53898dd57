"""The competition's score, by the rules of 2025 and of 2026.

An instance gives 10 points for a right answer and takes 150 for a wrong one; anything else gives
none. A family's score is ``100 * points / most points of any tool``, at least 0 (and 0 for all
where nobody has points); the total is the sum over the families. In 2025 an answer counts that
comes within 60 s of the limit, after which the harness ends the script; in 2026 one after the limit
counts as ``timeout``.

Two things are left out because no results file has them: the scorers replay each counterexample
themselves, with a tolerance in 2025 and exactly in 2026, and they compare with all tools of the
year. Here a sat counts as it is said, and the best is the best of the sets that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitcrown.harness.tables import is_decided
from bitcrown.report.comparison import Instances
from bitcrown.report.sets import Identity, ResultRow

SCORING_RULES = (2025, 2026)
_RIGHT, _WRONG = 10, -150
_GRACE_SECONDS = {2025: 60.0, 2026: 0.0}


@dataclass(frozen=True)
class FamilyScore:
    """``points`` and ``percent`` have one entry for each set."""

    family: str
    points: tuple[int, ...]
    percent: tuple[float, ...]


def points_of(row: ResultRow | None, truth: str, limit: float | None, rules: int) -> int:
    """Points of one answer; ``truth`` empty: nobody knows, so no answer is right or wrong."""
    if row is None or not is_decided(row) or not truth:
        return 0
    if limit is not None and float(row["wall_s"]) > limit + _GRACE_SECONDS[rules]:
        return 0
    return _RIGHT if row["result"] == truth else _WRONG


def family_scores(instances: Instances, rules: int) -> list[FamilyScore]:
    """One row for each family, in order of appearance."""
    found = []
    for family, members in instances.categories().items():
        points = _points(instances, members, rules)
        best = max(points, default=0)
        percent = tuple(100 * max(0, one) / best if best > 0 else 0.0 for one in points)
        found.append(FamilyScore(family, points, percent))
    return found


def _points(instances: Instances, members: Sequence[Identity], rules: int) -> tuple[int, ...]:
    sums = [0] * len(instances.names)
    for instance in members:
        truth, limit = instances.truth(instance), instances.limits.get(instance)
        for place, row in enumerate(instances.answers[instance]):
            sums[place] += points_of(row, truth, limit, rules)
    return tuple(sums)


def totals(found: Sequence[FamilyScore], count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Points and score of each of ``count`` sets."""
    points = tuple(sum(one.points[place] for one in found) for place in range(count))
    return points, tuple(sum(one.percent[place] for one in found) for place in range(count))
