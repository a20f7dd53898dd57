"""What the results of a softmax know together: along their line they add up to 1.

Relaxed one by one they do not know it. But for every number ``t``

    sum_j a_j p_j  =  sum_j (a_j - t) p_j + t        where  sum_j p_j = 1,

so a backward pass that reaches the line with coefficients ``a_j`` may go on with ``a_j - t``, and
lose ``|a_j - t|`` times the gap of each relaxation instead of ``|a_j|`` times it. The ``t`` that
loses least is a median of ``a``, weighted by the gaps. Any ``t`` is sound.

*The runtime's shares.* A node with a rounding has the value ``p_j + e_j``, ``|e_j|`` at most its
radius ``r_j``, where ``p_j`` is the share of what the node reads: these add up to 1. A pass
subtracts ``sum_j |a_j| r_j`` first, and goes on with the shares themselves; or it counts the
values, whose sum is 1 within ``sum_j r_j``: then ``|t|`` times that and ``sum_j |a_j - t| r_j``.

The gap between chord and tangent of ``exp`` on a range of width ``w`` is to first order
``exp(middle) w^2 / 8``, three times the difference of their slopes, which serves as the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.model.graph import Node

_EVEN = 1e-3
"""Of a slope that counts as a gap where lines are parallel."""


def adds_up(node: Node) -> bool:
    """Whether lines of ``node`` along its last axis add up to 1, except for rounding."""
    return "adds_up" in node.attrs


def common_part(a: Tensor, upper: Tensor, difference: Tensor, axis: int) -> Tensor:
    """``t`` for coefficients ``a``, with extent 1 along ``axis``; ``upper`` slopes, and the
    ``difference`` of the lower ones to them, of shapes that broadcast to that of ``a``."""
    with torch.no_grad():
        weight = (difference.abs() + _EVEN * upper.abs()).expand_as(a)
        ordered, order = a.sort(dim=axis)
        reached = weight.gather(axis, order).cumsum(axis)
        total = reached.narrow(axis, reached.shape[axis] - 1, 1)
        place = (2 * reached < total).sum(axis, keepdim=True).clamp(max=a.shape[axis] - 1)
        return ordered.gather(axis, place)
