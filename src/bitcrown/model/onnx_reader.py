"""An ONNX file to a ``Graph``: constants folded, everything static in attributes, only engine
operators left.

Each ONNX operator has one lowering function (``lowering``). Operators without one are collected
over the whole file and reported together. Batch axes are taken as they are; symbolic extents become
1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
from bitcrown.model.lowering.composites import COMPOSITES
from bitcrown.model.lowering.dynamic_quantization import INTEGER_SUMS, unit_of_result
from bitcrown.model.lowering.loops import REPEATED
from bitcrown.model.lowering.quantization import QUANTIZERS
from bitcrown.model.passes import (
    simplified,
    without_equal_nodes,
    without_limits,
    without_roundings,
)
from bitcrown.model.requantized import without_repeated_quantizers
from bitcrown.model.roundings import lower_with_roundings, rounds_to_half

OPSETS = range(7, 26)
_AFTER_A_MASK = {"Add", "Softmax"}
"""What may read a tensor to which minus infinity was added."""


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
    # (Infinite ones are masks of attention; the least of numbers with a NaN among them is NaN.)
    if value.dtype.kind == "f" and value.size and np.isnan(value.min()):
        raise ModelError(
            f"{path}: weight {tensor.name!r} holds NaN, so nothing can be said of any output; "
            "was the training stopped by an overflow?"
        )
    return np.asarray(value)


def _opset(model: Any, path: Path) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    # (A model of trees has no node of ONNX's own, and need not say a version.)
    has_own = any(node.domain in ("", "ai.onnx") for node in model.graph.node)
    version = versions[0] if versions else 0 if has_own else OPSETS.stop - 1
    if version not in OPSETS:
        raise UnsupportedError(
            f"{path} uses opset {version}; supported are {OPSETS.start} to {OPSETS.stop - 1}"
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


class InnerGraph(NamedTuple):
    """A graph inside a node: its nodes, weights, and the names of its inputs and outputs."""

    nodes: list[OnnxNode]
    stored: dict[str, np.ndarray[Any, Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def reads(self) -> list[str]:
        """What its nodes read, and those of the graphs in them."""
        return [name for node in self.nodes for name in _reads(node)] + list(self.outputs)

    def kept_apart(
        self, prefix: str, given: Mapping[str, str] | None = None, outer: Mapping[str, str] = {}
    ) -> InnerGraph:
        """With ``prefix`` before all names that are its own, those of graphs in it included:
        outside, and in other graphs, the same name is another tensor. ``given``: what its inputs
        are; ``outer``: new names of what it reads from outside."""
        written = (name for node in self.nodes for name in node.outputs if name)
        own = {name: f"{prefix}{name}" for name in (*self.inputs, *self.stored, *written)}
        names = {**outer, **own, **(given or {})}

        def of(some: Iterable[str]) -> tuple[str, ...]:
            return tuple(names.get(name, name) for name in some)

        nodes = [
            replace(
                node,
                inputs=of(node.inputs),
                outputs=of(node.outputs),
                attrs={
                    key: value.kept_apart(prefix, outer=names)
                    if isinstance(value, InnerGraph)
                    else value
                    for key, value in node.attrs.items()
                },
            )
            for node in self.nodes
        ]
        stored = {names[name]: value for name, value in self.stored.items()}
        return InnerGraph(nodes, stored, of(self.inputs), of(self.outputs))


def _reads(node: OnnxNode) -> list[str]:
    """What a node reads, once; what graphs in it read, as often as they do."""
    inner = [value.reads() for value in node.attrs.values() if isinstance(value, InnerGraph)]
    return [*set(node.inputs), *(name for names in inner for name in names)]


def file_nodes(file: NetworkFile) -> list[OnnxNode]:
    """The nodes of a file in its order, attributes as Python values; a node without a name gets
    one. Raises ``ModelError``."""
    opset = _opset(file.proto, file.path)
    versions = {entry.domain: int(entry.version) for entry in file.proto.opset_import}
    versions[""] = opset
    return _nodes_of(file.proto.graph, versions, file.path)


def _nodes_of(graph: Any, versions: Mapping[str, int], path: Path) -> list[OnnxNode]:
    """The nodes of a graph; ``versions`` are those of the operator sets. A graph inside a node
    becomes a ``InnerGraph``."""
    result = []
    for index, proto in enumerate(graph.node):
        name = proto.name or f"{proto.op_type}_{index}"
        attrs = {attribute.name: _attribute(attribute, path) for attribute in proto.attribute}
        for key, value in attrs.items():
            if isinstance(value, onnx.GraphProto):
                stored = {tensor.name: _stored_array(tensor, path) for tensor in value.initializer}
                inner = _nodes_of(value, versions, path)
                ends = (tuple(i.name for i in infos) for infos in (value.input, value.output))
                attrs[key] = InnerGraph(inner, stored, *ends).kept_apart(f"{name}/{key}/")
        is_own = proto.domain in ("", "ai.onnx")
        op = proto.op_type if is_own else f"{proto.domain}.{proto.op_type}"
        version = versions.get("" if is_own else proto.domain, 1)
        tensors = tuple(proto.input), tuple(proto.output)
        result.append(OnnxNode(op, name, *tensors, attrs, version))
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
    builder.readers.update(name for node in nodes for name in _reads(node))
    builder.readers.update(outputs)
    missing: list[tuple[OnnxNode, str]] = []
    # Tensors that nothing can be said of, because a node before them has no rule. Only the nodes
    # where that begins are reported, and operators without a rule wherever they are.
    lost: set[str] = set()
    for node in nodes:
        reason: str | None = None
        if not lost.isdisjoint(_reads(node)):
            reason = None if _has_rule(builder, node) else ""
        elif not _has_rule(builder, node):
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
    has_steps = any(node.op in QUANTIZERS | INTEGER_SUMS for node in nodes) or bool(
        builder.steps - {"Round"}
    )
    has_steps |= "Round" in builder.steps and not builder.unrounded
    return _Reading(builder, inputs, dtypes, outputs, missing, has_steps)


def _has_rule(builder: Builder, node: OnnxNode) -> bool:
    if node.op in LOWERINGS or node.op in COMPOSITES or node.op in ("Constant", "Shape", "Size"):
        return True
    return can_fold(node.op) and all(builder.is_constant(name) for name in node.inputs if name)


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
    if not read.builder.removed.keys().isdisjoint(read.outputs):
        raise UnsupportedError(f"{file.path.name} has entries of minus infinity as outputs")
    outputs = tuple(read.builder.node_of(name) for name in read.outputs)
    graph = Graph(read.builder.nodes, read.inputs, outputs, read.dtypes)
    if semantics == "runtime" or rounds_to_half(read.builder) or read.has_steps or file.is_emulated:
        if read.builder.unrounded:
            operators = ", ".join(read.builder.unrounded)
            raise UnsupportedError(
                f"{file.path.name}: how onnxruntime rounds is not known of all operators "
                f"({operators})"
            )
        return without_repeated_quantizers(without_equal_nodes(without_limits(graph)))
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
            _keep_empty(builder, node)
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


def _keep_empty(builder: Builder, node: OnnxNode) -> None:
    """A tensor without entries is a constant, whatever it was made of."""
    for name in node.outputs:
        if name in builder.tensors and 0 in (shape := builder.shape(builder.tensors[name])):
            del builder.tensors[name]
            dtype = np.dtype(builder.dtypes.get(name, "float32"))
            builder.constants[name] = np.zeros(shape, dtype)


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
    elif all(map(builder.is_constant, filter(None, node.inputs))) and node.op not in REPEATED:
        names = [name for name in node.outputs if name]
        builder.constants.update(zip(names, fold(node, builder.constants), strict=False))
    elif node.op in COMPOSITES:
        for part in COMPOSITES[node.op](builder, node):
            _read_node(builder, part)
    elif node.op in LOWERINGS:
        if node.op not in _AFTER_A_MASK and not builder.removed.keys().isdisjoint(node.inputs):
            raise UnsupportedError(
                f"node {node.name!r} ({node.op}) reads a tensor with entries of minus infinity"
            )
        lower_with_roundings(builder, node)
    else:
        raise UnsupportedError(f"{node.op} of the network input at {node.name!r}")
    if unit is not None and (unit.powers or unit.zero_of):
        builder.units[node.outputs[0]] = unit
