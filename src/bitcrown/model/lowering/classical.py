"""``ai.onnx.ml`` as scikit-learn's exporter writes it: scaling, norms, linear models, labels.

Ensembles of trees are in ``trees``; kernels and what works on text have no rule.
"""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.arithmetic import product
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.comparison import winners
from bitcrown.model.lowering.reduction import softmax_over
from bitcrown.model.lowering.shape import looked_up
from bitcrown.model.lowering.undefined import NORM_OF_ZERO


def _floats(node: OnnxNode, key: str) -> np.ndarray:
    return np.asarray(node.attrs.get(key, []), dtype=np.float32).astype(np.float64)


@lowers("ai.onnx.ml.Scaler")
def scaler(b: Builder, node: OnnxNode) -> None:
    """``(x - offset) scale``."""
    offset, scale = _floats(node, "offset"), _floats(node, "scale")
    if not offset.size or not scale.size:
        raise ModelError(f"node {node.name!r}: a Scaler without offset or scale")
    b.bind(node, b.scaled(b.scaled(b.node_of(node.inputs[0]), None, -offset), scale, None))


@lowers("ai.onnx.ml.Normalizer")
def normalizer(b: Builder, node: OnnxNode) -> None:
    """Rows divided by the sum of their sizes, or by the root of the sum of their squares."""
    x, norm = b.node_of(node.inputs[0]), node.attrs.get("norm", "MAX")
    last = (len(b.shape(x)) - 1,)
    if norm == "L1":
        size = b.summed(b.absolute(x), last, True)
    elif norm == "L2":
        size = b.emit("Sqrt", (b.summed(b.emit("Square", (x,)), last, True),))
    else:
        raise UnsupportedError(f"node {node.name!r}: Normalizer with norm {norm!r}")
    inverse = b.emit("Reciprocal", (size,), {NORM_OF_ZERO: True})
    b.bind(node, product(b, x, inverse))


@lowers("ai.onnx.ml.Binarizer")
def binarizer(b: Builder, node: OnnxNode) -> None:
    """``[x > threshold]``."""
    above = b.scaled(b.node_of(node.inputs[0]), None, -node.real("threshold", 0.0))
    b.bind(node, b.relu(b.emit("Sign", (above,))))


@lowers("ai.onnx.ml.ArrayFeatureExtractor")
def extractor(b: Builder, node: OnnxNode) -> None:
    """Columns at positions, which are known, or a winner's: its label is read from a table."""
    x = b.node_of(node.inputs[0])
    if not b.is_constant(node.inputs[1]):
        index = b.node_of(node.inputs[1])
        flat = b.reshaped(index, (math.prod(b.shape(index)),))
        value = looked_up(b, x, len(b.shape(x)) - 1, flat)
        rows = math.prod(b.shape(x)[:-1])
        b.bind(node, b.reshaped(value, (rows, *b.shape(flat))))
        return
    columns = b.constant(node.inputs[1], "the columns").astype(np.int64).reshape(-1)
    value = b.gathered(x, len(b.shape(x)) - 1, columns)
    b.bind(node, b.reshaped(value, (1, len(columns))) if len(b.shape(x)) == 1 else value)


def _linear(b: Builder, node: OnnxNode, rows: int) -> str:
    x = b.node_of(node.inputs[0])
    x = b.reshaped(x, (1, *b.shape(x))) if len(b.shape(x)) == 1 else x
    weight = _floats(node, "coefficients")
    if rows < 1 or weight.size != rows * b.shape(x)[-1]:
        raise ModelError(f"node {node.name!r}: {weight.size} coefficients for {rows} rows")
    params = {"weight": weight.reshape(rows, -1)}
    if _floats(node, "intercepts").size:
        params["bias"] = np.broadcast_to(_floats(node, "intercepts"), (rows,)).copy()
    return b.emit("Linear", (x,), params=params)


@lowers("ai.onnx.ml.LinearRegressor")
def linear_regressor(b: Builder, node: OnnxNode) -> None:
    if node.attrs.get("post_transform", "NONE") != "NONE":
        raise UnsupportedError(f"node {node.name!r}: LinearRegressor with a transform behind it")
    b.bind(node, _linear(b, node, int(node.attrs.get("targets", 1))))


@lowers("ai.onnx.ml.LinearClassifier")
def linear_classifier(b: Builder, node: OnnxNode) -> None:
    """A label, and scores of all classes: a row of coefficients for each of them."""
    labels = np.asarray(node.attrs.get("classlabels_ints", []), dtype=np.float64)
    names = node.attrs.get("classlabels_strings", [])
    count = len(labels) or len(names)
    if count < 2 or len(_floats(node, "intercepts")) not in (0, count):
        raise UnsupportedError(
            f"node {node.name!r}: LinearClassifier with one row of coefficients for two classes"
        )
    scores = _linear(b, node, count)
    if node.outputs[0] and b.readers.get(node.outputs[0], 0):
        if not len(labels):
            raise UnsupportedError(f"node {node.name!r}: labels that are words")
        best = b.scaled(winners(b, scores, 1, last=False), labels, None)
        b.bind(node, b.summed(best, (1,), False), 0)
    if len(node.outputs) > 1 and node.outputs[1]:
        b.bind(node, transformed_scores(b, node, scores), 1)


def transformed_scores(b: Builder, node: OnnxNode, scores: str) -> str:
    """What a classifier's ``post_transform`` makes of its scores."""
    kind = node.attrs.get("post_transform", "NONE")
    if kind == "LOGISTIC":
        return b.emit("Sigmoid", (scores,))
    if kind == "SOFTMAX":
        return softmax_over(b, scores, 1, is_log=False)
    if kind != "NONE":
        raise UnsupportedError(f"node {node.name!r}: scores with transform {kind!r}")
    return scores
