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

The lower line is ``x - r``, or ``m (x - r)`` with any ``m`` in [0, 1] where no element of it can be
negative; the upper one likewise. Alpha chooses ``m``; by default it is the one of smaller area.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node

_RADIUS = 0.5 + 2.0**-12
"""Largest distance of an element from its quantized value, in units of the scale."""


def _radius(node: Node, low: Tensor, up: Tensor) -> Tensor:
    """``r``: one for each tensor, so every axis of the node is 1."""
    places = tuple(range(-len(node.shape), 0))
    if places:
        low, up = low.amin(places, keepdim=True), up.amax(places, keepdim=True)
    return (up.clamp(min=0) - low.clamp(max=0)) * (_RADIUS / 255) + torch.finfo(low.dtype).tiny


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    low, up = lowers[0], uppers[0]
    radius = _radius(node, low, up)
    least = torch.where(low >= 0, (low - radius).clamp(min=0), low - radius)
    return least, torch.where(up <= 0, (up + radius).clamp(max=0), up + radius)


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    low, up = lowers[0], uppers[0]
    middle, radius = low * 0.5 + up * 0.5, _radius(node, low, up)
    return torch.stack([(low < 0) | (middle > radius), (up > 0) | (middle < -radius)]).to(low.dtype)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    low, up = lowers[0], uppers[0]
    radius = _radius(node, low, up)
    below, above = _default_alpha(node, lowers, uppers) if alpha is None else alpha
    below, above = torch.where(low >= 0, below, 1.0), torch.where(up <= 0, above, 1.0)
    return Relaxation((below,), -radius * below, (above,), radius * above)


register_nonlinear("DynamicQuantize", _interval, _relax, alphas=2, default_alpha=_default_alpha)
