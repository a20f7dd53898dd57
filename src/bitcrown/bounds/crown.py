"""CROWN: linear lower bounds of any linear function of the network's tensors, by one backward pass.

Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions"
(2018), eq. 7-9, on general graphs as in Xu et al. (2020). The invariant: after each step, for every
input of the box,

    quantity >= sum over nodes p not yet passed of <a_p, z_p>  + constant - error.

An affine node is passed by its adjoint. A nonlinear one is replaced by its lower line where its
coefficient is positive and by its upper line where it is negative. Split constraints ``s z >= 0``
enter as Lagrange multipliers ``beta >= 0`` (Wang et al., "Beta-CROWN", 2021): subtracting
``beta s z``, which is not negative on the domain, keeps the inequality. Cuts ``G z <= g`` enter in
the same way (``cuts``).

Upper bounds are lower bounds of the negated quantity. Legend: ``B`` boxes, ``S`` bounded
quantities, ``n`` flat inputs, ``N`` neurons of one layer, ``*`` a node's shape. A leading extent 1
stands for "the same for every box".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import known
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.quadratic import coupled_step
from bitcrown.bounds.relaxations.registry import (
    Relaxation,
    nonlinear_row,
    passed_back,
    terms_of,
)
from bitcrown.bounds.relu_step import least_value, relu_step
from bitcrown.bounds.shares import adds_up, common_part
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node


class Lines(NamedTuple):
    """``quantity >= coefficient . x + constant - error`` on the box: ``[B, S, n]``, ``[B, S]``,
    ``[B, S]``. ``form [B, S, K, K]``, where there is one, may be added (``quadratic``)."""

    coefficient: Tensor
    constant: Tensor
    error: Tensor
    form: Tensor | None = None


class Penalty(NamedTuple):
    """What the cuts of a domain add to every bounded quantity: ``sum_p <a_p, z_p> + constant``,
    positive nowhere on the domain.

    ``coefficients`` hold ``a_p [B, 1, *]`` by node, ``constant`` is ``[B, 1]``; ``error [B, 1]``
    bounds the rounding error of both (None in a guide). It counts as a whole or not at all: a part
    of a cut is no cut.
    """

    coefficients: Mapping[str, Tensor]
    constant: Tensor
    error: Tensor | None


class Backward:
    """A backward pass over ``network`` with fixed relaxations.

    ``relaxations`` has one entry per nonlinear node that can be reached, with tensors
    ``[B, 1 or S, *]``; ``betas`` maps a pre-activation node to ``beta * s`` as ``[B, 1 or S, *]``,
    ``penalty`` holds what cuts add. With ``scales`` (see ``rounding``) the rounding error is
    accumulated and the result is a proof, without it the error is zero and the result a guide.
    ``record``, where given, receives the coefficient ``[B, S, *]`` with which each nonlinear node
    was reached.
    """

    def __init__(
        self,
        network: Network,
        relaxations: Mapping[str, Relaxation],
        betas: Mapping[str, Tensor] | None = None,
        scales: rounding.Scales | None = None,
        record: dict[str, Tensor] | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        self.network, self.relaxations, self.betas = network, relaxations, betas or {}
        self.scales, self.record, self.penalty = scales, record, penalty
        self.gamma = rounding.gamma(network)

    def run(self, seeds: Mapping[str, Tensor]) -> Lines:
        """``seeds`` maps node names to coefficients ``[1 or B, S, *shape]`` of the bounded
        quantities."""
        return _Pass(self, next(iter(seeds.values()))).run(dict(seeds))


class _Pass:
    """The state of one pass: ``constant`` and ``error`` ``[1 or B, S]`` of the invariant above."""

    def __init__(self, given: Backward, like: Tensor) -> None:
        self.given, self.like = given, like
        self.network, self.scales = given.network, given.scales
        self.constant = like.new_zeros(1, like.shape[1])
        self.error = like.new_zeros(1, like.shape[1])
        self.form: Tensor | None = None

    def run(self, pending: dict[str, Tensor]) -> Lines:
        """``pending`` holds ``a_p`` of all nodes not yet passed that have one."""
        graph, betas = self.network.graph, self.given.betas
        if self.scales is not None:
            self.error = self.error + self.scales.lost
        if self.given.penalty is not None:
            self._add_penalty(self.given.penalty, pending)
        for node in reversed(list(graph.nodes.values())):
            name = node.name
            if name in graph.inputs or (name not in pending and name not in betas):
                continue
            a = pending.pop(name, None)
            if name in betas:  # -beta s z <= 0 on the domain
                a = -betas[name] if a is None else a - betas[name]
            assert a is not None
            for source, part in zip(node.inputs, self._pass_node(node, a), strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return self._finish(pending)

    def _add_penalty(self, penalty: Penalty, pending: dict[str, Tensor]) -> None:
        """Cuts begin where they stand: their coefficients wait at the neurons as seeds do, also at
        neurons that are inputs of the network."""
        for name, part in penalty.coefficients.items():
            every = part.expand(-1, self.like.shape[1], *part.shape[2:])
            pending[name] = pending[name] + every if name in pending else every
        self.constant = self.constant + penalty.constant
        if penalty.error is not None:
            self.error = self.error + penalty.error

    def _finish(self, pending: Mapping[str, Tensor]) -> Lines:
        graph, like = self.network.graph, self.like
        rows = max([a.shape[0] for a in pending.values()] + [self.constant.shape[0]])
        parts = []
        for name in graph.inputs:
            size = graph.nodes[name].size
            a = pending.get(name)
            part = (
                like.new_zeros(rows, like.shape[1], size)
                if a is None
                else a.reshape(a.shape[0], a.shape[1], size)
            )
            parts.append(part.expand(rows, -1, -1))
        return Lines(
            torch.cat(parts, dim=2) if len(parts) > 1 else parts[0],
            self.constant.expand(rows, -1),
            self.error.expand(rows, -1),
            self.form,
        )

    def _add_error(self, a: Tensor, scale: Tensor, factor: float, is_finite: bool = True) -> None:
        """``error += factor <|a|, scale>`` with ``scale [1 or B, 1 or S, *]``; what has coefficient
        zero costs nothing, also where it is not known to be finite."""
        flat = elements(a.abs(), 2)
        weight = elements(scale.detach(), 2)
        if not is_finite:
            known = torch.isfinite(weight)
            met = elements(torch.where(known, 0.0, torch.sign(flat)), 2).sum(2)
            self.error = self.error + torch.where(met > 0, torch.inf, 0.0)
            weight = torch.where(known, weight, 0.0)
        if weight.shape[1] == 1:
            inner = torch.matmul(flat, weight.transpose(1, 2)).squeeze(2)
        else:
            inner = (flat * weight).sum(2)
        self.error = self.error + factor * inner

    def _pass_node(self, node: Node, a: Tensor) -> list[Tensor]:
        """Coefficients of the operands of ``node``, whose own coefficient ``a [1 or B, S, *]`` they
        replace."""
        # The runtime's value is off by at most its radius, in either direction.
        if self.scales is not None and node.name in self.scales.radii:
            radius = self.scales.radii[node.name].unsqueeze(1)
            self._add_error(a, radius, 1.0, bool(torch.isfinite(radius).all()))
        if self.network.rows[node.name].is_affine:
            return self._pass_affine(node, a)
        relaxation = self.given.relaxations[node.name]
        if adds_up(node):
            a = self._without_common_part(a, relaxation)
        if self.given.record is not None:
            self.given.record[node.name] = a
        if self.scales is not None:
            if self._is_bounded(node):
                self._add_error(
                    a, _nonlinear_scale(node, relaxation, self.scales), self.given.gamma
                )
            else:  # what the other line would cost may be infinite
                lines = _lines_alone(relaxation)
                below, above = (_nonlinear_scale(node, line, self.scales) for line in lines)
                self._add_error(a, torch.where(a > 0, below, above), self.given.gamma, False)
        if node.op == "Relu":
            slopes = (relaxation.lower_slopes[0], relaxation.upper_slopes[0])
            part, constant = relu_step(a, *slopes, relaxation.upper_intercept)
            self.constant = self.constant + constant
            return [part]
        # a f >= max(a, 0) * (lower line) + min(a, 0) * (upper line)
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        terms = positive * relaxation.lower_intercept, negative * relaxation.upper_intercept
        if not self._is_bounded(node):  # an intercept that does not count may be infinite
            terms = torch.where(a > 0, terms[0], 0.0), torch.where(a < 0, terms[1], 0.0)
        intercepts = elements(terms[0], 2).sum(2) + elements(terms[1], 2).sum(2)
        pairs = zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True)
        parts = [
            passed_back(node, place, a, low)
            if low is up or node.op == "MatMul"  # parallel lines, copied or not
            else positive * low + negative * up
            for place, (low, up) in enumerate(pairs)
        ]
        if relaxation.coupled is not None:
            parts, intercepts, form = coupled_step(a, relaxation.coupled, parts, intercepts)
            self.form = form if self.form is None else self.form + form
        self.constant = self.constant + intercepts
        return parts

    def _without_common_part(self, a: Tensor, relaxation: Relaxation) -> Tensor:
        """``a`` minus what lines that add up to 1 have in common (``shares``). The difference is
        off by a rounding of its own, which the node's error covers: its value is between its lines.
        """
        upper, lower = relaxation.upper_slopes[0], relaxation.lower_slopes[0]
        common = common_part(a, upper, lower - upper, -1)
        self.constant = self.constant + elements(common, 2).sum(2)
        if self.scales is not None:
            self.error = self.error + self.given.gamma * elements(common.abs(), 2).sum(2)
        return a - common

    def _is_bounded(self, node: Node) -> bool:
        """Whether ``node`` and all that it reads are known to be finite; a guide does not ask."""
        if self.scales is None:
            return True
        return self.scales.unbounded.isdisjoint((node.name, *node.inputs))

    def _capped(self, a: Tensor, relaxation: Relaxation) -> Tensor:
        """What is left of ``a`` where the upper line of an affine node may be a constant."""
        is_cut = (a < 0) & (relaxation.upper_slopes[0] == 0)
        cut = torch.where(is_cut, a * relaxation.upper_intercept, 0.0)
        self.constant = self.constant + elements(cut, 2).sum(2)
        return torch.where(is_cut, 0.0, a)

    def _pass_affine(self, node: Node, a: Tensor) -> list[Tensor]:
        """``<a, W z + b> = <W^T a, z> + <a, b>``, with every row of every box in one batch."""
        if self.scales is not None:
            scale = self.scales[node.name].unsqueeze(1)
            self._add_error(a, scale, self.given.gamma, node.name not in self.scales.unbounded)
        if node.name in self.given.relaxations:
            a = self._capped(a, self.given.relaxations[node.name])
        if not self.network.has_zero_offset(node):
            offset = self.network.offset(node)
            self.constant = self.constant + torch.matmul(elements(a, 2), offset.flatten())
        if not node.inputs:
            return []
        rows, quantities = a.shape[:2]
        folded = a.reshape(rows * quantities, *node.shape)
        parts = self.network.adjoint(node, folded)
        return [part.reshape(rows, quantities, *part.shape[1:]) for part in parts]


def _lines_alone(relaxation: Relaxation) -> tuple[Relaxation, Relaxation]:
    """The lower line as both of them, and the upper line."""
    below = relaxation.lower_slopes, relaxation.lower_intercept
    above = relaxation.upper_slopes, relaxation.upper_intercept
    return Relaxation(*below, *below), Relaxation(*above, *above)


def _nonlinear_scale(node: Node, relaxation: Relaxation, scales: rounding.Scales) -> Tensor:
    """``|slope| m + |intercept|``, whichever line is taken: what gamma multiplies at ``node``.

    A ReLU's slopes are in [0, 1], and its intercept is at most the largest bound of its operand, so
    twice that serves every box.
    """
    if node.op == "Relu" and node.inputs[0] not in scales.unbounded:
        return 2 * scales[node.inputs[0]].unsqueeze(1)
    scale = torch.maximum(relaxation.lower_intercept.abs(), relaxation.upper_intercept.abs())
    pairs = zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True)
    sizes = [scales[source].unsqueeze(1) for source in node.inputs]
    for place, (source, size, (low, up)) in enumerate(zip(node.inputs, sizes, pairs, strict=True)):
        slope = torch.maximum(low.abs(), up.abs())
        if source in scales.unbounded and node.op != "MatMul":  # 0 times infinity costs nothing
            size = torch.where(slope == 0, 0.0, size)
        scale = scale + terms_of(node, place, slope, size)
    if relaxation.coupled is not None:
        scale = torch.maximum(scale, relaxation.coupled.scale(*sizes))
    return scale


def minimum(lines: Lines, x_lower: Tensor, x_upper: Tensor, gamma: float = 0.0) -> Tensor:
    """Least value of ``Lines`` over the boxes ``[B, n]``, minus its rounding error: ``[B, S]``,
    NaN-free."""
    a = lines.coefficient
    value = least_value(a, x_lower, x_upper) + lines.constant
    if gamma:
        size = torch.maximum(x_lower.abs(), x_upper.abs())
        slack = torch.matmul(a.abs(), size.unsqueeze(2)).squeeze(2) + lines.constant.abs()
        value = value - (lines.error + gamma * slack + rounding.underflow(gamma, a.dtype)) * (
            1 + 1e-6
        )
    return known(value, -torch.inf)


def relaxations_of(
    network: Network, bounds: Bounds, names: list[str] | None = None
) -> dict[str, Relaxation]:
    """The default relaxation of every nonlinear node whose operands have bounds, with an ``S`` axis
    of extent 1."""
    result = {}
    for node in network.graph.nodes.values():
        row = network.rows[node.name]
        if node.name in network.graph.inputs or (row.is_affine and not row.is_capped):
            continue
        if names is not None and node.name not in names:
            continue
        if all(name in bounds for name in node.inputs):
            result[node.name] = relaxation_of(node, bounds)
    return result


def relaxation_of(node: Node, bounds: Bounds, alpha: Tensor | None = None) -> Relaxation:
    """Relaxation of one node with an ``S`` axis; ``alpha`` is ``[alphas, B, S, *]`` or None.

    Bounds of the node itself, where there are some, hold as well as those of its operands."""
    lowers = [bounds[name][0].unsqueeze(1) for name in node.inputs]
    uppers = [bounds[name][1].unsqueeze(1) for name in node.inputs]
    row = nonlinear_row(node.op)
    if row.within is None or node.name not in bounds:
        return row.relax(node, lowers, uppers, alpha)
    low, up = bounds[node.name]
    return row.within(node, lowers, uppers, alpha, (low.unsqueeze(1), up.unsqueeze(1)))


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
