"""Operators that only move, cut or repeat entries."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.comparison import chosen, positions


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    b.bind(node, b.reshaped(x, _new_shape(b, node, shape)))


def _new_shape(b: Builder, node: OnnxNode, shape: tuple[int, ...]) -> list[int]:
    rank, total = len(shape), math.prod(shape)
    if node.op == "Flatten":
        given = int(node.attrs.get("axis", 1))
        axis = given if given == rank else b.axis(given, rank)
        return [math.prod(shape[:axis]), math.prod(shape[axis:])]
    if node.op == "Reshape":
        target = (
            b.integers(node.inputs[1], "the shape")
            if len(node.inputs) > 1
            else list(node.attrs["shape"])
        )
        if not node.attrs.get("allowzero", 0):
            target = [shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
        if -1 in target:
            known = -math.prod(target)
            target[target.index(-1)] = total // known
        return target
    axes = list(node.attrs["axes"]) if "axes" in node.attrs else None
    if axes is None and len(node.inputs) > 1:
        axes = b.integers(node.inputs[1], "the axes")
    if node.op == "Squeeze":
        gone = (
            {b.axis(a, rank) for a in axes}
            if axes is not None
            else {i for i, e in enumerate(shape) if e == 1}
        )
        return [extent for i, extent in enumerate(shape) if i not in gone]
    if axes is None:
        raise UnsupportedError(f"node {node.name!r}: Unsqueeze without axes")
    result = list(shape)
    for axis in sorted(b.axis(a, rank + len(axes)) for a in axes):
        result.insert(axis, 1)
    return result


@lowers("Transpose")
def transpose(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    b.bind(node, b.transposed(x, node.attrs.get("perm", range(rank - 1, -1, -1))))


@lowers("Concat")
def concat(b: Builder, node: OnnxNode) -> None:
    parts = tuple(b.node_of(tensor) for tensor in node.inputs)
    axis = b.axis(int(node.attrs["axis"]), len(b.shape(parts[0])))
    b.bind(node, b.emit("Concat", parts, {"axis": axis}))


@lowers("Slice")
def slice_(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    if "starts" in node.attrs:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes, steps = list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        parts = [
            b.integers(tensor, "a slice bound") if tensor else None for tensor in node.inputs[1:]
        ]
        starts, ends = parts[0] or [], parts[1] or []
        axes = parts[2] if len(parts) > 2 and parts[2] is not None else list(range(len(starts)))
        steps = parts[3] if len(parts) > 3 and parts[3] is not None else [1] * len(starts)
    cut = [(0, extent, 1) for extent in shape]
    reversed_axes = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = b.axis(axis, len(shape))
        extent = shape[axis]
        if step < 0:
            start, end = (
                max(start, -extent),
                None if end < -extent else end,
            )  # ONNX clamps the start into the axis
            reversed_axes[axis] = np.arange(*slice(start, end, step).indices(extent))
            continue
        first, last, _ = slice(start, end).indices(extent)
        cut[axis] = (first, max(first, last), step)
    x = b.emit("Slice", (x,), {"slices": tuple(cut)})
    for axis, indices in reversed_axes.items():
        x = b.gathered(x, axis, indices)
    b.bind(node, x)


@lowers("Split")
def split(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", 0)), len(shape))
    if len(node.inputs) > 1 and node.inputs[1]:
        sizes = b.integers(node.inputs[1], "the split sizes")
    else:
        count = len(node.outputs)
        chunk = -(-shape[axis] // count)
        sizes = list(
            node.attrs.get("split", [min(chunk, shape[axis] - i * chunk) for i in range(count)])
        )
    if sum(sizes) != shape[axis] or min(sizes) < 0:
        raise ModelError(f"node {node.name!r} splits {shape[axis]} entries into {sizes}")
    start = 0
    for output, size in enumerate(sizes):
        b.bind(node, b.sliced(x, axis, start, start + size), output)
        start += size


@lowers("Gather")
def gather(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axis = b.axis(int(node.attrs.get("axis", 0)), len(b.shape(x)))
    if not b.is_constant(node.inputs[1]):
        b.bind(node, looked_up(b, x, axis, b.node_of(node.inputs[1])))
        return
    indices = b.constant(node.inputs[1], "the indices").astype(np.int64)
    value = b.gathered(x, axis, indices.reshape(-1))
    shape = b.shape(x)
    b.bind(node, b.reshaped(value, (*shape[:axis], *indices.shape, *shape[axis + 1 :])))


def looked_up(b: Builder, table: str, axis: int, index: str) -> str:
    """Rows of a table at positions that depend on the input: ``sum_k [index = k] row_k``, with
    positions counted from the end as well."""
    shape, places = b.shape(table), b.shape(index)
    depth, count = shape[axis], math.prod(places)
    hits = positions(b, index, len(places), depth)
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    known = b.nodes[table].params.get("value") if b.nodes[table].op == "Constant" else None
    if known is not None and before == 1:
        weight = known.reshape(depth, after).T
        rows = b.emit("Linear", (b.reshaped(hits, (count, depth)),), params={"weight": weight})
        return b.reshaped(rows, (*shape[:axis], *places, *shape[axis + 1 :]))
    full = (before, count, depth, after)
    wide = b.expanded(b.reshaped(table, (before, 1, depth, after)), full)
    hits = b.expanded(b.reshaped(hits, (1, count, depth, 1)), full)
    rows = b.summed(b.binary("Mul", hits, wide), (2,), False)
    return b.reshaped(rows, (*shape[:axis], *places, *shape[axis + 1 :]))


@lowers("Pad")
def pad(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    mode = node.attrs.get("mode", "constant")
    given = (
        list(node.attrs["pads"])
        if "pads" in node.attrs
        else b.integers(node.inputs[1], "the padding")
    )
    value = node.real("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2]:
        value = float(b.constant(node.inputs[2], "the padding value").reshape(()))
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        axes = [b.axis(axis, rank) for axis in b.integers(node.inputs[3], "the axes")]
    before, after = [0] * rank, [0] * rank
    for axis, start, end in zip(
        axes, given[: len(given) // 2], given[len(given) // 2 :], strict=True
    ):
        before[axis], after[axis] = start, end
    if mode == "constant":
        b.bind(node, b.emit("Pad", (x,), {"pads": (tuple(before), tuple(after)), "value": value}))
        return
    if (
        mode not in ("edge", "reflect", "wrap")
        or min(before + after) < 0
        or max(before + after) > 1 << 20
    ):
        raise UnsupportedError(f"node {node.name!r} pads with mode {mode!r} by {before}, {after}")
    for axis in range(rank):
        x = b.gathered(
            x, axis, np.pad(np.arange(b.shape(x)[axis]), (before[axis], after[axis]), mode=mode)
        )
    b.bind(node, x)


@lowers("Expand")
def expand(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = np.broadcast_shapes(b.shape(x), tuple(b.integers(node.inputs[1], "the shape")))
    b.bind(node, b.expanded(x, shape))


@lowers("Tile")
def tile(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    for axis, times in enumerate(b.integers(node.inputs[1], "the repeats")):
        shape = b.shape(x)
        if times != 1:
            full = (*shape[:axis], times, *shape[axis:])
            wide = b.expanded(b.reshaped(x, (*shape[:axis], 1, *shape[axis:])), full)
            x = b.reshaped(wide, (*shape[:axis], times * shape[axis], *shape[axis + 1 :]))
    b.bind(node, x)


@lowers("Trilu")
def triangle(b: Builder, node: OnnxNode) -> None:
    """Entries on one side of a diagonal are kept, the others are 0."""
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    if len(shape) < 2:
        raise ModelError(f"node {node.name!r}: a triangle of a tensor of shape {list(shape)}")
    given = len(node.inputs) > 1 and node.inputs[1]
    k = b.integers(node.inputs[1], "the diagonal")[0] if given else 0
    half = np.triu if node.attrs.get("upper", 1) else np.tril
    b.bind(node, b.scaled(x, half(np.ones(shape[-2:]), k), None))


@lowers("DepthToSpace", "SpaceToDepth")
def depth_to_space(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    n, c, h, w = b.shape(x)
    k = int(node.attrs["blocksize"])
    if node.op == "SpaceToDepth":
        parts, perm, shape = (
            (n, c, h // k, k, w // k, k),
            (0, 3, 5, 1, 2, 4),
            (n, c * k * k, h // k, w // k),
        )
    elif node.attrs.get("mode", "DCR") == "DCR":
        parts, perm, shape = (
            (n, k, k, c // k**2, h, w),
            (0, 3, 4, 1, 5, 2),
            (n, c // k**2, h * k, w * k),
        )
    else:
        parts, perm, shape = (
            (n, c // k**2, k, k, h, w),
            (0, 1, 4, 2, 5, 3),
            (n, c // k**2, h * k, w * k),
        )
    b.bind(node, b.reshaped(b.transposed(b.reshaped(x, parts), perm), shape))


@lowers("Where")
def where(b: Builder, node: OnnxNode) -> None:
    """With a constant condition ``c * x + (1 - c) * y``, with another one ``y + c * (x - y)``."""
    if not b.is_constant(node.inputs[0]):
        for tensor in node.inputs[1:]:
            if b.is_constant(tensor) and not np.isfinite(b.constants[tensor]).all():
                raise UnsupportedError(f"node {node.name!r} may choose a value that is not finite")
        b.bind(node, chosen(b, *(b.node_of(tensor) for tensor in node.inputs)))
        return
    condition = b.constants[node.inputs[0]].astype(np.float64)
    parts, gone = [], np.zeros((), dtype=bool)
    for tensor, mask in ((node.inputs[1], condition), (node.inputs[2], 1.0 - condition)):
        if b.is_constant(tensor):
            value = b.constants[tensor].astype(np.float64)
            gone = gone | ((mask != 0) & np.isneginf(value))
            parts.append(b.known(np.where((mask != 0) & ~np.isneginf(value), value, 0.0)))
        else:
            parts.append(b.scaled(b.node_of(tensor), mask, None))
    result = b.binary("Add", parts[0], parts[1])
    if gone.any():
        b.removed[node.outputs[0]] = np.broadcast_to(gone, b.shape(result))
    b.bind(node, result)


@lowers("ReverseSequence")
def reverse_sequence(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    batch, time = (
        int(node.attrs.get(f"{axis}_axis", k)) for axis, k in (("batch", 1), ("time", 0))
    )
    rows, extent = b.shape(x)[batch], b.shape(x)[time]
    lengths = b.integers(node.inputs[1], "the lengths")
    if len(lengths) != rows or not all(0 <= length <= extent for length in lengths):
        raise ModelError(f"node {node.name!r} reverses {lengths} entries of {rows} x {extent}")
    turned = []
    for row, length in enumerate(lengths):
        order = np.concatenate([np.arange(length)[::-1], np.arange(length, extent)])
        turned.append(b.gathered(b.sliced(x, batch, row, row + 1), time, order))
    b.bind(node, turned[0] if rows == 1 else b.emit("Concat", tuple(turned), {"axis": batch}))
