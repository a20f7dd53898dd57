"""Which operand to split, and where (after Shi et al., "Neural Network Verification with
Branch-and-Bound for General Nonlinearities", 2024).

A nonlinear node is replaced by a line below it where the backward pass reached it with a positive
coefficient, by a line above it elsewhere. What that costs the bound is the coefficient times the
gap between line and function, which depends on where the operand is. Nobody knows that, so the
score of an operand is ``|a|`` times the mean gap over its range, at a few points of it. The range
may be cut in the middle, at the point of the widest gap, or where the function bends (at zero, for
ReLU and S-shaped functions). The best operands and their points are then judged by really bounding
both children.

Legend: ``B`` domains, ``N`` operands, ``K`` operands chosen, ``C = 2 K`` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from bitcrown.bounds.claims import known
from bitcrown.bounds.crown import relaxation_of
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.relaxations.registry import gathered_terms
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node
from bitcrown.model.registry import DIFFERENCE
from bitcrown.search.ranges.domains import STAIRCASES, OperandAxis

_PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where gaps are looked at, as shares of a range; its ends may be touching points."""
_INNER = slice(1, 4)
"""Those of them at which a range may be cut: a cut near an end gains nothing."""
_PAIR_PLACES = (0.2, 0.5, 0.8)
_BENT_AT_ZERO = ("Relu", "Sigmoid", "Tanh", "Erf", "Atan", "Sign", "Elu")
_OPERANDS = 4
"""Operands judged per split."""


def mean_gaps(
    network: Network,
    layout: Layout,
    axis: OperandAxis,
    bounds: Bounds,
    alpha: Tensor,
    record: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Scores ``[B, N]``, and where each range has its widest gap, as a share of it ``[B, N]``.

    ``record`` holds the coefficients ``[B, 1, *]`` with which the backward pass reached the
    nodes, ``bounds`` the ranges (``[1, *]`` or ``[B, *]``), ``alpha [B, 1, N_alpha]`` the slopes.
    """
    scores = alpha.new_zeros(len(alpha), axis.size)
    widest = torch.full_like(scores, 0.5)
    for node in layout.nodes:
        if node.name not in record or node.op in ("DynamicQuantize", "MatMul"):
            continue
        if node.op.endswith(DIFFERENCE):  # split where its values are computed
            continue
        a = record[node.name][:, 0]
        lines = relaxation_of(node, bounds, layout.alpha_of(node, alpha))
        low, width = _ranges_read(node, bounds)
        split = (node.name,) if node.name in axis.stairs else node.inputs
        gaps = []
        places = _PLACES if len(low) == 1 else _PAIR_PLACES
        for shares in product(places, repeat=len(low)):
            at = [
                end + _share_of(node, share, room) * room
                for end, share, room in zip(low, shares, width, strict=True)
            ]
            found = network.forward_node(node, at)
            if node.name in axis.stairs:
                found = torch.minimum(
                    torch.maximum(found, bounds[node.name][0]), bounds[node.name][1]
                )
            below = found - lines.lower_intercept[:, 0]
            above = lines.upper_intercept[:, 0] - found
            for x, lower, upper in zip(at, lines.lower_slopes, lines.upper_slopes, strict=True):
                below = below - gathered_terms(lower[:, 0] * x, node)
                above = above + gathered_terms(upper[:, 0] * x, node)
            gaps.append(elements(a.clamp(min=0) * below - a.clamp(max=0) * above, 1))
        every = known(torch.stack(gaps), 0.0)
        for name, room in zip(split, width, strict=True):
            scores[:, axis.at[name]] += _spread(node, every.mean(dim=0), room)
            if len(low) == 1 and room.shape[1:] == node.shape:
                inner = every[_INNER].argmax(dim=0).to(scores.dtype)
                widest[:, axis.at[name]] = 0.3 + 0.2 * inner
    return scores.clamp(min=0), widest


def _ranges_read(node: Node, bounds: Bounds) -> tuple[list[Tensor], list[Tensor]]:
    """Lower ends and widths of what a node reads; of a staircase with few values, that part of it
    where these are taken."""
    ends = [bounds[name] for name in node.inputs]
    if node.op in STAIRCASES:
        (low, up), (bottom, top) = ends[0], bounds[node.name]
        ends = [(torch.maximum(low, bottom - 1), torch.minimum(up, top + 1))]
    return [low for low, _ in ends], [(up - low).clamp(min=0) for low, up in ends]


def _share_of(node: Node, share: float, room: Tensor) -> Tensor | float:
    """Where a range is looked at. A function of a line of numbers is nearly linear where all of
    them rise together, so there every other one falls."""
    if room.shape[1:] == node.shape:
        return share
    is_even = torch.arange(room.shape[-1], device=room.device) % 2 == 0
    return torch.where(is_even, share, 1 - share).to(room.dtype)


def _spread(node: Node, gap: Tensor, room: Tensor) -> Tensor:
    """``gap [B, N]`` of a node's elements as one of each operand: that of a line by the squares of
    its widths ``room [B, *]``."""
    if room.shape[1:] == node.shape:
        return gap
    squares = room.square()
    part = known(squares / squares.sum(-1, keepdim=True), 0.0)
    return elements(gap.reshape(-1, *node.shape) * part, 1)


def candidates_of(
    layout: Layout, axis: OperandAxis, bounds: Bounds, scores: Tensor, widest: Tensor
) -> tuple[Tensor, Tensor]:
    """``[B, C]`` operands and the points at which to cut them, strictly inside their ranges
    ``bounds`` (those of the proof); operand -1 where there is nothing."""
    count = len(scores)
    flat = [
        torch.cat([elements(bounds[name][end], 1).expand(count, -1) for name in axis.at], dim=1)
        for end in (0, 1)
    ]
    value, index = scores.topk(min(_OPERANDS, axis.size), dim=1)
    low, up = (end.gather(1, index) for end in flat)
    bends = _bends(layout, axis, index.device)[index]
    middle = low / 2 + up / 2
    is_stair = _is_stair(axis, index.device)[index]
    middle = torch.where(is_stair, torch.floor(middle) + 0.5, middle)  # between two of its values
    elsewhere = low + widest.gather(1, index).to(low.dtype) * (up - low)
    zero = torch.zeros_like(low)
    has_bend = bends & (torch.minimum(-low, up).sign() == 1)
    elsewhere = torch.where(has_bend, zero, torch.where(is_stair, middle, elsewhere))
    points = torch.cat([middle, elsewhere], dim=1)
    operands, ends = index.repeat(1, 2), (low.repeat(1, 2), up.repeat(1, 2))
    is_inside = torch.minimum(points - ends[0], ends[1] - points).sign() == 1
    is_new = torch.ones_like(is_inside)
    is_new[:, index.shape[1] :] = points[:, index.shape[1] :] != middle
    is_scored = value.sign().repeat(1, 2) == 1
    usable = is_inside & is_new & is_scored & torch.isfinite(points)
    return torch.where(usable, operands, -1), torch.where(usable, points, 0.0)


def _is_stair(axis: OperandAxis, device: torch.device) -> Tensor:
    """``[N]``: whether the operand is the value of a staircase."""
    result = torch.zeros(axis.size, dtype=torch.bool, device=device)
    for name in axis.stairs:
        result[axis.at[name]] = True
    return result


def _bends(layout: Layout, axis: OperandAxis, device: torch.device) -> Tensor:
    """``[N]``: whether the operand's function bends at zero."""
    result = torch.zeros(axis.size, dtype=torch.bool, device=device)
    for node in layout.nodes:
        if node.op in _BENT_AT_ZERO:
            result[axis.at[node.inputs[0]]] = True
    return result
