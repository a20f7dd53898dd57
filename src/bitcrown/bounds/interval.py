"""Interval bounds: the cheapest enclosure, and the magnitudes that rounding error bounds need.

An affine node maps centre and radius: ``f(c) -+ |W| r``, widened for rounding (see ``rounding``). A
nonlinear node uses the range rule of its row. Legend: ``B`` boxes, ``n`` flat inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import enclosure
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node

Bounds = dict[str, tuple[Tensor, Tensor]]
"""Node name to ``(lower, upper)``, each ``[B, *shape]``."""
_MOVES = ("Concat", "Expand", "Gather", "Reshape", "Slice", "Transpose")
"""Operators that compute nothing."""
_LARGE = 2.0**-32
"""A lower end above this share of a type's largest number says as much as that share itself, of
which halves and sums do not overflow."""


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
    if gamma != 0.0 and inputs and network.params[node.name].keys() <= {"scale", "shift"}:
        lower, upper = _signed_interval(network, node, inputs, gamma)
    else:
        lower, upper = _affine_interval(network, node, inputs, gamma)
    if gamma != 0.0 and not bool(torch.isfinite(upper - lower).all()):
        lower, upper = _half_open_interval(network, node, inputs, gamma)
    if not row.is_capped:
        return lower, upper
    lows, ups = [low for low, _ in inputs], [up for _, up in inputs]
    return intersect((lower, upper), nonlinear_row(node.op).interval(node, lows, ups))


def _affine_interval(
    network: Network, node: Node, inputs: Sequence[tuple[Tensor, Tensor]], gamma: float
) -> tuple[Tensor, Tensor]:
    row, params = network.rows[node.name], network.params[node.name]
    assert row.absolute is not None
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
    slack = (scale + network.offset_size(node)) * gamma + torch.sign(scale) * rounding.underflow(
        gamma, scale.dtype
    )
    return (centre - radius - slack).expand(shape), (centre + radius + slack).expand(shape)


def _signed_interval(
    network: Network, node: Node, inputs: Sequence[tuple[Tensor, Tensor]], gamma: float
) -> tuple[Tensor, Tensor]:
    """An affine node that adds and subtracts entries, or scales each: which end of an operand makes
    which end of the result is known.

    ``f(l)`` is computed with error ``gamma (|W| |l| + |b|)``, however far away ``u`` is: a sum of
    exponentials that are at least 0 is, whatever the largest of them may be.
    """
    row, params = network.rows[node.name], network.params[node.name]
    assert row.absolute is not None
    scale = params.get("scale")
    ends: list[list[Tensor]] = [[], []]
    for k, (low, up) in enumerate(inputs):
        if scale is not None:
            low, up = torch.where(scale < 0, up, low), torch.where(scale < 0, low, up)
        elif k in row.negated:
            low, up = up, low
        ends[0].append(low)
        ends[1].append(up)
    shape = (max(low.shape[0] for low, _ in inputs), *node.shape)
    found = []
    for side, sign in zip(ends, (-1, 1), strict=True):
        value = network.forward_node(node, side)
        slack = _few_roundings(node, params, side, value)
        if slack is None:
            sizes = [rounding.raised(network, node, end.abs()) for end in side]
            size = row.absolute(node, params, sizes)
            slack = (size + network.offset_size(node)) * gamma
            slack = slack + torch.sign(size) * rounding.underflow(gamma, size.dtype)
        found.append((value + sign * slack).expand(shape))
    return found[0], found[1]


def _few_roundings(
    node: Node, params: Mapping[str, Tensor], ends: Sequence[Tensor], value: Tensor
) -> Tensor | None:
    """How far ``value`` of ``ends`` may be from the exact one where that is nothing (entries are
    moved) or one rounding (a sum of two, up to their signs); None elsewhere.

    One sum ``s`` comes out as ``s (1 + d)`` with ``|d| <= u``, and as zero only if its terms are
    opposite numbers; a term that is zero adds nothing. So whole numbers that are counted and
    compared stay on their side of a jump. (Where small results are flushed to zero, one is off by
    the smallest normal number.)
    """
    if node.op in _MOVES:
        return torch.zeros_like(value)
    if node.op == "Scale" and "carried" not in node.attrs:
        scale = params.get("scale", ends[0].new_ones(()))
        if not bool(((scale.abs() == 1) | (scale == 0)).all()):
            return None
        terms = ends[0] * scale, params.get("shift", ends[0].new_zeros(()))
    elif node.op in ("Add", "Sub"):
        terms = ends[0], ends[1] if node.op == "Add" else -ends[1]
    else:
        return None
    info = torch.finfo(value.dtype)
    is_exact = (terms[0] == -terms[1]) | (terms[0] == 0) | (terms[1] == 0)
    return torch.where(is_exact, 0.0, value.abs() * (2 * info.eps) + info.tiny)


def _half_open_interval(
    network: Network, node: Node, inputs: Sequence[tuple[Tensor, Tensor]], gamma: float
) -> tuple[Tensor, Tensor]:
    """Where ends of operands are infinite: the result loses an end to those that it reads.

    The lower end is ``sum W+ l - W- u``: it is infinite where ``W+`` meets an infinite ``l``, or
    ``W-`` an infinite ``u``. Elsewhere each term has a finite end of its own; with that one in
    place of the other, too, the ordinary rule has the same lower end. Likewise above. That a term
    is met is a sum of signs, none of them negative: no cancellation, no underflow hides one.
    """
    row, params = network.rows[node.name], network.params[node.name]
    assert row.absolute is not None
    signs = {k: torch.sign(v) for k, v in params.items() if k not in ("bias", "shift")}
    sides = [{key: (sign * s).clamp(min=0) for key, sign in signs.items()} for s in (1, -1)]
    ends = [[(~torch.isfinite(pair[k])).to(pair[k].dtype) for pair in inputs] for k in (0, 1)]
    lost = []
    for own, other in ((0, 1), (1, 0)):
        # An operand that is subtracted, or a weight below zero, reads the other end.
        pairs = enumerate(zip(ends[own], ends[other], strict=True))
        met = [turned if k in row.negated else end for k, (end, turned) in pairs]
        total = row.absolute(node, sides[0], met)
        lost.append(total + row.absolute(node, sides[1], ends[other]) if signs else total)
    finite = []
    for low, up in inputs:
        large = _LARGE * torch.finfo(low.dtype).max
        low, up = low.clamp(max=large), up.clamp(min=-large)
        rest = torch.where(torch.isfinite(up), up, 0.0)
        low = torch.where(torch.isfinite(low), low, rest)
        finite.append((low, torch.where(torch.isfinite(up), up, low)))
    interval = _signed_interval if signs.keys() <= {"scale"} else _affine_interval
    lower, upper = interval(network, node, finite, gamma)
    return torch.where(lost[0] > 0, -torch.inf, lower), torch.where(lost[1] > 0, torch.inf, upper)


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
    wanted: Collection[str] | None = None,
) -> Bounds:
    """Intervals of every node over the boxes ``[B, n]``, intersected with ``known`` ones where
    given.

    ``gamma = 0`` leaves rounding out: a guide (for training), no proof. Where nodes are ``wanted``,
    others are forgotten after their last reader: as little memory as bounds can take.
    """
    gamma = rounding.gamma(network) if gamma is None else gamma
    lowers, uppers = network.split_inputs(x_lower), network.split_inputs(x_upper)
    result: Bounds = {}
    last = {name: node.name for node in network.graph.nodes.values() for name in node.inputs}
    for node in network.graph.nodes.values():
        if node.name in lowers:
            result[node.name] = (lowers[node.name], uppers[node.name])
            continue
        interval = node_interval(network, node, [result[name] for name in node.inputs], gamma)
        if known is not None and node.name in known:
            interval = intersect(interval, known[node.name])
        result[node.name] = interval
        for name in set(node.inputs) if wanted is not None else ():
            if last[name] == node.name and name not in (wanted or ()):
                del result[name]
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
    if node.op == "MatMul":  # its terms may be larger than their sum
        return torch.maximum(sizes[0] @ sizes[1].mT * (1 + 2.0**-30), largest)
    if not node.inputs or not row.is_affine:
        return largest
    assert row.absolute is not None
    scale = row.absolute(
        node, network.params[node.name], [rounding.raised(network, node, size) for size in sizes]
    )
    return torch.maximum(scale + network.offset_size(node), largest)
