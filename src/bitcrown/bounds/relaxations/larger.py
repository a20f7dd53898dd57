"""``Larger``: ``max(a, b)``, written as ``b + r`` with ``r = relu(d)`` and ``d = a - b``.

As a sum it is affine, and the ReLU that it reads is split and bounded like every other. But ranges
of a sum do not know what they are ranges of: of nine numbers in [0, 1] a tournament of such sums
seems to reach 5. So this row adds what ``max`` itself says.

*Range*: ``[max(l_a, l_b), max(u_a, u_b)]``, which the range of the sum is met with.

*Upper line*: the sum itself (slope 1: whatever is known of ``r`` and ``b`` is used), or the
constant ``u = max(u_a, u_b)`` (slope 0). In the middle of the ranges the triangle over ``d`` gives
``b + u_d / 2``, and the better one there is taken; once the sign of ``d`` is decided the sum is
exact. The constant is not above ``u_r + u_b`` either, so that the magnitudes of the sum cover it.
*Lower line*: the sum: the lower line of ``r`` already chooses between ``a`` and ``b``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import above
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    return torch.maximum(lowers[1], lowers[2]), torch.maximum(uppers[1], uppers[2])


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    (_, low_b, _, low_d), (up_r, up_b, _, up_d) = lowers, uppers
    most = torch.minimum(_interval(node, lowers, uppers)[1], above(up_r + up_b))
    is_decided = (low_d >= 0) | (up_d <= 0)
    in_the_middle = low_b * 0.5 + up_b * 0.5 + up_d * 0.5
    keeps = is_decided | ~(in_the_middle >= most) | ~torch.isfinite(most)
    slope, zero, one = keeps.to(most.dtype), torch.zeros_like(most), torch.ones_like(most)
    return Relaxation(
        (one, one, zero, zero), zero, (slope, slope, zero, zero), torch.where(keeps, 0.0, most)
    )


register_nonlinear("Larger", _interval, _relax)
