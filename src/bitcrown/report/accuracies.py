"""What ``evaluate`` found, as a section of the page: accuracies, and what they are against radius.

The page of ``evaluate --html`` has more (every attack and image, pictures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from bitcrown.errors import RecordError
from bitcrown.evaluation.radii import radius_words
from bitcrown.evaluation.report.curves import AccuracyCurve, accuracy_curves
from bitcrown.report.sets import ResultRow

_STANDING = ("standing", "attack")
"""The column that says what no attack broke; the first one that a run has."""


@contextmanager
def reading_evaluation(record: ResultRow) -> Iterator[None]:
    """What a record of an evaluation lacks becomes a ``RecordError``."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RecordError(
            f"the record of evaluating {record['model']} lacks something, or has it in another "
            f"form: {error!r}; evaluate again with --out"
        ) from error


def evaluations_shown(records: Sequence[ResultRow]) -> dict[str, Any]:
    """Rows of a table, warnings, and one drawing for each norm. Raises ``RecordError``."""
    with reading_evaluation(records[0]):
        return _shown(records)


def _shown(records: Sequence[ResultRow]) -> dict[str, Any]:
    runs = [(str(record["model"]), record, run) for record in records for run in record["runs"]]
    return {
        "rows": [_row(model, record, run) for model, record, run in runs],
        "warnings": [
            f"{model}, {_radius(run)}: {warning.get('sentence', '')}"
            for model, _, run in runs
            for warning in run.get("warnings") or ()
            if isinstance(warning, Mapping)
        ],
        "drawings": _drawings(runs),
    }


def _row(model: str, record: ResultRow, run: Mapping[str, Any]) -> dict[str, Any]:
    attack = run.get("attack")
    status = run["status"]
    return {
        "model": model,
        "data": str(record.get("data", "")),
        "radius": _radius(run),
        "attack": str(attack.get("name", "")) if isinstance(attack, Mapping) else "",
        "rule": str(run.get("bpda") or ""),
        "images": run["images"],
        "clean": _share(run["accuracy"]["clean"]),
        "standing": _share(_standing(run)),
        "proved": status.get("proved", 0) / run["images"] if run.get("bounds") else None,
        "open": status.get("open", 0) / run["images"] if run.get("bounds") else None,
    }


def _radius(run: Mapping[str, Any]) -> str:
    return f"{run['norm']} {radius_words(Fraction(run['eps']))}"


def _standing(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    accuracy = run["accuracy"]
    return next((accuracy[name] for name in _STANDING if name in accuracy), None)


def _share(column: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """A share with the ends of its 95 % interval."""
    if column is None:
        return None
    low, high = column.get("interval95") or (column["share"], column["share"])
    return float(column["share"]), float(low), float(high)


def _drawings(runs: Sequence[tuple[str, ResultRow, Mapping[str, Any]]]) -> list[str]:
    found: list[str] = []
    for norm in dict.fromkeys(str(run["norm"]) for _, _, run in runs):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for model, _, run in runs:
            if run["norm"] == norm and _standing(run) is not None:
                name = f"{model} {run['bpda']}" if run.get("bpda") else model
                groups.setdefault(name, []).append(run)
        if groups:
            curves = [_curve(name, group) for name, group in groups.items()]
            found.append(accuracy_curves(curves, norm))
    return found


def _curve(name: str, runs: Sequence[Mapping[str, Any]]) -> AccuracyCurve:
    """From radius 0 on, where nothing can be attacked and being right is the proof."""
    ordered = sorted(runs, key=lambda run: Fraction(run["eps"]))
    clean = float(ordered[0]["accuracy"]["clean"]["share"])
    is_bounded = bool(ordered[0].get("bounds"))
    points: list[tuple[float, float, float | None]] = [(0.0, clean, clean if is_bounded else None)]
    for run in ordered:
        column = _standing(run)
        assert column is not None
        proved = run["status"].get("proved", 0) / run["images"] if run.get("bounds") else None
        points.append((float(Fraction(run["eps"])), float(column["share"]), proved))
    radii, attacked, verified = zip(*points, strict=True)
    return AccuracyCurve(name, radii, attacked, verified)
