"""Bounds of every operand of a nonlinear node, layer by layer: interval first, CROWN where it
matters.

Zonotopes come in between where they are cheap, or save far more rows of backward passes than they
cost; both are estimated in entries that a pass touches. Rows of a convolutional layer are bounded
tile by tile (``receptive_field``).

Legend: ``B`` boxes, ``K`` elements, ``S`` rows, ``n`` flat inputs, ``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.centred.measures import Reference
from bitcrown.bounds.centred.passes import centred_bounds
from bitcrown.bounds.crown import Backward, minimum, relaxation_of
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.interval import (
    Bounds,
    intersect,
    interval_bounds,
    node_interval,
    node_radius,
    node_scale,
)
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.subnetworks.receptive_field import View, entries_of_row, tiles
from bitcrown.bounds.wanted import (
    COPIES,
    fine_by,
    is_image_of,
    is_input_by_entries,
    operands_to_bound,
    undecided,
    wanted_elements,
)
from bitcrown.bounds.zonotope import FEW_SYMBOLS, Forward
from bitcrown.budget import Budget
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node


def undecided_places(node: Node, source: str, bounds: Bounds) -> Tensor:
    """Flat indices of elements of ``source`` that matter to its nonlinear consumer ``node``, over
    all boxes."""
    return elements(undecided(node, source, bounds), 1).any(0).nonzero().flatten()


class Enclosure(NamedTuple):
    """Intervals ``[B, *]`` of every node, their magnitudes ``[1, *]`` (see ``rounding``), and
    default relaxations."""

    bounds: Bounds
    scales: rounding.Scales
    relaxations: dict[str, Relaxation]


_WIDE = 1000
"""Entries of the widest tensor from which zonotopes, and passes in single precision, are worth
their set-up."""
_CHEAP_FORWARD = 1 << 28
"""Entries of all zonotopes that are worth their tightness alone: a few seconds on one core."""
_SAVING = 5
"""Zonotopes must touch at most a fifth of the entries that the backward passes would touch. That is
the break-even: an entry of a zonotope costs three times as much (measured), and zonotopes spare two
of three rows, since a third of the elements that intervals leave undecided stays undecided."""
_CACHED = 1 << 24
"""Bytes of one backward pass on a CPU for few boxes: what fits the caches and the allocator's own
pages is twice as fast as what fits the memory (measured: 9.9 s against 4.8 s for a ResNet's root
bounds)."""
_ROUNDED = 0.02
"""Share of a bound's width that the rounding of single precision may be; above, the element is
bounded in double precision."""
_SHORT_PASS = 16
"""Rows that a pass takes in any case: below, its calls cost more than its arithmetic."""
_FEW_BOXES = 64


def _widest(network: Network) -> int:
    return max(node.size for node in network.graph.nodes.values())


class LayerBounder:
    """Bounds of the operands of nonlinear nodes. ``memory`` is the byte budget of one backward
    pass; rows are chunked to it. With ``ascent`` every element gets optimised slopes (one box
    only); without it the default relaxations serve all elements. A ``quick`` one makes no backward
    passes where it has zonotopes, for boxes that will be split anyway. Rows over one box are passed
    in single precision, their rounding counted (``centred``), unless ``may_round`` is false or that
    says too little. Once ``budget`` has expired, what is not bounded yet keeps its interval.
    """

    def __init__(
        self,
        network: Network,
        memory: int,
        ascent: LayerAscent | None = None,
        quick: bool = False,
        budget: Budget | None = None,
        may_round: bool = True,
    ) -> None:
        self.quick, self.budget, self.may_round = quick, budget, may_round
        self.network = network
        self.memory = memory
        self.ascent = ascent
        self.gamma = rounding.gamma(network)
        self.widest = _widest(network)

    def _is_expired(self) -> bool:
        return self.budget is not None and self.budget.is_expired()

    def rows_per_pass(self, boxes: int, network: Network | None = None) -> int:
        """Rows of one pass through ``network`` (default: the whole one) over ``boxes`` boxes."""
        item = torch.finfo(self.network.dtype).bits // 8
        widest = self.widest if network is None else _widest(network)
        row = item * (24 if self.ascent else 8) * widest * max(1, boxes)
        memory = self.memory
        if boxes <= _FEW_BOXES and self.network.device.type == "cpu":
            memory = min(memory, max(_CACHED, _SHORT_PASS * row))
        return max(2, int(memory // row) // 2 * 2)

    def run(
        self,
        x_lower: Tensor,
        x_upper: Tensor,
        known: Bounds | None = None,
        outputs: Tensor | None = None,
    ) -> Enclosure:
        """Intervals of all nodes, with operands of nonlinear nodes tightened by CROWN; ``[B, *]``
        each.

        ``known`` bounds (valid on these boxes) are intersected in before anything is computed.
        Elements that none of ``outputs [m]`` (booleans, default: all) depends on keep intervals.
        """
        network, graph = self.network, self.network.graph
        # Nodes are in topological order: the operands of one are bounded before it is reached.
        lowers, uppers = network.split_inputs(x_lower), network.split_inputs(x_upper)
        bounds: Bounds = {}
        scales = rounding.Scales(self.gamma)
        relaxations: dict[str, Relaxation] = {}
        tight: set[str] = set(graph.inputs)
        fine: set[str] = set()  # those of which every element that varies has its rows
        is_plain = self.ascent is None and self.may_round and self.widest >= _WIDE
        wanted = None if outputs is None else wanted_elements(network, outputs)
        reference = Reference.of_box(network, x_lower, x_upper) if is_plain else None
        forward = self._zonotopes(x_lower, x_upper, known is not None)
        for node in graph.nodes.values():
            forward = None if self._is_expired() else forward
            if node.name in lowers:
                bounds[node.name] = (lowers[node.name], uppers[node.name])
                if forward is not None:
                    forward.begin(node, *bounds[node.name])
                scales[node.name] = node_scale(network, node, bounds[node.name], scales)
                continue
            # A nonlinear node is where bounds matter: its operands get backward passes, once each.
            if not network.rows[node.name].is_affine:
                if not (self.quick and forward is not None):
                    for source in operands_to_bound(graph, node, tight, fine, bounds):
                        backward = Backward(network, relaxations, scales=scales)
                        bounds[source] = self._tighten(
                            node, source, bounds, backward, x_lower, x_upper, reference, wanted
                        )
                relaxations[node.name] = relaxation_of(node, bounds)
            elif network.rows[node.name].is_capped:
                relaxations[node.name] = relaxation_of(node, bounds)
            # The node itself: interval, what was known, zonotope. Each is valid, so is their meet.
            operands = [bounds[name] for name in node.inputs]
            interval = node_interval(network, node, operands, self.gamma)
            if known is not None and node.name in known:
                interval = intersect(interval, known[node.name])
            if forward is not None:
                radius = node_radius(network, node, interval, scales)
                interval = intersect(
                    interval, forward.step(node, interval, bounds, relaxations, radius)
                )
            bounds[node.name] = interval
            scales[node.name] = node_scale(network, node, interval, scales)
            radius = node_radius(network, node, interval, scales)
            if radius is not None:
                scales.radii[node.name] = radius
        return Enclosure(bounds, scales, relaxations)

    def _zonotopes(self, x_lower: Tensor, x_upper: Tensor, is_known: bool) -> Forward | None:
        """Forward bounds, where they are worth their time; ``is_known``: others are there."""
        if x_lower.shape[0] > 1 or self.widest < _WIDE:
            return None
        varied = int((x_lower < x_upper).sum())
        if varied <= FEW_SYMBOLS and not self.quick:
            return Forward(self.network, self.gamma, min(self.memory, varied * 8 * self.widest))
        if is_known:
            return None
        # Entries that zonotopes would touch (symbols x elements, layer by layer), against those of
        # the backward passes that they would spare, both foreseen from intervals.
        graph = self.network.graph
        intervals = interval_bounds(self.network, x_lower, x_upper)
        symbols = first = varied
        rows = backward = forward = 0
        met, fine = set[str](), set[str]()
        for node in graph.nodes.values():
            forward += symbols * node.size
            if node.name in graph.inputs or self.network.rows[node.name].is_affine:
                continue
            for source in node.inputs:
                indices = undecided_places(node, source, intervals)
                symbols += len(indices) // 3 if len(node.inputs) == 1 else 0
                origin, places = self.origin(source)
                fine.update(fine_by(node, source))
                if len(indices) == 0 or self._is_first_layer(source) or origin in met:
                    continue
                met.add(origin)
                if not is_image_of(graph, source, fine, intervals):
                    asked = torch.unique(places[indices])  # rows are those of what is copied
                    rows += len(asked)
                    backward += 2 * len(asked) * entries_of_row(graph, origin, asked)
        is_cheap = self.quick or forward < max(
            _CHEAP_FORWARD, backward // _SAVING
        )  # quick: instead of all rows
        return (
            Forward(self.network, self.gamma, self.memory)
            if is_cheap and rows > 2 * first
            else None
        )

    def _tighten(
        self,
        consumer: Node,
        source: str,
        bounds: Bounds,
        backward: Backward,
        x_lower: Tensor,
        x_upper: Tensor,
        reference: Reference | None,
        wanted: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        lower, upper = bounds[source]
        indices = undecided_places(consumer, source, bounds)
        if wanted is not None:
            is_read = wanted.get(source)
            indices = indices[:0] if is_read is None else indices[is_read.flatten()[indices]]
        if indices.numel() == 0 or self._is_first_layer(source) or self._is_expired():
            return lower, upper
        origin, places = self.origin(source)
        asked, back = torch.unique(places[indices], return_inverse=True)
        rounded = self._rounded(backward, origin, asked, bounds, reference, source)
        if rounded is None:
            found = self.bound_elements(backward, origin, asked, bounds, x_lower, x_upper)
        else:
            found, coarse = rounded
            if coarse.numel():
                part = asked[coarse]
                fine = self.bound_elements(backward, origin, part, bounds, x_lower, x_upper)
                for ends, end in zip(found, fine, strict=True):
                    ends[:, coarse] = end
        found = found[0][:, back], found[1][:, back]
        boxes, shape = x_lower.shape[0], lower.shape[1:]
        flat_lower = lower.expand(boxes, *shape).reshape(boxes, -1).clone()
        flat_upper = upper.expand(boxes, *shape).reshape(boxes, -1).clone()
        new = intersect((flat_lower[:, indices], flat_upper[:, indices]), found)
        flat_lower[:, indices], flat_upper[:, indices] = new
        return flat_lower.reshape(boxes, *shape), flat_upper.reshape(boxes, *shape)

    def origin(self, source: str) -> tuple[str, Tensor]:
        """The node whose elements ``source`` only moves or copies (itself, if it does neither), and
        for each element of ``source`` the flat place of that element: ``[N]``."""
        graph, chain = self.network.graph, []
        node = graph.nodes[source]
        while node.op in COPIES and node.rounding is None and node.inputs[0] not in graph.inputs:
            chain.append(node)
            node = graph.nodes[node.inputs[0]]
        places = torch.arange(node.size, dtype=torch.float64, device=self.network.device)
        value = places.reshape(1, *node.shape)
        for copy in reversed(chain):
            value = self.network.forward_node(copy, [value]).expand(1, *copy.shape)
        return node.name, value.flatten().long()

    def _rounded(
        self,
        backward: Backward,
        source: str,
        indices: Tensor,
        bounds: Bounds,
        reference: Reference | None,
        asked_by: str,
    ) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
        """Bounds ``[1, K]`` from passes in single precision, and which of them rounding has made
        too wide; None where there are none. ``asked_by`` is ``source`` or what copies it."""
        radii = backward.scales.radii if backward.scales is not None else {}
        if reference is None:
            return None
        if not reference.extend(source, bounds, backward.relaxations, radii):
            return None
        may_stop = self._serves_signs_alone(asked_by)
        low, up, errors = centred_bounds(reference, source, indices, bounds, may_stop, self.budget)
        coarse = (2 * errors > _ROUNDED * (up - low)).nonzero().flatten()
        return (low.unsqueeze(0), up.unsqueeze(0)), coarse

    def _serves_signs_alone(self, source: str) -> bool:
        """Whether an element of ``source`` that keeps its sign needs no better bounds than that."""
        graph = self.network.graph
        readers = [graph.nodes[name] for name in graph.consumers()[source]]
        return source not in graph.outputs and all(
            self.network.rows[node.name].is_affine or node.op in ("Relu", "Sign")
            for node in readers
        )

    def _is_first_layer(self, source: str) -> bool:
        """Whether ``source`` is one affine map of the inputs, whose interval is already exact."""
        node = self.network.graph.nodes[source]
        if len(node.inputs) == 1 and self.network.rows[source].is_affine:
            return is_input_by_entries(self.network.graph, node.inputs[0])
        return bool(node.inputs) and all(name in self.network.graph.inputs for name in node.inputs)

    def bound_elements(
        self,
        backward: Backward,
        source: str,
        indices: Tensor,
        bounds: Bounds,
        x_lower: Tensor,
        x_upper: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """CROWN bounds ``[B, K]`` of the elements ``indices [K]`` of node ``source``; infinite
        where time was up."""
        lower = x_lower.new_full((x_lower.shape[0], indices.numel()), -torch.inf)
        upper = torch.full_like(lower, torch.inf)
        shape = self.network.graph.nodes[source].shape
        for view, places in tiles(self.network.graph, source, indices):
            if self._is_expired():
                break
            part = indices[places]
            if view is None:
                found = self._bound_rows(backward, source, part, bounds, (x_lower, x_upper), None)
            else:
                box = view.box(self.network, x_lower), view.box(self.network, x_upper)
                part = view.indices(shape, part)
                relaxations = view.relaxations(backward.relaxations)
                scales = view.scales(backward.scales) if backward.scales is not None else None
                smaller = Backward(view.network(self.network), relaxations, scales=scales)
                seen = view.bounds(bounds) if self.ascent else {}
                found = self._bound_rows(smaller, source, part, seen, box, view)
            lower[:, places], upper[:, places] = found
        return lower, upper

    def _bound_rows(
        self,
        backward: Backward,
        source: str,
        indices: Tensor,
        bounds: Bounds,
        box: tuple[Tensor, Tensor],
        view: View | None,
    ) -> tuple[Tensor, Tensor]:
        """Bounds ``[B, K]`` of elements of ``source`` in the network of ``backward``, a few rows a
        pass.

        ``bounds`` are read by the ascent alone.
        """
        node = backward.network.graph.nodes[source]
        step = self.rows_per_pass(box[0].shape[0], backward.network) // 2
        lowers, uppers = [], []
        for part in torch.split(indices, step):
            if self._is_expired():
                lowers.append(box[0].new_full((box[0].shape[0], part.numel()), -torch.inf))
                uppers.append(-lowers[-1])
                continue
            seed = torch.zeros(
                2 * part.numel(), node.size, dtype=self.network.dtype, device=self.network.device
            )
            positions = torch.arange(part.numel(), device=part.device)
            seed[positions, part] = 1
            seed[positions + part.numel(), part] = -1
            seeds = {source: seed.reshape(1, -1, *node.shape)}
            value = minimum(
                self._sharpened(backward, seeds, bounds, box, view).run(seeds), *box, self.gamma
            )
            lowers.append(value[:, : part.numel()])
            uppers.append(-value[:, part.numel() :])
        return torch.cat(lowers, 1), torch.cat(uppers, 1)

    def _sharpened(
        self,
        backward: Backward,
        seeds: Mapping[str, Tensor],
        bounds: Bounds,
        box: tuple[Tensor, Tensor],
        view: View | None,
    ) -> Backward:
        """The pass with slopes optimised for these rows, or the same pass where there is no
        ascent."""
        if self.ascent is None:
            return backward
        nodes = [backward.network.graph.nodes[name] for name in backward.relaxations]
        found = self.ascent.relaxations(seeds, bounds, nodes, *box, view)
        return Backward(backward.network, found, scales=backward.scales)
