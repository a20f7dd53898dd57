"""Forward bounds that stay linear in the inputs: what products that are added up know together.

A value is ``centre + sum_k slope_k e_k + error * e'`` on a box, with one ``e_k`` in [-1, 1] for
each input that varies, shared by all values, and ``e'`` independent: a zonotope (``zonotope``)
without symbols of its own for nonlinear nodes, whose distance between two lines goes into
``error``. So every box has the same few symbols, and a batch of boxes is one tensor.

Rounding is that of ``zonotope``: an affine map of a centre and ``K`` slopes has the error of
``K + 1`` evaluations of the node. Legend: ``B`` boxes, ``K`` inputs that vary, ``n`` flat inputs,
``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, terms_of
from bitcrown.bounds.rounding import raised, underflow
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node


class AffineForm(NamedTuple):
    """``centre [B, *]``, ``slopes [B, K, *]``, ``error [B, *]`` (>= 0)."""

    centre: Tensor
    slopes: Tensor
    error: Tensor

    def reach(self) -> Tensor:
        """``[B, *]``: how far the linear part may be from the centre."""
        return self.slopes.abs().sum(1)


def varying_inputs(lower: Tensor, upper: Tensor) -> Tensor:
    """``[K]``: the flat inputs that vary in some box ``[B, n]``."""
    return (lower < upper).any(0).nonzero().flatten()


class AffineForms:
    """Forms of the nodes that ``wanted`` ones depend on, in one walk through the graph.

    ``varying [K]`` are the flat inputs with a symbol; the others are points.
    """

    def __init__(self, network: Network, gamma: float, varying: Tensor, wanted: set[str]) -> None:
        self.network, self.gamma, self.varying = network, gamma, varying
        self.needed = set(wanted)
        for node in reversed(list(network.graph.nodes.values())):
            if node.name in self.needed:
                self.needed.update(node.inputs)

    def inputs(self, x_lower: Tensor, x_upper: Tensor) -> dict[str, AffineForm]:
        """Of the boxes ``[B, n]``: ``x = centre + radius e``, up to the rounding of both."""
        centre, radius = (x_lower + x_upper) / 2, (x_upper - x_lower) / 2
        error = (centre.abs() + radius) * self.gamma + underflow(self.gamma, centre.dtype)
        unit = torch.eye(x_lower.shape[1], dtype=centre.dtype, device=centre.device)
        slopes = radius.unsqueeze(1) * unit[self.varying]
        split = self.network.split_inputs
        centres, errors = split(centre), split(error)
        parts = split(slopes.flatten(0, 1))
        return {
            name: AffineForm(centres[name], self._boxes(parts[name]), errors[name])
            for name in centres
        }

    def _boxes(self, points: Tensor) -> Tensor:
        return points.reshape(-1, len(self.varying), *points.shape[1:])

    def step(
        self,
        node: Node,
        forms: Mapping[str, AffineForm],
        bounds: Bounds,
        relaxations: Mapping[str, Relaxation],
        radius: Tensor | None,
    ) -> AffineForm:
        """``radius`` is how far the runtime rounds the node's value, where it does."""
        sources = [forms[name] for name in node.inputs]
        if self.network.rows[node.name].is_affine:
            found = self._affine(node, sources)
        else:
            ends = [bounds[name] for name in node.inputs]
            found = self._nonlinear(node, relaxations[node.name], sources, ends)
        return found if radius is None else found._replace(error=found.error + radius)

    def _affine(self, node: Node, sources: Sequence[AffineForm]) -> AffineForm:
        network = self.network
        absolute = network.rows[node.name].absolute
        assert absolute is not None
        params, offset = network.params[node.name], network.offset(node)
        count = len(self.varying) + 1
        if not sources:
            like = offset.expand(1, *node.shape)
            return AffineForm(
                like, like.unsqueeze(1).expand(1, count - 1, *node.shape) * 0, like * 0
            )
        boxes = max(form.centre.shape[0] for form in sources)
        centre = network.forward_node(node, [form.centre for form in sources])
        parts = [form.slopes.expand(boxes, *form.slopes.shape[1:]) for form in sources]
        slopes = network.forward_node(node, [part.flatten(0, 1) for part in parts])
        if not network.has_zero_offset(node):
            slopes = slopes - offset
        sizes = [form.centre.abs() + form.reach() + form.error for form in sources]
        size = absolute(node, params, [raised(network, node, part) for part in sizes])
        error = absolute(node, params, [form.error for form in sources])
        lost = count * underflow(self.gamma, size.dtype) * torch.sign(size)
        error = error + self.gamma * (size + count * network.offset_size(node)) + lost
        shape = (boxes, *node.shape)
        return AffineForm(centre.expand(shape), self._boxes(slopes), error.expand(shape))

    def _nonlinear(
        self,
        node: Node,
        relaxation: Relaxation,
        sources: Sequence[AffineForm],
        ends: Sequence[tuple[Tensor, Tensor]],
    ) -> AffineForm:
        """Both lines tilted to one slope: ``least <= f - slope z <= most``, linear in ``z`` and so
        attained at its ends; then ``f = slope z + (most + least) / 2`` up to half the distance."""
        least, most = (
            part.squeeze(1) for part in (relaxation.lower_intercept, relaxation.upper_intercept)
        )
        size = least.abs() + most.abs()
        centre = slopes = error = torch.zeros_like(size)
        slopes = slopes.unsqueeze(1)
        lines = zip(relaxation.lower_slopes, relaxation.upper_slopes, strict=True)
        for place, (form, (low, up), (below, above)) in enumerate(
            zip(sources, ends, lines, strict=True)
        ):
            below, above = below.squeeze(1), above.squeeze(1)
            slope = (below + above) / 2
            fall, rise = below - slope, above - slope
            for part, end in ((fall.clamp(min=0), low), (fall.clamp(max=0), up)):
                least = least + terms_of(node, place, part, end)
            for part, end in ((rise.clamp(min=0), up), (rise.clamp(max=0), low)):
                most = most + terms_of(node, place, part, end)
            centre = centre + terms_of(node, place, slope, form.centre)
            slopes = slopes + terms_of(node, place, slope.unsqueeze(1), form.slopes)
            error = error + terms_of(node, place, slope.abs(), form.error)
            steepest = torch.maximum(below.abs(), above.abs()) + slope.abs()
            size = size + terms_of(node, place, steepest, torch.maximum(low.abs(), up.abs()))
            size = size + terms_of(node, place, slope.abs(), form.centre.abs() + form.reach())
        error = error + ((most - least) / 2).clamp(min=0) + self.gamma * size
        count = len(self.varying) + 1
        error = error + count * underflow(self.gamma, size.dtype)
        return AffineForm(centre + (most + least) / 2, slopes, error)
