"""Bounds of the rows over many boxes at once, in stages: the cheap ones for all, the others for
what they leave.

1. *Intervals*, met with what the parent box knows, give relaxations; one backward pass for the
   rows. The outputs' own intervals exclude a row, too (``interval_values``).
2. *CROWN* for every inner entry that is still undecided in that very box. All (box, entry) pairs of
   a layer are one backward pass: a batch never pays for an entry in boxes where it is decided.
3. The rows again, with the relaxations of 2.

Boxes of wide networks are bounded one by one (``wide``), by ``bounds.intermediate``, which has
zonotopes and receptive fields.

Every bound here is float64 with rounding error (``bounds.rounding``). Magnitudes are those of the
root, which hold on every smaller box. Legend: see ``boxes``; ``P`` pairs, ``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds import claims, rounding
from bitcrown.bounds.affine_forms import AffineForm, AffineForms, varying_inputs
from bitcrown.bounds.crown import Backward, Lines, minimum, output_seeds, relaxation_of
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.interval import Bounds, intersect, node_interval, node_radius, node_scale
from bitcrown.bounds.losses import pass_losses
from bitcrown.bounds.quadratic import Coupling, coupling, sums_of_products, tangent
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.rows import Rows, flat_outputs, interval_rows
from bitcrown.bounds.wanted import has_exact_interval, operands_to_bound, undecided
from bitcrown.budget import Budget
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node
from bitcrown.search.inputs.boxes import Boxes, GroupedRows
from bitcrown.search.inputs.wide import WideBoxes, known_by_signs, signs_known

PAIRS_BELOW = 8192
"""Entries read by nonlinear nodes up to which (box, entry) pairs are bounded one by one."""
SMALL_LOSS = 1e-8
"""Rounding, as a share of the largest value of a layer, below which its worst case serves all rows;
elsewhere every pass adds up its own."""
_CACHED = 1 << 24
"""Bytes of one backward pass: what stays in the caches of a CPU."""


class RowBounds(NamedTuple):
    """``quantity >= a x + c`` with ``a [B, Q, S, n]`` and least value ``least [B, Q, S]`` over the
    box; ``best`` is not below ``least`` and bounds the row, not this line."""

    a: Tensor
    least: Tensor
    best: Tensor


class RelaxedBoxes(NamedTuple):
    """Bounds ``[B, *]`` of every node and the relaxations that follow from them."""

    bounds: Bounds
    relaxations: dict[str, Relaxation]
    scales: rounding.Scales


class BoxBounder:
    """``work`` counts the entries that backward passes have touched: the measure of cost."""

    def __init__(self, network: Network, rows: GroupedRows, budget: Budget) -> None:
        self.network, self.rows, self.budget = network, rows, budget
        self.gamma = rounding.gamma(network)
        graph = network.graph
        self.nonlinear = [
            node
            for node in graph.nodes.values()
            if node.name not in graph.inputs and not network.rows[node.name].is_affine
        ]
        operands = dict.fromkeys(name for node in self.nonlinear for name in node.inputs)
        self.operands = [name for name in operands if name not in graph.inputs]
        self.sizes = [graph.nodes[name].size for name in self.operands]
        self.first = {
            name
            for name in self.operands
            if has_exact_interval(graph, name)
            or graph.nodes[name].inputs
            and all(source in graph.inputs for source in graph.nodes[name].inputs)
        }
        self.widest = max(node.size for node in graph.nodes.values())
        self.mean_width = sum(node.size for node in graph.nodes.values()) / len(graph.nodes)
        memory = min(budget.memory // 4, 1 << 29)
        varying = varying_inputs(rows.lower, rows.upper)
        self.products = sums_of_products(network, len(varying))
        self.forms = AffineForms(network, self.gamma, varying, self.products)
        self.symbols = len(varying) if self.products else 0
        self.layers = LayerBounder(network, memory, quick=True, budget=budget)
        self.takes_pairs = sum(self.sizes) <= PAIRS_BELOW
        self.wide = WideBoxes(network, memory, budget, (rows.C != 0).flatten(0, 1).any(0))
        self.work = 0
        self.root_scales: rounding.Scales | None = None
        self.losses: dict[str, Tensor] = {}

    def root(self) -> tuple[Tensor, Tensor]:
        """Bounds ``[1, N]`` of inner entries over the hull of all root boxes."""
        low, up = (
            self.rows.lower.amin(0, keepdim=True),
            self.rows.upper.amax(0, keepdim=True),
        )
        if not self.takes_pairs:  # no sign is known yet
            nothing = low.new_full((1, sum(self.sizes)), torch.inf)
            return signs_known(-nothing, nothing)
        enclosure = self.layers.run(low, up)
        sizes = [*enclosure.scales.values(), *enclosure.scales.radii.values()]
        if all(bool(torch.isfinite(size).all()) for size in sizes):
            self.root_scales = enclosure.scales
            self.losses = pass_losses(self.network, enclosure.scales, SMALL_LOSS)
        return self._flat(enclosure.bounds, 1)

    def _flat(self, bounds: Bounds, boxes: int) -> tuple[Tensor, Tensor]:
        empty = self.rows.lower.new_zeros(boxes, 0)
        ends = (
            [elements(bounds[name][end], 1).expand(boxes, -1) for name in self.operands]
            for end in (0, 1)
        )
        low, up = (torch.cat([empty, *parts], dim=1) for parts in ends)
        return low, up

    def _known(self, boxes: Boxes) -> Bounds:
        if not boxes.known_lower.shape[1]:
            return {}
        shapes = [self.network.graph.nodes[name].shape for name in self.operands]
        ends = boxes.known_lower, boxes.known_upper
        if not self.takes_pairs:
            ends = known_by_signs(*ends, self.network.dtype)
        lows, ups = (torch.split(end, self.sizes, dim=1) for end in ends)
        return {
            name: (low.reshape(-1, *shape), up.reshape(-1, *shape))
            for name, low, up, shape in zip(self.operands, lows, ups, shapes, strict=True)
        }

    # -- stages ------------------------------------------------------------------------------------

    def quick(self, boxes: Boxes) -> RelaxedBoxes:
        """RelaxedBoxes 1, of networks that are not wide."""
        return self._walk(boxes, is_sharp=False)

    def sharp(self, boxes: Boxes) -> tuple[RelaxedBoxes, Boxes]:
        """RelaxedBoxes 2, and the boxes with what is known of them now."""
        if not self.takes_pairs:
            return self._wide_stage(boxes)
        stage = self._walk(boxes, is_sharp=True)
        low, up = self._flat(stage.bounds, len(boxes))
        return stage, replace(boxes, known_lower=low, known_upper=up)

    def _wide_stage(self, boxes: Boxes) -> tuple[RelaxedBoxes, Boxes]:
        """The same for one box of a wide network."""

        def relaxed(enclosure: Enclosure) -> RelaxedBoxes:
            return RelaxedBoxes(enclosure.bounds, enclosure.relaxations, enclosure.scales)

        def distance(enclosure: Enclosure) -> float:
            rows = self.row_bounds(boxes, relaxed(enclosure))
            is_open = boxes.open & ~claims.excluded(rows.best).any(dim=2)
            left = replace(boxes, open=is_open)
            return -float(worst_value(left, rows).clamp(max=0.0)) if is_open.any() else 0.0

        found = self.wide.run((boxes.lower, boxes.upper), self._known(boxes), distance)
        low, up = signs_known(*self._flat(found.bounds, 1))
        return relaxed(found), replace(boxes, known_lower=low, known_upper=up)

    def _walk(self, boxes: Boxes, is_sharp: bool) -> RelaxedBoxes:
        network, graph = self.network, self.network.graph
        known = self._known(boxes)
        lowers, uppers = network.split_inputs(boxes.lower), network.split_inputs(boxes.upper)
        bounds: Bounds = {}
        relaxations: dict[str, Relaxation] = {}
        scales = rounding.Scales(self.gamma) if self.root_scales is None else self.root_scales
        done, fine = set(graph.inputs) | self.first, set[str]()
        forms = self.forms.inputs(boxes.lower, boxes.upper) if self.products else {}
        for node in graph.nodes.values():
            if node.name in lowers:
                bounds[node.name] = (lowers[node.name], uppers[node.name])
            else:
                if not network.rows[node.name].is_affine:
                    wanted = operands_to_bound(graph, node, done, fine, bounds) if is_sharp else []
                    for source in wanted:
                        bounds[source] = self._tightened(
                            source,
                            undecided(node, source, bounds),
                            bounds[source],
                            relaxations,
                            scales,
                            boxes,
                        )
                    relaxations[node.name] = self._relaxed(node, bounds, forms)
                elif network.rows[node.name].is_capped:
                    relaxations[node.name] = relaxation_of(node, bounds)
                operands = [bounds[name] for name in node.inputs]
                interval = node_interval(network, node, operands, self.gamma)
                if node.name in known:
                    interval = intersect(interval, known[node.name])
                bounds[node.name] = interval
            if node.name in self.forms.needed and node.name not in lowers:
                forms[node.name] = self.forms.step(
                    node, forms, bounds, relaxations, scales.radii.get(node.name)
                )
            if self.root_scales is None:
                scales[node.name] = node_scale(network, node, bounds[node.name], scales)
                radius = node_radius(network, node, bounds[node.name], scales)
                if radius is not None:
                    scales.radii[node.name] = radius
        return RelaxedBoxes(bounds, relaxations, scales)

    def _relaxed(self, node: Node, bounds: Bounds, forms: Mapping[str, AffineForm]) -> Relaxation:
        found = relaxation_of(node, bounds)
        if node.name not in self.products:
            return found
        first, second = node.inputs
        together = coupling(forms[first], forms[second], bounds[second], node.shape)
        return found._replace(coupled=together)

    def _tightened(
        self,
        source: str,
        is_asked: Tensor,
        interval: tuple[Tensor, Tensor],
        relaxations: Mapping[str, Relaxation],
        scales: rounding.Scales,
        boxes: Boxes,
    ) -> tuple[Tensor, Tensor]:
        """``interval`` of ``source`` met with CROWN bounds of entries that are asked for, box by
        box."""
        shape = self.network.graph.nodes[source].shape
        low, up = (elements(end.expand(len(boxes), *shape), 1).clone() for end in interval)
        is_asked = elements(is_asked.expand(len(boxes), *shape), 1)
        box, entry = is_asked.nonzero(as_tuple=True)
        step = max(1, _CACHED // (8 * 8 * 2 * self.widest))
        for some_box, some in zip(torch.split(box, step), torch.split(entry, step), strict=True):
            if not len(some):
                continue
            if self.budget.is_expired():
                break
            found = self._pairs(source, some_box, some, relaxations, scales, boxes)
            new = intersect((low[some_box, some], up[some_box, some]), found)
            low[some_box, some], up[some_box, some] = new
        return low.reshape(-1, *shape), up.reshape(-1, *shape)

    def _pairs(
        self,
        source: str,
        box: Tensor,
        entry: Tensor,
        relaxations: Mapping[str, Relaxation],
        scales: rounding.Scales,
        boxes: Boxes,
    ) -> tuple[Tensor, Tensor]:
        """CROWN bounds ``[P]`` of entries ``entry [P]`` of ``source`` in the boxes ``box [P]``."""
        node = self.network.graph.nodes[source]
        seed = self.rows.lower.new_zeros(len(box), 2, node.size)
        place = torch.arange(len(box), device=box.device)
        one = seed.new_ones(())  # a number would be copied to the device
        seed[place, 0, entry], seed[place, 1, entry] = one, -one
        chosen = {
            name: gathered(found._replace(coupled=None), box) for name, found in relaxations.items()
        }
        self.work += 2 * len(box)
        seeds = {source: seed.reshape(len(box), 2, *node.shape)}
        ends = boxes.lower[box], boxes.upper[box]
        if source not in self.losses:
            value = minimum(
                Backward(self.network, chosen, scales=scales).run(seeds), *ends, self.gamma
            )
            return value[:, 0], -value[:, 1]
        value = minimum(Backward(self.network, chosen).run(seeds), *ends)
        loss = self.losses[source].flatten()[entry]
        return value[:, 0] - loss, loss - value[:, 1]

    # -- rows --------------------------------------------------------------------------------------

    def row_bounds(self, boxes: Boxes, stage: RelaxedBoxes) -> RowBounds:
        """Bounds of the rows of open cases, minus ``rhs``, with the relaxations of ``stage``.

        Rows that no open case of a box reads are not bounded: their lines are zero, their values
        ``-inf``.
        """
        box, row = self.rows.needed(boxes.group, boxes.open).nonzero(as_tuple=True)
        count, rows = len(boxes), self.rows.C.shape[1]
        a = boxes.lower.new_zeros(count, rows, boxes.lower.shape[1])
        value = boxes.lower.new_full((count, rows), -torch.inf)
        tight = value.clone()
        step = max(1, _CACHED // (8 * 8 * self.widest))
        for some_box, some in zip(torch.split(box, step), torch.split(row, step), strict=True):
            if not len(some):
                continue
            chosen = {name: gathered(found, some_box) for name, found in stage.relaxations.items()}
            group = boxes.group[some_box]
            ends = boxes.lower[some_box], boxes.upper[some_box]
            lines = self.lines(group, some, chosen, stage.scales)
            a[some_box, some] = lines.coefficient[:, 0]
            value[some_box, some] = found = minimum(lines, *ends, self.gamma)[:, 0]
            tight[some_box, some] = self._lowest(lines, ends, found)
        return self._spread(boxes, stage, a, value, tight)

    def lines(
        self,
        group: Tensor,
        row: Tensor,
        relaxations: Mapping[str, Relaxation],
        scales: rounding.Scales | None,
    ) -> Lines:
        """Lines ``[P, 1, ...]`` of the rows ``row [P]`` of the root boxes ``group [P]``."""
        self.work += len(row)
        seeds = output_seeds(self.network, self.rows.C[group, row].unsqueeze(1))
        lines = Backward(self.network, relaxations, scales=scales).run(seeds)
        a, constant, error, form = lines
        form = None if form is None else form.expand(len(row), *form.shape[1:])
        shape = (len(row), *constant.shape[1:])
        lines = Lines(a.expand(*shape, -1), constant.expand(shape), error.expand(shape), form)
        if self.rows.D is not None:
            own = self.rows.D[group, row].unsqueeze(1)
            lines = lines._replace(coefficient=lines.coefficient + own)
        return lines

    def _lowest(self, lines: Lines, ends: tuple[Tensor, Tensor], found: Tensor) -> Tensor:
        """``[P]``: bounds of the rows that are not below ``found``, those of the lines.

        The tangent at the least point is steep nowhere, so the lines themselves say better where to
        split and clip.
        """
        if lines.form is None:
            return found
        lines = tangent(lines, *ends, self.forms.varying, self.gamma)
        return torch.maximum(found, minimum(lines, *ends, self.gamma)[:, 0])

    def _spread(
        self, boxes: Boxes, stage: RelaxedBoxes, a: Tensor, value: Tensor, tight: Tensor
    ) -> RowBounds:
        rhs = self.rows.rhs[boxes.group]
        least = claims.least_margin(self.rows.spread(value, boxes.group), rhs)
        interval = self.interval_values(boxes, stage.bounds)
        tight = self.rows.spread(torch.maximum(tight, interval), boxes.group)
        best = torch.maximum(least, claims.least_margin(tight, rhs))
        return RowBounds(self.rows.spread(a, boxes.group), least, best)

    def interval_values(self, boxes: Boxes, bounds: Bounds) -> Tensor:
        """Least values ``[B, R]`` of the rows, from the intervals of the outputs."""
        low, up = (end.expand(len(boxes), -1) for end in flat_outputs(self.network, bounds))
        group = boxes.group if len(self.rows.C) > 1 else boxes.group[:1]
        d = None if self.rows.D is None else self.rows.D[group]
        rows = Rows(self.rows.C[group], d, self.rows.rhs[group], boxes.lower, boxes.upper)
        return interval_rows(rows, low, up, self.gamma)


def worst_value(boxes: Boxes, rows: RowBounds) -> Tensor:
    """``[B]``: the least, over open cases, of what their best row proves."""
    best = rows.best.amax(dim=2)
    return torch.where(boxes.open, best, torch.inf).amin(dim=1)


def gathered(relaxation: Relaxation, index: Tensor) -> Relaxation:
    def pick(part: Tensor) -> Tensor:
        return part[index] if part.shape[0] > 1 else part

    lower, upper = (
        tuple(pick(slope) for slope in slopes)
        for slopes in (relaxation.lower_slopes, relaxation.upper_slopes)
    )
    coupled = relaxation.coupled
    return Relaxation(
        lower,
        pick(relaxation.lower_intercept),
        upper,
        pick(relaxation.upper_intercept),
        None if coupled is None else Coupling(*(pick(part) for part in coupled)),
    )
