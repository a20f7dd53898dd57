"""Counterexamples as pictures: the middle of the property's box, the counterexample, and what
changed.

Needed are the counterexample that ``bench`` kept and the suite with its files; the picture is shown
where the network has one input that has the shape of an image. Values are drawn over the range of
the whole box, whatever normalisation the network wants; the difference is grey where nothing
changed, and black and white are the largest change. Both points are run once through onnxruntime,
which says the largest output of each.

Legend: ``C`` channels (1 or 3), ``H`` rows, ``W`` columns, ``n`` flat inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.result_file import parse_witness
from bitcrown.errors import BitcrownError
from bitcrown.evaluation.report.png import data_address, levels
from bitcrown.files import find_file
from bitcrown.harness.counterexamples import read_counterexample
from bitcrown.harness.instance import resolve
from bitcrown.report.sets import Identity, ResultRow, ResultSet, Suites, identity
from bitcrown.spec.loading import load_files
from bitcrown.spec.problem import Problem
from bitcrown.spec.rounding import round_down, round_up

MOST_PICTURES = 12
"""Of one set; each family in turn."""
_LEAST_SIDE, _LEAST_FLAT = 4, 16
"""Pixels: sides of what is an image, and of a flat input that may be one."""
_MOST_PIXELS = 1 << 18
_MOST_NETWORK_BYTES = 256 << 20


@dataclass(frozen=True)
class Exhibit:
    """One counterexample; ``said``: of its outputs; ``addresses``: names of pictures and their
    data."""

    instance: Identity
    said: str
    addresses: dict[str, str]


def exhibits(results: ResultSet, suites: Suites) -> list[Exhibit]:
    """At most ``MOST_PICTURES``. Instances whose files are not at hand, or are no images, have
    none."""
    found: list[Exhibit] = []
    for row, home in _in_turn(results):
        if len(found) == MOST_PICTURES:
            break
        folder = suites.folders.get(str(row["category"]))
        text = read_counterexample(home, str(row["counterexample"]))
        if folder is None or text is None:
            continue
        try:
            shown = _exhibit(row, folder, text)
        except BitcrownError:  # a file that is missing or does not fit: no picture, no fault
            continue
        if shown is not None:
            found.append(shown)
    return found


def _in_turn(results: ResultSet) -> Iterator[tuple[ResultRow, Path]]:
    """Rows with a counterexample: the first of each family, then the second of each ..."""
    families: dict[str, list[tuple[ResultRow, Path]]] = {}
    for row, home in zip(results.rows, results.homes, strict=True):
        if row["result"] == "sat" and isinstance(row.get("counterexample"), str):
            families.setdefault(str(row["category"]), []).append((row, home))
    for place in range(max(map(len, families.values()), default=0)):
        yield from (rows[place] for rows in families.values() if place < len(rows))


def _exhibit(row: ResultRow, folder: Path, text: str) -> Exhibit | None:
    network = resolve(str(row["network"]), folder)
    file = find_file(Path(network))
    if file is None or file.stat().st_size > _MOST_NETWORK_BYTES:
        return None
    problem = load_files(network, folder / str(row["vnnlib"]))
    if len(problem.query.networks) != 1 or not problem.cases:
        return None
    replay = RuntimeReplay(problem.query, problem.networks)
    slots = replay.members[0].slots
    view = _image_view(slots[0].shape) if len(slots) == 1 else None
    if view is None:
        return None
    name = problem.query.networks[0].given[0].name
    point = parse_witness(text, problem.query)[name]
    lower, upper = _box(problem, point)
    if not all(np.isfinite(values).all() for values in (point, lower, upper)):
        return None
    middle = lower + (upper - lower) / 2
    outputs = [replay.run(values)[1][0] for values in (middle, point)]
    return Exhibit(
        identity(row),
        _classes(*outputs),
        _addresses(view, middle, point, float(lower.min()), float(upper.max())),
    )


def _box(problem: Problem, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends ``[n]`` of the first box that holds ``point``, or of the first one."""
    ends = None
    seen: set[int] = set()
    for case in problem.cases:
        if id(case.lower) in seen:
            continue
        seen.add(id(case.lower))
        lower = np.array([round_down(value) for value in case.lower])
        upper = np.array([round_up(value) for value in case.upper])
        ends = ends or (lower, upper)
        if bool((lower <= point).all() and (point <= upper).all()):
            return lower, upper
    assert ends is not None
    return ends


def _classes(before: np.ndarray, after: np.ndarray) -> str:
    if len(before) < 2 or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return ""
    old, new = int(before.argmax()), int(after.argmax())
    return f"largest output: {old} in the middle of the box, {new} here"


@dataclass(frozen=True)
class _View:
    """How ``n`` flat values are an image: reshaped, then the axis of channels moved to the
    front."""

    shape: tuple[int, int, int]
    channels: int

    def image(self, values: np.ndarray) -> np.ndarray:
        moved: np.ndarray = np.moveaxis(values.reshape(self.shape), self.channels, 0)
        return moved


def _image_view(shape: Sequence[int]) -> _View | None:
    """What a tensor of this shape shows, if it is one image ``[C, H, W]``, ``[H, W, C]``, ``[H,
    W]``, or flat with a square number of pixels."""
    core = [extent for extent in shape if extent != 1]
    if not 0 < math.prod(shape) <= _MOST_PIXELS:
        return None
    if len(core) == 1:
        for channels in (1, 3):
            side = math.isqrt(core[0] // channels)
            if side >= _LEAST_FLAT and channels * side * side == core[0]:
                return _View((channels, side, side), 0)
        return None
    if len(core) == 2 and min(core) >= _LEAST_SIDE:
        return _View((1, core[0], core[1]), 0)
    if len(core) == 3 and core[0] == 3 and min(core[1:]) >= _LEAST_SIDE:
        return _View((core[0], core[1], core[2]), 0)
    if len(core) == 3 and core[2] == 3 and min(core[:2]) >= _LEAST_SIDE:
        return _View((core[0], core[1], core[2]), 2)
    return None


def _addresses(
    view: _View, middle: np.ndarray, point: np.ndarray, low: float, high: float
) -> dict[str, str]:
    span = high - low or 1.0
    change = point - middle
    peak = float(np.abs(change).max(initial=0.0)) or 1.0
    values: dict[str, Any] = {
        "middle of the box": (middle - low) / span,
        "counterexample": (point - low) / span,
        "difference": 0.5 + change / (2 * peak),
    }
    return {name: data_address(levels(view.image(one))) for name, one in values.items()}
