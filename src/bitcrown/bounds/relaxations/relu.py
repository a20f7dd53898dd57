"""ReLU, the operator that matters most: ``max(x, 0)`` on ``[l, u]``.

*Upper line*: the chord from ``(min(l,0), 0)`` to ``(max(u,0), max(u,0))``. With the slope ``s`` as
rounded, the convex function ``max(x, 0) - s x`` is largest at an end of the interval, so
``max(-s l, (1 - s) u)`` is a sound intercept for *any* ``s``; both products have a relative error
of at most two roundings (``1 - s`` does not cancel: ``s`` is in ``[0, 1]``), which one factor
covers. *Lower line*: ``alpha x`` with any ``alpha`` in ``[0, 1]``; its intercept is exactly zero
(``relu_step`` relies on it).

Replacing ``l`` by ``min(l, 0)`` and ``u`` by ``max(u, 0)`` gives the stable cases without a branch,
exactly: ``l >= 0`` has ``s = u / u = 1`` and intercept 0, ``u <= 0`` has ``s = 0`` and intercept 0.
A split neuron is one with a bound clamped to zero, hence exact too. Every formula here is few
tensor passes long because it runs once per iteration.

Underflow: a product that falls below the smallest normal number loses at most itself,
``u (-l) / (u - l)``, which is at most ``min(u, -l)``. Adding the least of that and the smallest
normal number covers it, and adds nothing where the neuron is stable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    return lowers[0].clamp(min=0), uppers[0].clamp(min=0)


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    """The lower line of smaller area: slope 1 where ``u > -l``, else 0."""
    low = lowers[0]
    return (uppers[0].clamp(min=0) > low.clamp(max=0).neg()).to(low.dtype).unsqueeze(0)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    low, up = lowers[0], uppers[0]
    info = torch.finfo(low.dtype)
    above = up.clamp(min=0)
    below = low.clamp(max=0).neg_()
    # An overflowing width only makes the slope larger, which the intercept then takes into account.
    width = (above + below).clamp_(min=info.tiny * info.eps, max=info.max)
    slope = above / width
    intercept = torch.maximum(below * slope, (1 - slope).mul_(above)).mul_(1 + 4 * info.eps)
    intercept = intercept + torch.minimum(below, above).clamp_(max=info.tiny)
    if alpha is None:
        lower_slope = (above > below).to(low.dtype)
    else:
        lower_slope = torch.where((low < 0) & (up > 0), alpha[0], (up > 0).to(low.dtype))
    return Relaxation((lower_slope,), torch.zeros_like(low), (slope,), intercept)


register_nonlinear(
    "Relu", _interval, _relax, alphas=1, default_alpha=_default_alpha, is_piecewise_linear=True
)
