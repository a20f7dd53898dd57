"""Normalisations beyond those of ``reduction``: by groups of channels, and by the root mean
square."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError
from bitcrown.model.lowering.arithmetic import within
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.reduction import mean, normalised


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
    size = mean(b, b.emit("Square", (x,)), axes, True)
    root = b.emit("Sqrt", (b.scaled(size, None, node.real("epsilon", 1e-5)),))
    value = b.binary("Mul", x, b.emit("Reciprocal", (root,)))
    if node.real("epsilon", 1e-5) >= 0:  # of n squares with the sum n none is larger
        value = within(b, value, float(math.prod(b.shape(x)[axis] for axis in axes)))
    b.bind(node, b.binary("Mul", value, b.node_of(node.inputs[1])))


@lowers("MeanVarianceNormalization")
def mean_variance(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axes = tuple(b.axis(int(axis), rank) for axis in node.attrs.get("axes", [0, 2, 3]))
    # the standard adds 1e-9 to the deviation, which differs from adding its square to the variance
    centred = b.binary("Sub", x, mean(b, x, axes, True))
    deviation = b.emit("Sqrt", (mean(b, b.emit("Square", (centred,)), axes, True),))
    b.bind(node, b.binary("Mul", centred, b.emit("Reciprocal", (b.scaled(deviation, None, 1e-9),))))
