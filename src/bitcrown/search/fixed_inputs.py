"""Inputs of whole numbers that every case of a problem fixes to one value."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import inward_box
from bitcrown.spec.problem import Case, Problem

_EXACT = 2.0**52
"""Up to here float64 holds whole numbers and their neighbours."""
_MOST_BOXES = 1000


def fixed_inputs(problem: Problem, replay: RuntimeReplay) -> dict[str, dict[str, np.ndarray]]:
    """Values by the names of network and input. Of networks with one input there are none: fixing
    it leaves nothing to ask."""
    found: dict[str, dict[str, np.ndarray]] = {}
    start = 0
    boxes: list[Case] | None = None
    for network, slots in replay.slots().items():
        places = np.cumsum([start, *(math.prod(slot.shape) for slot in slots)]).tolist()
        start = places[-1]
        for slot, (first, end) in zip(slots, pairwise(places), strict=True):
            if len(slots) == 1 or not issubclass(slot.dtype, np.integer | np.bool_):
                continue
            boxes = _boxes(problem) if boxes is None else boxes
            value = _common_value(boxes, first, end, slot.dtype)
            if value is not None:
                found.setdefault(network, {})[slot.name] = value.reshape(slot.shape)
    return found


def _boxes(problem: Problem) -> list[Case]:
    """One case for each box; none where there are many."""
    found: dict[tuple[int, int], Case] = {}
    for case in problem.cases:
        found[id(case.lower), id(case.upper)] = case
        if len(found) > _MOST_BOXES:
            return []
    return list(found.values())


def _common_value(
    boxes: list[Case], first: int, end: int, dtype: type[np.generic]
) -> np.ndarray | None:
    """The only value of inputs ``first`` to ``end`` in all ``boxes``, if there is one."""
    kinds = np.empty(end - first, dtype=object)
    kinds[:] = [dtype] * (end - first)
    values: list[np.ndarray] = []
    for case in boxes:
        lower, upper = ([side[i] for i in range(first, end)] for side in (case.lower, case.upper))
        low, high, is_off = inward_box(lower, upper, kinds)
        if is_off.any() or (low != high).any() or (np.abs(low) > _EXACT).any():
            return None
        values.append(low)
    is_one = bool(values) and all(np.array_equal(value, values[0]) for value in values)
    return values[0].astype(dtype) if is_one else None
