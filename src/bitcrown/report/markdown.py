"""The same as text: a Markdown table for each set, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from bitcrown.harness.tables import markdown
from bitcrown.report.accuracies import reading_evaluation
from bitcrown.report.comparison import Instances, contradictions, pairs
from bitcrown.report.score import SCORING_RULES, family_scores, totals
from bitcrown.report.sets import ResultRow, ResultSet


def markdown_report(sets: Sequence[ResultSet], instances: Instances) -> str:
    """One set: its table. Several: contradictions first, a table each, then scores and pairs."""
    parts = [_alarms(sets, instances)]
    for found in sets:
        heading = f"## {found.name}\n\n" if len(sets) > 1 else ""
        shown = [markdown(found.rows)] if found.rows else []
        shown += [_evaluation(record) for record in found.evaluations]
        parts.append(heading + "\n".join(shown))
    if len(instances.names) > 1:
        parts += [_scores(instances), _pairs(instances)]
    return "\n".join(part for part in parts if part)


def _evaluation(record: ResultRow) -> str:
    from bitcrown.evaluation.report.tables import tables  # takes seconds, and few need it

    with reading_evaluation(record):
        return tables(record)


def _alarms(sets: Sequence[ResultSet], instances: Instances) -> str:
    found = contradictions(sets, instances) if len(sets) > 1 or sets[0].clashes else []
    lines = [f"* {one.sentence()}" for one in found]
    return "\n".join(["**Contradictions:**", "", *lines, ""]) if lines else ""


def _scores(instances: Instances) -> str:
    header = ["Score, best of these sets 100 a family", *instances.names]
    rows = []
    for rules in SCORING_RULES:
        points, sums = totals(family_scores(instances, rules), len(instances.names))
        pairs_ = zip(sums, points, strict=True)
        rows.append(
            [f"rules of {rules}", *(f"{one:.1f} ({count} points)" for one, count in pairs_)]
        )
    return _table([header, *rows])


def _pairs(instances: Instances) -> str:
    header = ["Compared", "both have", "both decided", "only the first", "only the second"]
    rows = []
    for pair in pairs(instances):
        numbers = (pair.common, pair.both, pair.only_one, pair.only_other)
        rows.append([f"{pair.one} and {pair.other}", *map(str, numbers)])
    return _table([header, *rows])


def _table(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    ruler = "|---|" + "---:|" * (len(lines[0]) - 1)
    return "\n".join([header, ruler, *rows]) + "\n"
