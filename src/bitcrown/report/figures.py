"""Where things lie in the drawings of a page; how they look says ``figures.jinja``.

All drawings have the same grid: 460 by 320 units, with letters of 13, so that they can be read at
the width of a telephone. A drawing is a mapping for the template: ``x`` and ``y`` are ticks
``(place, word)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitcrown.harness.tables import is_decided
from bitcrown.report.axes import Axis, axis_over
from bitcrown.report.comparison import Instances, instance_words
from bitcrown.report.sets import ResultRow, ResultSet, finite_number

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 446, 12, 272
_LEAST_SECONDS = 0.1
"""What took less is drawn there: nobody tells such times apart."""
_MOST_POINTS = 400
"""Of a line; more are not seen."""
_STARTING = ("spawn", "start", "probe", "import", "cells", "read")
_COLOURED_PHASES = 6
OTHER_PHASES = "other"

_Drawing = dict[str, Any]


def cactus(sets: Sequence[ResultSet]) -> _Drawing | None:
    """For each set, how many instances were decided within so many seconds each; the number on
    ``x``, the seconds on ``y``."""
    times = [
        sorted(float(row["wall_s"]) for row in found.rows if is_decided(row)) for found in sets
    ]
    most = max((len(seconds) for seconds in times), default=0)
    if not most:
        return None
    x = axis_over([most], _LEFT, _RIGHT)
    y = axis_over([s for seconds in times for s in seconds], _BOTTOM, _TOP, True, _LEAST_SECONDS)
    lines = [
        {
            "set": place,
            "name": found.name,
            "count": len(seconds),
            "points": _polyline(
                [(x.place(number), y.place(s)) for number, s in enumerate(seconds, start=1)]
            ),
            "last": (x.place(len(seconds)), y.place(seconds[-1])) if seconds else None,
        }
        for place, (found, seconds) in enumerate(zip(sets, times, strict=True))
    ]
    return {"x": _whole(x.ticks()), "y": y.ticks(), "lines": lines}


def _whole(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Counts have no ticks between whole numbers."""
    return [(place, word) for place, word in ticks if float(word).is_integer()]


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    stride = max(1, len(points) // _MOST_POINTS)
    kept = [*points[:-1:stride], points[-1]] if points else []
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in kept)


def scatter(instances: Instances, one: int, other: int) -> _Drawing | None:
    """Seconds of two sets on the instances that both have; what a set did not decide stands on its
    outer edge. None where neither decided any."""
    shown = [
        (instance, rows[one], rows[other])
        for instance, rows in instances.answers.items()
        if rows[one] is not None and rows[other] is not None
    ]
    solved = [
        float(row["wall_s"])
        for _, *pair in shown
        for row in pair
        if row is not None and is_decided(row)
    ]
    if not solved:
        return None
    # The last tenth of both axes is for what was not decided.
    edge_x, edge_y = _RIGHT - 26, _TOP + 26
    x = axis_over(solved, _LEFT, edge_x, True, _LEAST_SECONDS)
    y = Axis(x.low, x.high, _BOTTOM, edge_y, True)
    dots = []
    for instance, a, b in shown:
        assert a is not None and b is not None
        if not (is_decided(a) or is_decided(b)):
            continue
        at_x = x.place(float(a["wall_s"])) if is_decided(a) else _RIGHT - 10.0
        at_y = y.place(float(b["wall_s"])) if is_decided(b) else _TOP + 10.0
        both = is_decided(a) and is_decided(b)
        word = a["result"] if is_decided(a) else b["result"]
        kind = "clash" if both and a["result"] != b["result"] else word
        said = f"{instance_words(instance)}: {_said(a)} / {_said(b)}"
        dots.append({"x": at_x, "y": at_y, "kind": kind, "said": said})
    return {
        "one": instances.names[one],
        "other": instances.names[other],
        "x": x.ticks(5),
        "y": y.ticks(5),
        "edge": (edge_x, edge_y),
        "dots": dots,
        "count": len(shown),
    }


def _said(row: ResultRow) -> str:
    return f"{row['result']} {float(row['wall_s']):.2f} s"


def phase_seconds(row: ResultRow) -> dict[str, float]:
    """Seconds of each phase in the order in which they began; those that only start the program are
    one. Empty where the record has none."""
    found: dict[str, float] = {}
    phases = row.get("phases")
    for name, seconds in phases.items() if isinstance(phases, Mapping) else ():
        spent = finite_number(seconds)
        if spent is not None and spent > 0:
            word = "starting" if name in _STARTING else str(name)
            found[word] = found.get(word, 0.0) + spent
    return found


def phase_order(sets: Sequence[ResultSet]) -> list[str]:
    """The phases that have a colour: starting, and those with the most seconds of all."""
    sums: dict[str, float] = {}
    for found in sets:
        for row in found.rows:
            for name, seconds in phase_seconds(row).items():
                sums[name] = sums.get(name, 0.0) + seconds
    first = [name for name in ("starting",) if name in sums]
    rest = sorted((name for name in sums if name not in first), key=lambda name: -sums[name])
    named = [*first, *rest[:_COLOURED_PHASES]]
    return [*named, OTHER_PHASES] if len(rest) > _COLOURED_PHASES else named


def bar(parts: Mapping[str, float], order: Sequence[str], whole: float) -> list[dict[str, Any]]:
    """Pieces of a bar that is ``whole`` seconds (or things) long: widths in percent."""
    pieces = [(order.index(name if name in order else OTHER_PHASES), name) for name in parts]
    return [
        {"place": place, "name": name, "amount": parts[name], "width": 100 * parts[name] / whole}
        for place, name in pieces
        if whole > 0 and parts[name] > 0
    ]


CURVE_WIDTH, CURVE_HEIGHT = 240, 96
_CURVE = (44, 232, 8, 76)


def bound_curve(row: ResultRow) -> _Drawing | None:
    """The worst open bound of a run over its seconds, up to the zero that would do; where a search
    has no such bound, the number of open subproblems."""
    points = _curve_points(row)
    bounds = [(s, worst) for s, worst, _ in points if worst is not None]
    counts = [(s, count) for s, _, count in points if count is not None]
    line, unit = (bounds, "bound") if bounds else (counts, "open")
    if not line:
        return None
    left, right, top, bottom = _CURVE
    x = axis_over([*(s for s, _ in line), float(row["wall_s"])], left, right)
    y = axis_over((value for _, value in line), bottom, top)
    ends = [(y.start, short_number(y.low)), (y.end, short_number(y.high))]
    placed = [(x.place(s), y.place(value)) for s, value in line]
    return {
        "unit": unit,
        "points": _polyline([*placed, (x.end, placed[-1][1])]),
        "zero": y.place(0.0),
        "x": [(x.start, "0"), (x.end, f"{x.high:.3g} s")],
        "y": ends,
        "said": f"{short_number(line[-1][1])} at {line[-1][0]:.1f} s",
    }


def short_number(value: float) -> str:
    """Three digits that tell, and an exponent only where there are many zeros."""
    is_long = value != 0 and not 1e-3 <= abs(value) < 1e6
    return f"{value:.1e}" if is_long else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _curve_points(row: ResultRow) -> list[tuple[float, float | None, float | None]]:
    found = []
    curve = row.get("curve")
    for point in curve if isinstance(curve, list) else ():
        if not (isinstance(point, list | tuple) and len(point) == 3):
            continue
        seconds, worst, count = map(finite_number, point)
        if seconds is not None:
            found.append((seconds, worst, count))
    return found
