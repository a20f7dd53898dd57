"""Staircases: ``Sign`` (-1, 0, 1), ``Floor``, ``Ceil`` and ``Round`` (halves to even).

All four are constant between jumps and rise by ``h`` at each (``Sign`` by two at 0, the others by
one). Let the values at the ends of ``[l, u]`` be ``b < t``, and let the first and last jump of the
interval be at ``j`` and ``k``. Then

    b + m (x - j) <= f(x),    f(x) <= t + m (x - k)      for all 0 <= m <= M:

the upper line is ``t`` or more from ``k`` on; left of ``k`` it stays above a staircase with one
jump as long as it is above ``b`` at ``l``, ``M = (t - b) / (k - l)``, and above one with several as
long as ``M = 1``. Likewise below. Alpha chooses ``m = alpha M``. With several jumps ``M`` is the
default (``x - 1 <= floor(x) <= x``: never more than one step apart); with one it is the default if
the midpoint is left of ``k`` (right of ``j``), else 0: the smaller area. Where ``b = t`` the
function is constant, exactly. Jumps count as attained from both sides, so that the conventions at
the jump itself (halves to even, sign of zero) only matter at the ends.

The intercept ``t - m k`` with ``k = t - o`` (``o`` = 0, 1/2, 1 for floor, round, ceil) is computed
as ``t (1 - m) + m o``, which is exactly ``o`` for ``m = 1`` however large ``t`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import padding
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node

_MODERATE = 2.0**20
"""Integers below have exact halves beside them in every type."""


@dataclass(frozen=True)
class _Staircase:
    """``value`` with jumps of 1 at ``integer - offset``, the integer being the value reached;
    ``Sign`` has none."""

    op: str
    value: Callable[[Tensor], Tensor]
    offset: float


def _slope_limits(
    low: Tensor, up: Tensor, bottom: Tensor, top: Tensor, stair: _Staircase
) -> Tensor:
    """``M`` of the lower and the upper line, ``[2, B, *]``; zero where the function is constant."""
    info = torch.finfo(low.dtype)
    room = torch.stack([up - (bottom + (1 - stair.offset)), (top - stair.offset) - low])
    # Steeper than this, cancellation would cost more than the slope gains.
    steep = (1 / room.clamp(min=info.eps**0.5)) * (1 - 4 * info.eps)
    is_single = (top - bottom == 1) & (torch.maximum(bottom.abs(), top.abs()) < info.eps**-0.5)
    return torch.where(is_single, steep, (top > bottom).to(low.dtype))


def _stair_default(
    low: Tensor, up: Tensor, bottom: Tensor, top: Tensor, stair: _Staircase
) -> Tensor:
    middle = low * 0.5 + up * 0.5
    gains = torch.stack([middle > bottom + (1 - stair.offset), middle < top - stair.offset])
    return (gains | (top - bottom > 1)).to(low.dtype)


def _stair_relax(
    stair: _Staircase,
    low: Tensor,
    up: Tensor,
    alpha: Tensor | None,
    own: Pair | None = None,
) -> Relaxation:
    bottom, top = stair.value(low), stair.value(up)
    if own is not None:
        low, up, bottom, top = _cut(stair, low, up, (bottom, top), own)
    fraction = _stair_default(low, up, bottom, top, stair) if alpha is None else alpha
    slopes = fraction * _slope_limits(low, up, bottom, top, stair)
    relative, _ = padding(low.dtype)
    values = torch.stack([bottom, top]) * (1 - slopes)
    shifts = slopes * (1 - stair.offset), slopes * stair.offset
    # For slopes 0 and 1 both terms are exact; 4 epsilons cover the roundings of the others.
    exact = (slopes == 0) | (slopes == 1)
    errors = torch.where(exact, 0.0, (values.abs() + slopes) * relative)
    lower = values[0] - shifts[0][0] - errors[0]
    upper = values[1] + shifts[1][1] + errors[1]
    return Relaxation((slopes[0],), lower, (slopes[1],), upper)


def _cut(
    stair: _Staircase, low: Tensor, up: Tensor, ends: Pair, own: Pair
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``low``, ``up``, ``b``, ``t`` where the value is known to lie in ``own``: a value ``v`` is
    that of operands in ``[v - o, v + 1 - o]``, exact for ``v`` of moderate size.

    With jumps attained from both sides the lines above hold for these ``b`` and ``t``, too. Where
    no value is left, any line holds; there and elsewhere ``own`` says nothing."""
    bottom = torch.maximum(ends[0], torch.ceil(own[0]))
    top = torch.minimum(ends[1], torch.floor(own[1]))
    is_usable = (bottom <= top) & (torch.maximum(bottom.abs(), top.abs()) < _MODERATE)
    bottom, top = torch.where(is_usable, bottom, ends[0]), torch.where(is_usable, top, ends[1])
    least, most = bottom - stair.offset, top + (1 - stair.offset)
    return (
        torch.where(is_usable, torch.maximum(low, least), low),
        torch.where(is_usable, torch.minimum(up, most), up),
        bottom,
        top,
    )


def _stair_row(stair: _Staircase) -> None:
    def interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
        return stair.value(lowers[0]), stair.value(uppers[0])

    def default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
        low, up = lowers[0], uppers[0]
        return _stair_default(low, up, stair.value(low), stair.value(up), stair)

    def relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
        return _stair_relax(stair, lowers[0], uppers[0], alpha)

    def within(
        node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None, own: Pair
    ) -> Relaxation:
        return _stair_relax(stair, lowers[0], uppers[0], alpha, own)

    register_nonlinear(
        stair.op, interval, relax, alphas=2, default_alpha=default_alpha, within=within
    )


def _sign_interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    return torch.sign(lowers[0]), torch.sign(uppers[0])


def _sign_default(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    low, up = lowers[0], uppers[0]
    return torch.stack([up > -low, up < -low]).to(low.dtype)


def _sign_relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    """The jump is at 0, so the intercepts are the values at the ends, exactly."""
    low, up = lowers[0], uppers[0]
    info = torch.finfo(low.dtype)
    bottom, top = torch.sign(low), torch.sign(up)
    room = torch.stack([up, -low]).clamp(min=info.eps)
    fraction = _sign_default(node, lowers, uppers) if alpha is None else alpha
    slopes = fraction * ((top - bottom) * (1 - 4 * info.eps) / room)
    # No room at all means that the jump is at the very end and needs a constant.
    slopes = torch.where(torch.stack([up > 0, low < 0]), slopes, 0.0)
    return Relaxation(
        (slopes[0],), bottom.expand_as(slopes[0]), (slopes[1],), top.expand_as(slopes[1])
    )


register_nonlinear("Sign", _sign_interval, _sign_relax, alphas=2, default_alpha=_sign_default)
_stair_row(_Staircase("Floor", torch.floor, 0.0))
_stair_row(_Staircase("Round", torch.round, 0.5))
_stair_row(_Staircase("Ceil", torch.ceil, 1.0))
