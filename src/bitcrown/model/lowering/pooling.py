"""Pooling and resizing."""

from __future__ import annotations

import itertools

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import tournament
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.weights import _spatial, padded

LOWEST = -1e9
"""Padding of a max pooling: below every value a bounded network takes."""


@lowers("MaxPool")
def max_pool(b: Builder, node: OnnxNode) -> None:
    """One strided slice per window position, then a tournament: exact ReLUs instead of a special relaxation."""
    x = b.node_of(node.inputs[0])
    kernel = tuple(node.attrs["kernel_shape"])
    rank = len(kernel)
    if node.attrs.get("ceil_mode", 0) or len(node.outputs) > 1:
        raise UnsupportedError(f"node {node.name!r}: MaxPool with ceil_mode or indices")
    spatial = _spatial(node, rank, b.shape(x)[2:], kernel)
    before, after = spatial["pads"][:rank], spatial["pads"][rank:]
    if any(before) or any(after):
        x = padded(b, x, before, after, LOWEST)
    strides, dilations = spatial["strides"], spatial["dilations"]
    extents = b.shape(x)[2:]
    out = [(extents[i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    parts = []
    for position in itertools.product(*(range(extent) for extent in kernel)):
        cut = [(0, extent, 1) for extent in b.shape(x)[:2]]
        for i, offset in enumerate(position):
            start = offset * dilations[i]
            cut.append((start, start + (out[i] - 1) * strides[i] + 1, strides[i]))
        parts.append(b.emit("Slice", (x,), {"slices": tuple(cut)}))
    b.bind(node, tournament(b, parts))


@lowers("AveragePool")
def average_pool(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    kernel = list(node.attrs["kernel_shape"])
    rank = len(kernel)
    spatial = _spatial(node, rank, b.shape(x)[2:], tuple(kernel))
    before, after = spatial["pads"][:rank], spatial["pads"][rank:]
    include = bool(node.attrs.get("count_include_pad", 0))
    if before != after:
        if not include:
            raise UnsupportedError(f"node {node.name!r}: AveragePool with uneven padding that does not count")
        x, before = padded(b, x, before, after), [0] * rank
    attrs = {
        "kernel": kernel,
        "strides": spatial["strides"],
        "pads": before,
        "ceil_mode": bool(node.attrs.get("ceil_mode", 0)),
        "count_include_pad": include,
    }
    b.bind(node, b.emit("AveragePool", (x,), attrs))


@lowers("Upsample", "Resize")
def resize(b: Builder, node: OnnxNode) -> None:
    """Nearest (asymmetric) and linear interpolation as torch computes them; the load check catches any other rule."""
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    size = _target_size(b, node, shape)
    if size[:2] != list(shape[:2]):
        raise UnsupportedError(f"node {node.name!r} resizes the channel axis")
    mode = node.attrs.get("mode", "nearest")
    rule = node.attrs.get("coordinate_transformation_mode", "asymmetric" if node.op == "Upsample" else "half_pixel")
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape) - 2]
    names = {"nearest": "nearest", "linear": linear}
    if mode not in names:
        raise UnsupportedError(f"node {node.name!r} resizes with mode {mode!r}")
    align = (rule == "align_corners") if mode == "linear" else None
    b.bind(node, b.emit("Resize", (x,), {"size": size[2:], "mode": names[mode], "align_corners": align}))


def _target_size(b: Builder, node: OnnxNode, shape: tuple[int, ...]) -> list[int]:
    if "scales" in node.attrs:
        scales = np.asarray(node.attrs["scales"], dtype=np.float64)
    elif node.op == "Upsample":
        scales = b.constant(node.inputs[1], "the scales").astype(np.float64)
    elif len(node.inputs) > 3 and node.inputs[3]:
        return b.integers(node.inputs[3], "the sizes")
    else:
        scales = b.constant(node.inputs[2 if node.opset >= 11 else 1], "the scales").astype(np.float64)
    return [int(np.floor(extent * scale)) for extent, scale in zip(shape, scales, strict=True)]
