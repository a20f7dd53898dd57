"""Forward functions of the nonlinear operators; their ranges and relaxations live in
``bounds.relaxations``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import DIFFERENCE, DIFFERENT, SLOPE, Op, Params, op_row, register


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    def forward(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
        return function(inputs[0])

    register(Op(name, forward, is_affine=False, has_jumps=name in _JUMPS))


def _clip(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].clamp(float(node.attrs["min"]), float(node.attrs["max"]))


def _elu(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    x = inputs[0]
    return torch.where(x > 0, x, float(node.attrs["alpha"]) * torch.expm1(x.clamp(max=0)))


def _softplus(x: Tensor) -> Tensor:
    """torch's own becomes the identity above 20, an error that a sound relaxation would have to
    know about."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _product(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] * inputs[1]


def _matrix_product(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.matmul(inputs[0], inputs[1].mT)


def _log_sum_exp(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    """Along the last axis, which becomes 1; over the entries that ``counted`` has not at 0."""
    x = inputs[0]
    if "counted" in params:
        x = torch.where(params["counted"] != 0, x, -torch.inf)
    return torch.logsumexp(x, dim=-1, keepdim=True)


def _dynamic_quantize(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    """``(q - z) s`` of the ``q``, ``s``, ``z`` that ONNX's DynamicQuantizeLinear makes of the whole
    tensor."""
    x = inputs[0]
    places = tuple(range(1, x.dim()))
    low, up = (x.amin(places, True), x.amax(places, True)) if places else (x, x)
    low, up = low.clamp(max=0), up.clamp(min=0)
    scale = torch.where(up > low, (up - low) / 255, 1.0)
    zero = torch.round((-low / scale).clamp(0, 255))
    return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale


def _first(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0]


_JUMPS = ("Sign", "Floor", "Ceil", "Round", "Truncate")
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Sqrt": torch.sqrt,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Square": torch.square,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Truncate": torch.trunc,
    "Erf": torch.erf,
    "Atan": torch.atan,
    "Softplus": _softplus,
}
for _name, _function in _UNARY.items():
    _unary(_name, _function)
register(Op("Clip", _clip, is_affine=False))
register(Op("Elu", _elu, is_affine=False))
register(Op("Mul", _product, is_affine=False))
register(Op("MatMul", _matrix_product, is_affine=False, is_local=False))
register(Op("Perturb", _first, is_affine=False))
register(Op("LogSumExp", _log_sum_exp, is_affine=False, is_local=False))
register(Op("Positive", _first, is_affine=False))
register(Op("DynamicQuantize", _dynamic_quantize, is_affine=False, is_local=False, has_jumps=True))


def _difference(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    """``y - v`` of ``(z, w, z - w, y, v)``: the first three are there for their bounds."""
    return inputs[3] - inputs[4]


def _slope(base: Op) -> Callable[[Node, Params, Sequence[Tensor]], Tensor]:
    def forward(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
        """``f'(z) u`` of ``(z, u)``; at a kink that of one side."""
        with torch.enable_grad():
            z = inputs[0].detach().requires_grad_()
            (slope,) = torch.autograd.grad(base.forward(node, params, [z]).sum(), z)
        return slope * inputs[1]

    return forward


for _name in DIFFERENT:
    register(Op(f"{_name}{DIFFERENCE}", _difference, is_affine=False))
    register(Op(f"{_name}{SLOPE}", _slope(op_row(_name)), is_affine=False))
