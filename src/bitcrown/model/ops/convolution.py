"""Convolutions in one to three dimensions. The model's own batch axis is folded into the leading
run-time axis.

The adjoint of a convolution is the transposed convolution with the same weights, strides and
padding, and vice versa; ``output_padding`` makes up for the positions that a stride leaves over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, Params, Shapes, register

_CONV = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_WIDE_CHANNELS = 64
"""From which one product for all rows pays (measured: 1.6 times as fast for residual networks of
128 channels)."""
_PRODUCT_BYTES = 1 << 22
"""Of one matrix product: what the caches hold until it has been added up."""


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


def _conv_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    weight, attrs = params["weight"], node.attrs
    extents = shapes[0][2:]
    if _is_better_as_product(weight, attrs):
        return [
            _adjoint_as_product(attrs, weight, _fold(a), extents).reshape(a.shape[0], *shapes[0])
        ]
    left_over = []
    for axis, extent in enumerate(extents):
        span = (a.shape[3 + axis] - 1) * attrs["strides"][axis] - 2 * attrs["pads"][axis]
        left_over.append(
            extent - (span + attrs["dilations"][axis] * (weight.shape[2 + axis] - 1) + 1)
        )
    value = _TRANSPOSED[weight.dim() - 3](
        _fold(a),
        weight,
        None,
        attrs["strides"],
        attrs["pads"],
        left_over,
        attrs["group"],
        attrs["dilations"],
    )
    return [value.reshape(a.shape[0], *shapes[0])]


def _is_better_as_product(weight: Tensor, attrs: Mapping[str, Any]) -> bool:
    """torch multiplies image by image where it has no fast kernel: in double precision on a CPU."""
    if (
        weight.dim() != 4
        or weight.dtype != torch.float64
        or weight.device.type != "cpu"
        or attrs["group"] != 1
    ):
        return False
    return min(weight.shape[:2]) >= _WIDE_CHANNELS and weight.shape[2] * weight.shape[3] > 1


def _adjoint_as_product(
    attrs: Mapping[str, Any], weight: Tensor, a: Tensor, extents: Sequence[int]
) -> Tensor:
    """``a [R, O, H, W]`` to ``[R, C, *extents]``: one product for all positions, added up at each
    kernel offset."""
    _, outputs, height, width = a.shape
    inputs = weight.shape[1]
    (tall, broad), (down, right), (top, left) = weight.shape[2:], attrs["strides"], attrs["pads"]
    matrix = weight.permute(0, 2, 3, 1).reshape(outputs, -1)
    starts = [
        (i * attrs["dilations"][0], j * attrs["dilations"][1])
        for i in range(tall)
        for j in range(broad)
    ]
    span_y, span_x = (height - 1) * down + 1, (width - 1) * right + 1
    padded = (
        max(extents[0] + 2 * top, span_y + starts[-1][0]),
        max(extents[1] + 2 * left, span_x + starts[-1][1]),
    )
    parts = []
    for part in torch.split(a, max(1, _PRODUCT_BYTES // (8 * height * width * matrix.shape[1]))):
        products = part.permute(0, 2, 3, 1).reshape(-1, outputs) @ matrix
        offsets = products.reshape(len(part), height, width, len(starts), inputs)
        total = a.new_zeros(len(part), *padded, inputs)
        for k, (y, x) in enumerate(starts):
            total[:, y : y + span_y : down, x : x + span_x : right] += offsets[:, :, :, k]
        parts.append(total[:, top : top + extents[0], left : left + extents[1]].permute(0, 3, 1, 2))
    return torch.cat(parts).contiguous()


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


def _transposed_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    weight, attrs = params["weight"], node.attrs
    value = _CONV[weight.dim() - 3](
        _fold(a), weight, None, attrs["strides"], attrs["pads"], attrs["dilations"], attrs["group"]
    )
    for axis, extent in enumerate(
        shapes[0][2:]
    ):  # an output padding of a whole stride makes room for more
        value = value.narrow(2 + axis, 0, extent)
    return [value.reshape(a.shape[0], *shapes[0])]


register(Op("Conv", _conv, True, _conv_absolute, _conv_adjoint))
register(Op("ConvTranspose", _transposed, True, _transposed_absolute, _transposed_adjoint))
