"""Sums over axes and averages over windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, Params, Shapes, register

_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _sum(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].sum(
        dim=[axis + 1 for axis in node.attrs["axes"]], keepdim=node.attrs["keepdims"]
    )


def _sum_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    kept = [1 if axis in node.attrs["axes"] else extent for axis, extent in enumerate(shapes[0])]
    return [a.reshape(a.shape[0], *kept).expand(a.shape[0], *shapes[0])]


def _average(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    """Windows without padding: the reader pads and corrects the divisors with operators of their
    own."""
    x, kernel = inputs[0], node.attrs["kernel"]
    value = _POOL[len(kernel) - 1](x.flatten(0, 1), kernel, node.attrs["strides"])
    return value.reshape(*x.shape[:2], *value.shape[1:])


register(Op("ReduceSum", _sum, True, _sum, _sum_adjoint))
register(Op("AveragePool", _average, True, _average))
