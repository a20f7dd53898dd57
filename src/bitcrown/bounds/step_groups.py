"""Proofs that not all steps of a group are wrong, in the windows that the groups see.

The sum of a group (``step_sums``) depends on a window of every earlier layer. Windows of most
groups are one and the same network (``receptive_field``, ``View.form``) over boxes of their own, so
they are bounded together, as boxes of one batch: small windows alone are calls more than
arithmetic. A magnitude for rounding errors (``rounding.Scales``) is the largest of all windows.

Legend: ``K`` groups, ``W`` windows, ``N`` steps, ``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.crown import Backward, minimum
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.step_sums import StepGroup, StepRow
from bitcrown.bounds.subnetworks.cut_operators import Field
from bitcrown.bounds.subnetworks.receptive_field import View, view_of
from bitcrown.model.execute import Network
from bitcrown.model.passes import without_dead_nodes

REACH = 2
"""Steps of a group lie at most so many rows and columns apart: farther ones share few neurons."""
_IMAGE_RANK = 4


class Part(NamedTuple):
    """The network in front of some steps, with all that is known of it: windows of images that are
    all one network (``views [W]``, bounds and boxes ``[W, *]``), or (none) the whole of it."""

    network: Network
    views: list[View]
    enclosure: Enclosure
    box: tuple[Tensor, Tensor]

    def of_windows(self, window: Tensor) -> tuple[Enclosure, tuple[Tensor, Tensor]]:
        """Bounds and boxes of the windows ``window [K]``, or those of the only one."""
        whole = self.enclosure
        if len(self.views) < 2:
            return whole, self.box
        bounds = {name: (low[window], up[window]) for name, (low, up) in whole.bounds.items()}
        lines = {name: _lines_of(line, window) for name, line in whole.relaxations.items()}
        box = self.box[0][window], self.box[1][window]
        return Enclosure(bounds, whole.scales, lines), box


def _lines_of(line: Relaxation, window: Tensor) -> Relaxation:
    low, low_at, up, up_at, _ = line
    lows, ups = (tuple(slope[window] for slope in slopes) for slopes in (low, up))
    return Relaxation(lows, low_at[window], ups, up_at[window])


class StepGroups:
    """Proofs that not all of a group are wrong, for the steps of ``row``, on the box of
    ``enclosure``. ``ascent`` looks for slopes."""

    def __init__(
        self,
        bounder: LayerBounder,
        enclosure: Enclosure,
        row: StepRow,
        box: tuple[Tensor, Tensor],
        ascent: LayerAscent,
    ) -> None:
        self.bounder, self.enclosure, self.box, self.ascent = bounder, enclosure, box, ascent
        self.network, self.direction = bounder.network, row.direction
        self.origin, self.places = bounder.origin(row.source)
        low, up = (end.flatten() for end in enclosure.bounds[row.source])
        self.width = (up - low).clamp(min=torch.finfo(low.dtype).tiny)
        self.windows: dict[Field, View | None] = {}
        graph = without_dead_nodes(replace(self.network.graph, outputs=(self.origin,)))
        self.front = self.network.on(
            graph, {name: self.network.params[name] for name in graph.nodes}
        )
        shape = self.network.graph.nodes[self.origin].shape
        is_image = len(shape) == _IMAGE_RANK and (
            view_of(self.network.graph, self.origin, ((0, 1), (0, 1))) is not None
        )
        self.sides = shape[2:] if is_image else None
        self.where = self._where()

    def _where(self) -> Tensor:
        """Row and column of each step, ``[N, 2]``; all at one place where the layer is no image."""
        if self.sides is None:
            return torch.zeros(len(self.places), 2, dtype=torch.long)
        height, width = self.sides
        place = self.places.cpu() % (height * width)
        return torch.stack([place // width, place % width], dim=1)

    def by_part(self, groups: Sequence[StepGroup]) -> Iterator[tuple[list[int], Tensor, Part]]:
        """What the groups' sums depend on, which groups these are, and which window ``[K]`` each
        has; members are near to each other. Raises ``BudgetExpired``."""
        fields = [self._field(group) for group in groups]
        shared: dict[str, list[int]] = {}
        for number, field in enumerate(fields):
            if field not in self.windows:
                self.windows[field] = self._view(field)
            view = self.windows[field]
            shared.setdefault("" if view is None else view.form, []).append(number)
        for form, same in shared.items():
            step = (
                self.bounder.rows_per_pass(1, self._network(fields[same[0]])) if form else len(same)
            )
            for first in range(0, len(same), step):
                self.ascent.budget.check()
                numbers = same[first : first + step]
                seen = list(dict.fromkeys(fields[number] for number in numbers))
                window = torch.tensor([seen.index(fields[number]) for number in numbers])
                views = [self.windows[field] for field in seen]
                part = self._part([view for view in views if view is not None])
                yield numbers, window.to(self.width.device), part

    def _field(self, group: StepGroup) -> Field:
        """The smallest rectangle that holds ``group``."""
        where = self.where[list(group)]
        (top, left), (bottom, right) = where.amin(0).tolist(), (where.amax(0) + 1).tolist()
        return (top, bottom), (left, right)

    def _view(self, field: Field) -> View | None:
        return None if self.sides is None else view_of(self.front.graph, self.origin, field)

    def _network(self, field: Field) -> Network:
        view = self.windows[field]
        return self.front if view is None else view.network(self.front)

    def _part(self, views: list[View]) -> Part:
        whole, front = self.enclosure, self.front
        if not views:
            names = front.graph.nodes
            scales = rounding.Scales(
                whole.scales.gamma,
                {name: whole.scales[name] for name in names},
                {name: r for name, r in whole.scales.radii.items() if name in names},
            )
            lines = {name: line for name, line in whole.relaxations.items() if name in names}
            bounds = {name: whole.bounds[name] for name in names}
            return Part(front, [], Enclosure(bounds, scales, lines), self.box)
        cut = [view.bounds(whole.bounds) for view in views]
        bounds = {
            name: (
                torch.cat([each[name][0] for each in cut]),
                torch.cat([each[name][1] for each in cut]),
            )
            for name in cut[0]
        }
        sizes = [view.scales(whole.scales) for view in views]
        scales = rounding.Scales(
            whole.scales.gamma,
            {name: _largest([each[name] for each in sizes]) for name in sizes[0]},
            {name: _largest([each.radii[name] for each in sizes]) for name in sizes[0].radii},
        )
        seen = [view.relaxations(whole.relaxations) for view in views]
        lines = {name: _stacked([each[name] for each in seen]) for name in seen[0]}
        lows, ups = (torch.cat([view.box(front, end) for view in views]) for end in self.box)
        network = views[0].network(front)
        return Part(network, views, Enclosure(bounds, scales, lines), (lows, ups))

    def least(self, groups: Sequence[StepGroup], climbs: bool) -> Tensor:
        """Rigorous lower bounds ``[K]`` of ``sum y_i / width_i / |G|`` for groups whose members are
        near to each other; slopes are optimised where this ``climbs``."""
        value = self.box[0].new_full((len(groups),), -torch.inf)
        for numbers, window, part in self.by_part(groups):
            network = part.network
            nodes = [network.graph.nodes[name] for name in part.enclosure.relaxations]
            step = self.bounder.rows_per_pass(1, network)
            for chunk in torch.split(torch.arange(len(numbers)), step):
                which = [numbers[place] for place in chunk.tolist()]
                at = window[chunk.to(window.device)]
                seed = self.seed([groups[number] for number in which], at, part)
                # rows of one window, or windows of one row
                seed = seed.unsqueeze(0 if len(part.views) < 2 else 1)
                enclosure, box = part.of_windows(at)
                lines = enclosure.relaxations
                if climbs:
                    view = part.views[0] if part.views else None
                    seeds = {self.origin: seed}
                    lines = self.ascent.relaxations(seeds, enclosure.bounds, nodes, *box, view)
                with torch.no_grad():
                    backward = Backward(network, lines, scales=enclosure.scales)
                    found = minimum(backward.run({self.origin: seed}), *box, backward.gamma)
                value[torch.tensor(which, device=value.device)] = found.flatten()
        return value

    def seed(self, groups: Sequence[StepGroup], window: Tensor, part: Part) -> Tensor:
        """Coefficients ``[K, *]`` of the sums, each in its ``window [K]``."""
        node = part.network.graph.nodes[self.origin]
        seed = self.box[0].new_zeros(len(groups), node.size)
        for number, (group, at) in enumerate(zip(groups, window.tolist(), strict=True)):
            members = torch.tensor(group, device=seed.device)
            places = self.places[members]
            if part.views:
                shape = self.network.graph.nodes[self.origin].shape
                places = part.views[at].indices(shape, places)
            weight = self.direction[members] / (self.width[members] * len(group))
            seed[number].index_add_(0, places, weight)
        return seed.reshape(-1, *node.shape)


def _largest(values: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(values)).amax(0, keepdim=True)


def _stacked(lines: Sequence[Relaxation]) -> Relaxation:
    first = lines[0]
    lows, ups = (
        tuple(torch.cat([getattr(line, kind)[k] for line in lines]) for k in range(len(slopes)))
        for kind, slopes in (
            ("lower_slopes", first.lower_slopes),
            ("upper_slopes", first.upper_slopes),
        )
    )
    low, up = (
        torch.cat([getattr(line, kind) for line in lines])
        for kind in ("lower_intercept", "upper_intercept")
    )
    return Relaxation(lows, low, ups, up)
