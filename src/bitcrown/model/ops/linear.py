"""Matrix products with a constant. ``Linear``: ``y = x W^T + b`` over the last axis;
``MatMulLeft``: ``y = M x``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, Params, Shapes, register


def _linear(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.nn.functional.linear(inputs[0], params["weight"], params.get("bias"))


def _linear_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.matmul(inputs[0], params["weight"].abs().T)


def _linear_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    weight = params["weight"]  # a guide may keep it in fewer bits than everything else
    return [torch.matmul(a.to(weight.dtype), weight).to(a.dtype)]


def _left(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.matmul(params["matrix"], inputs[0])


def _left_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.matmul(params["matrix"].abs(), inputs[0])


def _left_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    return [torch.matmul(params["matrix"].T, a)]


register(Op("Linear", _linear, is_affine=True, absolute=_linear_absolute, adjoint=_linear_adjoint))
register(Op("MatMulLeft", _left, is_affine=True, absolute=_left_absolute, adjoint=_left_adjoint))
