"""An ONNX file to a ``Graph``: constants folded, everything static in attributes, only engine operators left.

Each ONNX operator has one lowering function (``lowering``). Operators without one are collected over the whole file and
reported together. Batch axes are taken as they are; symbolic extents become 1.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.folding import constant_value, fold
from bitcrown.model.graph import Graph, Node
from bitcrown.model.lowering import LOWERINGS, Builder
from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.model.passes import simplified

LARGEST_FILE = 2 << 30
OPSETS = range(7, 26)


def model_bytes(path: Path) -> bytes:
    """Content of ``path``, or of ``path.gz``; gzip is recognised by its first bytes. Raises ``ModelError``."""
    if not path.exists() and Path(f"{path}.gz").exists():
        path = Path(f"{path}.gz")
    try:
        with open(path, "rb") as file:
            head = file.read(2)
            if head == b"\x1f\x8b":
                with gzip.open(path, "rb") as packed:
                    data = packed.read(LARGEST_FILE + 1)
            else:
                data = head + file.read(LARGEST_FILE)
    except (OSError, EOFError, zlib.error) as error:
        raise ModelError(f"the network file {path} cannot be read: {error}") from error
    if len(data) > LARGEST_FILE:
        raise ModelError(f"the network file {path} is larger than {LARGEST_FILE >> 30} GiB")
    return data


def _parsed(path: Path) -> Any:
    try:
        model = onnx.ModelProto.FromString(model_bytes(path))
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file, or it is cut short") from error
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} is not an ONNX file: it has no nodes or no outputs")
    for tensor in model.graph.initializer:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"{path} keeps weight {tensor.name!r} in another file; save it as one file")
    return model


def _opset(model: Any, path: Path) -> int:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version not in OPSETS:
        raise UnsupportedError(f"{path} uses opset {version}; supported are {OPSETS.start} to {OPSETS.stop - 1}")
    return int(version)


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value


def _nodes(model: Any, opset: int) -> list[tuple[OnnxNode, Any]]:
    result = []
    for index, proto in enumerate(model.graph.node):
        name = proto.name or f"{proto.op_type}_{index}"
        attrs = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        result.append((OnnxNode(op, name, tuple(proto.input), tuple(proto.output), attrs, opset), proto))
    return result


def _tensor_shape(info: Any) -> tuple[int, ...]:
    return tuple(max(1, dim.dim_value) for dim in info.type.tensor_type.shape.dim)


def unsupported_operators(path: Path) -> list[tuple[str, str]]:
    """``(operator, node name)`` of every node that has no lowering and is not constant."""
    model = _parsed(path)
    known = {tensor.name for tensor in model.graph.initializer}
    missing = []
    for node, _ in _nodes(model, _opset(model, path)):
        if node.op in ("Constant", "Shape") or all(name in known for name in node.inputs if name):
            known.update(node.outputs)
        elif node.op not in LOWERINGS:
            missing.append((node.op, node.name))
    return missing


def read_graph(path: Path) -> Graph:
    """Read, fold and lower a network. Raises ``ModelError`` for a bad file, ``UnsupportedError`` for missing rules."""
    model = _parsed(path)
    opset = _opset(model, path)
    missing = unsupported_operators(path)
    if missing:
        kinds = sorted({op for op, _ in missing})
        places = "; ".join(f"{op}: {', '.join(name for o, name in missing if o == op)}" for op in kinds)
        raise UnsupportedError(f"{path.name} uses operators without a rule ({places})")
    builder = Builder()
    try:
        for tensor in model.graph.initializer:
            builder.constants[tensor.name] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: weight {tensor.name!r} is damaged: {error}") from error
    inputs, dtypes = [], []
    for info in model.graph.input:
        if info.name in builder.constants:
            continue
        builder.nodes[info.name] = Node(info.name, "Input", (), _tensor_shape(info), source=info.name)
        builder.tensors[info.name] = info.name
        inputs.append(info.name)
        dtypes.append(str(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)))
    for node, proto in _nodes(model, opset):
        _read_node(builder, node, proto)
    outputs = tuple(builder.node_of(info.name) for info in model.graph.output)
    return simplified(Graph(builder.nodes, tuple(inputs), outputs, tuple(dtypes)))


def _read_node(builder: Builder, node: OnnxNode, proto: Any) -> None:
    builder.source = node.name
    if node.op == "Constant":
        builder.constants[node.outputs[0]] = constant_value(node)
        return
    if node.op == "Shape" and not builder.is_constant(node.inputs[0]):
        shape = builder.shape(builder.node_of(node.inputs[0]))
        builder.constants[node.outputs[0]] = np.array(shape, dtype=np.int64)
        return
    names = [name for name in node.inputs if name]
    if all(builder.is_constant(name) for name in names):
        values = fold(node, proto, [builder.constants[name] for name in names])
        builder.constants.update(zip((name for name in node.outputs if name), values, strict=False))
        return
    for name in names:
        if name not in builder.tensors and name not in builder.constants:
            raise ModelError(f"node {node.name!r} reads {name!r}, which no earlier node writes")
    try:
        LOWERINGS[node.op](builder, node)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"node {node.name!r} ({node.op}) has unusable inputs or attributes: {error!r}") from error
