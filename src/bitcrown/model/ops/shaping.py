"""Operators that move entries without changing them. Axes in ``attrs`` do not count the run-time
axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcrown.model.graph import Node
from bitcrown.model.registry import Op, Params, Shapes, register


def _reshape(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].reshape(inputs[0].shape[0], *node.attrs["shape"])


def _reshape_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    return [a.reshape(a.shape[0], *shapes[0])]


def _transpose(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0].permute(0, *(axis + 1 for axis in node.attrs["perm"]))


def _transpose_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    perm = node.attrs["perm"]
    return [a.permute(0, *(perm.index(axis) + 1 for axis in range(len(perm))))]


def _slices(node: Node) -> tuple[slice, ...]:
    return (slice(None), *(slice(*part) for part in node.attrs["slices"]))


def _slice(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0][_slices(node)]


def _slice_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    result = a.new_zeros(a.shape[0], *shapes[0])
    result[_slices(node)] = a
    return [result]


def _gather(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    axis, indices = (
        node.attrs["axis"],
        torch.as_tensor(node.attrs["indices"], device=inputs[0].device),
    )
    value = inputs[0].index_select(axis + 1, indices.flatten())
    shape = inputs[0].shape
    return value.reshape(*shape[: axis + 1], *indices.shape, *shape[axis + 2 :])


def _gather_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    axis, indices = node.attrs["axis"], torch.as_tensor(node.attrs["indices"], device=a.device)
    flat = a.reshape(a.shape[0], *shapes[0][:axis], indices.numel(), *shapes[0][axis + 1 :])
    return [a.new_zeros(a.shape[0], *shapes[0]).index_add(axis + 1, indices.flatten(), flat)]


def _pads(node: Node) -> list[int]:
    before, after = node.attrs["pads"]
    return [extent for pair in reversed(list(zip(before, after, strict=True))) for extent in pair]


def _pad(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.nn.functional.pad(inputs[0], _pads(node), value=float(node.attrs["value"]))


def _pad_absolute(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    return torch.nn.functional.pad(inputs[0], _pads(node))


def _pad_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    return [torch.nn.functional.pad(a, [-extent for extent in _pads(node)])]


def _concat(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    rows = max(part.shape[0] for part in inputs)
    return torch.cat(
        [part.expand(rows, *part.shape[1:]) for part in inputs], dim=node.attrs["axis"] + 1
    )


def _concat_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    axis = node.attrs["axis"]
    return list(torch.split(a, [shape[axis] for shape in shapes], dim=axis + 1))


def _expand(node: Node, params: Params, inputs: Sequence[Tensor]) -> Tensor:
    target = node.attrs["shape"]
    x = inputs[0]
    x = x.reshape(x.shape[0], *([1] * (len(target) - x.dim() + 1)), *x.shape[1:])
    return x.expand(x.shape[0], *target)


def _expand_adjoint(node: Node, params: Params, a: Tensor, shapes: Shapes) -> list[Tensor]:
    target, shape = node.attrs["shape"], shapes[0]
    lead = len(target) - len(shape)
    axes = [
        1 + i for i in range(len(target)) if i < lead or (shape[i - lead] == 1 and target[i] != 1)
    ]
    value = a.sum(dim=axes, keepdim=True) if axes else a
    return [value.reshape(a.shape[0], *shape)]


register(Op("Reshape", _reshape, True, _reshape, _reshape_adjoint))
register(Op("Transpose", _transpose, True, _transpose, _transpose_adjoint))
register(Op("Slice", _slice, True, _slice, _slice_adjoint))
register(Op("Gather", _gather, True, _gather, _gather_adjoint))
register(Op("Pad", _pad, True, _pad_absolute, _pad_adjoint))
register(Op("Concat", _concat, True, _concat, _concat_adjoint))
register(Op("Expand", _expand, True, _expand, _expand_adjoint))
