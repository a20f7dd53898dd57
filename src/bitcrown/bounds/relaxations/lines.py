"""From a slope chosen in floating point to a line that is sound as stored.

A slope may be anything; soundness rests on the intercept alone. For a line below ``f`` with slope
``m`` it must not exceed ``min over [l, u] of f(x) - m x``. That minimum is attained at finitely
many known points (ends, kinks) or bounded by a tangent inequality; each value ``f(x) - m x`` is
computed and moved outward by a bound on its error.

*Values.* torch evaluates exp, log, tanh, sigmoid, erf, sin, ... to about one ulp (measured on the
CPU against extended precision; the CUDA manual states two); ``_ULPS`` epsilons, each one or two
ulps, are allowed for. *Products and sums* are correctly rounded: half an epsilon each. Anything
below the smallest normal number is covered by adding that number. *Tangents.* If ``g`` is a
subgradient of a convex ``f`` at ``p`` and ``|m - g| <= d``, then for all ``x``
``f(x) - m x >= f(p) - m p - d |x - p|``.

Where a line is nowhere in the interval better than the constant range (a huge, tiny or overflowing
interval; NaN), the constant replaces it, so that results are free of NaN; an infinite constant
means "no bound".
"""

from __future__ import annotations

import torch
from torch import Tensor

_ULPS = 8.0


def padding(dtype: torch.dtype) -> tuple[float, float]:
    """``(relative, absolute)`` error allowed for one evaluated term."""
    info = torch.finfo(dtype)
    return _ULPS * info.eps, info.tiny


def below(value: Tensor) -> Tensor:
    """A lower bound of the real number that ``value`` approximates to a few ulps (finite where it
    overflowed)."""
    relative, absolute = padding(value.dtype)
    value = value.clamp(max=torch.finfo(value.dtype).max)
    return value - (value.abs() * relative + absolute)


def above(value: Tensor) -> Tensor:
    """An upper bound of the real number that ``value`` approximates to a few ulps (finite where it
    overflowed)."""
    relative, absolute = padding(value.dtype)
    value = value.clamp(min=-torch.finfo(value.dtype).max)
    return value + (value.abs() * relative + absolute)


def gap_below(value: Tensor, slope: Tensor, x: Tensor) -> Tensor:
    """A lower bound of ``f(x) - slope x`` where ``value`` approximates ``f(x)``."""
    relative, absolute = padding(value.dtype)
    rise = slope * x
    return value - rise - ((value.abs() + rise.abs()) * relative + absolute)


def gap_above(value: Tensor, slope: Tensor, x: Tensor) -> Tensor:
    """An upper bound of ``f(x) - slope x`` where ``value`` approximates ``f(x)``."""
    relative, absolute = padding(value.dtype)
    rise = slope * x
    return value - rise + ((value.abs() + rise.abs()) * relative + absolute)


def reach(p: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """Largest ``|x - p|`` on ``[low, up]`` (a few ulps short of it at worst, which ``_ULPS``
    covers)."""
    return torch.maximum((p - low).abs(), (up - p).abs())


def mix(low: Tensor, up: Tensor, fraction: Tensor | float) -> Tensor:
    """A point of ``[low, up]``, at the given fraction of the way, without overflow."""
    point = low * (1 - fraction) + up * fraction
    return torch.clamp(point, low, up)


def secant_slope(low: Tensor, up: Tensor, value_low: Tensor, value_up: Tensor) -> Tensor:
    """Slope between the end points; 0 for an interval without width."""
    return (value_up - value_low) / (up - low).clamp(min=torch.finfo(low.dtype).tiny)


def lower_or_constant(
    slope: Tensor, intercept: Tensor, bound: Tensor, low: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """The line, or the constant ``bound`` where that is nowhere worse on ``[low, up]``."""
    peak = torch.maximum(slope * low, slope * up) + intercept
    useful = peak >= bound
    return torch.where(useful, slope, 0.0), torch.where(useful, intercept, bound)


def upper_or_constant(
    slope: Tensor, intercept: Tensor, bound: Tensor, low: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """The line, or the constant ``bound`` where that is nowhere worse on ``[low, up]``."""
    trough = torch.minimum(slope * low, slope * up) + intercept
    useful = trough <= bound
    return torch.where(useful, slope, 0.0), torch.where(useful, intercept, bound)
