"""Pooling and resizing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import LARGEST, Builder, OnnxNode, lowers
from bitcrown.model.lowering.weights import padded, spatial_attributes


class _Windows:
    """Where the windows of a pooling lie on each axis: first entry (may be padding), step inside,
    how many."""

    def __init__(self, b: Builder, node: OnnxNode, x: str) -> None:
        self.kernel = tuple(int(extent) for extent in node.attrs["kernel_shape"])
        self.rank = len(self.kernel)
        self.extents = b.shape(x)[2:]
        spatial = spatial_attributes(node, self.rank, self.extents, self.kernel)
        self.strides, self.dilations = spatial["strides"], spatial["dilations"]
        self.before, self.after = spatial["pads"][: self.rank], spatial["pads"][self.rank :]
        if min(self.kernel) < 1 or math.prod(self.kernel) > 1 << 16:
            raise ModelError(f"node {node.name!r}: kernel {list(self.kernel)} is out of range")
        if any(
            p >= d * (k - 1) + 1
            for p, d, k in zip(self.before, self.dilations, self.kernel, strict=True)
        ):
            raise ModelError(f"node {node.name!r}: a window of the pooling lies in the padding")
        self.out = [
            self._count(axis, node.attrs.get("ceil_mode", 0) == 1) for axis in range(self.rank)
        ]
        if any(
            not 0 < out * kernel <= LARGEST
            for out, kernel in zip(self.out, self.kernel, strict=True)
        ):
            raise ModelError(f"node {node.name!r} has {self.out} windows")

    def span(self, axis: int) -> int:
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1

    def _count(self, axis: int, ceil: bool) -> int:
        room = self.extents[axis] + self.before[axis] + self.after[axis] - self.span(axis)
        count = (-(-room // self.strides[axis]) if ceil else room // self.strides[axis]) + 1
        if ceil and (count - 1) * self.strides[axis] >= self.extents[axis] + self.before[axis]:
            count -= 1  # the last window would start behind the data
        return count

    def entries(self, axis: int, offset: int) -> np.ndarray:
        """Index on ``axis`` that each window reads at ``offset``; outside the data where it reads
        padding."""
        starts = np.arange(self.out[axis]) * self.strides[axis] - self.before[axis]
        return starts + offset * self.dilations[axis]

    def valid_entries(self, axis: int, offset: int) -> np.ndarray:
        """The same with padding replaced by the nearest entry that belongs to the same window."""
        first, last = self.entries(axis, 0), self.entries(axis, self.kernel[axis] - 1)
        step = self.dilations[axis]
        first = np.where(first < 0, first + -(first // step) * step, first)
        end = self.extents[axis] - 1
        last = np.where(last > end, last - -((end - last) // step) * step, last)
        if (first > last).any():
            raise ModelError("a window of the pooling lies in the padding")
        return np.asarray(np.clip(self.entries(axis, offset), first, last))


@lowers("MaxPool")
def max_pool(b: Builder, node: OnnxNode) -> None:
    """One slice per window position, then a tournament: exact ReLUs instead of a special
    relaxation.

    Padding never wins: where a window reaches over the edge it reads one of its own entries twice.
    """
    if any(node.outputs[1:]):
        raise UnsupportedError(f"node {node.name!r}: MaxPool with indices")
    x = b.node_of(node.inputs[0])
    windows = _Windows(b, node, x)
    parts = []
    for position in itertools.product(*(range(extent) for extent in windows.kernel)):
        part = x
        for axis, offset in enumerate(position):
            part = _picked(
                b, part, axis + 2, windows.valid_entries(axis, offset), windows.strides[axis]
            )
        parts.append(part)
    while len(parts) > 1:
        winners = [b.maximum(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
        parts = winners + ([parts[-1]] if len(parts) % 2 else [])
    b.bind(node, parts[0])


def _picked(b: Builder, x: str, axis: int, indices: np.ndarray, stride: int) -> str:
    """Entries at ``indices`` along ``axis``: a strided slice where they are evenly spaced."""
    if np.array_equal(indices, indices[0] + np.arange(indices.size) * stride):
        if indices.size == b.shape(x)[axis]:
            return x
        cut = [(0, extent, 1) for extent in b.shape(x)]
        cut[axis] = (int(indices[0]), int(indices[-1]) + 1, stride)
        return b.emit("Slice", (x,), {"slices": tuple(cut)})
    return b.gathered(x, axis, indices)


@lowers("AveragePool")
def average_pool(b: Builder, node: OnnxNode) -> None:
    b.bind(node, averaged_windows(b, node, b.node_of(node.inputs[0])))


def averaged_windows(b: Builder, node: OnnxNode, x: str) -> str:
    """The pooling that the attributes of ``node`` describe: zero padding and one divisor per
    position, unless the windows are as plain as torch has them."""
    windows = _Windows(b, node, x)
    include = bool(node.attrs.get("count_include_pad", 0))
    reach = [
        (windows.out[i] - 1) * windows.strides[i] + windows.span(i) for i in range(windows.rank)
    ]
    counts = []
    for axis in range(windows.rank):
        places = np.stack([windows.entries(axis, offset) for offset in range(windows.kernel[axis])])
        low, high = (-windows.before[axis], windows.after[axis]) if include else (0, 0)
        counts.append(((places >= low) & (places < windows.extents[axis] + high)).sum(axis=0))
    rest = [max(0, reach[i] - windows.extents[i] - windows.before[i]) for i in range(windows.rank)]
    x = padded(b, x, windows.before, rest)
    if max(windows.dilations) > 1:
        channels = b.shape(x)[1]
        attrs = {
            "strides": windows.strides,
            "pads": [0] * windows.rank,
            "dilations": windows.dilations,
        }
        weight = np.full((channels, 1, *windows.kernel), 1.0 / math.prod(windows.kernel))
        x = b.emit("Conv", (x,), {**attrs, "group": channels}, {"weight": weight})
    else:
        x = b.emit(
            "AveragePool", (x,), {"kernel": list(windows.kernel), "strides": windows.strides}
        )
    correction = np.ones(())
    for count, extent in zip(counts, windows.kernel, strict=True):
        correction = correction[..., None] * (extent / count)
    return x if np.all(correction == 1) else b.scaled(x, correction, None)


@lowers("Upsample", "Resize")
def resize(b: Builder, node: OnnxNode) -> None:
    """Nearest: repeated or gathered entries. Linear: one interpolation matrix per axis."""
    x = b.node_of(node.inputs[0])
    if (
        node.attrs.get("antialias", 0)
        or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise UnsupportedError(
            f"node {node.name!r} resizes with antialiasing or a fixed aspect ratio"
        )
    axes = [
        b.axis(axis, len(b.shape(x))) for axis in node.attrs.get("axes", range(len(b.shape(x))))
    ]
    sizes, scales = _targets(b, node, [b.shape(x)[axis] for axis in axes])
    mode = node.attrs.get("mode", "nearest")
    rule = node.attrs.get(
        "coordinate_transformation_mode", "asymmetric" if node.opset < 11 else "half_pixel"
    )
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        extent = b.shape(x)[axis]
        if size == extent and scale == 1.0:
            continue
        places = _places(node, rule, extent, size, scale).astype(np.float64)
        if mode == "nearest":
            x = _nearest(
                b, x, axis, np.clip(_rounded(node, places), 0, extent - 1).astype(np.int64)
            )
        elif mode in ("linear", "bilinear", "trilinear"):
            left = np.floor(places).astype(np.int64)
            matrix = np.zeros((size, extent))
            np.add.at(
                matrix, (np.arange(size), np.clip(left, 0, extent - 1)), 1.0 - (places - left)
            )
            np.add.at(matrix, (np.arange(size), np.clip(left + 1, 0, extent - 1)), places - left)
            x = b.along(x, axis, matrix)
        elif mode == "cubic":
            x = b.along(x, axis, _cubic(node, places, extent))
        else:
            raise UnsupportedError(f"node {node.name!r} resizes with mode {mode!r}")
    b.bind(node, x)


def _cubic(node: OnnxNode, places: np.ndarray, extent: int) -> np.ndarray:
    """Keys, "Cubic convolution interpolation" (1981), with ``a`` as the node has it: four
    neighbours, those beyond the edge being the edge, or none with weights that sum to 1."""
    a, left = node.real("cubic_coeff_a", -0.75), np.floor(places)
    matrix, rows = np.zeros((len(places), extent)), np.arange(len(places))
    for offset in (-1, 0, 1, 2):
        t = np.abs(places - left - offset)
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        column = left.astype(np.int64) + offset
        if node.attrs.get("exclude_outside", 0):
            weight = np.where((column >= 0) & (column < extent), weight, 0.0)
        np.add.at(matrix, (rows, np.clip(column, 0, extent - 1)), weight)
    if node.attrs.get("exclude_outside", 0):
        matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _nearest(b: Builder, x: str, axis: int, indices: np.ndarray) -> str:
    shape = b.shape(x)
    times = indices.size // shape[axis]
    if times * shape[axis] == indices.size and np.array_equal(
        indices, np.arange(indices.size) // times
    ):
        wide = b.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        full = b.expanded(wide, (*shape[: axis + 1], times, *shape[axis + 1 :]))
        return b.reshaped(full, (*shape[:axis], indices.size, *shape[axis + 1 :]))
    return b.gathered(x, axis, indices)


def _targets(b: Builder, node: OnnxNode, extents: list[int]) -> tuple[list[int], list[float]]:
    """Size and scale of every resized axis, from whichever of the two is given."""
    if len(node.inputs) > 3 and node.inputs[3]:
        sizes = b.integers(node.inputs[3], "the sizes")
        scales = [size / extent for size, extent in zip(sizes, extents, strict=True)]
    else:
        given = node.attrs.get("scales")
        if given is None:
            given = b.constant(node.inputs[2 if node.opset >= 11 else 1], "the scales").reshape(-1)
        scales = [float(scale) for scale in np.asarray(given, dtype=np.float32)]
        if not all(0 < scale < LARGEST for scale in scales):
            raise ModelError(f"node {node.name!r} resizes by {scales}")
        sizes = [
            int(np.float32(extent) * np.float32(scale))
            for extent, scale in zip(extents, scales, strict=True)
        ]
    if min(sizes, default=1) < 1 or math.prod(sizes) * max(extents, default=1) > LARGEST:
        raise ModelError(f"node {node.name!r} resizes to {sizes}")
    return sizes, scales


def _places(node: OnnxNode, rule: str, extent: int, size: int, scale: float) -> np.ndarray:
    """Coordinate in the input of every output entry of one axis.

    In float32, as onnxruntime has it: rounding decides which entry is nearest when a coordinate is
    nearly whole.
    """
    out, half = np.arange(size, dtype=np.float32), np.float32(0.5)
    if rule == "asymmetric":
        return out / np.float32(scale)
    if rule == "align_corners":
        return out * np.float32(extent - 1) / np.float32(size - 1) if size > 1 else out * 0
    if rule == "pytorch_half_pixel" and size == 1:
        return out * 0
    if rule in ("half_pixel", "pytorch_half_pixel"):
        return (out + half) / np.float32(scale) - half
    raise UnsupportedError(f"node {node.name!r} resizes with coordinates {rule!r}")


def _rounded(node: OnnxNode, places: np.ndarray) -> np.ndarray:
    mode = node.attrs.get("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    rules: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda value: np.ceil(value - 0.5),
        "round_prefer_ceil": lambda value: np.floor(value + 0.5),
    }
    return rules[mode](places)
