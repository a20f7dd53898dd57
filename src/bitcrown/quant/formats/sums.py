"""Sums in float32 between dequantized tensors: MatMul, Gemm, Conv, pooling by averages, and the sum
of two tensors.

The products become an integer accumulator; its float32 value carries the error bound of ``affine``.
The sum of two tensors with few values each is one correctly rounded operation, so all pairs of
values are computed in advance: the accumulator ``m1 q1 + m2 q2`` (m1 : m2 is the exact ratio of the
scales) orders the pairs as their exact sum does, and a table over its values says what float32
makes of it. Where equal accumulators round differently, or rounding swaps an order, the least and
the greatest of them are kept.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.model.lowering.weights import spatial_attributes
from bitcrown.quant.formats.affine import Affine, Products, affine, grid_of, products, sum_step
from bitcrown.quant.formats.lattice import FLOAT32, ChainStep, Lattice
from bitcrown.quant.formats.rule_table import Grid, NoRule, Reading, node_label, reads
from bitcrown.quant.network.graph import Conv, Dense, Ints, Numbers, QuantError, WeightedSum

_MOST_PAIRS = 1 << 20
_LARGEST_DENSE = 1 << 26


@reads("MatMul", "Gemm")
def matrix_product(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    weight = reading.constant(node, 1)
    grid = grid_of(reading, node.inputs[1])
    ints, scale = grid.ints, np.broadcast_to(grid.scale, weight.shape)
    scaled = node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0
    if scaled or node.attrs.get("transA", 0):
        raise NoRule(f"{label} has alpha, beta or transA; only transB is supported")
    if weight.ndim != 2:
        raise NoRule(f"{label} has weights of shape {weight.shape}; a matrix is supported")
    if not (node.op == "Gemm" and node.attrs.get("transB", 0)):
        weight, ints, scale = weight.T, ints.T, scale.T
    bias = np.zeros(len(weight))
    if node.op == "Gemm" and reading.has(node, 2):
        given = reading.constant(node, 2)
        if given.size > 1 and given.shape[-1] != len(weight) or given.size not in (1, len(weight)):
            raise NoRule(
                f"{label} has a bias of shape {given.shape}; one number an output is supported"
            )
        bias = np.broadcast_to(given.reshape(-1), (len(weight),)).astype(np.float64)
    x = affine(reading, reading.lattice(node.inputs[0]), label)
    reading.bind(node, _rows_product(reading, x, weight, Grid(ints, scale), bias, label))


def _rows_product(
    reading: Reading, x: Affine, weight: Numbers, grid: Grid, bias: Numbers, label: str
) -> Lattice:
    """``x W^T + bias``; x: [1, .., 1, terms], or several such rows below each other."""
    outputs, terms = weight.shape
    if x.shape[-1] != terms:
        raise QuantError(f"{label} multiplies rows of {x.shape[-1]} with {terms} weights")
    w = products(weight, grid, label)
    shape = (*x.shape[:-1], outputs)
    rows = int(np.prod(x.shape[:-1]))
    if rows * rows * outputs * terms > _LARGEST_DENSE:
        raise NoRule(f"{label} multiplies {rows} rows at once; one is supported")
    step, _ = sum_step(x, w, bias, 1)
    ints = np.kron(np.eye(rows, dtype=np.int64), w.ints)
    addend = -x.zero * np.tile(w.ints.sum(axis=1), rows)
    if rows > 1:
        step = ChainStep(
            step.name, step.function, tuple(np.tile(p, rows) for p in step.params), spread=True
        )
    flat = Lattice(0, shape, FLOAT32)
    number = reading.assembly.add(Dense(flat.sample_shape, x.node, x.gain * ints, addend))
    return Lattice(number, shape, FLOAT32, (step,))


def _plain_source(reading: Reading, x: Affine, padded: bool) -> tuple[int, int, int]:
    """(node, gain, zero) of ``x``, such that the real number 0 of the padding is an integer q.

    ``x`` is about ``scale * (gain * q - zero)``, which is 0 at ``q = zero / gain``. Where that is
    no integer, ``gain * q - zero`` becomes a node of its own, whose gain is 1 and whose zero is 0.
    """
    assert x.gain >= 1
    if not padded or x.zero % x.gain == 0:
        return x.node, x.gain, x.zero
    shape = reading.assembly.nodes[x.node].shape
    node = reading.assembly.add(
        WeightedSum(shape, (x.node,), (x.gain,), np.array([-x.zero], dtype=np.int64))
    )
    return node, 1, 0


def conv_geometry(
    node: OnnxNode, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Strides, dilations, padding (top, left, bottom, right) and output plane of windows over [1,
    C, H, W]."""
    if len(shape) != 4 or shape[0] != 1 or len(kernel) != 2:
        raise NoRule(
            f"{node_label(node)} works on shape {shape} with kernel {kernel}; images of one batch "
            "are supported"
        )
    found = spatial_attributes(node, 2, shape[2:], kernel)
    strides, dilations, pads = found["strides"], found["dilations"], found["pads"]
    plane = tuple(
        (shape[2 + k] + pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k]
        + 1
        for k in (0, 1)
    )
    if min(plane) < 1:
        raise QuantError(f"{node_label(node)} has windows larger than its image")
    return (
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        (plane[0], plane[1]),
    )


@reads("Conv")
def convolution(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    weight = reading.constant(node, 1)
    grid = grid_of(reading, node.inputs[1])
    bias = (
        reading.constant(node, 2).astype(np.float64)
        if reading.has(node, 2)
        else np.zeros(len(weight))
    )
    x = affine(reading, reading.lattice(node.inputs[0]), label)
    conv_geometry(node, x.shape, weight.shape[2:])  # refuses what is no image
    groups = int(node.attrs.get("group", 1))
    if (
        x.shape[1] != weight.shape[1] * groups
        or len(weight) % groups
        or bias.shape != (len(weight),)
    ):
        raise QuantError(
            f"{label}: weights {weight.shape}, {groups} groups and {x.shape[1]} channels do not fit"
        )
    w = products(weight, Grid(grid.ints, np.broadcast_to(grid.scale, weight.shape)), label)
    _bind_image_sum(reading, node, x, w, weight.shape, bias, groups)


def _bind_image_sum(
    reading: Reading,
    node: OnnxNode,
    x: Affine,
    w: Products,
    kernels: tuple[int, ...],
    bias: Numbers,
    groups: int,
) -> None:
    """The convolution of ``x`` with weights of shape ``kernels`` [out, in / groups, kh, kw], padded
    with the real number 0."""
    strides, dilations, padding, plane = conv_geometry(node, x.shape, kernels[2:])
    step, _ = sum_step(x, w, bias, plane[0] * plane[1])
    source, gain, zero = _plain_source(reading, x, any(padding))
    weight, addend = (gain * w.ints).reshape(kernels), -zero * w.ints.sum(axis=1)
    shape, image = (len(bias), *plane), (x.shape[2], x.shape[3])
    pad = zero // gain
    number = reading.assembly.add(
        Conv(shape, source, image, weight, addend, strides, padding, dilations, groups, pad)
    )
    reading.bind(node, Lattice(number, (1, *shape), FLOAT32, (step,)))


@reads("ReduceMean")
def reduce_mean(reading: Reading, node: OnnxNode) -> None:
    """Of an image over its plane: a ``GlobalAveragePool``."""
    lattice = reading.lattice(node.inputs[0])
    rank = len(lattice.shape)
    given = reading.constant(node, 1) if reading.has(node, 1) else node.attrs.get("axes", ())
    axes = sorted(int(axis) % rank for axis in np.asarray(given).reshape(-1))
    if rank != 4 or axes != [2, 3]:
        raise NoRule(f"{node_label(node)} is no mean over the plane of an image")
    average_pool(reading, replace(node, op="GlobalAveragePool", inputs=node.inputs[:1]))
    if not node.attrs.get("keepdims", 1):
        found = reading.lattice(node.outputs[0])
        reading.bind(node, replace(found, shape=lattice.shape[:2]))


@reads("AveragePool", "GlobalAveragePool")
def average_pool(reading: Reading, node: OnnxNode) -> None:
    """A sum with weights 1 and the scale divided by the window's size.

    Dividing, or multiplying with a rounded reciprocal, is two more roundings at most; a power of
    two is exact.
    """
    label = node_label(node)
    x = affine(reading, reading.lattice(node.inputs[0]), label)
    if node.op == "GlobalAveragePool":
        kernel = tuple(x.shape[2:])
        node = OnnxNode("AveragePool", node.name, node.inputs, node.outputs, {}, node.opset)
    else:
        kernel = tuple(int(k) for k in node.attrs["kernel_shape"])
    _, dilations, padding, _ = conv_geometry(node, x.shape, kernel)
    if node.attrs.get("ceil_mode", 0) or dilations != (1, 1):
        raise NoRule(f"{label} has ceil_mode or dilations")
    if any(padding) and not node.attrs.get("count_include_pad", 0):
        raise NoRule(
            f"{label} leaves padding out of its count; count_include_pad=1 or no padding is "
            "supported"
        )
    channels, count = x.shape[1], kernel[0] * kernel[1]
    ones = np.ones((channels, 1, *kernel), dtype=np.int64)
    w = products(ones / count, Grid(ones, np.full(ones.shape, 1 / count)), label)
    _bind_image_sum(reading, node, x, w, ones.shape, np.zeros(channels), channels)


def pairwise_sum(reading: Reading, node: OnnxNode, left: Lattice, right: Lattice) -> Lattice:
    """``left + right`` or ``left - right`` of two tensors that depend on the input."""
    label, sign = node_label(node), -1 if node.op == "Sub" else 1
    if left.shape != right.shape:
        raise NoRule(
            f"{label} combines the shapes {left.shape} and {right.shape}; equal ones are supported"
        )
    if not left.is_float:
        one, two = reading.settled(left), reading.settled(right)
        total = WeightedSum(
            one.sample_shape, (one.node, two.node), (1, sign), np.zeros(1, dtype=np.int64)
        )
        result = one.on(reading.assembly.add(total))
        reading.check_width(result, label)
        return result
    a, b = affine(reading, left, label), affine(reading, right, label)
    _check_pairs(a.values.size * b.values.size, label)
    with np.errstate(all="ignore"):
        sums = (
            a.values[:, None] + b.values[None] if sign > 0 else a.values[:, None] - b.values[None]
        )
    weights = (a.scale * a.gain, sign * b.scale * b.gain)
    number, step = pair_step(reading, (a.node, b.node), (a.first, b.first), weights, sums, label)
    return Lattice(number, left.shape, FLOAT32, (step,))


def _check_pairs(count: int, label: str) -> None:
    if count > _MOST_PAIRS:
        raise NoRule(f"{label} combines {count} pairs of values; quantize both tensors to 8 bits")


def pair_step(
    reading: Reading,
    nodes: tuple[int, int],
    first: tuple[int, int],
    weights: tuple[float, float],
    results: Numbers,
    label: str,
) -> tuple[int, ChainStep]:
    """Accumulator node and step of ``results[q1 - first1, q2 - first2]``, about rising with the
    weighted sum of q."""
    _check_pairs(results.size, label)
    # the weights are floats, so whole multiples of 2^-200 unless absurdly small: a common unit
    # makes the weighted sum of q an exact integer, which orders the pairs as their exact sums do
    ratio = [Fraction(weight) for weight in weights]
    unit = Fraction(np.gcd.reduce([int(r * 2**200) for r in ratio], dtype=object)) / 2**200
    factors = [int(r / unit) for r in ratio]
    if max(abs(f) for f in factors) >= 2**45:
        raise NoRule(f"{label} combines tensors with very different scales")
    shape = reading.assembly.nodes[nodes[0]].shape
    number = reading.assembly.add(
        WeightedSum(shape, nodes, (factors[0], factors[1]), np.zeros(1, dtype=np.int64))
    )
    ranges = [
        start + np.arange(count, dtype=np.int64)
        for start, count in zip(first, results.shape, strict=True)
    ]
    keys = (factors[0] * ranges[0][:, None] + factors[1] * ranges[1][None]).reshape(-1)
    return number, ChainStep(label, _Pairs(keys, results.reshape(-1)), spread=True)


class _Pairs:
    """Nondecreasing bounds of a result known at some accumulators ``keys`` [P].

    The greatest nondecreasing function below the results is their minimum over all later keys, the
    least one above them their maximum over all earlier ones.
    """

    def __init__(self, keys: Ints, results: Numbers) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, sorted_results = keys[order], results[order]
        self.least = np.minimum.accumulate(sorted_results[::-1])[::-1]
        self.greatest = np.maximum.accumulate(sorted_results)

    def __call__(self, least: Ints, greatest: Ints) -> tuple[Numbers, Numbers]:
        low = np.searchsorted(self.keys, least, side="left").clip(0, len(self.keys) - 1)
        high = np.searchsorted(self.keys, greatest, side="right").clip(1) - 1
        return self.least[low], self.greatest[high]
