"""The page: one file without scripts or anything from outside, whatever the records say.

Here are the numbers and words of each section; how they look is in ``page.html.jinja``,
``figures.jinja`` and ``style.css``. Everything that comes from a record is text and is escaped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bitcrown.evaluation.report.templates import filled
from bitcrown.harness.tables import is_decided, is_known, is_wrong, readable
from bitcrown.provenance import version
from bitcrown.report import figures
from bitcrown.report.accuracies import evaluations_shown
from bitcrown.report.comparison import Instances, contradictions, instance_words, pairs
from bitcrown.report.gallery import Exhibit
from bitcrown.report.score import SCORING_RULES, family_scores, totals
from bitcrown.report.sets import Identity, ResultRow, ResultSet, finite_number, identity

VERDICTS = ("unsat", "sat", "timeout", "unknown", "error")
_MOST_OPEN = 60
"""Open instances with a card of their own; more are a number."""
_MOST_SLOW = 16
_MOST_SCATTERS = 5
_FACTS = ("version", "commit", "machine", "settings", "seed")


@dataclass(frozen=True)
class Shown:
    """What a page is made of. ``sets`` have the truth and the limit in their rows; ``pictures``
    one list for each of them."""

    sets: Sequence[ResultSet]
    instances: Instances
    pictures: Sequence[Sequence[Exhibit]] = ()


def html_page(shown: Shown) -> str:
    """The whole page."""
    sets, instances = shown.sets, shown.instances
    bench = [found for found in sets if found.rows]
    anchors = {instance: f"i{place}" for place, instance in enumerate(instances.answers)}
    order = figures.phase_order(bench)
    return filled(
        "page.html.jinja",
        package=__package__,
        title=f"bitcrown report: {', '.join(found.name for found in sets)}",
        heading=" · ".join(found.name for found in sets),
        names=instances.names,
        instances=len(instances.answers),
        version=version(),
        alarms=_alarms(sets, instances, anchors),
        notes=_notes(sets, instances),
        totals=[_total(found, instances) for found in sets if found.rows],
        verdicts=VERDICTS,
        pairs=pairs(instances),
        cactus=figures.cactus(bench),
        scatters=_scatters(instances),
        scores=_scores(instances) if bench else None,
        families=_families(instances, anchors),
        phase_names=order,
        phases=[_phases(found, order) for found in bench if order],
        slow=_slow(bench, order, anchors),
        open=_open(bench, anchors),
        galleries=_galleries(shown, anchors),
        evaluations=[
            {"name": found.name, "shown": evaluations_shown(found.evaluations)}
            for found in sets
            if found.evaluations
        ],
        facts=_facts(sets, instances.names),
        is_single=len(sets) == 1,
    )


def word_of_row(row: ResultRow) -> str:
    """One of ``VERDICTS``."""
    return str(row["result"]) if row["result"] in VERDICTS else "error"


# ---- The top


def _alarms(
    sets: Sequence[ResultSet], instances: Instances, anchors: Mapping[Identity, str]
) -> list[dict[str, str]]:
    found = [
        {"sentence": one.sentence(), "anchor": anchors.get(one.instance, "")}
        for one in contradictions(sets, instances)
    ]
    for results in sets:
        for record in results.evaluations:
            images = record.get("contradictions")
            for image in images if isinstance(images, list) else ():
                said = f"{record['model']} ({results.name}): image {image} is broken and proved."
                found.append({"sentence": said, "anchor": ""})
    return found


def _notes(sets: Sequence[ResultSet], instances: Instances) -> list[str]:
    said = []
    for found in sets:
        here, everywhere = len(found.by_instance()), len(instances.answers)
        if 0 < here < everywhere:
            said.append(
                f"{found.name} has {here} of the {everywhere} instances; those that it lacks give "
                "it no points."
            )
        if found.repeated:
            said.append(
                f"{found.name}: {found.repeated} results are of instances that were run again "
                "later; the last run of each counts, once."
            )
        twice = len(found.rows) - len(found.by_instance())
        if twice:
            said.append(
                f"{found.name}: {twice} single runs are of instances that are there more than "
                "once; each counts in its totals, and the last one in comparisons."
            )
    return said


def _total(found: ResultSet, instances: Instances) -> dict[str, Any]:
    words = [word_of_row(row) for row in found.rows]
    counts = {word: words.count(word) for word in VERDICTS}
    known = [row for row in found.rows if is_known(row)]
    seconds = [float(row["wall_s"]) for row in found.rows if is_decided(row)]
    return {
        "place": instances.names.index(found.name),
        "name": found.name,
        "count": len(found.rows),
        "counts": counts,
        "bar": figures.bar(counts, VERDICTS, float(len(found.rows))),
        "decided": counts["sat"] + counts["unsat"],
        "known": len(known),
        "decided_known": sum(is_decided(row) for row in known),
        "wrong": sum(is_wrong(row) for row in found.rows),
        "median": statistics.median(seconds) if seconds else None,
        "sum": sum(float(row["wall_s"]) for row in found.rows),
    }


def _scatters(instances: Instances) -> list[dict[str, Any]]:
    """The first set beside each other one."""
    drawn = (figures.scatter(instances, 0, place) for place in range(1, len(instances.names)))
    return [drawing for drawing in drawn if drawing is not None][:_MOST_SCATTERS]


# ---- Families and scores


def _scores(instances: Instances) -> list[dict[str, Any]]:
    found = []
    for rules in SCORING_RULES:
        points, sums = totals(family_scores(instances, rules), len(instances.names))
        found.append({"rules": rules, "points": points, "sums": sums})
    return found


def _families(instances: Instances, anchors: Mapping[Identity, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": family,
            "count": len(members),
            "cells": [
                _cell([instances.answers[one][place] for one in members])
                for place in range(len(instances.names))
            ],
            "rows": [_instance_row(instances, one, anchors[one]) for one in members],
        }
        for family, members in instances.categories().items()
    ]


def _cell(rows: Iterable[ResultRow | None]) -> dict[str, Any]:
    there = [row for row in rows if row is not None]
    seconds = [float(row["wall_s"]) for row in there if is_decided(row)]
    return {
        "count": len(there),
        "decided": len(seconds),
        "wrong": sum(is_wrong(row) for row in there),
        "median": statistics.median(seconds) if seconds else None,
    }


def _instance_row(instances: Instances, instance: Identity, anchor: str) -> dict[str, Any]:
    rows = instances.answers[instance]
    return {
        "anchor": anchor,
        "network": instance[1],
        "property": instance[2],
        "expected": instances.expected.get(instance, ""),
        "limit": instances.limits.get(instance),
        "answers": [
            None
            if row is None
            else {
                "word": str(row["result"]),
                "kind": word_of_row(row),
                "seconds": float(row["wall_s"]),
                "is_wrong": is_wrong(row),
                "by": str(row.get("decided_by") or ""),
                "why": str(row.get("reason") or "")[:200],
            }
            for row in rows
        ],
    }


# ---- Where the time went


def _phases(found: ResultSet, order: Sequence[str]) -> dict[str, Any]:
    """Seconds of each phase by family, the longest family over the whole width."""
    sums: dict[str, dict[str, float]] = {}
    for row in found.rows:
        parts = sums.setdefault(str(row["category"]), {})
        for name, seconds in figures.phase_seconds(row).items():
            word = name if name in order else figures.OTHER_PHASES
            parts[word] = parts.get(word, 0.0) + seconds
    longest = max((sum(parts.values()) for parts in sums.values()), default=0.0)
    families = [
        {
            "name": name,
            "seconds": sum(parts.values()),
            "bar": figures.bar(_ordered(parts, order), order, longest),
        }
        for name, parts in sums.items()
        if parts
    ]
    return {"name": found.name, "families": families}


def _ordered(parts: Mapping[str, float], order: Sequence[str]) -> dict[str, float]:
    return {name: parts[name] for name in order if name in parts}


def _slow(
    sets: Sequence[ResultSet], order: Sequence[str], anchors: Mapping[Identity, str]
) -> dict[str, Any]:
    """The instances that took longest, phase after phase, over one axis of seconds."""
    rows = [(found.name, row) for found in sets for row in found.rows if row.get("phases")]
    rows.sort(key=lambda pair: -float(pair[1]["wall_s"]))
    rows = rows[:_MOST_SLOW]
    parts = [figures.phase_seconds(row) for _, row in rows]
    longest = max((max(sum(p.values()), float(row["wall_s"])) for p, (_, row) in
                   zip(parts, rows, strict=True)), default=0.0)  # fmt: skip
    return {
        "longest": longest,
        "rows": [
            {
                "words": f"{name}: {instance_words(identity(row))}",
                "short": _short(identity(row)),
                "anchor": anchors[identity(row)],
                "kind": word_of_row(row),
                "seconds": float(row["wall_s"]),
                "bar": figures.bar(spent, order, longest),
            }
            for spent, (name, row) in zip(parts, rows, strict=True)
        ],
    }


def _short(instance: Identity) -> str:
    """Family and property without folders, for where the whole name stands beside it."""
    category, _, vnnlib = instance
    return f"{category} {PurePosixPath(vnnlib).name.removesuffix('.vnnlib')}".strip()


# ---- What is open, and what was found


def _open(sets: Sequence[ResultSet], anchors: Mapping[Identity, str]) -> list[dict[str, Any]]:
    found = []
    for results in sets:
        rows = [
            row
            for row in results.rows
            if not is_decided(row) and (row.get("counters") or row.get("progress"))
        ]
        # In each family, what lacks least comes first.
        rows.sort(key=lambda row: (row["category"], -(_known(row, "worst") or -math.inf)))
        cards = [_open_card(row, anchors) for row in rows]
        if cards:
            more = max(0, len(cards) - _MOST_OPEN)
            found.append({"name": results.name, "cards": cards[:_MOST_OPEN], "more": more})
    return found


def _known(row: ResultRow, *names: str) -> float | None:
    """The first of the numbers ``names`` that a run told of itself, its last phase before all."""
    progress = row.get("progress")
    facts = progress.get("facts") if isinstance(progress, Mapping) else None
    for told in (facts, row.get("counters")):
        for name in names:
            number = finite_number(told.get(name)) if isinstance(told, Mapping) else None
            if number is not None:
                return number
    return None


def _open_card(row: ResultRow, anchors: Mapping[Identity, str]) -> dict[str, Any]:
    progress, one = row.get("progress"), identity(row)
    worst = _known(row, "worst")
    return {
        "category": one[0],
        "network": one[1],
        "property": one[2],
        "anchor": anchors[one],
        "word": str(row["result"]),
        "kind": word_of_row(row),
        "seconds": float(row["wall_s"]),
        "phase": str(progress.get("phase", "")) if isinstance(progress, Mapping) else "",
        "worst": None if worst is None else figures.short_number(worst),
        "open": _known(row, "open", "left", "boxes_left"),
        "bounded": _known(row, "domains", "boxes", "boxes_bounded"),
        "curve": figures.bound_curve(row),
    }


def _galleries(shown: Shown, anchors: Mapping[Identity, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": found.name,
            "pictures": [
                {
                    "short": _short(one.instance),
                    "words": instance_words(one.instance),
                    "said": one.said,
                    "addresses": one.addresses,
                    "anchor": anchors[one.instance],
                }
                for one in pictures
            ],
        }
        for found, pictures in zip(shown.sets, shown.pictures, strict=False)
        if pictures
    ]


def _facts(sets: Sequence[ResultSet], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each set, what its records say of program and machine: each distinct value once."""
    found = []
    for results in sets:
        records = [*results.rows, *results.evaluations]
        values = {
            name: list(
                dict.fromkeys(
                    readable(one[name]) for one in records if one.get(name) not in (None, "")
                )
            )
            for name in _FACTS
        }
        limits = dict.fromkeys(finite_number(row.get("timeout")) for row in results.rows)
        times = sorted(str(one["time"]) for one in records if isinstance(one.get("time"), str))
        found.append(
            {
                "name": results.name,
                "place": names.index(results.name) if results.name in names else None,
                "values": values,
                "limits": sorted(limit for limit in limits if limit is not None),
                "times": (times[0], times[-1]) if times else None,
            }
        )
    return found
