"""The table of an evaluation: accuracies with confidence intervals, as text and as one record.

An accuracy measured on ``n`` images is an estimate; beside it stands Wilson's 95 % interval for the
share ``p`` among all images of the distribution (``hygiene.confidence_interval``).

A record has what is common to a command, and ``runs``: one for each radius and each rule of
gradients.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitcrown.attacks.images import hygiene
from bitcrown.attacks.images.hygiene import Finding
from bitcrown.attacks.images.suite import SuiteResult
from bitcrown.evaluation.accuracies import BY_SEARCH, OPEN, Evaluator, ImageOutcome
from bitcrown.evaluation.journal import ATTACK, CLEAN
from bitcrown.evaluation.plan import Plan
from bitcrown.evaluation.proving import LEVELS, SEARCH
from bitcrown.provenance import commit, dependency_versions, machine, version

_FORMAT = 2
STANDING = "standing"


@dataclass(frozen=True)
class Share:
    """``count`` of ``total`` images; ``low``/``high``: 95 % interval, all as shares of 1."""

    name: str
    count: int
    total: int

    @property
    def share(self) -> float:
        return self.count / self.total

    def interval(self) -> tuple[float, float]:
        return hygiene.confidence_interval(self.count, self.total)


def shares(
    outcomes: Sequence[ImageOutcome], levels: Sequence[str], has_attack: bool
) -> list[Share]:
    """Columns of the table: a verified one counts what its level or a cheaper one proved.

    ``attack`` counts what the attack left standing; ``standing`` stands beside it where the search
    broke more.
    """
    total = len(outcomes)
    right = [one for one in outcomes if one.is_right]
    result = [Share(CLEAN, len(right), total)]
    for level in levels:
        proved = sum(one.proved_by in LEVELS[: LEVELS.index(level) + 1] for one in right)
        result.append(Share(level, proved, total))
    if has_attack:
        result.append(Share(ATTACK, sum(one.broken_by in ("", BY_SEARCH) for one in right), total))
    if any(one.broken_by == BY_SEARCH for one in right):
        result.append(Share(STANDING, sum(not one.broken_by for one in right), total))
    return result


def run_record(
    evaluator: Evaluator, outcomes: Sequence[ImageOutcome], wall: float
) -> dict[str, Any]:
    """Everything about one finished run (a radius and a rule of gradients), ready for JSON."""
    plan = evaluator.plan
    levels = (SEARCH,) if plan.levels and evaluator.subject.kind == "integer" else plan.levels
    rows = shares(outcomes, levels, plan.has_attack)
    statuses = [one.status for one in outcomes]
    seconds = [one.seconds for one in outcomes if one.is_right and plan.levels]
    return {
        **plan.identity(evaluator.subject.digest),
        "norm": plan.norm,
        "bpda": plan.bpda or None,
        "images": len(outcomes),
        **evaluator.subject.facts(),
        "bounds": list(levels),
        "accuracy": {
            row.name: {"count": row.count, "share": row.share, "interval95": row.interval()}
            for row in rows
        },
        "status": {name: statuses.count(name) for name in sorted(set(statuses))},
        "open_gap": statuses.count(OPEN) / len(outcomes) if plan.levels else None,
        "broken_by": dict(Counter(one.broken_by for one in outcomes if one.broken_by)),
        "proved_by": dict(Counter(one.proved_by for one in outcomes if one.proved_by)),
        "contradictions": [one.image for one in outcomes if one.is_contradiction],
        **(
            suite_record(evaluator.suite, outcomes)
            if evaluator.suite is not None
            else {"warnings": []}
        ),
        "bound_seconds": {"mean": float(np.mean(seconds)), "max": max(seconds)} if seconds else {},
        "wall_s": round(wall, 2),
        "per_image": [{**asdict(one), "status": one.status} for one in outcomes],
    }


def suite_record(suite: SuiteResult, outcomes: Sequence[ImageOutcome]) -> dict[str, Any]:
    """What the suite did, attack by attack, and what its number is worth."""
    findings = [*suite.warnings, *_disagreements(suite, outcomes)]
    return {
        "per_attack": [row._asdict() for row in suite.per_attack],
        "is_batch_dependent": suite.is_batch_dependent,
        "replay": suite.replay._asdict(),
        "statements": list(suite.statements),
        "warnings": [warning_record(finding) for finding in findings],
    }


def warning_record(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "sentence": finding.sentence,
        "measurement": dict(finding.measured),
    }


def _disagreements(suite: SuiteResult, outcomes: Sequence[ImageOutcome]) -> list[Finding]:
    """Where the network that is attacked and the one that judges say different things."""
    found = []
    clean = sum(
        one.is_right != bool(correct)
        for one, correct in zip(outcomes, suite.clean_correct, strict=True)
    )
    if clean:
        sentence = (
            f"{clean} clean images are right for the attacks and wrong for the judge, or the "
            "other way round"
        )
        found.append(Finding("clean-disagreement", sentence, {"images": float(clean)}))
    pairs = zip(outcomes, suite.broken_by, strict=True)
    lost = sum(one.is_right and name is not None and one.broken_by != name for one, name in pairs)
    if lost:
        sentence = (
            f"{lost} adversarial images of the attacks do not break the network that judges; they "
            "do not count"
        )
        found.append(Finding("unconfirmed", sentence, {"images": float(lost)}))
    return found


def document(runs: Sequence[dict[str, Any]], plan: Plan, data: str, wall: float) -> dict[str, Any]:
    """The record of a command: what is common to its runs, the runs, and gaps of rules."""
    for run in runs:
        add_gap_warning(run, runs)
    return {
        "format": _FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": version(),
        "commit": commit(),
        "dependencies": dependency_versions(),
        "settings": plan.settings.as_dict(),
        "machine": machine(),
        "model": plan.label,
        "data": data,
        "contradictions": sorted({image for run in runs for image in run["contradictions"]}),
        "wall_s": round(wall, 2),
        "runs": list(runs),
    }


def add_gap_warning(run: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Compare a run under a BPDA rule with the one that follows the network's own gradients."""
    if not run["bpda"]:
        return
    for plain in runs:
        if not plain["bpda"] and plain["eps"] == run["eps"]:
            counts = (other["accuracy"][ATTACK]["count"] for other in (plain, run))
            gap = hygiene.substitute_gap(run["images"], *counts)
            if gap is not None:
                run["warnings"] = [*run["warnings"], warning_record(gap)]
