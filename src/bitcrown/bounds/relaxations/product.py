"""Product of two operands on a box: McCormick planes, and everything between them.

On ``[a,b] x [c,d]`` McCormick's planes are

    x y >= c x + a y - a c,     x y >= d x + b y - b d,
    x y <= d x + a y - a d,     x y <= c x + b y - b c.

Alpha goes from the first to the second of a pair. A mixture of two lower planes is a lower plane,
whose slopes and constant are mixtures: all three are linear in alpha, a multiply-add each. Both
ends enclose the same volume, and so does the middle, which is the default because it is the
linearisation at the midpoint and has a gradient to both sides. There both planes are parallel to
the last bit, which passes over sums of products need (``centred.bilinear``): so the upper slope
goes from ``c`` to ``d`` as the lower one does, by ``1 - f``. Every lower plane of these meets
``x y`` at ``(a,d)`` and ``(b,c)``, so none is below the range everywhere: the constant range serves
where numbers might overflow.

*Rounding.* Let ``X >= |x|``, ``Y >= |y|`` and ``u`` be half an epsilon. The stored slope
``c + f (d - c)`` is off by at most ``2 u Y`` (difference) ``+ 2 u Y`` (product) ``+ u Y`` (sum),
and by ``2 u Y`` more where ``f`` is ``1 - f``, rounded, which costs ``7 u X Y``; the other one
costs ``5 u X Y``. The constant ``-a c + f (a c - b d)`` is off by ``6 u X Y`` (two products, their
difference, its product with ``f``) ``+ u X Y + u X Y + 3 u X Y`` (the first product, the padding,
the last sum). Together that is below 12 epsilons of ``X Y``; 16 are allowed for. What underflows
loses less than the smallest normal number, times ``X`` or ``Y`` in a slope.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    range_low, range_up = _interval(node, lowers, uppers)
    info = torch.finfo(a.dtype)
    x, y = torch.maximum(a.abs(), b.abs()), torch.maximum(c.abs(), d.abs())
    padding = 16 * info.eps * x * y + info.tiny * (8 + 4 * x + 4 * y)
    is_moderate = torch.isfinite(16 * x * y + 16 * (x + y))  # hence every sum of a few such terms
    ac, ad, bc, bd = a * c, a * d, b * c, b * d

    def mixed(begin: Tensor, end: Tensor, otherwise: Tensor, f: Tensor) -> Tensor:
        """``f`` of the way from ``begin`` to ``end``."""
        step = torch.where(is_moderate, end - begin, 0.0)
        return torch.addcmul(torch.where(is_moderate, begin, otherwise), step, f)

    nothing = torch.zeros_like(x)
    f, g = a.new_full((2, *[1] * a.dim()), 0.5) if alpha is None else alpha
    lower = (
        mixed(c, d, nothing, f),
        mixed(a, b, nothing, f),
        mixed(-ac - padding, -bd - padding, range_low, f),
    )
    upper = (
        mixed(c, d, nothing, 1 - g),
        mixed(a, b, nothing, g),
        mixed(padding - ad, padding - bc, range_up, g),
    )
    return Relaxation((lower[0], lower[1]), lower[2], (upper[0], upper[1]), upper[2])


register_nonlinear("Mul", _interval, _relax, alphas=2, default_alpha=_default_alpha)
