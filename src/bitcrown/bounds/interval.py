"""Interval bounds: the cheapest enclosure, and the magnitudes that rounding error bounds need.

An affine node maps centre and radius: ``f(c) -+ |W| r``, widened for rounding (see ``rounding``). A
nonlinear node uses the range rule of its row. Legend: ``B`` boxes, ``n`` flat inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import enclosure
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node

Bounds = dict[str, tuple[Tensor, Tensor]]
"""Node name to ``(lower, upper)``, each ``[B, *shape]``."""


def node_interval(
    network: Network, node: Node, inputs: Sequence[tuple[Tensor, Tensor]], gamma: float
) -> tuple[Tensor, Tensor]:
    """Range of one node over given ranges of its inputs, rounded outward; NaN-free: what is unknown
    is unbounded.

    With ``gamma = 0`` neither rounded nor free of NaN: a guide.
    """
    lower, upper = _plain_interval(network, node, inputs, gamma)
    if gamma == 0.0:
        return lower, upper
    if node.rounding is not None:
        largest = torch.maximum(lower.abs(), upper.abs())
        sizes = [torch.maximum(low.abs(), up.abs()) for low, up in inputs]
        error = rounding.radius(node.rounding, largest, _scale(network, node, sizes, largest))
        lower, upper = lower - error, upper + error
    return enclosure(lower, upper)


def _plain_interval(
    network: Network, node: Node, inputs: Sequence[tuple[Tensor, Tensor]], gamma: float
) -> tuple[Tensor, Tensor]:
    row = network.rows[node.name]
    if not row.is_affine:
        return nonlinear_row(node.op).interval(
            node, [low for low, _ in inputs], [up for _, up in inputs]
        )
    assert row.absolute is not None
    params = network.params[node.name]
    # f(x) = f(c) + W (x - c), so |f(x) - f(c)| <= |W| r, elementwise.
    centres = [(low + up) * 0.5 for low, up in inputs]
    radii = [(up - low) * 0.5 for low, up in inputs]
    centre = network.forward_node(node, centres)
    if not inputs:
        return centre, centre
    radius = row.absolute(node, params, radii)
    shape = (max(low.shape[0] for low, _ in inputs), *node.shape)
    if gamma == 0.0:
        return (centre - radius).expand(shape), (centre + radius).expand(shape)
    # Computed with error gamma (|W| m + |b|), and an underflow wherever some product is not 0.
    sizes = [torch.maximum(low.abs(), up.abs()) for low, up in inputs]
    scale = row.absolute(node, params, [rounding.raised(network, node, size) for size in sizes])
    slack = (scale + network.offset(node).abs()) * gamma + torch.sign(scale) * rounding.underflow(
        gamma, scale.dtype
    )
    return (centre - radius - slack).expand(shape), (centre + radius + slack).expand(shape)


def intersect(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Intersection of two valid enclosures of the same values; ends that are no finite numbers
    count as unbounded.

    The values lie in both. Where the two are disjoint all the same, rounding has made them so, and
    their hull serves: it holds the values whichever of the two is right.
    """
    a, b = enclosure(*a), enclosure(*b)
    lower = torch.fmax(a[0], b[0])
    upper = torch.fmin(a[1], b[1])
    crossed = lower > upper
    if crossed.device.type == "cpu" and not crossed.any():  # elsewhere asking takes longer
        return lower, upper
    return (
        torch.where(crossed, torch.fmin(a[0], b[0]), lower),
        torch.where(crossed, torch.fmax(a[1], b[1]), upper),
    )


def interval_bounds(
    network: Network,
    x_lower: Tensor,
    x_upper: Tensor,
    known: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    gamma: float | None = None,
) -> Bounds:
    """Intervals of every node over the boxes ``[B, n]``, intersected with ``known`` ones where
    given.

    ``gamma = 0`` leaves rounding out: a guide (for training), no proof.
    """
    gamma = rounding.gamma(network) if gamma is None else gamma
    lowers, uppers = network.split_inputs(x_lower), network.split_inputs(x_upper)
    result: Bounds = {}
    for node in network.graph.nodes.values():
        if node.name in lowers:
            result[node.name] = (lowers[node.name], uppers[node.name])
            continue
        interval = node_interval(network, node, [result[name] for name in node.inputs], gamma)
        if known is not None and node.name in known:
            interval = intersect(interval, known[node.name])
        result[node.name] = interval
    return result


def node_scale(
    network: Network, node: Node, interval: tuple[Tensor, Tensor], scales: Mapping[str, Tensor]
) -> Tensor:
    """``[1, *shape]``: what ``rounding`` multiplies by gamma at this node; valid on every smaller
    box.

    For an affine node that is ``|W| m + |b|`` with ``m`` the largest absolute inputs, otherwise the
    largest absolute value of the node itself. ``scales`` holds those of all earlier nodes.
    """
    largest = torch.maximum(interval[0].abs(), interval[1].abs()).amax(dim=0, keepdim=True)
    return _scale(network, node, [scales[name] for name in node.inputs], largest).expand(
        1, *node.shape
    )


def node_radius(
    network: Network, node: Node, interval: tuple[Tensor, Tensor], scales: Mapping[str, Tensor]
) -> Tensor | None:
    """``[1, *shape]``: how far the runtime's value may be from the function of its operands; None
    where that is 0."""
    if node.rounding is None:
        return None
    largest = (
        torch.maximum(interval[0].abs(), interval[1].abs())
        .amax(dim=0, keepdim=True)
        .expand(1, *node.shape)
    )
    return rounding.radius(node.rounding, largest, node_scale(network, node, interval, scales))


def _scale(network: Network, node: Node, sizes: Sequence[Tensor], largest: Tensor) -> Tensor:
    row = network.rows[node.name]
    if not node.inputs or not row.is_affine:
        return largest
    assert row.absolute is not None
    scale = row.absolute(
        node, network.params[node.name], [rounding.raised(network, node, size) for size in sizes]
    )
    return torch.maximum(scale + network.offset(node).abs(), largest)
