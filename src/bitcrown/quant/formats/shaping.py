"""Operators that move elements, and the maximum: neither computes, so integers and chains go along
unchanged."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.elementwise import rearranged
from bitcrown.quant.formats.lattice import RAW, Lattice, chain_values, channels_of
from bitcrown.quant.formats.rule_table import Grid, NoRule, Reading, node_label, reads
from bitcrown.quant.formats.runtime import all_evaluated
from bitcrown.quant.formats.sums import conv_geometry
from bitcrown.quant.network.graph import MaxPool, Numbers

_MOST_NUMBERED = 1 << 24
"""Numbers up to which float32 has every whole one."""


def _ints(reading: Reading, node: OnnxNode, key: str, position: int) -> list[int] | None:
    """An attribute that later opsets made an input."""
    if key in node.attrs:
        return [int(v) for v in node.attrs[key]]
    return (
        [int(v) for v in reading.constant(node, position).reshape(-1)]
        if reading.has(node, position)
        else None
    )


def _moved_index(reading: Reading, node: OnnxNode, index: Numbers) -> Numbers:
    """What the operator makes of an array of element numbers."""
    shape = index.shape
    if node.op == "Reshape":
        target = [int(v) for v in reading.constant(node, 1).reshape(-1)]
        if not node.attrs.get("allowzero", 0):
            target = [shape[k] if extent == 0 else extent for k, extent in enumerate(target)]
        return index.reshape(target)
    if node.op == "Flatten":
        axis = int(node.attrs.get("axis", 1)) % (len(shape) + 1)
        return index.reshape(int(np.prod(shape[:axis])), -1)
    if node.op == "Transpose":
        return index.transpose(node.attrs.get("perm"))
    axes = _ints(reading, node, "axes", 1)
    if node.op == "Squeeze":
        return np.squeeze(index, tuple(axes) if axes is not None else None)
    return np.expand_dims(index, tuple(axes or ()))


@reads("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
def move(reading: Reading, node: OnnxNode) -> None:
    name = node.inputs[0]
    if name in reading.tensors:
        lattice = reading.tensors[name]
        index = _moved_index(reading, node, np.arange(lattice.size).reshape(lattice.shape))
        reading.bind(node, rearranged(reading, lattice, index))
        return
    value = reading.constant(node, 0)
    reading.constants[node.outputs[0]] = _moved_index(reading, node, value)
    if name in reading.grids:
        grid = reading.grids[name]
        scale = np.broadcast_to(grid.scale, grid.ints.shape)
        reading.grids[node.outputs[0]] = Grid(
            _moved_index(reading, node, grid.ints), _moved_index(reading, node, scale)
        )


@reads("Slice", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "Split")
def pick(reading: Reading, node: OnnxNode) -> None:
    """Each element of the result is one of the tensor's: which one, onnxruntime itself says, given
    the elements' numbers in their place."""
    label = node_label(node)
    lattice = reading.lattice(node.inputs[0])
    if node.op == "Resize" and node.attrs.get("mode", "nearest") != "nearest":
        raise NoRule(f"{label} interpolates; mode nearest is supported")
    if lattice.size > _MOST_NUMBERED:
        raise NoRule(f"{label} has more than {_MOST_NUMBERED} elements")
    others = [reading.constant(node, k) if n else None for k, n in enumerate(node.inputs) if k]
    numbers = np.arange(lattice.size, dtype=np.float32).reshape(lattice.shape)
    count = len(node.outputs)
    found = all_evaluated(node.op, [numbers, *others], node.attrs, node.opset, count)
    for name, index in zip(node.outputs, found, strict=True):
        if name:
            moved = rearranged(reading, lattice, index.astype(np.int64))
            reading.bind(replace(node, outputs=(name,)), moved)


@reads("Concat")
def concat(reading: Reading, node: OnnxNode) -> None:
    parts = [reading.lattice(name) for name in node.inputs]
    kinds = [[(s.name, s.function, s.spread) for s in part.chain] for part in parts]
    if any(a != b for a, b in pairwise(kinds)) or any(
        part.node == RAW or part.dtype != parts[0].dtype for part in parts
    ):
        raise NoRule(
            f"Concat {node.name!r} joins tensors of different kinds; quantize each of them before "
            "it"
        )
    offsets = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate(
        [
            start + np.arange(p.size).reshape(p.shape)
            for start, p in zip(offsets, parts, strict=False)
        ],
        axis=int(node.attrs["axis"]),
    )
    flat = np.ascontiguousarray(index, dtype=np.int64).reshape(-1)
    chain = []
    for steps in zip(*(part.chain for part in parts), strict=True):
        joined = [
            np.concatenate(
                [np.broadcast_to(p, (part.size,)) for p, part in zip(params, parts, strict=True)]
            )
            for params in zip(*(step.params for step in steps), strict=True)
        ]
        chain.append(
            replace(steps[0], params=tuple(p[:1] if (p == p[0]).all() else p[flat] for p in joined))
        )
    shape = tuple(index.shape)
    sample = Lattice(0, shape, parts[0].dtype).sample_shape
    number = reading.assembly.gather(tuple(part.node for part in parts), flat, sample)
    reading.bind(node, Lattice(number, shape, parts[0].dtype, tuple(chain)))


@reads("MaxPool")
def max_pool(reading: Reading, node: OnnxNode) -> None:
    """A maximum commutes with a rising function that is the same all over a channel, so it acts on
    the integers."""
    lattice = reading.lattice(node.inputs[0])
    label = f"MaxPool {node.name!r}"
    kernel = tuple(int(k) for k in node.attrs["kernel_shape"])
    strides, dilations, padding, plane = conv_geometry(node, lattice.shape, kernel)
    if (
        dilations != (1, 1)
        or node.attrs.get("storage_order", 0)
        or len([o for o in node.outputs if o]) > 1
    ):
        raise NoRule(f"{label} has dilations, or gives positions")
    if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
        raise NoRule(f"{label} has windows that lie in the padding")
    if node.attrs.get("ceil_mode", 0):
        room = [lattice.shape[2 + k] + padding[k] + padding[k + 2] - kernel[k] for k in (0, 1)]
        if any(r % s for r, s in zip(room, strides, strict=True)):
            raise NoRule(f"{label} rounds its size up (ceil_mode)")
    if (
        lattice.node == RAW
        or channels_of(lattice.chain, lattice.size, lattice.sample_shape) > lattice.shape[1]
    ):
        raise NoRule(f"{label} works on a tensor that is not quantized alike all over a channel")
    if not _is_rising(reading, lattice):
        raise NoRule(
            f"{label} works on a tensor that falls while its integers rise; quantize before it"
        )
    shape = (lattice.shape[1], *plane)
    size = lattice.shape[2] * lattice.shape[3]
    channel = np.repeat(np.arange(lattice.shape[1]) * size, plane[0] * plane[1])
    chain = tuple(
        replace(step, params=tuple(p if p.size == 1 else p[channel] for p in step.params))
        for step in lattice.chain
    )
    image = (lattice.shape[2], lattice.shape[3])
    number = reading.assembly.add(
        MaxPool(shape, lattice.node, image, (kernel[0], kernel[1]), strides, padding)
    )
    result = Lattice(number, (1, *shape), lattice.dtype, chain)
    reading.bind(node, result)
    if not chain:
        reading.trace[node.outputs[0]] = number


def _is_rising(reading: Reading, lattice: Lattice) -> bool:
    index = np.arange(lattice.size)
    ends = [bound[lattice.node][:, None] for bound in (reading.assembly.low, reading.assembly.high)]
    first, last = (chain_values(lattice.chain, end, index) for end in ends)
    return bool((first[0] <= last[0]).all() and (first[1] <= last[1]).all())
