"""Convex and concave functions: chord on one side, tangent on the other.

For convex ``f`` on ``[l, u]``: ``f(x) - m x`` is largest at an end whatever ``m`` is, so the
chord's slope with the larger of the two gaps is a sound upper line. Below, the tangent at ``p`` is
a lower line *wherever f is convex*, so ``p`` may be moved to where ``f`` and its first two
derivatives are finite (``reachable``), even out of ``[l, u]``. ``p = l + alpha (u - l)``; the area
below the tangent is largest for the midpoint, the default.

Concave functions are the negated convex ones. Domains: where ``l <= 0`` (``Log``) or 0 lies in the
interval (``Reciprocal``) the unbounded side is infinite, "no bound", and nothing is raised. A
network may choose what it computes where a function is not defined (``Where(x > 0, sqrt(x), x)``),
and then everything else must still be true there. So lines and ranges enclose *some* number at
every point of the interval, the same in all: ``sqrt(max(x, 0))``, and for ``Log`` one below all
lines. (The tangent of the root at ``p >= -l`` is not negative at ``l``.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
from bitcrown.model.graph import Node


@dataclass(frozen=True)
class Convex:
    """``value`` is convex with derivative ``slope``; ``reachable(dtype)`` bounds the tangent
    points."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    reachable: Callable[[torch.dtype], tuple[float, float]]


def convex_lines(
    curve: Convex,
    low: Tensor,
    up: Tensor,
    fraction: Tensor | None,
    ranges: Pair,
    begin: Tensor | None = None,
) -> tuple[Pair, Pair]:
    """``(slope, intercept)`` below and above; ``ranges`` are constant bounds, used where a line is
    nowhere better. ``begin``: where the interval of a root begins, perhaps below ``low >= 0``."""
    p = mix(low, up, low.new_tensor(0.5) if fraction is None else fraction)
    p = p.clamp(*curve.reachable(low.dtype))
    begin = low if begin is None else begin
    p = p if begin is low else torch.maximum(p, -begin)
    slope = curve.slope(p)
    relative, absolute = padding(low.dtype)
    slope_error = slope.abs() * relative + absolute
    intercept = gap_below(curve.value(p), slope, p) - slope_error * reach(p, begin, up)
    lower = lower_or_constant(slope, intercept, ranges[0], begin, up)

    value_low, value_up = curve.value(low), curve.value(up)
    chord = secant_slope(low, up, value_low, value_up)
    chord = torch.minimum(torch.maximum(chord, curve.slope(low)), curve.slope(up))
    intercept = torch.maximum(gap_above(value_low, chord, low), gap_above(value_up, chord, up))
    return lower, upper_or_constant(chord, intercept, ranges[1], low, up)


def negated(lines: tuple[Pair, Pair]) -> tuple[Pair, Pair]:
    """Lines of ``-f`` from those of ``f``."""
    (lower_slope, lower_intercept), (upper_slope, upper_intercept) = lines
    return (-upper_slope, -upper_intercept), (-lower_slope, -lower_intercept)


def relaxation(lines: tuple[Pair, Pair]) -> Relaxation:
    (lower_slope, lower_intercept), (upper_slope, upper_intercept) = lines
    return Relaxation((lower_slope,), lower_intercept, (upper_slope,), upper_intercept)


def _no_limit(dtype: torch.dtype) -> tuple[float, float]:
    return -torch.finfo(dtype).max, torch.finfo(dtype).max


def _exp_limit(dtype: torch.dtype) -> tuple[float, float]:
    """``exp(p)`` and ``p exp(p)`` do not overflow."""
    return -torch.finfo(dtype).max, 0.75 * float(
        torch.log(torch.tensor(torch.finfo(dtype).max, dtype=torch.float64))
    )


def _positive(power: float) -> Callable[[torch.dtype], tuple[float, float]]:
    def limit(dtype: torch.dtype) -> tuple[float, float]:
        return torch.finfo(dtype).tiny ** power, torch.finfo(dtype).max

    return limit


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` to about an ulp (torch's own becomes the identity above a threshold)."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


_EXP = Convex(torch.exp, torch.exp, _exp_limit)
_SOFTPLUS = Convex(softplus, torch.sigmoid, _no_limit)
_SQUARE = Convex(torch.square, lambda x: 2 * x, _no_limit)
_MINUS_LOG = Convex(lambda x: -torch.log(x), lambda x: -torch.reciprocal(x), _positive(0.25))
_MINUS_SQRT = Convex(lambda x: -torch.sqrt(x), lambda x: -0.5 * torch.rsqrt(x), _positive(0.5))
_RECIPROCAL = Convex(torch.reciprocal, lambda x: -torch.reciprocal(x * x), _positive(0.25))

_Ranges = Callable[[Tensor, Tensor], Pair]


def _increasing(value: Callable[[Tensor], Tensor], floor: float = -torch.inf) -> _Ranges:
    def ranges(low: Tensor, up: Tensor) -> Pair:
        return below(value(low)).clamp(min=floor), above(value(up))

    return ranges


def _square_range(low: Tensor, up: Tensor) -> Pair:
    nearest = torch.maximum(low, -up).clamp(min=0)
    farthest = torch.maximum(low.abs(), up.abs())
    return below(nearest * nearest).clamp(min=0), above(farthest * farthest)


def _log_range(low: Tensor, up: Tensor) -> Pair:
    lower = torch.where(low > 0, below(torch.log(low)), -torch.inf)
    return lower, torch.where(up > 0, above(torch.log(up)), torch.inf)


def _sqrt_range(low: Tensor, up: Tensor) -> Pair:
    return below(low.clamp(min=0).sqrt()).clamp(min=0), above(up.clamp(min=0).sqrt())


def _reciprocal_range(low: Tensor, up: Tensor) -> Pair:
    defined = (low > 0) | (up < 0)
    lower = torch.where(defined, below(torch.reciprocal(up)), -torch.inf)
    upper = torch.where(defined, above(torch.reciprocal(low)), torch.inf)
    return torch.where(low > 0, lower.clamp(min=0), lower), torch.where(
        up < 0, upper.clamp(max=0), upper
    )


def _sqrt_lines(
    low: Tensor, up: Tensor, fraction: Tensor | None, ranges: Pair
) -> tuple[Pair, Pair]:
    flipped = (-ranges[1], -ranges[0])
    ends = low.clamp(min=0), up.clamp(min=0)
    return negated(convex_lines(_MINUS_SQRT, *ends, fraction, flipped, low))


def _log_lines(low: Tensor, up: Tensor, fraction: Tensor | None, ranges: Pair) -> tuple[Pair, Pair]:
    return negated(convex_lines(_MINUS_LOG, low, up, fraction, (-ranges[1], -ranges[0])))


def _reciprocal_lines(
    low: Tensor, up: Tensor, fraction: Tensor | None, ranges: Pair
) -> tuple[Pair, Pair]:
    """``1/x = -(1/(-x))``: negative intervals are mirrored to positive ones, then slopes keep their
    signs."""
    mirrored = up < 0
    defined = (low > 0) | mirrored
    near, far = torch.where(mirrored, -up, low), torch.where(mirrored, -low, up)
    bounds = (
        torch.where(mirrored, -ranges[1], ranges[0]),
        torch.where(mirrored, -ranges[0], ranges[1]),
    )
    (low_slope, low_cut), (up_slope, up_cut) = convex_lines(
        _RECIPROCAL, near, far, fraction, bounds
    )
    lower = torch.where(mirrored, up_slope, low_slope), torch.where(mirrored, -up_cut, low_cut)
    upper = torch.where(mirrored, low_slope, up_slope), torch.where(mirrored, -low_cut, up_cut)
    return (
        (torch.where(defined, lower[0], 0.0), torch.where(defined, lower[1], -torch.inf)),
        (torch.where(defined, upper[0], 0.0), torch.where(defined, upper[1], torch.inf)),
    )


def middle_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    """The tangent at the midpoint."""
    return torch.full_like(lowers[0], 0.5).unsqueeze(0)


def _row(
    op: str,
    ranges: _Ranges,
    lines: Callable[[Tensor, Tensor, Tensor | None, Pair], tuple[Pair, Pair]],
) -> None:
    def interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
        return ranges(lowers[0], uppers[0])

    def relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
        low, up = lowers[0], uppers[0]
        return relaxation(lines(low, up, None if alpha is None else alpha[0], ranges(low, up)))

    register_nonlinear(op, interval, relax, alphas=1, default_alpha=middle_alpha)


def _convex_row(op: str, curve: Convex, ranges: _Ranges) -> None:
    def lines(low: Tensor, up: Tensor, fraction: Tensor | None, bounds: Pair) -> tuple[Pair, Pair]:
        return convex_lines(curve, low, up, fraction, bounds)

    _row(op, ranges, lines)


_convex_row("Exp", _EXP, _increasing(torch.exp, floor=0.0))
_convex_row("Softplus", _SOFTPLUS, _increasing(softplus, floor=0.0))
_convex_row("Square", _SQUARE, _square_range)
_row("Log", _log_range, _log_lines)
_row("Sqrt", _sqrt_range, _sqrt_lines)
_row("Reciprocal", _reciprocal_range, _reciprocal_lines)
