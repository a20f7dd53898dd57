"""A node whose operands are all known, run by onnxruntime on a model of that node alone.

The runtime defines what an operator computes, in its own types and rounding; so a constant subgraph
needs no rule of ours, whatever it consists of. Two things are asked before it is run. *Is it a
function?* Operators that draw at random are not, and nodes with graphs inside may read tensors that
their inputs do not name. *Is it small?* A short file can ask for an enormous result, so ONNX's
shape inference, which sees small operands as the numbers they are, must know the size beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.file import first_line, runtime_session
from bitcrown.model.lowering.builder import LARGEST, OnnxNode

_Array = np.ndarray[Any, Any]
_RANDOM = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
}
_SMALL = 1 << 12
"""Entries of operands that shape inference is shown: positions and extents have fewer."""
_WITHIN = {"Compress", "Unique", "NonMaxSuppression"}
"""Results of unknown size that are no larger than what they are made of, within a factor."""
_IR_VERSION = 8


def has_schema(op: str) -> bool:
    """Whether ONNX itself defines ``op`` (a name, with its domain unless that is ONNX's own)."""
    domain, _, name = op.rpartition(".")
    if name in _RANDOM or not onnx.defs.has(name, domain):
        return False
    given = onnx.defs.get_schema(name, domain).attributes.values()
    return all(attribute.type != onnx.defs.OpSchema.AttrType.GRAPH for attribute in given)


def run_alone(node: OnnxNode, constants: Mapping[str, _Array]) -> list[_Array]:
    """Outputs of ``node`` on known operands, as onnxruntime has them.

    Raises ``UnsupportedError`` where onnxruntime does not compute it or its size is not known, and
    ``ModelError`` where it is too large.
    """
    domain, _, op = node.op.rpartition(".")
    if not has_schema(node.op) and not domain:
        raise UnsupportedError(f"node {node.name!r}: {node.op} of constants has no known value")
    model = _model(node, domain, op, constants)
    if op not in _WITHIN:
        _check_size(node, model)
    stored = {tensor.name for tensor in model.graph.initializer}
    feed = {name: constants[name] for name in node.inputs if name and name not in stored}
    try:
        session = runtime_session(model.SerializeToString(), f"node {node.name!r}")
        found = session.run(None, feed)
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        raise UnsupportedError(
            f"node {node.name!r}: onnxruntime does not compute {node.op} of these constants: "
            f"{first_line(error)}"
        ) from error
    if not all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in found):
        raise UnsupportedError(f"node {node.name!r}: {node.op} gives no tensors of numbers")
    return list(found)


def _model(node: OnnxNode, domain: str, op: str, constants: Mapping[str, _Array]) -> Any:
    attrs = {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in node.attrs.items()
    }
    made = helper.make_node(op, node.inputs, node.outputs, domain=domain, **attrs)
    names = sorted({name for name in node.inputs if name})
    inputs, stored = [], []
    for name in names:
        value = constants[name]
        if value.size <= _SMALL:
            stored.append(numpy_helper.from_array(np.asarray(value), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
    graph = helper.make_graph([made], "node", inputs, outputs, stored)
    opsets = [helper.make_opsetid(domain, node.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _check_size(node: OnnxNode, model: Any) -> None:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"node {node.name!r} ({node.op}) does not fit its constants: {first_line(error)}"
        ) from error
    for info in inferred.graph.output:
        extents: Sequence[Any] = info.type.tensor_type.shape.dim
        known = info.type.tensor_type.HasField("shape") and all(
            extent.HasField("dim_value") for extent in extents
        )
        if not known:
            raise UnsupportedError(
                f"node {node.name!r}: {node.op} of constants has a result of unknown size"
            )
        if math.prod(extent.dim_value for extent in extents) > LARGEST:
            raise ModelError(f"node {node.name!r} ({node.op}) asks for more than {LARGEST} entries")
