"""``Elu``: ``x`` for ``x >= 0`` and ``a (exp(x) - 1)`` below, attribute ``alpha`` (``a >= 0``,
default 1).

For ``a <= 1`` it is convex and an ordinary row of ``convex``. For ``a > 1`` it is convex on both
sides of zero with a concave kink there, so *lower*: the tangent at a point ``p <= 0`` is below it
left of zero; right of zero it is linear and ``f(x) - m x`` is smallest at 0, which belongs to the
left part, or at ``u``: the intercept is the smaller of the two; *upper*: ``f(x) - m x`` is largest
at ``l``, at 0 or at ``u``, whatever the slope. For ``l >= 0`` it is the identity, exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.convex import Convex, convex_lines, middle_alpha, relaxation
from bitcrown.bounds.relaxations.lines import (
    above,
    below,
    gap_above,
    gap_below,
    lower_or_constant,
    mix,
    padding,
    reach,
    secant_slope,
    upper_or_constant,
)
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.errors import UnsupportedError
from bitcrown.model.graph import Node


def _scale(node: Node) -> float:
    scale = float(node.attrs.get("alpha", 1.0))
    if not scale >= 0:
        raise UnsupportedError(
            f"Elu node {node.name} has alpha {scale}; only alpha >= 0 has a relaxation"
        )
    return scale


def _curve(scale: float) -> Convex:
    """Finite everywhere, including the branch that ``where`` does not take."""

    def value(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, scale * torch.expm1(x.clamp(max=0)))

    def slope(x: Tensor) -> Tensor:
        return torch.where(x > 0, 1.0, scale * torch.exp(x.clamp(max=0)))

    return Convex(value, slope, lambda dtype: (-torch.finfo(dtype).max, torch.finfo(dtype).max))


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    scale, low, up = _scale(node), lowers[0], uppers[0]
    value = _curve(scale).value
    return torch.where(low >= 0, low, below(value(low)).clamp(min=-scale)), torch.where(
        up >= 0, up, above(value(up))
    )


def _kinked_lines(
    curve: Convex, low: Tensor, up: Tensor, fraction: Tensor | None, ranges: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Lines for ``a > 1``."""
    p = mix(low, up, low.new_tensor(0.5) if fraction is None else fraction).clamp(max=0)
    slope = curve.slope(p)
    value_low, value_up = curve.value(low), curve.value(up)
    relative, absolute = padding(low.dtype)
    at_p = gap_below(curve.value(p), slope, p) - (slope * relative + absolute) * reach(p, low, up)
    intercept = torch.minimum(at_p, gap_below(value_up, slope, up))
    lower = lower_or_constant(slope, intercept, ranges[0], low, up)

    chord = secant_slope(low, up, value_low, value_up)
    intercept = torch.maximum(gap_above(value_low, chord, low), gap_above(value_up, chord, up))
    intercept = torch.where(up > 0, intercept.clamp(min=0), intercept)
    return lower, upper_or_constant(chord, intercept, ranges[1], low, up)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    scale, low, up = _scale(node), lowers[0], uppers[0]
    fraction = None if alpha is None else alpha[0]
    lines = convex_lines if scale <= 1 else _kinked_lines
    (slope, cut), (upper_slope, upper_cut) = lines(
        _curve(scale), low, up, fraction, _interval(node, lowers, uppers)
    )
    is_identity = low >= 0
    lower = torch.where(is_identity, 1.0, slope), torch.where(is_identity, 0.0, cut)
    return relaxation(
        (
            lower,
            (torch.where(is_identity, 1.0, upper_slope), torch.where(is_identity, 0.0, upper_cut)),
        )
    )


register_nonlinear("Elu", _interval, _relax, alphas=1, default_alpha=middle_alpha)
