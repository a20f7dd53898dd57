"""``Clip``: ``min(max(x, a), b)``, attributes ``min`` and ``max`` (one may be absent or infinite).

Convex at the kink ``a``, concave at the kink ``b``. Lower line on ``[l, u]``: let ``q = clip(l)``,
a point where the function is still the identity, and ``r = (clip(u) - q) / (u - q)`` (which is 1
for ``u <= b``). The line through ``(q, q)`` with slope ``s`` is below the function for every
``0 <= s <= r`` if ``l < a`` (alpha chooses ``s``); for ``l >= a`` the function is concave on the
interval and ``s = r``, the chord, is best. Its intercept ``q (1 - s)`` is exact for ``s`` in
``{0, 1}``, so that the linear pieces are; otherwise it is moved outward. By default the slope is
``r`` where the midpoint is right of ``q``, else 0 (the smaller area), which is the rule of ReLU.

Upper line: ``clip(x) = -clip'(-x)`` with ``a' = -b, b' = -a``; both are computed together, on a
leading axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _limits(node: Node) -> tuple[float, float]:
    low, up = node.attrs.get("min"), node.attrs.get("max")
    return -math.inf if low is None else float(low), math.inf if up is None else float(up)


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    least, largest = _limits(node)
    return lowers[0].clamp(least, largest), uppers[0].clamp(least, largest)


class _Problem:
    """Both lower problems (the function, and its mirror image) of shape ``[2, B, *]``."""

    def __init__(self, node: Node, lowers: Operands, uppers: Operands) -> None:
        self.low = torch.stack([lowers[0], -uppers[0]])
        self.up = torch.stack([uppers[0], -lowers[0]])
        least, largest = _limits(node)
        limits = self.low.new_tensor([[least, -largest], [largest, -least]])
        self.least, self.largest = limits.reshape(2, 2, *[1] * lowers[0].dim())
        self.pivot = torch.clamp(self.low, self.least, self.largest)

    def default(self) -> Tensor:
        return (self.low * 0.5 + self.up * 0.5 > self.pivot).to(self.low.dtype)

    def lines(self, fraction: Tensor | None) -> tuple[Tensor, Tensor]:
        info = torch.finfo(self.low.dtype)
        width = (self.up - self.pivot).clamp(min=info.tiny * info.eps)
        ratio = (torch.clamp(self.up, self.least, self.largest) - self.pivot) / width
        ratio = torch.where(self.up > self.largest, ratio * (1 - 4 * info.eps), ratio)
        chosen = self.default() if fraction is None else fraction
        slope = torch.where(self.low >= self.least, ratio, ratio * chosen)
        rest = 1 - slope
        error = torch.where(
            (slope > 0) & (rest > 0), 4 * info.eps * self.pivot.abs() * rest + info.tiny, 0.0
        )
        return slope, self.pivot * rest - error


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    return _Problem(node, lowers, uppers).default()


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    slopes, intercepts = _Problem(node, lowers, uppers).lines(alpha)
    return Relaxation((slopes[0],), intercepts[0], (slopes[1],), -intercepts[1])


register_nonlinear(
    "Clip", _interval, _relax, alphas=2, default_alpha=_default_alpha, is_piecewise_linear=True
)
