"""``LogShare``: ``s_i = x_i - lse(x)``, the logarithm of ``softmax(x)_i``, as the difference of its
two operands ``x`` and ``lse(x)``.

As a difference it is affine, and keeps what the two have in common in a backward pass. What
intervals lose is what this row adds: ``s_i = -log(1 + sum_{j != i} exp(x_j - x_i))`` rises in
``x_i`` and falls in every other ``x_j``, so its range over a box is attained at two corners. With
``R_i(x) = sum_{j != i} exp(x_j)``,

    -softplus(log R_i(u) - l_i)  <=  s_i  <=  -softplus(log R_i(l) - u_i).

``R_i`` is taken relative to its own largest term: that is the largest of the line, for all entries
but that one itself, and then ``R_i`` is at least 1 and may be the sum of all minus the entry's own
term; the second largest for that one. Each term, its exponent and its logarithm are moved outward
by what rounding may be (as in ``log_sum_exp``). Entries that are not ``counted`` get no range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.convex import softplus
from bitcrown.bounds.relaxations.lines import above, below
from bitcrown.bounds.relaxations.log_sum_exp import counted_of, known_largest, without
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    low, up = lowers[0], uppers[0]
    counted = counted_of(node, low)
    floor = -softplus(_odds(low, up, counted, 1))
    ceiling = -softplus(_odds(up, low, counted, -1))
    lower, upper = below(floor), above(ceiling).clamp(max=0)
    return without(counted, lower, -torch.inf), without(counted, upper, torch.inf)


def _odds(own: Tensor, others: Tensor, counted: Tensor | None, sign: int) -> Tensor:
    """``log sum_{j != i} exp(others_j) - own_i``, rounded up for ``sign`` 1, down for -1."""
    every = without(counted, others, -torch.inf)
    place = torch.arange(own.shape[-1], device=own.device)
    is_largest = place == every.argmax(-1, keepdim=True)
    rest = torch.where(is_largest, -torch.inf, every)
    (part, shift), (behind, second) = (_parts(terms, sign) for terms in (every, rest))
    total = torch.where(is_largest, behind.sum(-1, keepdim=True), part.sum(-1, keepdim=True) - part)
    info, terms = torch.finfo(own.dtype), own.shape[-1]
    total = total * (1 + sign * (4 * terms + 8) * info.eps)
    height, shift = torch.log(total), torch.where(is_largest, second, shift)
    off = shift.abs() + own.abs() + (shift - own).abs() + height.abs() + 8
    off = torch.where(torch.isfinite(off), 4 * info.eps * off, 0.0)
    return height + (shift - own) + sign * off


def _parts(terms: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """``exp(terms - m)``, rounded to the side of ``sign``, and ``m [.., 1]``; minus infinity is no
    term."""
    info, shift = torch.finfo(terms.dtype), known_largest(terms)
    away = terms - shift
    part = torch.exp(away)
    loss = part * (8 + away.abs()) * info.eps + info.tiny
    loss = torch.where(torch.isfinite(loss), loss, 0.0)  # of what has no bound
    most = torch.inf if sign > 0 else info.max / (4 * terms.shape[-1])  # whose sum is a number
    part = (part + sign * loss).clamp(0, most)
    return torch.where(away == -torch.inf, 0.0, part), shift


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    """The difference itself."""
    one = torch.ones_like(lowers[0])
    zero = torch.zeros_like(one)
    return Relaxation((one, -one), zero, (one, -one), zero)


register_nonlinear("LogShare", _interval, _relax)
