"""``Positive``: a value that nobody need ask about where it is negative.

What all cases of a property say of it (``x' - x >= 0``) holds at every violation, so bounds need
only hold there: its range is ``[max(l, 0), u]``, the line above is the value itself, the one below
``alpha x`` with any ``alpha`` in [0, 1]. The default is 0 where the box says less than the sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    return lowers[0].clamp(min=0), uppers[0].clamp(min=0)


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    return (lowers[0] >= 0).to(lowers[0].dtype).unsqueeze(0)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    chosen = _default_alpha(node, lowers, uppers)[0] if alpha is None else alpha[0]
    zero = torch.zeros_like(lowers[0])
    return Relaxation((chosen,), zero, (torch.ones_like(zero),), zero)


register_nonlinear("Positive", _interval, _relax, alphas=1, default_alpha=_default_alpha)
