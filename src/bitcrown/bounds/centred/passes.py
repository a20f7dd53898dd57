"""Bounds of many elements of one layer: rows walk backward together, and leave when they are done.

After each step the invariant of ``measures`` gives a bound: every ``<a_p, z_p - c_p>`` is at least
``-<|a_p|, r_p>``. Where all rows wait at a single node this is one product a row, so there rows are
asked: an element that is known to keep its sign needs no better bound where only ReLUs ask for it,
and its two rows go no further. Those that stay are put together with others that wait at the same
node, as many as make good use of the caches there; a window may grow from one pixel to the whole
image on the way.

Legend: ``K`` elements of ``source``; ``S`` rows: 2 k is element k from below, 2 k + 1 from above.
Where a row is shared by both sides it is 2 k.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from bitcrown.bounds.centred.measures import Reference
from bitcrown.bounds.centred.rows import RowState, RowStep
from bitcrown.bounds.centred.windows import is_image, period_of, windows_behind
from bitcrown.bounds.claims import is_unstable, known
from bitcrown.bounds.interval import Bounds
from bitcrown.budget import Budget
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Of the largest tensor of a pass: what the caches hold a few of; what keeps a GPU busy."""
_SHORT = 32
"""Rows that walk together in any case."""
_TRIAL = 64
"""Elements that are asked whether cheaper rows pay."""
_DOWN = 2.0**-45
"""Relative: more than the roundings in double precision of the few sums that make a bound."""


class CentredRows:
    """Bounds of elements of ``source``, given ``bounds`` and ``reference`` of all earlier nodes.

    Elements lie at ``period t + phase`` of an image (``windows``). With ``may_stop`` one that keeps
    its sign for certain has bounds that say so and no more. Where ``budget`` has expired, elements
    keep what was found until then.
    """

    def __init__(
        self,
        reference: Reference,
        source: str,
        bounds: Bounds,
        may_stop: bool,
        budget: Budget | None,
        period: tuple[int, int] = (1, 1),
        phase: tuple[int, int] = (0, 0),
    ) -> None:
        self.reference, self.budget, self.may_stop = reference, budget, may_stop
        graph = reference.network.graph
        self.source, self.period = graph.nodes[source], period
        self.windows = windows_behind(graph, source, period, phase)
        self.images = {name: is_image(graph.nodes[name]) for name in self.windows}
        extents = self.source.shape[2:] if self.images[source] else (1, 1)
        places = -(-extents[0] // period[0]), -(-extents[1] // period[1])
        self.step = RowStep(reference, self.windows, self.source, places)
        self.radii = {
            name: reference.image(graph.nodes[name], reference.radius(name, bounds))
            for name in self.windows
        }
        self.segments = _segments(graph, self.windows, source)
        self.capacity = [self._capacity(segment) for segment in self.segments]

    def _capacity(self, segment: list[Node]) -> int:
        sizes = [1]
        sums = self.step.sums.values()
        passed = {name for each in sums for name in (each.product.name, *each.product.inputs)}
        for node in segment:
            if node.name in passed:
                continue
            window = self.windows[node.name]
            pixels = 0 if window is None else window.extents[0] * window.extents[1]
            sizes.append(node.size if window is None else pixels * node.shape[1])
        entries = _ENTRIES[self.reference.network.device.type]
        return max(_SHORT, entries // max(sizes) // 2 * 2)

    def run(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds ``[K]`` of the elements ``indices [K]``, in double precision; infinite where
        nothing was found."""
        left = self._prepared(indices)
        if self.may_stop and self._has_bands():
            left = self._left_by_bands(left)
        self._bound(left, is_shared=False)
        return self._ends(torch.arange(len(indices), device=indices.device))

    def run_bands(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """What one row an element shows, between parallel lines."""
        self._bound(self._prepared(indices), is_shared=True)
        return self._ends(torch.arange(len(indices), device=indices.device))

    def _prepared(self, indices: Tensor) -> Tensor:
        """The order in which ``indices`` are taken; nothing is known of them yet."""
        self.element = indices
        self.centre = self.reference.of[self.source.name].centre.flatten()[indices]
        self.found = self.centre.new_full((2 * len(indices),), -torch.inf)
        self.errors = torch.zeros_like(self.centre)
        return self._order(indices)

    def _ends(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of the elements ``indices[which]``."""
        centre, below, above = self.centre[which], self.found[2 * which], self.found[2 * which + 1]
        low = centre + below - (centre.abs() + below.abs()) * _DOWN
        up = centre - above + (centre.abs() + above.abs()) * _DOWN
        return known(low, -torch.inf), known(up, torch.inf)

    def _has_bands(self) -> bool:
        of, rows = self.reference.of, self.reference.network.rows
        inner = [name for name in self.windows if not rows[name].is_affine]
        return self.source.name not in inner and all(of[name].band for name in inner)

    def _left_by_bands(self, order: Tensor) -> Tensor:
        """Elements whose sign rows between parallel lines leave open. One such row costs half of
        what two rows do, so it pays where it decides more than every other element; some elements
        say whether it does."""
        step = len(order) // _TRIAL
        if step < 4:
            return order
        self._bound(order[::step], is_shared=True)
        is_open = is_unstable(*self._ends(order[::step]))
        if 2 * int(is_open.sum()) > len(is_open):
            return order[is_unstable(*self._ends(order))]
        rest = torch.arange(len(order), device=order.device) % step != 0
        self._bound(order[rest], is_shared=True)
        return order[is_unstable(*self._ends(order))]

    def _bound(self, order: Tensor, is_shared: bool) -> None:
        """Rows of the elements ``indices[order]``, one each if ``is_shared``, else two."""
        waiting: list[list[RowState]] = [[] for _ in self.segments]
        begun = 0
        while self.budget is None or not self.budget.is_expired():
            rows = [sum(len(state.number) for state in states) for states in waiting]
            level = self._next(rows, begun < len(order))
            if level is None:
                break
            if level == 0:
                part = order[begun : begun + self.capacity[0] // 2]
                begun += len(part)
                state = self._begin(part, is_shared)
            else:
                state = RowState.joined(waiting[level], self.images)
                limit = self.capacity[level]
                waiting[level] = []
                if len(state.number) > limit:
                    limit = self._at_one_place(state.place[:limit])
                    waiting[level] = [state.part(slice(limit, None), self.images)]
                    state = state.part(slice(0, limit), self.images)
            left = self._walk(level, state)
            if left is not None and len(left.number):
                waiting[level + 1].append(left)

    def _at_one_place(self, place: Tensor) -> int:
        """How many of the rows at ``place [S, 2]`` are passed next: those at the first place, where
        they are half of them, as these share one map of every node (``Maps.seen``); else all. (On a
        CPU alone: a GPU would have to wait for the answer.)"""
        if place.device.type != "cpu":
            return len(place)
        same = int((place == place[:1]).all(1).cumprod(0).sum())
        return same if 2 * same >= len(place) else len(place)

    def _next(self, rows: list[int], has_more: bool) -> int | None:
        """The segment that is walked next: the last one that has its fill, else one that fills
        others."""
        for level in range(len(rows) - 1, 0, -1):
            if rows[level] >= self.capacity[level]:
                return level
        if has_more:
            return 0
        return next((level for level, count in enumerate(rows) if count), None)

    def _order(self, indices: Tensor) -> Tensor:
        """Elements at one place one after the other: they see the same part of the image."""
        if not self.images[self.source.name]:
            return torch.arange(indices.numel(), device=indices.device)
        pixels = self.source.shape[2] * self.source.shape[3]
        return torch.argsort(indices % pixels, stable=True)

    def _begin(self, part: Tensor, is_shared: bool) -> RowState:
        """Rows of the elements ``indices[part]``: coefficient 1, and -1 from above."""
        source, device = self.source, part.device
        number = 2 * part if is_shared else torch.stack([2 * part, 2 * part + 1], 1).flatten()
        element, rows = self.element[number // 2], torch.arange(len(number), device=device)
        sign = (1 - 2 * (number % 2)).float()
        zero = torch.zeros(len(rows), dtype=torch.float64, device=device)
        place = torch.zeros(len(rows), 2, dtype=torch.long, device=device)
        if self.images[source.name]:
            channels, height, width = source.shape[1:]
            channel, y, x = element // (height * width), element // width % height, element % width
            if self.windows[source.name] is None:
                a = torch.zeros(height, width, len(rows), channels, device=device)
                a[y, x, rows, channel] = sign
            else:
                a = torch.zeros(1, 1, len(rows), channels, device=device)
                a[0, 0, rows, channel] = sign
            place = torch.stack([y // self.period[0], x // self.period[1]], 1)
        else:
            a = torch.zeros(len(rows), source.size, device=device)
            a[rows, element] = sign
            a = a.reshape(-1, *source.shape)
        error = zero + self.reference.lost
        return RowState({source.name: a}, zero, error, zero, place, number, is_shared)

    def _walk(self, level: int, state: RowState) -> RowState | None:
        """``state`` at the end of its segment; None where that is the end."""
        for node in self.segments[level]:
            a = state.pending.pop(node.name, None)
            if a is None:
                continue
            operands = self.step.operands(node)
            for name, part in zip(operands, self.step.run(node, a, state), strict=True):
                before = state.pending.get(name)
                state.pending[name] = part if before is None else before + part
        is_end = level + 1 == len(self.segments)
        if not (is_end or self.may_stop):
            return state
        self._ask(state)
        return None if is_end else self._without_decided(state)

    def _ask(self, state: RowState) -> None:
        """The bound that rows have where they are."""
        nodes = self.reference.network.graph.nodes
        costs = [
            self.step.cost(nodes[name], a, "radius", self.radii[name], state.place)
            for name, a in state.pending.items()
        ]
        cost = sum(costs, state.spread) + state.error
        cost = cost + _DOWN * (cost.abs() + state.constant.abs())
        sides = [(state.number, state.constant)]
        if state.is_shared:
            sides.append((state.number + 1, -state.constant))
        else:
            self.errors[state.number // 2] = state.error
        for number, constant in sides:
            value = known(constant - cost, -torch.inf)
            self.found[number] = torch.maximum(self.found[number], value)

    def _without_decided(self, state: RowState) -> RowState:
        left = is_unstable(*self._ends(state.number // 2)).nonzero().flatten()
        return state if len(left) == len(state.number) else state.part(left, self.images)


def centred_bounds(
    reference: Reference,
    source: str,
    indices: Tensor,
    bounds: Bounds,
    may_stop: bool,
    budget: Budget | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of the elements ``indices [K]`` of ``source``, phase by phase, and what rounding may
    have cost each: ``[K]``, double."""
    graph = reference.network.graph
    period, shape = period_of(graph, source), graph.nodes[source].shape
    if period == (1, 1):
        rows = CentredRows(reference, source, bounds, may_stop, budget)
        return *rows.run(indices), rows.errors
    phase = indices // shape[3] % shape[2] % period[0] * period[1] + indices % shape[3] % period[1]
    found = [torch.empty(len(indices), dtype=torch.float64, device=indices.device)] * 3
    found = [part.clone() for part in found]
    for number in torch.unique(phase).tolist():
        which = phase == number
        at = divmod(number, period[1])
        rows = CentredRows(reference, source, bounds, may_stop, budget, period, at)
        for part, value in zip(found, (*rows.run(indices[which]), rows.errors), strict=True):
            part[which] = value
    return found[0], found[1], found[2]


def _segments(graph: Graph, used: Mapping[str, object], source: str) -> list[list[Node]]:
    """Nodes from ``source`` to the inputs, cut where everything waits at one affine node."""
    order = [
        node
        for node in reversed(list(graph.nodes.values()))
        if node.name in used and node.name not in graph.inputs
    ]
    waiting, cuts = {source}, [0]
    for place, node in enumerate(order):
        if place and waiting == {node.name} and op_row(node.op).is_affine:
            cuts.append(place)
        waiting = (waiting - {node.name}) | set(node.inputs)
    return [order[begin:end] for begin, end in pairwise([*cuts, len(order)])]
