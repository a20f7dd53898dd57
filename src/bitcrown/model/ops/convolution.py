"""Convolutions in one to three dimensions. The model's own batch axis is folded into the leading run-time axis.

The adjoint of a convolution is the transposed convolution with the same weights, strides and padding, and vice versa;
``output_padding`` makes up for the positions that a stride leaves over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, register

Params = dict[str, Tensor]
_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _fold(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _conv_with(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    attrs = node.attrs
    value = _CONV[weight.dim() - 3](
        _fold(x), weight, bias, attrs["strides"], attrs["pads"], attrs["dilations"], attrs["group"]
    )
    return value.reshape(*x.shape[:2], *value.shape[1:])


def _conv(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return _conv_with(node, inputs[0], params["weight"], params.get("bias"))


def _conv_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return _conv_with(node, inputs[0], params["weight"].abs(), None)


def _conv_adjoint(node: Node, params: Params, a: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    weight, attrs = params["weight"], node.attrs
    extents = shapes[0][2:]
    left_over = []
    for axis, extent in enumerate(extents):
        span = (a.shape[3 + axis] - 1) * attrs["strides"][axis] - 2 * attrs["pads"][axis]
        left_over.append(extent - (span + attrs["dilations"][axis] * (weight.shape[2 + axis] - 1) + 1))
    value = _TRANSPOSED[weight.dim() - 3](
        _fold(a), weight, None, attrs["strides"], attrs["pads"], left_over, attrs["group"], attrs["dilations"]
    )
    return [value.reshape(a.shape[0], *shapes[0])]


def _transposed_with(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    attrs = node.attrs
    value = _TRANSPOSED[weight.dim() - 3](
        _fold(x),
        weight,
        bias,
        attrs["strides"],
        attrs["pads"],
        attrs["output_padding"],
        attrs["group"],
        attrs["dilations"],
    )
    return value.reshape(*x.shape[:2], *value.shape[1:])


def _transposed(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return _transposed_with(node, inputs[0], params["weight"], params.get("bias"))


def _transposed_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return _transposed_with(node, inputs[0], params["weight"].abs(), None)


def _transposed_adjoint(node: Node, params: Params, a: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    weight, attrs = params["weight"], node.attrs
    value = _CONV[weight.dim() - 3](
        _fold(a), weight, None, attrs["strides"], attrs["pads"], attrs["dilations"], attrs["group"]
    )
    for axis, extent in enumerate(shapes[0][2:]):  # an output padding of a whole stride makes room for more
        value = value.narrow(2 + axis, 0, extent)
    return [value.reshape(a.shape[0], *shapes[0])]


def _terms(node: Node) -> int:
    weight = node.params["weight"]
    return int(weight.size // min(weight.shape[0], weight.shape[1])) + 1


register(Op("Conv", _conv, True, _conv_absolute, _conv_adjoint, _terms))
register(Op("ConvTranspose", _transposed, True, _transposed_absolute, _transposed_adjoint, _terms))
