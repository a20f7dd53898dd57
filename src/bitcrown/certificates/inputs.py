"""The tree over the input box that goes into a certificate: found by the checker's own steps.

A proof over boxes consists of little more than where boxes were split, and the checker bounds and
shrinks every box again. So the tree is searched for with exactly these steps
(``refine`` and ``halves`` of ``check.certificates.floats.steps``), level by level, against limits
that are raised by several times the rounding error: what closes here closes there, in whatever
order sums are formed. Boxes are split where the rows change most, ``|a_i| * width``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.bounds import Bounder, BoxBatch
from bitcrown.check.certificates.floats.format import ArrayStore
from bitcrown.check.certificates.floats.nodes import FloatArray
from bitcrown.check.certificates.floats.property import Group
from bitcrown.check.certificates.floats.steps import halves, refine

_MARGIN = 8.0
"""Rounding errors by which a row has to clear its limit."""


def with_margin(bounder: Bounder, group: Group) -> Group:
    """The group with limits raised by ``_MARGIN`` rounding errors."""
    size = (
        np.abs(group.C) @ bounder.size[bounder.network.output] + np.abs(group.D) @ bounder.size[0]
    )
    return replace(
        group, limit=group.limit + _MARGIN * bounder.gamma * (size + np.abs(group.limit))
    )


def input_tree(
    bounder: Bounder, group: Group, number: int, store: ArrayStore, depth: int
) -> dict[str, Any] | None:
    """A part ``inputs`` for all cases of ``group``; None where time is up, a box cannot be split,
    or ``depth`` is used.

    Raises what the poll of ``bounder`` raises.
    """
    group = with_margin(bounder, group)
    box, open_ = group.box, np.ones((1, len(group.cases)), dtype=bool)
    levels: list[list[int]] = []
    points: list[float] = []
    while len(box.lower):
        influence = np.zeros_like(box.lower)
        box, open_ = refine(bounder, group, box, open_, influence)
        inner = np.nonzero(open_.any(axis=1))[0]
        if len(levels) >= depth and len(inner):
            return None
        axes, where = split_points(BoxBatch(box.lower[inner], box.upper[inner]), influence[inner])
        if (axes < 0).any():
            return None
        level = np.full(len(box.lower), -1)
        level[inner] = axes
        levels.append(level.tolist())
        points += where.tolist()
        box, open_ = halves(box, open_, inner, axes, where)
    return {
        "kind": "inputs",
        "group": number,
        "axes": levels,
        "points": store.put(np.array(points)),
    }


def split_points(box: BoxBatch, influence: FloatArray) -> tuple[Any, FloatArray]:
    """Axis ``[B]`` (-1: none can be halved) and point ``[B]`` to split each box at; points are
    short floats."""
    width = box.upper - box.lower
    middle = 0.5 * box.lower + 0.5 * box.upper
    short = middle.astype(np.float32).astype(np.float64)
    point = np.where((short > box.lower) & (short < box.upper), short, middle)
    can = (point > box.lower) & (point < box.upper)
    score = (influence + 1e-3 * influence.max(axis=1, keepdims=True)) * width + 1e-12 * width
    score = np.where(can, np.nan_to_num(score, nan=0.0), -1.0)
    axis = score.argmax(axis=1)
    rows = np.arange(len(axis))
    return np.where(score[rows, axis] < 0, -1, axis), point[rows, axis]
