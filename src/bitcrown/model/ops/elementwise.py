"""Elementwise affine operators: ``Scale`` (``x * scale + shift`` with constants), ``Add``, ``Sub``,
``Constant``, and two that know more than a sum: ``Larger``, ``b + r`` of ``(r, b, a, d)``, which is
``max(a, b)`` because ``r = relu(d)`` and ``d = a - b`` (see ``bounds.relaxations.larger``), and
``LogShare``, ``x - l`` of ``(x, l)``, which is ``log softmax(x)`` because ``l = lse(x)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, Params, Shapes, register


def _scale(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    value = inputs[0]
    if "scale" in params:
        value = value * params["scale"]
    return value + params["shift"] if "shift" in params else value


def _scale_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] * params["scale"].abs() if "scale" in params else inputs[0]


def _scale_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    return [a * params["scale"] if "scale" in params else a]


def _add(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


def _sub(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] - inputs[1]


def _larger_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    nothing = a.new_zeros(()).expand_as(a)
    return [a, a, nothing, nothing]


def _constant(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return params["value"].unsqueeze(0)


def _zeros(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.zeros_like(params["value"]).unsqueeze(0)


def _input(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0]


register(Op("Input", _input, True, _input))
register(Op("Constant", _constant, True, _zeros, lambda node, params, a, shapes: []))
register(Op("Scale", _scale, True, _scale_absolute, _scale_adjoint))
register(Op("Add", _add, True, _add, lambda node, params, a, shapes: [a, a]))
register(Op("Larger", _add, True, _add, _larger_adjoint, is_capped=True))
register(Op("Sub", _sub, True, _add, lambda node, params, a, shapes: [a, -a], negated=(1,)))
register(
    Op(
        "LogShare",
        _sub,
        True,
        _add,
        lambda node, params, a, shapes: [a, -a],
        negated=(1,),
        is_capped=True,
    )
)
