"""What several result sets say about one instance: truth, contradictions, and who decided more.

A contradiction is a sat beside an unsat, between two sets, two runs of one, or a set and the known
truth. At most one of the two is right, whatever else a page shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from bitcrown.harness.tables import is_decided
from bitcrown.report.sets import Identity, ResultRow, ResultSet, Suites, finite_number, identity

_ANSWERS = ("sat", "unsat")


@dataclass(frozen=True)
class Instances:
    """All instances of some sets, in order of appearance, and what is known of them.

    ``answers``: for each instance the row of each set, None where a set lacks it. ``truth``:
    instances whose answer is known, and those that a replayed counterexample of bitcrown decides.
    """

    names: tuple[str, ...]
    answers: Mapping[Identity, tuple[ResultRow | None, ...]]
    expected: Mapping[Identity, str] = field(default_factory=dict)
    limits: Mapping[Identity, float] = field(default_factory=dict)

    def truth(self, instance: Identity) -> str:
        """``sat`` or ``unsat``; empty where nothing says it, or where only claims do that differ.

        Without a known one: bitcrown replays each counterexample on the original file, so its sat
        is one; else what all say who say anything.
        """
        known = self.expected.get(instance, "")
        if known:
            return known
        rows = [row for row in self.answers[instance] if row is not None and is_decided(row)]
        if any(row["result"] == "sat" and "format" in row for row in rows):
            return "sat"
        words = {str(row["result"]) for row in rows}
        return words.pop() if len(words) == 1 else ""

    def categories(self) -> dict[str, list[Identity]]:
        found: dict[str, list[Identity]] = {}
        for instance in self.answers:
            found.setdefault(instance[0], []).append(instance)
        return found


def compared(sets: Sequence[ResultSet], suites: Suites | None = None) -> Instances:
    """The instances of those ``sets`` that have any. A truth or a limit that one of them knows
    holds for all."""
    suites = suites or Suites()
    sets = [found for found in sets if found.rows]
    tables = [found.by_instance() for found in sets]
    order = dict.fromkeys(instance for table in tables for instance in table)
    answers = {instance: tuple(table.get(instance) for table in tables) for instance in order}
    expected = {key: word for key, word in suites.truth.items() if word in _ANSWERS}
    limits = dict(suites.limits)
    for instance, rows in answers.items():
        for row in rows:
            if row is not None and row.get("expected") in _ANSWERS:
                expected.setdefault(instance, str(row["expected"]))
            if row is not None and (limit := finite_number(row.get("timeout"))) is not None:
                limits.setdefault(instance, limit)
    return Instances(tuple(found.name for found in sets), answers, expected, limits)


def with_truth(results: ResultSet, instances: Instances) -> ResultSet:
    """``results`` with what is known of each instance in its row."""
    rows = []
    for row in results.rows:
        one = identity(row)
        known: dict[str, Any] = {"expected": instances.expected.get(one, row.get("expected", ""))}
        if "timeout" not in row and one in instances.limits:
            known["timeout"] = instances.limits[one]
        rows.append({**row, **known})
    return replace(results, rows=tuple(rows))


def instance_words(instance: Identity) -> str:
    category, network, vnnlib = instance
    return f"{category}{': ' if category else ''}{network} with {vnnlib}"


@dataclass(frozen=True)
class Contradiction:
    """``said``: who says what about ``instance``."""

    instance: Identity
    said: str

    def sentence(self) -> str:
        return f"{instance_words(self.instance)}: {self.said}."


def contradictions(sets: Sequence[ResultSet], instances: Instances) -> list[Contradiction]:
    """Each instance with answers that cannot all be right, then runs of one set that differ."""
    found = []
    for instance, rows in instances.answers.items():
        said = [
            f"{name} says {row['result']}"
            for name, row in zip(instances.names, rows, strict=True)
            if row is not None and is_decided(row)
        ]
        words = {str(row["result"]) for row in rows if row is not None and is_decided(row)}
        truth = instances.expected.get(instance, "")
        if truth and words - {truth}:
            found.append(Contradiction(instance, f"{_joined(said)}, but it is known to be {truth}"))
        elif len(words) > 1:
            found.append(Contradiction(instance, f"{_joined(said)}; at most one is right"))
    found += list(_clashes(sets))
    return found


def _clashes(sets: Sequence[ResultSet]) -> Iterator[Contradiction]:
    for results in sets:
        for earlier, later in results.clashes:
            said = f"two runs of {results.name} say {earlier['result']} and {later['result']}"
            yield Contradiction(identity(later), f"{said}; at most one is right")


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class SetPair:
    """Two sets on the instances that both have: how many each decided, alone and both."""

    one: str
    other: str
    common: int
    both: int
    only_one: int
    only_other: int


def pairs(instances: Instances) -> list[SetPair]:
    found = []
    for (a, one), (b, other) in combinations(enumerate(instances.names), 2):
        decided = [
            (_has_answer(rows[a]), _has_answer(rows[b]))
            for rows in instances.answers.values()
            if rows[a] is not None and rows[b] is not None
        ]
        counts = [decided.count(what) for what in ((True, True), (True, False), (False, True))]
        found.append(SetPair(one, other, len(decided), *counts))
    return found


def _has_answer(row: ResultRow | None) -> bool:
    return row is not None and is_decided(row)
