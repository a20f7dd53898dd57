"""Reads and writes at constant positions: every entry of the result is an entry of an operand.

Positions are worked out on an array of entry numbers by numpy, which has the semantics of these
operators; the tensors themselves are then gathered flat. A write that adds or multiplies would need
arithmetic: ``add`` is a sparse sum, the others have no rule.
"""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers


def _flat(b: Builder, x: str) -> str:
    return b.reshaped(x, (math.prod(b.shape(x)),))


def _picked(b: Builder, x: str, numbers: np.ndarray) -> str:
    """Entries ``numbers`` of flat ``x``, in the shape of ``numbers``."""
    return b.reshaped(b.gathered(_flat(b, x), 0, numbers.reshape(-1)), numbers.shape)


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


def _positions(b: Builder, indices: np.ndarray, shape: tuple[int, ...], first: int) -> np.ndarray:
    """``indices [..., K]`` into axes ``first ..`` of ``shape``, counted from the front."""
    extents = np.array(shape[first : first + indices.shape[-1]])
    if (
        len(extents) != indices.shape[-1]
        or (indices < -extents).any()
        or (indices >= extents).any()
    ):
        raise ModelError(
            f"node {b.source!r} names a position outside a tensor of shape {list(shape)}"
        )
    return np.where(indices < 0, indices + extents, indices)


@lowers("GatherND")
def gather_nd(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape, lead = b.shape(x), int(node.attrs.get("batch_dims", 0))
    indices = b.constant(node.inputs[1], "the positions").astype(np.int64)
    if not 0 <= lead < min(len(shape), indices.ndim) or shape[:lead] != indices.shape[:lead]:
        raise ModelError(f"node {node.name!r}: {lead} batch axes do not fit its operands")
    indices = _positions(b, indices, shape, lead)
    numbers = _numbers(shape)
    grid = np.indices(indices.shape[:lead]).reshape(lead, *indices.shape[:lead])
    wide = [g.reshape(*g.shape, *([1] * (indices.ndim - 1 - lead))) for g in grid]
    b.bind(node, _picked(b, x, numbers[(*wide, *np.moveaxis(indices, -1, 0))]))


@lowers("GatherElements")
def gather_elements(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", 0)), len(shape))
    indices = b.constant(node.inputs[1], "the positions").astype(np.int64)
    where = _elements(b, indices, shape, axis)
    b.bind(node, _picked(b, x, _numbers(shape)[where]))


def _elements(
    b: Builder, indices: np.ndarray, shape: tuple[int, ...], axis: int
) -> tuple[np.ndarray, ...]:
    """The place of each entry of ``indices``: its own, but for ``axis``, where it is the entry."""
    if indices.ndim != len(shape) or any(
        extent > shape[i] for i, extent in enumerate(indices.shape) if i != axis
    ):
        raise ModelError(f"node {b.source!r}: positions {list(indices.shape)} in {list(shape)}")
    place: list[np.ndarray] = list(np.indices(indices.shape))
    place[axis] = _positions(b, indices[..., None], shape, axis)[..., 0]
    return tuple(place)


@lowers("ScatterND")
def scatter_nd(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    indices = b.constant(node.inputs[1], "the positions").astype(np.int64)
    where = tuple(np.moveaxis(_positions(b, indices, shape, 0), -1, 0))
    _write(b, node, x, _numbers(shape)[where].reshape(-1))


@lowers("ScatterElements", "Scatter")
def scatter_elements(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", 0)), len(shape))
    indices = b.constant(node.inputs[1], "the positions").astype(np.int64)
    _write(b, node, x, _numbers(shape)[_elements(b, indices, shape, axis)].reshape(-1))


def _write(b: Builder, node: OnnxNode, x: str, places: np.ndarray) -> None:
    """Entry ``k`` of the updates goes to entry ``places[k]`` of flat ``x``."""
    shape, updates = b.shape(x), _flat(b, b.node_of(node.inputs[2]))
    if b.shape(updates) != places.shape:
        raise ModelError(
            f"node {node.name!r}: {b.shape(updates)[0]} updates for {len(places)} places"
        )
    kind, size = node.attrs.get("reduction", "none"), math.prod(shape)
    if kind == "add":
        if len(places) * size > 1 << 24:
            raise UnsupportedError(f"node {node.name!r} adds {len(places)} entries to {size}")
        matrix = np.zeros((size, len(places)))
        matrix[places, np.arange(len(places))] = 1.0
        added = b.emit("Linear", (updates,), params={"weight": matrix})
        b.bind(node, b.reshaped(b.binary("Add", _flat(b, x), added), shape))
        return
    if kind != "none":
        raise UnsupportedError(f"node {node.name!r} writes with reduction {kind!r}")
    if len(np.unique(places)) != len(places):
        raise UnsupportedError(f"node {node.name!r} writes one place twice")
    source = np.arange(size)
    source[places] = size + np.arange(len(places))
    both = b.emit("Concat", (_flat(b, x), updates), {"axis": 0})
    b.bind(node, b.reshaped(b.gathered(both, 0, source), shape))
