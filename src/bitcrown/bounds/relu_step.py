"""The two hottest steps of every bound, in as few memory passes as possible: a ReLU passed
backward, and the least value over a box.

``a`` splits by sign; the positive part takes the lower line (through the origin), the negative part
the upper line: ``part = where(a > 0, lower_slope, upper_slope) * a`` and
``constant = <min(a, 0), upper_intercept>``. Derivatives exist for ``a``, for ``lower_slope``
(alpha), and for the upper line where it carries a gradient: in training, where it depends on the
weights through the intermediate bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitcrown.model.execute import elements


class _ReluStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, lower_slope: Tensor, upper_slope: Tensor, intercept: Tensor
    ) -> tuple[Tensor, Tensor]:
        slope = torch.where(a > 0, lower_slope, upper_slope)
        ctx.save_for_backward(a, slope, intercept)
        ctx.slope_shapes = lower_slope.shape, upper_slope.shape
        constant = torch.matmul(
            elements(a.clamp(max=0), 2), elements(intercept, 2).transpose(1, 2)
        ).squeeze(2)
        return slope * a, constant

    @staticmethod
    def backward(ctx: Any, grad_part: Tensor, grad_constant: Tensor) -> tuple[Tensor | None, ...]:
        a, slope, intercept = ctx.saved_tensors
        positive = a > 0
        grads: list[Tensor | None] = [None] * 4
        grad_constant = grad_constant.reshape(*grad_constant.shape, *([1] * (a.dim() - 2)))
        if ctx.needs_input_grad[0]:
            grad_a = slope * grad_part + torch.where(positive, 0.0, grad_constant * intercept)
            grads[0] = _sum_to(grad_a, a.shape)
        if ctx.needs_input_grad[1]:
            grads[1] = _sum_to(torch.where(positive, a * grad_part, 0.0), ctx.slope_shapes[0])
        if ctx.needs_input_grad[2]:
            grads[2] = _sum_to(torch.where(positive, 0.0, a * grad_part), ctx.slope_shapes[1])
        if ctx.needs_input_grad[3]:
            grads[3] = _sum_to(a.clamp(max=0) * grad_constant, intercept.shape)
        return tuple(grads)


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting of the two leading axes."""
    for axis in (0, 1):
        if shape[axis] == 1 and grad.shape[axis] != 1:
            grad = grad.sum(dim=axis, keepdim=True)
    return grad


def relu_step(
    a: Tensor, lower_slope: Tensor, upper_slope: Tensor, intercept: Tensor
) -> tuple[Tensor, Tensor]:
    """``a [1 or B, S, *]``; slopes ``[B, 1 or S, *]``, intercept ``[B, 1, *]``: next coefficient
    and ``[B, S]``."""
    if torch.is_grad_enabled() and any(
        given.requires_grad for given in (a, lower_slope, upper_slope, intercept)
    ):
        result: tuple[Tensor, Tensor] = _ReluStep.apply(a, lower_slope, upper_slope, intercept)  # type: ignore[no-untyped-call]
        return result
    slope = torch.where(a > 0, lower_slope, upper_slope)
    constant = torch.matmul(
        elements(a.clamp(max=0), 2), elements(intercept, 2).transpose(1, 2)
    ).squeeze(2)
    return slope * a, constant


class _LeastValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, x_lower: Tensor, x_upper: Tensor) -> Tensor:
        corner = torch.where(a > 0, x_lower.unsqueeze(1), x_upper.unsqueeze(1))
        ctx.save_for_backward(corner)
        ctx.rows = a.shape[0]
        return (a * corner).sum(dim=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (corner,) = ctx.saved_tensors
        part = grad.unsqueeze(2) * corner
        return (
            (part.sum(dim=0, keepdim=True) if ctx.rows == 1 and part.shape[0] != 1 else part),
            None,
            None,
        )


def least_value(a: Tensor, x_lower: Tensor, x_upper: Tensor) -> Tensor:
    """``min <a, x>`` over the boxes ``[B, n]`` for ``a [1 or B, S, n]``: ``[B, S]``."""
    if torch.is_grad_enabled() and a.requires_grad:
        result: Tensor = _LeastValue.apply(a, x_lower, x_upper)  # type: ignore[no-untyped-call]
        return result
    return (a * torch.where(a > 0, x_lower.unsqueeze(1), x_upper.unsqueeze(1))).sum(dim=2)
