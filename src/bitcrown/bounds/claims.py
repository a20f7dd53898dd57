"""Where bounds become claims: "excluded", "cut", "empty", "stable" are decided here and nowhere
else.

A bound is a number with a promise: a *lower bound* is not above the quantity, an *upper bound* not
below it, rounding included (``rounding``). NaN and infinities promise nothing, whatever arithmetic
made them: a lower bound of ``+inf`` is an overflow, not a proof. So each function here is total. It
answers from the finite numbers among its arguments, and what the others would have said counts as
unknown: not excluded, not cut, not empty, not stable.

Arithmetic is that of the arguments' own type (float16 to float64) and rounds to nearest. The exact
result of one operation lies between the two neighbours of the rounded one, also where it overflows
or falls below the smallest normal number; ``_up`` and ``_down`` take that neighbour, so one step
per operation is a proof. Zeros times infinities do not occur: rooms are positive, and a coefficient
that limits nothing has the reciprocal ``inf``.

Legend: ``B`` domains, ``S`` rows, ``n`` inputs; ``...`` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _up(value: Tensor) -> Tensor:
    """The next number above: not below the real number that ``value`` is the rounding of."""
    return torch.nextafter(value, value.new_full((), torch.inf))


def _down(value: Tensor) -> Tensor:
    return torch.nextafter(value, value.new_full((), -torch.inf))


def _is_number(value: Tensor) -> Tensor:
    """Neither NaN, which no comparison holds for, nor infinite: in two kernels, where
    ``torch.isfinite`` has four."""
    return value.abs() < torch.inf


def known(value: Tensor, otherwise: float) -> Tensor:
    """``value`` where it is a finite number, ``otherwise`` elsewhere: in one kernel, since every
    bound passes through here."""
    return torch.nan_to_num(value, nan=otherwise, posinf=otherwise, neginf=otherwise)


def enclosure(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """An interval whose ends are numbers, or say nothing: what is NaN or infinite is unbounded on
    its own side."""
    return known(lower, -torch.inf), known(upper, torch.inf)


def least_margin(lower: Tensor, other: Tensor) -> Tensor:
    """A lower bound of ``q - other`` for a quantity with lower bound ``lower``; ``-inf`` where
    nothing is known.

    ``q - other >= lower - other >= down(fl(lower - other))``. Where the difference overflows upward
    the greatest finite number is a bound still; where ``other`` is infinite or NaN there is none.
    """
    is_known = _is_number(lower) & _is_number(other)
    return torch.where(is_known, _down(lower - other), -torch.inf)


def excluded(least: Tensor) -> Tensor:
    """Whether a quantity with lower bound ``least`` is positive for certain: no point has it at or
    below zero.

    ``0 < least <= q``. NaN (no comparison holds) and infinities exclude nothing.
    """
    return (least > 0) & (least < torch.inf)


def is_unstable(low: Tensor, up: Tensor) -> Tensor:
    """Whether a quantity in ``[low, up]`` may have either sign; True where that is unknown."""
    return ~((low >= 0) | (up <= 0))


def is_active(low: Tensor) -> Tensor:
    """Whether a quantity with lower bound ``low`` is never negative."""
    return low >= 0


def tightened(low: Tensor, up: Tensor, new_low: Tensor, new_up: Tensor) -> tuple[Tensor, Tensor]:
    """The intersection of two enclosures of one quantity; ends of the second that are not finite
    say nothing."""
    new_low, new_up = enclosure(new_low, new_up)
    return torch.maximum(low, new_low), torch.minimum(up, new_up)


def crossed(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``low``, ``up`` in order, and ``[...]`` whether some pair of the last axis has crossed.

    Both enclose one quantity of every point that the domain may hold, so ``low > up`` proves that
    it holds none. (``low > up`` rules out NaN, ``-inf`` below and ``inf`` above already.)
    """
    is_crossed = (low > up) & (low < torch.inf) & (up > -torch.inf)
    return torch.minimum(low, up), torch.maximum(low, up), is_crossed.any(dim=-1)


def corner(a: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The corner of a box where ``a x`` is least."""
    return torch.where(a > 0, lower, upper)


def chord_slope(low: Tensor, up: Tensor) -> Tensor:
    """A slope ``s`` with ``max(q, 0) <= s (q - min(low, 0))`` for every ``q`` in ``[low, up]``.

    With ``l = min(low, 0)``, ``u = max(up, 0)``: any ``s`` in ``[u / (u - l), 1]`` will do (at
    ``u`` the line is not below ``u``, at ``l`` it is 0, and ReLU is convex), and 0 where ``u = 0``.
    Three steps up cover the difference ``u - l`` and the quotient, neither of which cancels; where
    ``u - l`` overflows or is unknown ``s`` is 1.
    """
    above = up.clamp(min=0)
    width = above - low.clamp(max=0)
    slope = _up(_up(_up(above / width)))
    return torch.where(above == 0, 0.0, torch.where((slope < 1) & (width < torch.inf), slope, 1.0))


def floor_slope(low: Tensor, up: Tensor) -> Tensor:
    """A slope ``s`` in {0, 1} with ``s q <= max(q, 0)``, which is any in [0, 1]: the one of smaller
    area."""
    return ((up > -low) | (low >= 0)).to(low.dtype)


def room(bound: Tensor, least: Tensor) -> Tensor:
    """How far ``a x`` may rise above its least value under ``a x <= bound``, rounded up: positive,
    perhaps infinite."""
    is_known = _is_number(bound) & _is_number(least)
    return torch.where(is_known, _up((bound - least).clamp(min=0)), torch.inf)


def reciprocals(a: Tensor) -> Tensor:
    """``[2, ..., n]``: upper bounds of ``1 / a`` where ``a > 0`` and of ``-1 / a`` where ``a < 0``;
    elsewhere ``inf``.

    A row of the last axis with an entry that is no finite number says nothing.
    """
    sides = torch.stack([a, -a])
    is_known = _is_number(a).all(dim=-1, keepdim=True)
    return torch.where((sides > 0) & is_known, _up(1 / sides), torch.inf)


def limit(x_lower: Tensor, above: Tensor) -> Tensor:
    """An upper bound of what lies at most ``above`` over ``x_lower``.

    ``above`` is a product ``room * reciprocals``, rounded to nearest: one step up makes it a bound,
    and one more step covers the sum.
    """
    return known(_up(x_lower + _up(above)), torch.inf)


def moved(x_lower: Tensor, x_upper: Tensor, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes whose points lie at most ``above`` over the lower and ``below`` under the upper ends
    they had: ``limit`` and its mirror image."""
    return torch.maximum(x_lower, -limit(-x_upper, below)), torch.minimum(
        x_upper, limit(x_lower, above)
    )


def halfspaces(
    x_lower: Tensor, x_upper: Tensor, inverse: Tensor, bound: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Boxes ``[..., n]`` shrunk by ``a x <= bound`` for all rows: ``inverse [2, ..., S, n]`` are
    ``reciprocals`` of ``a``, ``least [..., S]`` lower bounds of ``a x`` over the boxes.

    In ``a x <= bound`` every other term is at least its least value, so
    ``a_i x_i <= bound - least + min_i``. For ``a_i > 0`` that is
    ``x_i <= xlow_i + (bound - least) / a_i``, for ``a_i < 0`` the mirror image, and for ``a_i = 0``
    nothing.
    """
    if not inverse.shape[-2]:
        return x_lower, x_upper
    rooms = room(bound, least).unsqueeze(-1)
    return moved(
        x_lower, x_upper, (rooms * inverse[0]).amin(dim=-2), (rooms * inverse[1]).amin(dim=-2)
    )


def _least_product(a: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of ``a x`` over boxes as computed, and a bound on its rounding error, both
    ``[..., S]``.

    ``n`` products and their sum are off by at most ``gamma_n`` times the sum of absolute products,
    and by the smallest normal number for each product that falls below it; twice that covers the
    rounding of the bound itself.
    """
    info = torch.finfo(a.dtype)
    terms = a * corner(a, lower.unsqueeze(-2), upper.unsqueeze(-2))
    count = a.shape[-1] + 2
    loss = 2 * count * info.eps if 4 * count * info.eps < 1 else torch.inf
    value = terms.sum(-1)
    error = (terms.abs() * loss).sum(-1) + count * info.tiny
    return value, torch.where(_is_number(value), error, torch.inf)


def clipped(
    lower: Tensor, upper: Tensor, a: Tensor, least: Tensor, rounds: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[..., n]`` shrunk by rows that must all be at most zero, and whether any point may be
    left, ``[...]``.

    Each row is at least ``a x + c`` on the box with ``a [..., S, n]``, and ``least [..., S]`` is a
    lower bound of ``a x + c`` there. In later rounds rows are used again on the box that the others
    left: with ``c >= least - min (a x)`` over the first box, ``min (a x) + c`` over the smaller one
    bounds the row again.
    """
    inverse = reciprocals(a)
    value, error = _least_product(a, lower, upper)
    constant = least_margin(least, _up(value + error))
    zero = torch.zeros_like(least)
    feasible = torch.ones(least.shape[:-1], dtype=torch.bool, device=least.device)
    for count in range(rounds):
        if count:
            value, error = _least_product(a, lower, upper)
            least = torch.fmax(least, _down(_down(value - error) + constant))
        feasible &= ~excluded(least).any(dim=-1)
        lower, upper, is_empty = crossed(*halfspaces(lower, upper, inverse, zero, least))
        feasible &= ~is_empty
    return lower, upper, feasible


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole`` for scores and other guesses, none of which is a claim: finite, 0 where
    ``whole`` is not > 0."""
    return known(torch.where(whole > 0, part / whole, 0.0), 0.0)
