"""Normalisations: ``(x - mean) / sqrt(variance + epsilon)`` over some axes, and by the root mean
square alone.

As a real function the variance is the mean of ``(x - mean)^2``. Runtimes compute that, or
``mean(x^2) - mean^2``, whose terms may be far larger than their difference: what is lost then is a
share of ``mean(x^2)``. ``Perturb`` says so (``model.roundings`` puts the share in), beside a
variance that is free of rounding.
"""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.arithmetic import within
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.reduction import mean


def normalised(b: Builder, x: str, axes: tuple[int, ...], epsilon: float) -> str:
    """``(x - mean) / sqrt(variance + epsilon)`` over ``axes``.

    Of ``n`` numbers with sum zero and sum of squares at most ``n``, none exceeds ``sqrt(n - 1)``: a
    limit that changes no value, and that products of ranges are far from knowing.
    """
    count = math.prod(b.shape(x)[axis] for axis in axes)
    deviation = b.emit("Sqrt", (b.scaled(_variance(b, x, axes), None, epsilon),))
    centred = b.binary("Sub", x, mean(b, x, axes, True))
    value = b.binary("Mul", centred, b.emit("Reciprocal", (deviation,)))
    return within(b, value, count - 1.0) if epsilon >= 0 else value


def _variance(b: Builder, x: str, axes: tuple[int, ...]) -> str:
    """The mean of ``(x - mean)^2``, from nodes of its own, which nobody rounds."""
    centred = b.binary("Sub", x, mean(b, x, axes, True))
    variance = mean(b, b.emit("Square", (centred,)), axes, True)
    size = mean(b, b.emit("Square", (x,)), axes, True)
    count = math.prod(b.shape(x)[axis] for axis in axes)
    return b.emit("Perturb", (variance, size), {"count": count, "of": x})


@lowers("LayerNormalization")
def layer_normalization(b: Builder, node: OnnxNode) -> None:
    if any(node.outputs[1:]):
        raise UnsupportedError(f"node {node.name!r}: LayerNormalization with statistics as outputs")
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axes = tuple(range(b.axis(int(node.attrs.get("axis", -1)), rank), rank))
    value = normalised(b, x, axes, node.real("epsilon", 1e-5))
    value = b.binary("Mul", value, b.node_of(node.inputs[1]))
    if len(node.inputs) > 2 and node.inputs[2]:
        value = b.binary("Add", value, b.node_of(node.inputs[2]))
    b.bind(node, value)


_CONTRIB = "com.microsoft."


@lowers(_CONTRIB + "SkipLayerNormalization", _CONTRIB + "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(b: Builder, node: OnnxNode) -> None:
    """The normalisation of a sum: inputs ``x, skip, gain, shift, bias`` (the simplified one has no
    shift); the fourth output is the sum itself."""
    is_plain = not node.op.endswith("SimplifiedLayerNormalization")
    if any(node.outputs[1:3]):
        raise UnsupportedError(f"node {node.name!r}: {node.op} with statistics as outputs")
    given = dict(enumerate(node.inputs))
    x, skip = b.node_of(given[0]), b.node_of(given[1])
    bias = given.get(4 if is_plain else 3, "")
    total = b.binary("Add", x, skip)
    total = b.binary("Add", total, b.node_of(bias)) if bias else total
    axes = (len(b.shape(total)) - 1,)
    epsilon = node.real("epsilon", 1e-12)
    value = normalised(b, total, axes, epsilon) if is_plain else _by_size(b, total, axes, epsilon)
    value = b.binary("Mul", value, b.node_of(given[2]))
    if is_plain and given.get(3):
        value = b.binary("Add", value, b.node_of(given[3]))
    b.bind(node, value)
    if len(node.outputs) > 3 and node.outputs[3]:
        b.bind(node, total, 3)


@lowers("InstanceNormalization")
def instance_normalization(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    value = normalised(b, x, tuple(range(2, rank)), node.real("epsilon", 1e-5))
    shape = (-1, *([1] * (rank - 2)))
    gain, shift = (
        b.constant(t, "a parameter").astype(np.float64).reshape(shape) for t in node.inputs[1:3]
    )
    b.bind(node, b.scaled(value, gain, shift))


@lowers("GroupNormalization")
def group_normalization(b: Builder, node: OnnxNode) -> None:
    """Channels in ``num_groups`` groups, each normalised over its channels and all places."""
    x = b.node_of(node.inputs[0])
    shape, groups = b.shape(x), int(node.attrs["num_groups"])
    if len(shape) < 3 or groups < 1 or shape[1] % groups:
        raise ModelError(f"node {node.name!r}: {groups} groups of a tensor of shape {list(shape)}")
    wide = b.reshaped(x, (shape[0], groups, math.prod(shape[1:]) // groups))
    value = b.reshaped(normalised(b, wide, (2,), node.real("epsilon", 1e-5)), shape)
    factors = []
    for tensor in node.inputs[1:3]:  # opset 18: one entry a group, from 21 on one a channel
        given = b.constant(tensor, "a parameter").astype(np.float64)
        each = given if len(given) == shape[1] else np.repeat(given, shape[1] // groups)
        factors.append(each.reshape(-1, *([1] * (len(shape) - 2))))
    b.bind(node, b.scaled(value, *factors))


@lowers("RMSNormalization", "SimplifiedLayerNormalization")
def root_mean_square(b: Builder, node: OnnxNode) -> None:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the axes from ``axis`` on."""
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axes = tuple(range(b.axis(int(node.attrs.get("axis", -1)), rank), rank))
    value = _by_size(b, x, axes, node.real("epsilon", 1e-5))
    b.bind(node, b.binary("Mul", value, b.node_of(node.inputs[1])))


def _by_size(b: Builder, x: str, axes: tuple[int, ...], epsilon: float) -> str:
    """``x / sqrt(mean(x^2) + epsilon)``."""
    size = mean(b, b.emit("Square", (x,)), axes, True)
    root = b.emit("Sqrt", (b.scaled(size, None, epsilon),))
    value = b.binary("Mul", x, b.emit("Reciprocal", (root,)))
    # of n squares with the sum n none is larger
    count = math.prod(b.shape(x)[axis] for axis in axes)
    return within(b, value, float(count)) if epsilon >= 0 else value


@lowers("MeanVarianceNormalization")
def mean_variance(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axes = tuple(b.axis(int(axis), rank) for axis in node.attrs.get("axes", [0, 2, 3]))
    # the standard adds 1e-9 to the deviation, which differs from adding its square to the variance
    deviation = b.emit("Sqrt", (_variance(b, x, axes),))
    centred = b.binary("Sub", x, mean(b, x, axes, True))
    b.bind(node, b.binary("Mul", centred, b.emit("Reciprocal", (b.scaled(deviation, None, 1e-9),))))
