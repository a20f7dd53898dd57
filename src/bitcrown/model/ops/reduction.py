"""Sums and averages over axes or windows, and resizing. Adjoints not written here are derived automatically."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, register

Params = dict[str, Tensor]
_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _axes(node: Node) -> list[int]:
    return [axis + 1 for axis in node.attrs["axes"]]


def _sum(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].sum(dim=_axes(node), keepdim=node.attrs["keepdims"])


def _sum_adjoint(node: Node, params: Params, a: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    kept = [1 if axis in node.attrs["axes"] else extent for axis, extent in enumerate(shapes[0])]
    return [a.reshape(a.shape[0], *kept).expand(a.shape[0], *shapes[0])]


def _average(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    folded = x.reshape(-1, *x.shape[2:])
    value = _POOL[folded.dim() - 3](
        folded, attrs["kernel"], attrs["strides"], attrs["pads"], attrs["ceil_mode"], attrs["count_include_pad"]
    )
    return value.reshape(*x.shape[:2], *value.shape[1:])


def _resize(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    folded = x.reshape(-1, *x.shape[2:])
    value = F.interpolate(folded, size=attrs["size"], mode=attrs["mode"], align_corners=attrs["align_corners"])
    return value.reshape(*x.shape[:2], *value.shape[1:])


register(Op("ReduceSum", _sum, True, _sum, _sum_adjoint))
register(Op("AveragePool", _average, True, _average))
register(Op("Resize", _resize, True, _resize))
