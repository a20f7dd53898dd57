"""``DynamicQuantize``: the numbers ``(q - z) s`` that ONNX's DynamicQuantizeLinear makes of a
tensor ``x``.

With ``h = max(x, 0)`` and ``l = min(x, 0)`` over the whole tensor, ``s = (h - l) / 255``,
``z = round(-l / s)`` and ``q = clip(round(x / s) + z, 0, 255)``. Rounding moves an element by at
most ``s / 2``; where ``q`` is clipped the two roundings met, and the distance is no larger. So
``|y - x| <= s / 2``, and ``s`` is bounded by the bounds of all elements. In float32, as onnxruntime
computes, the three quotients (at most 255 each) are off by less than ``2**-15`` in total: ``y``
stays within ``(1/2 + 2**-14) s``. ``_RADIUS`` leaves as much again, several times over, for the
arithmetic of this module in either type. Signs are kept (zero is represented exactly): for
``x >= 0``, ``y >= 0``.

*The grid.* ``y = k s`` with a whole number ``k = clip(round(x / s), -z, 255 - z)``, which rises in
``x / s`` and falls in ``z``. Where bounds of ``s`` lie above zero, the ends of ``x`` give those of
``x / s`` and of ``z``, these the ends of ``k``, and those and the ends of ``s`` the range of ``y``.
Each quotient may be off by the share ``_QUOTIENT`` of itself: two roundings of float32 in the
scale, one in the quotient, and those made here. Where ``x`` is known to less than a step this is
exact but for the steps that are met; a half step is the same, however well ``x`` is known.

Lines below are ``m (x - r) + (1 - m) b`` for any ``m`` in [0, 1], ``r`` the half step and ``b`` the
least value; above likewise. Alpha chooses ``m``; by default it is the one of smaller area.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import padding
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node

_RADIUS = 0.5 + 2.0**-12
"""Largest distance of an element from its quantized value, in units of the scale."""
_QUOTIENT = 2.0**-20
_LOST = 2.0**-116
"""Where the scale is no normal number of float32, it may be off by any share of itself, or be 0:
then ``x`` and ``y`` are both at most 255 of the least normal number."""
_LEAST_SCALE = 2.0**-100
"""Where the scale may be smaller, the grid is not asked: quotients may overflow."""


def _ends(node: Node, low: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    """Least and greatest ``-l``, least and greatest ``h``: one for each tensor, so every axis of
    the node is 1."""
    places = tuple(range(-len(node.shape), 0))
    if places:
        below = low.amin(places, keepdim=True), up.amin(places, keepdim=True)
        above = low.amax(places, keepdim=True), up.amax(places, keepdim=True)
    else:
        below = above = low, up
    least, most = (-end.clamp(max=0) for end in reversed(below))
    return least, most, above[0].clamp(min=0), above[1].clamp(min=0)


def _radius(node: Node, low: Tensor, up: Tensor) -> Tensor:
    _, depth, _, height = _ends(node, low, up)
    return (height + depth) * (_RADIUS / 255) + _LOST


def _grid(node: Node, low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The range of ``k s``; infinite where nothing is known of ``s``."""
    depth_least, depth, height_least, height = _ends(node, low, up)
    less, more = 1 - _QUOTIENT, 1 + _QUOTIENT
    small, large = (depth_least + height_least) / 255 * less, (depth + height) / 255 * more
    known = (small > _LEAST_SCALE) & torch.isfinite(large)
    small, large = torch.where(known, small, 1.0), torch.where(known, large, 1.0)
    zeros = (depth_least / large * less).clamp(0, 255), (depth / small * more).clamp(0, 255)
    zero_least, zero_most = (torch.round(zero) for zero in zeros)
    least = torch.where(low > 0, low / large * less, low / small * more)
    most = torch.where(up > 0, up / small * more, up / large * less)
    first = torch.minimum(torch.maximum(torch.round(least), -zero_most), 255 - zero_most)
    last = torch.minimum(torch.maximum(torch.round(most), -zero_least), 255 - zero_least)
    below = first * torch.where(first > 0, small * less, large * more)
    above = last * torch.where(last > 0, large * more, small * less)
    return torch.where(known, below, -torch.inf), torch.where(known, above, torch.inf)


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    low, up = lowers[0], uppers[0]
    radius = _radius(node, low, up)
    least = torch.where(low >= 0, (low - radius).clamp(min=0), low - radius)
    most = torch.where(up <= 0, (up + radius).clamp(max=0), up + radius)
    below, above = _grid(node, low, up)
    return torch.fmax(least, below), torch.fmin(most, above)


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    low, up = lowers[0], uppers[0]
    middle, radius = low * 0.5 + up * 0.5, _radius(node, low, up)
    least, most = _interval(node, lowers, uppers)
    return torch.stack([middle - radius > least, middle + radius < most]).to(low.dtype)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    low, up = lowers[0], uppers[0]
    radius = _radius(node, low, up)
    ends = torch.stack([end.expand_as(low) for end in _interval(node, lowers, uppers)])
    slope = _default_alpha(node, lowers, uppers) if alpha is None else alpha
    is_finite = torch.isfinite(radius)  # where it is not, only the ends may be
    slope = torch.where(is_finite, slope, 0.0)
    known, shift = torch.nan_to_num(ends, 0.0, 0.0, 0.0), torch.where(is_finite, radius, 0.0)
    known, shift = known * (1 - slope), slope * shift
    known = torch.where(torch.isfinite(ends) | (slope == 1), known, ends)
    # exact for slopes 0 and 1 (``_RADIUS`` has room); otherwise off by a few roundings of its terms
    is_mixed = (slope != 0) & (slope != 1)
    error = torch.where(is_mixed, (known.abs() + shift) * padding(low.dtype)[0], 0.0)
    below, above = known[0] - shift[0] - error[0], known[1] + shift[1] + error[1]
    return Relaxation((slope[0],), below, (slope[1],), above)


register_nonlinear("DynamicQuantize", _interval, _relax, alphas=2, default_alpha=_default_alpha)
