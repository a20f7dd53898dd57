"""CROWN: linear lower bounds of any linear function of the network's tensors, by one backward pass.

Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (2018), eq. 7-9, on
general graphs as in Xu et al. (2020). The invariant: after each step, for every input of the box,

    quantity >= sum over nodes p not yet passed of <a_p, z_p>  + constant - error.

An affine node is passed by its adjoint. A nonlinear one is replaced by its lower line where its coefficient is positive
and by its upper line where it is negative. Split constraints ``s z >= 0`` enter as Lagrange multipliers ``beta >= 0``
(Wang et al., "Beta-CROWN", 2021): subtracting ``beta s z``, which is not positive on the domain, keeps the inequality.

Upper bounds are lower bounds of the negated quantity. Legend: ``B`` boxes, ``S`` bounded quantities, ``n`` flat inputs,
``N`` neurons of one layer, ``*`` a node's shape. A leading extent 1 stands for "the same for every box".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.interval import Bounds, intersect, interval_bounds, node_interval, node_scale
from bitcrown.bounds.receptive_field import View, tiles
from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.bounds.relu_step import least_value, relu_step
from bitcrown.bounds.zonotope import Forward
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node


class Lines(NamedTuple):
    """``quantity >= coefficient . x + constant - error`` on the box: ``[B, S, n]``, ``[B, S]``, ``[B, S]``."""

    coefficient: Tensor
    constant: Tensor
    error: Tensor


class Backward:
    """One backward pass over ``network`` with fixed relaxations.

    ``relaxations`` has one entry per nonlinear node that can be reached, with tensors ``[B, 1 or S, *]``; ``betas``
    maps a pre-activation node to ``beta * s`` as ``[B, 1 or S, *]``; with ``scales`` (see ``interval.magnitudes``) the
    rounding error is accumulated and the result is a proof, without it the error is zero and the result a guide.
    ``record``, where given, receives the coefficient ``[B, S, *]`` with which each nonlinear node was reached.
    """

    def __init__(
        self,
        network: Network,
        relaxations: Mapping[str, Relaxation],
        betas: Mapping[str, Tensor] | None = None,
        scales: Mapping[str, Tensor] | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> None:
        self.network = network
        self.relaxations = relaxations
        self.betas = betas or {}
        self.scales = scales
        self.record = record
        self.gamma = rounding.gamma(network)
        self.order = list(network.graph.nodes)[::-1]

    def run(self, seeds: Mapping[str, Tensor]) -> Lines:
        """``seeds`` maps node names to coefficients ``[1 or B, S, *shape]`` of the bounded quantities."""
        graph = self.network.graph
        pending = dict(seeds)
        first = next(iter(seeds.values()))
        self.constant = first.new_zeros(1, first.shape[1])
        self.error = first.new_zeros(1, first.shape[1])
        for name in self.order:
            if name in graph.inputs or (name not in pending and name not in self.betas):
                continue
            node = graph.nodes[name]
            a = pending.pop(name, None)
            if name in self.betas:
                a = -self.betas[name] if a is None else a - self.betas[name]
            assert a is not None
            for source, part in zip(node.inputs, self._pass_node(node, a), strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return self._finish(pending, first)

    def _finish(self, pending: Mapping[str, Tensor], like: Tensor) -> Lines:
        graph = self.network.graph
        rows = max([a.shape[0] for a in pending.values()] + [self.constant.shape[0]])
        parts = []
        for name in graph.inputs:
            size = graph.nodes[name].size
            a = pending.get(name)
            part = like.new_zeros(rows, like.shape[1], size) if a is None else a.reshape(a.shape[0], a.shape[1], size)
            parts.append(part.expand(rows, -1, -1))
        constant = self.constant.expand(rows, -1)
        return Lines(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0], constant, self.error.expand(rows, -1))

    def _add_error(self, a: Tensor, scale: Tensor) -> None:
        """``error += gamma <|a|, scale>`` with ``scale [1 or B, 1 or S, *]``."""
        flat = a.abs().flatten(2)
        weight = scale.detach().flatten(2)
        if weight.shape[1] == 1:
            inner = torch.matmul(flat, weight.transpose(1, 2)).squeeze(2)
        else:
            inner = (flat * weight).sum(2)
        self.error = self.error + self.gamma * inner

    def _pass_node(self, node: Node, a: Tensor) -> list[Tensor]:
        if self.network.rows[node.name].is_affine:
            return self._pass_affine(node, a)
        relaxation = self.relaxations[node.name]
        if self.record is not None:
            self.record[node.name] = a
        if self.scales is not None:
            self._add_error(a, self._nonlinear_scale(node, relaxation))
        if node.op == "Relu":
            slopes = (relaxation.lower_slopes[0], relaxation.upper_slopes[0])
            part, constant = relu_step(a, *slopes, relaxation.upper_intercept)
            self.constant = self.constant + constant
            return [part]
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        intercepts = (positive * relaxation.lower_intercept).flatten(2).sum(2)
        intercepts = intercepts + (negative * relaxation.upper_intercept).flatten(2).sum(2)
        self.constant = self.constant + intercepts
        pairs = zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True)
        return [positive * low + negative * up for low, up in pairs]

    def _nonlinear_scale(self, node: Node, relaxation: Relaxation) -> Tensor:
        assert self.scales is not None
        scale = torch.maximum(relaxation.lower_intercept.abs(), relaxation.upper_intercept.abs())
        for source, low, up in zip(node.inputs, relaxation.lower_slopes, relaxation.upper_slopes, strict=True):
            scale = scale + torch.maximum(low.abs(), up.abs()) * self.input_scale(source).unsqueeze(1)
        return scale

    def input_scale(self, name: str) -> Tensor:
        assert self.scales is not None
        return self.scales[name]

    def _pass_affine(self, node: Node, a: Tensor) -> list[Tensor]:
        if self.scales is not None:
            self._add_error(a, self.scales[node.name].unsqueeze(1))
        if not self.network.has_zero_offset(node):
            offset = self.network.offset(node)
            self.constant = self.constant + torch.matmul(a.flatten(2), offset.flatten())
        if not node.inputs:
            return []
        rows, quantities = a.shape[:2]
        folded = a.reshape(rows * quantities, *node.shape)
        parts = self.network.adjoint(node, folded)
        return [part.reshape(rows, quantities, *part.shape[1:]) for part in parts]


def minimum(lines: Lines, x_lower: Tensor, x_upper: Tensor, gamma: float = 0.0) -> Tensor:
    """Least value of ``Lines`` over the boxes ``[B, n]``, minus its rounding error: ``[B, S]``, NaN-free."""
    a = lines.coefficient
    value = least_value(a, x_lower, x_upper) + lines.constant
    if gamma:
        size = torch.maximum(x_lower.abs(), x_upper.abs())
        slack = torch.matmul(a.abs(), size.unsqueeze(2)).squeeze(2) + lines.constant.abs()
        value = value - (lines.error + gamma * slack) * (1 + 1e-6)
    return rounding.finite_or_none(value)


def relaxations_of(network: Network, bounds: Bounds, names: list[str] | None = None) -> dict[str, Relaxation]:
    """The default relaxation of every nonlinear node whose operands have bounds, with an ``S`` axis of extent 1."""
    result = {}
    for node in network.graph.nodes.values():
        if node.name in network.graph.inputs or network.rows[node.name].is_affine:
            continue
        if names is not None and node.name not in names:
            continue
        if all(name in bounds for name in node.inputs):
            result[node.name] = relaxation_of(node, bounds)
    return result


def relaxation_of(node: Node, bounds: Bounds, alpha: Tensor | None = None) -> Relaxation:
    """Relaxation of one node with an ``S`` axis; ``alpha`` is ``[alphas, B, S, *]`` or None."""
    lowers = [bounds[name][0].unsqueeze(1) for name in node.inputs]
    uppers = [bounds[name][1].unsqueeze(1) for name in node.inputs]
    return nonlinear_row(node.op).relax(node, lowers, uppers, alpha)


def undecided(node: Node, lower: Tensor, upper: Tensor) -> Tensor:
    """Flat indices of elements whose bounds matter to a nonlinear consumer ``node``, over all boxes."""
    if node.op == "Relu":
        matters = (lower < 0) & (upper > 0)
    else:
        matters = lower < upper
    return matters.flatten(1).any(0).nonzero().flatten()


class Enclosure(NamedTuple):
    """Intervals ``[B, *]`` of every node, their magnitudes ``[1, *]`` (see ``rounding``), and default relaxations."""

    bounds: Bounds
    scales: dict[str, Tensor]
    relaxations: dict[str, Relaxation]


WIDE = 1000
"""Entries of the widest tensor from which zonotopes are worth their set-up."""


CACHED = 1 << 24
"""Bytes of one backward pass on a CPU for few boxes: what fits the caches and the allocator's own pages is twice as
fast as what fits the memory (measured: 9.9 s against 4.8 s for a ResNet's root bounds)."""
SHORT_PASS = 16
"""Rows that a pass takes in any case: below, its calls cost more than its arithmetic."""
FEW_BOXES = 64


class SlopeFinder(Protocol):
    """What ``layer_ascent.LayerAscent`` offers."""

    def relaxations(
        self,
        seeds: Mapping[str, Tensor],
        bounds: Bounds,
        nodes: list[Node],
        x_lower: Tensor,
        x_upper: Tensor,
        view: View | None,
    ) -> dict[str, Relaxation]: ...


def _widest(network: Network) -> int:
    return max(node.size for node in network.graph.nodes.values())


class LayerBounder:
    """Bounds of every operand of a nonlinear node, layer by layer: interval first, CROWN where it matters.

    ``memory`` is the byte budget of one backward pass; rows are chunked to it. With ``ascent`` every element gets
    optimised slopes (one box only); without it the default relaxations serve all elements. A ``quick`` one leaves it at
    zonotopes where those are used: the box will be split anyway.
    """

    def __init__(self, network: Network, memory: int, ascent: SlopeFinder | None = None, quick: bool = False) -> None:
        self.quick = quick
        self.network = network
        self.memory = memory
        self.ascent = ascent
        self.gamma = rounding.gamma(network)
        self.widest = _widest(network)

    def rows_per_pass(self, boxes: int, network: Network | None = None) -> int:
        """Rows of one pass through ``network`` (default: the whole one) over ``boxes`` boxes."""
        item = torch.finfo(self.network.dtype).bits // 8
        widest = self.widest if network is None else _widest(network)
        row = item * (24 if self.ascent else 8) * widest * max(1, boxes)
        memory = self.memory
        if boxes <= FEW_BOXES and self.network.device.type == "cpu":
            memory = min(memory, max(CACHED, SHORT_PASS * row))
        return max(2, int(memory // row) // 2 * 2)

    def run(self, x_lower: Tensor, x_upper: Tensor, known: Bounds | None = None) -> Enclosure:
        """Intervals of all nodes, with operands of nonlinear nodes tightened by CROWN; ``[B, *]`` each.

        ``known`` bounds (valid on these boxes) are intersected in before anything is computed.
        """
        network, graph = self.network, self.network.graph
        lowers, uppers = network.split_inputs(x_lower), network.split_inputs(x_upper)
        bounds: Bounds = {}
        scales: dict[str, Tensor] = {}
        relaxations: dict[str, Relaxation] = {}
        tight: set[str] = set(graph.inputs)
        forward = self._zonotopes(x_lower, x_upper) if known is None else None
        for node in graph.nodes.values():
            if node.name in lowers:
                bounds[node.name] = (lowers[node.name], uppers[node.name])
                if forward is not None:
                    forward.begin(node, *bounds[node.name])
                scales[node.name] = node_scale(network, node, bounds[node.name], scales)
                continue
            if not network.rows[node.name].is_affine:
                for source in node.inputs:
                    if source not in tight and not (self.quick and forward is not None):
                        tight.add(source)
                        backward = Backward(network, relaxations, scales=scales)
                        bounds[source] = self._tighten(node, source, bounds, backward, x_lower, x_upper)
                relaxations[node.name] = relaxation_of(node, bounds)
            interval = node_interval(network, node, [bounds[name] for name in node.inputs], self.gamma)
            if known is not None and node.name in known:
                interval = intersect(interval, known[node.name])
            if forward is not None:
                interval = intersect(interval, forward.step(node, interval, bounds, relaxations))
            bounds[node.name] = interval
            scales[node.name] = node_scale(network, node, interval, scales)
        return Enclosure(bounds, scales, relaxations)

    def _zonotopes(self, x_lower: Tensor, x_upper: Tensor) -> Forward | None:
        """Forward bounds, where they save more rows of backward passes than they have symbols to carry."""
        if x_lower.shape[0] > 1 or self.widest < WIDE:
            return None
        intervals = interval_bounds(self.network, x_lower, x_upper)
        rows = 0
        for node in self.network.graph.nodes.values():
            if node.name not in self.network.graph.inputs and not self.network.rows[node.name].is_affine:
                inner = [name for name in node.inputs if not self._is_first_layer(name)]
                rows += sum(undecided(node, *intervals[name]).numel() for name in inner)
        is_worth_it = rows > 2 * int((x_lower < x_upper).sum())
        return Forward(self.network, self.gamma, self.memory) if is_worth_it else None

    def _tighten(
        self,
        consumer: Node,
        source: str,
        bounds: Bounds,
        backward: Backward,
        x_lower: Tensor,
        x_upper: Tensor,
    ) -> tuple[Tensor, Tensor]:
        lower, upper = bounds[source]
        indices = undecided(consumer, lower, upper)
        if indices.numel() == 0 or self._is_first_layer(source):
            return lower, upper
        found = self.bound_elements(backward, source, indices, bounds, x_lower, x_upper)
        boxes, shape = x_lower.shape[0], lower.shape[1:]
        flat_lower = lower.expand(boxes, *shape).reshape(boxes, -1).clone()
        flat_upper = upper.expand(boxes, *shape).reshape(boxes, -1).clone()
        new = intersect((flat_lower[:, indices], flat_upper[:, indices]), found)
        flat_lower[:, indices], flat_upper[:, indices] = new
        return flat_lower.reshape(boxes, *shape), flat_upper.reshape(boxes, *shape)

    def _is_first_layer(self, source: str) -> bool:
        """Whether ``source`` is one affine map of the inputs, whose interval is already exact."""
        node = self.network.graph.nodes[source]
        return bool(node.inputs) and all(name in self.network.graph.inputs for name in node.inputs)

    def bound_elements(
        self, backward: Backward, source: str, indices: Tensor, bounds: Bounds, x_lower: Tensor, x_upper: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CROWN bounds ``[B, K]`` of the elements ``indices [K]`` of node ``source``."""
        lower, upper = (x_lower.new_empty(x_lower.shape[0], indices.numel()) for _ in range(2))
        shape = self.network.graph.nodes[source].shape
        for view, places in tiles(self.network.graph, source, indices):
            part = indices[places]
            if view is None:
                found = self._bound_rows(backward, source, part, bounds, (x_lower, x_upper), None)
            else:
                box = view.box(self.network, x_lower), view.box(self.network, x_upper)
                part = view.indices(shape, part)
                relaxations, scales = view.relaxations(backward.relaxations), view.cut(backward.scales or {})
                smaller = Backward(view.network(self.network), relaxations, scales=scales)
                found = self._bound_rows(smaller, source, part, view.bounds(bounds), box, view)
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
        """Bounds ``[B, K]`` of elements of ``source`` in the network of ``backward``, a few rows a pass."""
        node = backward.network.graph.nodes[source]
        step = max(1, self.rows_per_pass(box[0].shape[0], backward.network) // 2)
        lowers, uppers = [], []
        for part in torch.split(indices, step):
            seed = torch.zeros(2 * part.numel(), node.size, dtype=self.network.dtype, device=self.network.device)
            positions = torch.arange(part.numel(), device=part.device)
            seed[positions, part] = 1
            seed[positions + part.numel(), part] = -1
            seeds = {source: seed.reshape(1, -1, *node.shape)}
            value = minimum(self._sharpened(backward, seeds, bounds, box, view).run(seeds), *box, self.gamma)
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
        """The pass with slopes optimised for these rows, or the same pass where there is no ascent."""
        if self.ascent is None:
            return backward
        nodes = [backward.network.graph.nodes[name] for name in backward.relaxations]
        found = self.ascent.relaxations(seeds, bounds, nodes, *box, view)
        return Backward(backward.network, found, scales=backward.scales)


def output_seeds(network: Network, rows: Tensor) -> dict[str, Tensor]:
    """Coefficients ``rows [1 or B, S, m]`` of the flat outputs as seeds per output node."""
    graph, start = network.graph, 0
    result: dict[str, Tensor] = {}
    for name in graph.outputs:
        node = graph.nodes[name]
        part = rows[:, :, start : start + node.size].reshape(*rows.shape[:2], *node.shape)
        result[name] = result[name] + part if name in result else part
        start += node.size
    return result
