"""An ONNX file to a ``Graph``: constants folded, everything static in attributes, only engine
operators left.

Each ONNX operator has one lowering function (``lowering``). Operators without one are collected
over the whole file and reported together. Batch axes are taken as they are; symbolic extents become
1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.file import NetworkFile
from bitcrown.model.folding import can_fold, constant_value, fold
from bitcrown.model.graph import Graph, Node
from bitcrown.model.lowering import LOWERINGS, Builder
from bitcrown.model.lowering.builder import LARGEST, OnnxNode
from bitcrown.model.lowering.dynamic_quantization import unit_of_result
from bitcrown.model.lowering.quantization import QUANTIZERS
from bitcrown.model.passes import simplified, without_equal_nodes, without_roundings
from bitcrown.model.roundings import lower_with_roundings, rounds_to_half

_OPSETS = range(7, 26)


def stored_arrays(file: NetworkFile) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a file by name. Raises ``ModelError``."""
    return {
        tensor.name: _stored_array(tensor, file.path) for tensor in file.proto.graph.initializer
    }


def _stored_array(tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    """Value of a tensor in the file itself: no other file is opened on a model's word."""
    if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(
            f"{path} keeps weight {tensor.name!r} in another file; save it as one file"
        )
    if math.prod(tensor.dims) > LARGEST:
        raise ModelError(f"{path}: weight {tensor.name!r} has more than {LARGEST} entries")
    try:
        value = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: weight {tensor.name!r} is damaged: {error}") from error
    if value.dtype.kind not in "fiub" and value.dtype.itemsize > 2:
        raise UnsupportedError(f"{path}: weight {tensor.name!r} has type {value.dtype}")
    return np.asarray(value)


def _opset(model: Any, path: Path) -> int:
    version = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    if version not in _OPSETS:
        raise UnsupportedError(
            f"{path} uses opset {version}; supported are {_OPSETS.start} to {_OPSETS.stop - 1}"
        )
    return int(version)


def _attribute(attribute: Any, path: Path) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return _stored_array(attribute.t, path)
    try:
        value = onnx.helper.get_attribute_value(attribute)
    except ValueError as error:
        raise ModelError(f"{path}: attribute {attribute.name!r} is damaged: {error}") from error
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value


def file_nodes(file: NetworkFile) -> list[OnnxNode]:
    """The nodes of a file in its order, attributes as Python values; a node without a name gets
    one. Raises ``ModelError``."""
    opset = _opset(file.proto, file.path)
    result = []
    for index, proto in enumerate(file.proto.graph.node):
        name = proto.name or f"{proto.op_type}_{index}"
        attrs = {attribute.name: _attribute(attribute, file.path) for attribute in proto.attribute}
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        result.append(OnnxNode(op, name, tuple(proto.input), tuple(proto.output), attrs, opset))
    return result


def _read_inputs(builder: Builder, file: NetworkFile) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and numpy types of the network inputs, which become nodes."""
    names, dtypes = [], []
    for name, shape, dtype in file.inputs:
        if shape is None or name in builder.nodes:
            raise ModelError(
                f"{file.path}: input {name!r} is declared twice, or without a tensor shape"
            )
        if math.prod(shape) > LARGEST:
            raise ModelError(f"{file.path}: input {name!r} of shape {list(shape)} is too large")
        if dtype is None:
            raise ModelError(f"{file.path}: input {name!r} has no known element type")
        builder.nodes[name] = Node(name, "Input", (), shape, source=name)
        builder.tensors[name] = name
        builder.dtypes[name] = str(dtype)
        names.append(name)
        dtypes.append(str(dtype))
    return tuple(names), tuple(dtypes)


class _Reading(NamedTuple):
    builder: Builder
    inputs: tuple[str, ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    missing: list[tuple[OnnxNode, str]]
    """Nodes without a rule, and why where it is not the operator as such."""
    has_steps: bool
    """Whether rounding decides on which side of a step a value falls."""


def _read(file: NetworkFile) -> _Reading:
    builder = Builder()
    builder.constants.update(stored_arrays(file))
    inputs, dtypes = _read_inputs(builder, file)
    nodes = file_nodes(file)
    outputs = tuple(tensor.name for tensor in file.outputs)
    builder.readers = Counter(name for node in nodes for name in set(node.inputs))
    builder.readers.update(outputs)
    missing: list[tuple[OnnxNode, str]] = []
    # Tensors that nothing can be said of, because a node before them has no rule. Only the nodes
    # where that begins are reported, and operators without a rule wherever they are.
    lost: set[str] = set()
    for node in nodes:
        reason: str | None = None
        if not lost.isdisjoint(node.inputs):
            reason = None if _has_rule(node) else ""
        elif not _has_rule(node):
            reason = ""
        else:
            try:
                # Weights may be anything; what is not finite gives no bound.
                with np.errstate(all="ignore"):
                    _read_node(builder, node)
                continue
            except UnsupportedError as error:
                reason = str(error)
        lost.update(name for name in node.outputs if name)
        if reason is not None:
            missing.append((node, reason))
    for name in outputs:
        if name not in builder.tensors and name not in builder.constants and name not in lost:
            raise ModelError(f"{file.path}: no node writes the output {name!r}")
    has_steps = any(node.op in QUANTIZERS for node in nodes)
    return _Reading(builder, inputs, dtypes, outputs, missing, has_steps)


def _has_rule(node: OnnxNode) -> bool:
    return node.op in ("Constant", "Shape", "Size") or can_fold(node.op)


def nodes_and_constants(
    file: NetworkFile,
) -> tuple[
    list[OnnxNode], Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]], tuple[str, ...]
]:
    """The file's nodes in order, every tensor whose value is known, the shapes of its inputs by
    name, and the names of its outputs."""
    read = _read(file)
    shapes = {name: read.builder.shape(name) for name in read.inputs}
    return file_nodes(file), read.builder.constants, shapes, read.outputs


def read_graph(source: NetworkFile | Path, semantics: str = "real") -> Graph:
    """Read, fold, lower and simplify a network (a path is opened for this alone).

    With semantics ``runtime``, and always where tensors of sixteen bits depend on the input, nodes
    say how onnxruntime rounds them, and are merged no more than that allows. Raises ``ModelError``
    for a bad file and ``UnsupportedError``, which names every node without a rule.
    """
    file = NetworkFile.of(source)
    is_standard = file.standard is file
    read = _read(file.standard)
    if read.missing:
        plain: dict[str, list[str]] = {}
        for node, reason in read.missing:
            if not reason:
                plain.setdefault(node.op, []).append(node.name)
        parts = [f"{op}: {', '.join(names)}" for op, names in sorted(plain.items())]
        parts += [reason for _, reason in read.missing if reason]
        raise UnsupportedError(
            f"{file.path.name} uses operators without a rule ({'; '.join(parts)})"
        )
    scaled = [name for name in read.outputs if name in read.builder.units]
    if scaled:
        raise UnsupportedError(
            f"{file.path.name}: the output {scaled[0]!r} is never multiplied by the scale of its "
            "integers"
        )
    outputs = tuple(read.builder.node_of(name) for name in read.outputs)
    graph = Graph(read.builder.nodes, read.inputs, outputs, read.dtypes)
    if semantics == "runtime" or rounds_to_half(read.builder) or read.has_steps or not is_standard:
        if read.builder.unrounded:
            operators = ", ".join(read.builder.unrounded)
            raise UnsupportedError(
                f"{file.path.name}: how onnxruntime rounds is not known of all operators "
                f"({operators})"
            )
        return without_equal_nodes(graph)
    with np.errstate(all="ignore"):
        return simplified(without_roundings(graph))


def _read_node(builder: Builder, node: OnnxNode) -> None:
    builder.source = node.name
    for name in node.inputs:
        if name and name not in builder.tensors and name not in builder.constants:
            raise ModelError(f"node {node.name!r} reads {name!r}, which no earlier node writes")
    for name in node.outputs:
        if name and (name in builder.tensors or name in builder.constants):
            raise ModelError(f"node {node.name!r} writes {name!r}, which already has a value")
    try:
        with np.errstate(all="ignore"):
            _lower(builder, node)
    except (
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise ModelError(
            f"node {node.name!r} ({node.op}) has unusable inputs or attributes: {error!r}"
        ) from error


def _lower(builder: Builder, node: OnnxNode) -> None:
    """Fold the node if all it reads is known, emit engine nodes for it otherwise."""
    unit = unit_of_result(builder, node)
    if node.op == "Constant":
        builder.constants[node.outputs[0]] = constant_value(node)
    elif node.op in ("Shape", "Size") and not builder.is_constant(node.inputs[0]):
        shape = builder.shape(builder.node_of(node.inputs[0]))
        first, last, _ = slice(node.attrs.get("start"), node.attrs.get("end")).indices(len(shape))
        value = shape[first:last] if node.op == "Shape" else math.prod(shape)
        builder.constants[node.outputs[0]] = np.array(value, dtype=np.int64)
    elif all(builder.is_constant(name) for name in node.inputs if name):
        names = [name for name in node.outputs if name]
        builder.constants.update(zip(names, fold(node, builder.constants), strict=False))
    elif node.op in LOWERINGS:
        lower_with_roundings(builder, node)
    else:
        raise UnsupportedError(f"{node.op} of the network input at {node.name!r}")
    if unit is not None and (unit.powers or unit.zero_of):
        builder.units[node.outputs[0]] = unit
