"""``MatMul``: ``z_ij = sum_d x_id y_jd`` of two bounded matrices, without its single products.

Attention multiplies matrices of hundreds of rows; its products, one by one (``product``), are a
hundred times as many as the numbers they are made of. Let ``x`` lie in ``[a, b]``, ``y`` in
``[c, d]``, and let ``s``, ``t`` be any numbers (those in the middle), ``p >= |x - t|`` and
``q >= |y - s|``. Then

    x y = s x + t y - s t + (x - t)(y - s),     |(x - t)(y - s)| <= p q,

so the two planes around each product are parallel, and offsets and losses are added up over ``d``:
``-s t -+ p q``, both matrix products.

*Range.* The meet of two: that of the planes at ``t -+ p``, ``s -+ q``, and that of ``x = x+ - x-``
with ``x+ = max(x, 0)`` in ``[a+, b+]`` and ``x- = max(-x, 0)`` in ``[b-, a-]``, for each of which

    x+ y >= a+ c+ - b+ c-,     x+ y <= b+ d+ - a+ d-.

The first is exact where both operands are centred at zero, the second where one has a sign.

*Rounding.* Every number computed here is a sum of at most 8 matrix products of absolute terms
``S = max |x| max |y|`` or below, each off by ``gamma_k S``, with ``k`` the inner extent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _times(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y.mT)


def _centred(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The middle as computed, and how far from it the values may lie; 0 and infinitely far where an
    end is infinite, so that only the rows and columns there are unbounded."""
    middle = low * 0.5 + up * 0.5
    middle = torch.where(torch.isfinite(middle), middle, 0.0)
    reach = torch.maximum(up - middle, middle - low)
    info = torch.finfo(low.dtype)
    return middle, reach * (1 + 2 * info.eps) + info.tiny


def _padding(lowers: Operands, uppers: Operands) -> Tensor:
    """What all sums of one element may lose together."""
    sizes = [torch.maximum(low.abs(), up.abs()) for low, up in zip(lowers, uppers, strict=True)]
    info, inner = torch.finfo(sizes[0].dtype), sizes[0].shape[-1]
    # Middles may leave their intervals by a rounding, hence twice what 8 sums lose.
    share = 16 * (inner + 8) * info.eps
    return _times(*sizes) * share + 32 * (inner + 1) * info.tiny


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    (a, c), (b, d) = lowers, uppers
    padding = _padding(lowers, uppers)
    (t, p), (s, q) = _centred(a, b), _centred(c, d)
    middle = _times(t, s)
    reach = _times(t.abs(), q) + _times(p, s.abs()) + _times(p, q)
    low = _least(a, b, c, d)
    up = -_least(a, b, -d, -c)
    return (
        torch.fmax(middle - reach, low) - padding,
        torch.fmin(middle + reach, up) + padding,
    )


def _least(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Below ``x+ y - x- y``: the least of the first, less the greatest of the second."""
    first = _times(a.clamp(min=0), c.clamp(min=0)) + _times(b.clamp(min=0), c.clamp(max=0))
    second = _times((-a).clamp(min=0), d.clamp(min=0)) + _times((-b).clamp(min=0), d.clamp(max=0))
    return first - second


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    (a, c), (b, d) = lowers, uppers
    (t, p), (s, q) = _centred(a, b), _centred(c, d)
    offset, loss = -_times(t, s), _times(p, q) + _padding(lowers, uppers)
    return Relaxation((s, t), offset - loss, (s, t), offset + loss)


register_nonlinear("MatMul", _interval, _relax)
