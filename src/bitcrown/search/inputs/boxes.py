"""Open boxes of the input split, and the rows that each of them still has to exclude.

Legend: ``B`` boxes, ``G`` root boxes, ``Q`` cases of a root box, ``S`` rows of a case, ``R``
different rows of a root box, ``n`` inputs, ``m`` outputs, ``N`` entries of all tensors that a
nonlinear node reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from bitcrown.model.execute import Network
from bitcrown.search.objective import Objective


@dataclass
class Boxes:
    """Open boxes with what they inherit from the boxes that they were cut from.

    ``lower``/``upper [B, n]``; ``group [B]``: which root box; ``open [B, Q]``: cases not excluded;
    ``mass [B]``: the share of its part that a box stands for: halved by every split, and not
    changed by clipping; ``least [B]``: the least, over open cases, of what the best row proved on
    the parent (not positive); ``region [B]``: which attempt it belongs to (see ``parts``);
    ``known_lower``/``known_upper [B, N]``: bounds of inner tensors that hold on the parent, in wide
    networks their signs alone (``wide.signs_known``).
    """

    lower: Tensor
    upper: Tensor
    group: Tensor
    open: Tensor
    mass: Tensor
    least: Tensor
    region: Tensor
    known_lower: Tensor
    known_upper: Tensor

    def __len__(self) -> int:
        return int(self.lower.shape[0])

    def select(self, index: Tensor) -> Boxes:
        return Boxes(*(getattr(self, field.name)[index] for field in fields(self)))


def joined_boxes(parts: Sequence[Boxes]) -> Boxes:
    """All boxes in order; ``parts`` is not empty."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Boxes))
    return Boxes(*(torch.cat(column) for column in columns))


def distinct_boxes(boxes: Boxes) -> tuple[Tensor, Tensor]:
    """The first of each kind of equal boxes with equal cases, ``[U]``, and the kind of every box,
    ``[B]``."""
    columns = [boxes.lower, boxes.upper, boxes.group.unsqueeze(1), boxes.open]
    _, kind = torch.unique(
        torch.cat([part.to(boxes.lower.dtype) for part in columns], dim=1),
        dim=0,
        return_inverse=True,
    )
    place = torch.arange(len(boxes), device=kind.device)
    first = place.new_full((len(boxes),), len(boxes)).scatter_reduce(0, kind, place, "amin")
    return first[first != len(boxes)], kind


def can_be_halved(boxes: Boxes) -> Tensor:
    """``[B, n]``: whether a float lies between the ends; the middle never lies outside."""
    middle = (boxes.lower + boxes.upper) / 2
    return (middle != boxes.lower) & (middle != boxes.upper) & torch.isfinite(middle)


def halves_of(boxes: Boxes, axis: Tensor) -> Boxes:
    """``[2 B]``: the two halves of each box next to each other."""
    index = torch.arange(len(boxes), device=axis.device)
    middle = ((boxes.lower + boxes.upper) / 2)[index, axis]
    both = boxes.select(index.repeat_interleave(2))
    both.upper[2 * index, axis] = middle
    both.lower[2 * index + 1, axis] = middle
    return replace(both, mass=both.mass / 2)


class GroupedRows:
    """Rows of all cases, grouped by root box.

    Cases share rows, which are bounded once: ``C [G, R, m]`` and ``D [G, R, n]`` (or None) are the
    different rows of a group, and row ``s`` of case ``q`` is number ``place [G, Q, S]`` with the
    limit ``rhs [G, Q, S]`` (``inf`` in padding rows, which exclude nothing). ``used [G, Q]`` says
    which places hold a case; ``lower``/``upper [G, n]``.
    """

    def __init__(self, objective: Objective, cases: np.ndarray, network: Network) -> None:
        boxes, group_of = np.unique(objective.box[cases], return_inverse=True)
        counts = np.bincount(group_of, minlength=len(boxes))
        depth, width = objective.C.shape[1], int(counts.max())
        place = np.zeros(len(cases), dtype=np.int64)
        place[np.argsort(group_of, kind="stable")] = _number_within(np.sort(group_of))
        c = np.zeros((len(boxes), width, depth, objective.C.shape[2]))
        c[group_of, place] = objective.C[cases]
        rhs = np.full((len(boxes), width, depth), np.inf)
        rhs[group_of, place] = objective.rhs[cases]
        used = np.zeros((len(boxes), width), dtype=bool)
        used[group_of, place] = True
        d = np.zeros((len(boxes), width, depth, 0))
        if objective.D is not None:
            d = np.zeros((len(boxes), width, depth, objective.D.shape[2]))
            d[group_of, place] = objective.D[cases]
        self.rhs = network.tensor(rhs)
        distinct, where = _distinct_rows(np.concatenate([c, d], axis=3))
        outputs = c.shape[3]
        self.C = network.tensor(distinct[:, :, :outputs])
        self.D = None if objective.D is None else network.tensor(distinct[:, :, outputs:])
        self.place = torch.as_tensor(where, device=network.device)
        self.lower = network.tensor(objective.lower[boxes])
        self.upper = network.tensor(objective.upper[boxes])
        self.used = torch.as_tensor(used, device=network.device)

    def roots(self, index: Tensor, known: tuple[Tensor, Tensor]) -> Boxes:
        """The root boxes ``index [B]``, sharing the mass of a region; ``known`` are ``[1, N]``."""
        count = len(index)
        share = self.lower.new_full((count,), 1.0 / max(count, 1))
        inherited = (ends.expand(count, -1) for ends in known)
        return Boxes(
            self.lower[index],
            self.upper[index],
            index,
            self.used[index],
            share,
            torch.full_like(share, -torch.inf),
            torch.zeros_like(index),
            *inherited,
        )

    def needed(self, group: Tensor, is_open: Tensor) -> Tensor:
        """``[B, R]``: which rows some open case ``[B, Q]`` of a box reads."""
        place = self.place[group]
        asked = is_open.unsqueeze(2) & torch.isfinite(self.rhs[group])
        count = torch.zeros(len(group), self.C.shape[1], dtype=torch.int32, device=group.device)
        count.scatter_add_(1, place.flatten(1), asked.flatten(1).to(torch.int32))
        return count != 0

    def spread(self, values: Tensor, group: Tensor) -> Tensor:
        """Values ``[B, R, ...]`` of the different rows as ``[B, Q, S, ...]``."""
        index = self.place[group].flatten(1)
        tail = values.shape[2:]
        index = index.reshape(*index.shape, *([1] * len(tail))).expand(*index.shape, *tail)
        found = values.gather(1, index)
        return found.reshape(len(group), *self.place.shape[1:], *tail)


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows ``[G, Q, S, k]`` the different ones of each group, ``[G, R, k]`` (padded with zeros),
    and the number of each row among them, ``[G, Q, S]``."""
    groups, cases, depth, size = rows.shape
    if cases * depth == 1:
        return rows.reshape(groups, 1, size), np.zeros((groups, 1, 1), dtype=np.int64)
    distinct, number = np.unique(rows.reshape(-1, size), axis=0, return_inverse=True)
    group = np.repeat(np.arange(groups), cases * depth)
    pairs, inverse = np.unique(group * len(distinct) + number.reshape(-1), return_inverse=True)
    group, number = np.divmod(pairs, len(distinct))
    own = _number_within(group)
    result = np.zeros((groups, int(own.max()) + 1, size))
    result[group, own] = distinct[number]
    return result, own[inverse].reshape(groups, cases, depth)


def _number_within(group: np.ndarray) -> np.ndarray:
    """Of entries in the order of their ``group``, how many of the same stand before each."""
    first = np.searchsorted(group, group)
    result: np.ndarray = np.arange(len(group)) - first
    return result
