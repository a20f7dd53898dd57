"""Constant folding: nodes whose inputs are all known are computed while reading.

Shape arithmetic has short numpy rows of its own; any other operator on constants goes to ``onnx.reference``, the
interpreter that ships with onnx (imported only then).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import OnnxNode

LARGEST = 1 << 28
Row = Callable[[OnnxNode, Sequence[np.ndarray]], np.ndarray]


def _cast(node: OnnxNode, values: Sequence[np.ndarray]) -> np.ndarray:
    return values[0].astype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))


def _filled(node: OnnxNode, values: Sequence[np.ndarray]) -> np.ndarray:
    value = node.attrs.get("value", np.zeros(1, dtype=np.float32))
    shape = tuple(int(extent) for extent in values[0].reshape(-1))
    if int(np.prod(shape, dtype=np.float64)) > LARGEST:
        raise ModelError(f"node {node.name!r} asks for a constant of shape {shape}, which is too large")
    return np.full(shape, np.asarray(value).reshape(-1)[0])


def _unsqueeze(node: OnnxNode, values: Sequence[np.ndarray]) -> np.ndarray:
    axes = node.attrs["axes"] if "axes" in node.attrs else values[1].reshape(-1).tolist()
    return np.expand_dims(values[0], tuple(int(axis) for axis in axes))


def _gather(node: OnnxNode, values: Sequence[np.ndarray]) -> np.ndarray:
    return np.take(values[0], values[1].astype(np.int64), axis=int(node.attrs.get("axis", 0)))


def _divide(node: OnnxNode, values: Sequence[np.ndarray]) -> np.ndarray:
    if np.issubdtype(values[0].dtype, np.integer):
        return np.trunc(values[0] / values[1]).astype(values[0].dtype)
    return np.asarray(values[0] / values[1])


ROWS: dict[str, Row] = {
    "Identity": lambda node, v: v[0],
    "Cast": _cast,
    "Concat": lambda node, v: np.concatenate(v, axis=int(node.attrs["axis"])),
    "ConstantOfShape": _filled,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Add": lambda node, v: np.asarray(v[0] + v[1]),
    "Sub": lambda node, v: np.asarray(v[0] - v[1]),
    "Mul": lambda node, v: np.asarray(v[0] * v[1]),
    "Div": _divide,
    "Equal": lambda node, v: np.asarray(v[0] == v[1]),
    "Where": lambda node, v: np.where(v[0], v[1], v[2]),
    "Shape": lambda node, v: np.array(v[0].shape, dtype=np.int64),
    "Transpose": lambda node, v: np.transpose(v[0], node.attrs.get("perm")),
}


def constant_value(node: OnnxNode) -> np.ndarray:
    """Value of an ONNX ``Constant`` node."""
    for key in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if key in node.attrs:
            dtype = {"value_float": np.float32, "value_floats": np.float32}.get(key)
            value = node.attrs[key]
            return np.asarray(value) if dtype is None else np.asarray(value, dtype=dtype)
    raise UnsupportedError(f"node {node.name!r}: a Constant that is neither a tensor nor numbers")


def fold(node: OnnxNode, proto: Any, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of a node on constant inputs. Raises ``UnsupportedError`` where even onnx cannot compute it."""
    if node.op in ROWS:
        return [ROWS[node.op](node, values)]
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.inputs if name]
    inputs = [
        onnx.helper.make_tensor_value_info(name, _element_type(v), v.shape)
        for name, v in zip(names, values, strict=True)
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.outputs if name]
    graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", node.opset)])
    try:
        found = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    except (NotImplementedError, RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise UnsupportedError(f"node {node.name!r} ({node.op}) on constants cannot be evaluated: {error}") from error
    return [np.asarray(value) for value in found]


def _element_type(value: np.ndarray) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
