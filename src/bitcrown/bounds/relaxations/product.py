"""Product of two operands on a box: McCormick planes, and everything between them.

For any slopes ``(s, t)``: ``x y - s x - t y = (x - t)(y - s) - s t``. On ``[a,b] x [c,d]`` with
``s`` in ``[c,d]`` and ``t`` in ``[a,b]`` the product ``(x - t)(y - s)`` is least at the corners
``(a,d)`` or ``(b,c)``, where it is not positive, and greatest at ``(a,c)`` or ``(b,d)``. So every
such pair of slopes gives planes

    x y >= s x + t y + min((a-t)(d-s), (b-t)(c-s)) - s t,     x y <= s x + t y + max((a-t)(c-s),
    (b-t)(d-s)) - s t.

McCormick's two lower planes are ``(s,t) = (c,a)`` and ``(d,b)``, the upper ones ``(d,a)`` and
``(c,b)``; alpha moves along the segment between them. Both ends enclose the same volume, and so
does the middle, which is the default because it is the linearisation at the midpoint and has a
gradient to both sides. Each term above has a few roundings and no cancellation before the last
difference, so a relative padding of both terms makes the intercept sound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import mix, padding
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    (a, c), (b, d) = lowers, uppers
    products = torch.stack([a * c, a * d, b * c, b * d])
    info = torch.finfo(a.dtype)
    low, up = products.amin(0).clamp(max=info.max), products.amax(0).clamp(min=-info.max)
    low, up = low - (low.abs() * info.eps + info.tiny), up + (up.abs() * info.eps + info.tiny)
    # Outward rounding must not lose a sign that the operands' signs prove.
    is_positive = ((a >= 0) & (c >= 0)) | ((b <= 0) & (d <= 0))
    is_negative = ((a >= 0) & (d <= 0)) | ((b <= 0) & (c >= 0))
    return torch.where(is_positive, low.clamp(min=0), low), torch.where(
        is_negative, up.clamp(max=0), up
    )


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    return torch.full_like(lowers[0] * lowers[1], 0.5).expand(2, *[-1] * lowers[0].dim())


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    (a, c), (b, d) = lowers, uppers
    relative, absolute = padding(a.dtype)
    range_low, range_up = _interval(node, lowers, uppers)
    first: Tensor | float
    second: Tensor | float
    if alpha is None:
        first = second = 0.5
    else:
        # Where the derivative (a product of two widths) could overflow, alpha is left alone: no NaN
        # in gradients.
        is_moderate = torch.isfinite(4 * range_up - 4 * range_low)
        first, second = torch.where(is_moderate, alpha, alpha.detach())

    s, t = mix(c, d, first), mix(a, b, first)
    corner, product = torch.minimum((a - t) * (d - s), (b - t) * (c - s)), s * t
    intercept = corner - product - ((corner.abs() + product.abs()) * relative + absolute)
    useful = _peak(s, a, b) + _peak(t, c, d) + intercept >= range_low
    lower = [
        torch.where(useful, s, 0.0),
        torch.where(useful, t, 0.0),
        torch.where(useful, intercept, range_low),
    ]

    s, t = mix(c, d, 1 - second), mix(a, b, second)
    corner, product = torch.maximum((a - t) * (c - s), (b - t) * (d - s)), s * t
    intercept = corner - product + ((corner.abs() + product.abs()) * relative + absolute)
    useful = -_peak(-s, a, b) - _peak(-t, c, d) + intercept <= range_up
    upper = [
        torch.where(useful, s, 0.0),
        torch.where(useful, t, 0.0),
        torch.where(useful, intercept, range_up),
    ]
    return Relaxation((lower[0], lower[1]), lower[2], (upper[0], upper[1]), upper[2])


def _peak(slope: Tensor, low: Tensor, up: Tensor) -> Tensor:
    return torch.maximum(slope * low, slope * up)


register_nonlinear("Mul", _interval, _relax, alphas=2, default_alpha=_default_alpha)
