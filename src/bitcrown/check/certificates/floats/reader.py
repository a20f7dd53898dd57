"""Reads ONNX files as affine maps and ReLU, with code of the checker's own (the ``onnx`` package
parses the protobuf).

A tensor is either a constant (a numpy array) or a ``NodeTensor``: a node of the growing network and
an ONNX shape, with every free extent taken as 1. Operators are rules in ``rules``; an operator
without a rule is refused by name. Constants are never computed in floating point here, only moved:
what a file asks to be computed from constants alone must be integers (shapes, indices), or it is
refused.

Several networks of one property stand side by side: the input is the concatenation of all their
inputs, the output that of all their outputs, in the order of the declarations and of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.certificates.floats.nodes import (
    CombineNode,
    ConvNode,
    DenseNode,
    FloatArray,
    FloatNetwork,
    FloatNode,
    GatherNode,
    InputNode,
    ReluNode,
)
from bitcrown.check.certificates.onnx_files import (
    attributes_of,
    element_type,
    extents,
    graph_inputs,
    onnx_model,
    require_one_writer,
)
from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.spec.query import Query

_MAX_ELEMENTS = 1 << 24
_FLOATS = (np.float32, np.float64)
"""Of tensors in a proof about a real function. Sixteen-bit networks round by more than their
properties often allow."""


class NodeTensor(NamedTuple):
    """A tensor that depends on the input."""

    node: int
    shape: tuple[int, ...]


GraphTensor = NodeTensor | np.ndarray[Any, Any]
_Rule = Callable[["NodeBuilder", "Call"], Sequence[GraphTensor]]
FLOAT_RULES: dict[str, _Rule] = {}


@dataclass(frozen=True)
class Call:
    """One node of the file. ``name`` is for messages; an input that is left out is None."""

    op: str
    name: str
    inputs: tuple[GraphTensor | None, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]

    def refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"certificates: node {self.name!r} ({self.op}): {why}")

    def entry(self, place: int = 0) -> NodeTensor:
        found = self.inputs[place] if place < len(self.inputs) else None
        if not isinstance(found, NodeTensor):
            raise self.refuse(f"input {place} must depend on the network's input")
        return found

    def constant(self, place: int) -> np.ndarray[Any, Any]:
        found = self.inputs[place] if place < len(self.inputs) else None
        if not isinstance(found, np.ndarray):
            raise self.refuse(f"input {place} must be a constant")
        return found

    def has(self, place: int) -> bool:
        return place < len(self.inputs) and self.inputs[place] is not None

    def real(self, attribute: str, default: float) -> float:
        """A real attribute: the file holds a float32, and the standard's default for one that is
        left out is one."""
        return float(np.float32(self.attributes.get(attribute, default)))

    def integers(self, place: int, attribute: str = "") -> list[int] | None:
        """Integers of an input or, in older files, of an attribute; None where neither is there."""
        if self.has(place):
            return [int(value) for value in self.constant(place).reshape(-1)]
        found = self.attributes.get(attribute)
        return None if found is None else [int(value) for value in found]


class NodeBuilder:
    """Nodes under construction."""

    def __init__(self, n_inputs: int) -> None:
        self.nodes: list[FloatNode] = [InputNode(n_inputs)]
        self.names: dict[str, int] = {}

    def add(self, node: FloatNode, shape: Sequence[int]) -> NodeTensor:
        if node.size != math.prod(shape) or node.size > _MAX_ELEMENTS:
            raise ModelError(
                f"certificates: a tensor of shape {tuple(shape)} cannot hold {node.size} numbers"
            )
        if not node.size:
            raise UnsupportedError("certificates: a tensor has no elements")
        self.nodes.append(node)
        return NodeTensor(len(self.nodes) - 1, tuple(shape))

    def relu(self, x: NodeTensor) -> NodeTensor:
        return self.add(ReluNode((x.node,), self.nodes[x.node].size), x.shape)

    def gather(self, x: NodeTensor, index: np.ndarray[Any, Any]) -> NodeTensor:
        """Elements ``index`` (flat places in ``x``, -1 for zero), in the shape of ``index``."""
        flat, size = index.reshape(-1).astype(np.int64), self.nodes[x.node].size
        if len(flat) == size and bool((flat == np.arange(size)).all()):
            return NodeTensor(x.node, index.shape)
        return self.add(GatherNode((x.node,), flat, size), index.shape)

    def combine(
        self, parts: Sequence[tuple[NodeTensor, Any]], bias: Any, shape: Sequence[int]
    ) -> NodeTensor:
        """``sum factor * part + bias``, with broadcasting to ``shape``."""
        sources, factors, size = [], [], math.prod(shape)
        for part, factor in parts:
            sources.append(self.gather(part, np.broadcast_to(flat_places(part), shape)).node)
            wide = np.asarray(factor, dtype=np.float64)
            factors.append(
                wide if wide.ndim == 0 else np.broadcast_to(wide, shape).reshape(size).copy()
            )
        offset = np.broadcast_to(np.asarray(bias, dtype=np.float64), shape).reshape(size).copy()
        return self.add(CombineNode(tuple(sources), tuple(factors), offset), shape)

    def dense(
        self, x: NodeTensor, weight: FloatArray, bias: Any, shape: Sequence[int]
    ) -> NodeTensor:
        """``x [lead, k] weight^T + bias``."""
        lead = math.prod(shape) // max(1, weight.shape[0])
        size = lead * weight.shape[0]
        if lead * weight.shape[1] != self.nodes[x.node].size:
            raise ModelError(
                f"certificates: a matrix of shape {weight.shape} does not fit {x.shape}"
            )
        offset = np.broadcast_to(np.asarray(bias, dtype=np.float64), shape).reshape(size).copy()
        return self.add(DenseNode((x.node,), np.ascontiguousarray(weight), offset, lead), shape)


def flat_places(x: NodeTensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The flat place of each element, in the shape of ``x``."""
    return np.arange(math.prod(x.shape)).reshape(x.shape)


def exact_floats(value: np.ndarray[Any, Any], call: Call | None = None) -> FloatArray:
    """A float constant as float64, which holds it exactly. Raises for other types, NaN and
    infinities."""
    if value.dtype not in _FLOATS or not np.isfinite(value).all():
        why = f"a constant of type {value.dtype} with NaN, infinities or no floats"
        raise ModelError(f"certificates: {why}") if call is None else call.refuse(why)
    return value.astype(np.float64)


def float_rule(*names: str) -> Callable[[_Rule], _Rule]:
    def enter(function: _Rule) -> _Rule:
        FLOAT_RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def shape_of(tensor: GraphTensor | None) -> tuple[int, ...]:
    assert tensor is not None
    return tuple(tensor.shape)


def concatenated(b: NodeBuilder, parts: Sequence[NodeTensor], axis: int) -> NodeTensor:
    """Entries side by side: each is spread over the result, zero elsewhere, and all are added."""
    start, spread = 0, []
    extent = sum(part.shape[axis] for part in parts)
    shape = tuple(extent if i == axis else size for i, size in enumerate(parts[0].shape))
    for part in parts:
        index = np.full(shape, -1, dtype=np.int64)
        where = tuple(
            slice(start, start + part.shape[axis]) if i == axis else slice(None)
            for i in range(len(shape))
        )
        index[where] = flat_places(part)
        spread.append((b.gather(part, index), 1.0))
        start += part.shape[axis]
    return b.combine(spread, 0.0, shape)


def of_integers(call: Call, function: Callable[[Any, Any], Any]) -> np.ndarray[Any, Any]:
    values = [item for item in call.inputs if isinstance(item, np.ndarray)]
    if len(values) != 2 or any(
        value.dtype in _FLOATS or value.dtype.kind not in "iu" for value in values
    ):
        raise call.refuse("arithmetic on float constants")
    return np.asarray(function(*values))


@dataclass(frozen=True)
class Member:
    """One network inside the whole: element types and sizes of its inputs."""

    dtypes: tuple[np.dtype[Any], ...]
    sizes: tuple[int, ...]


def read_networks(
    query: Query, paths: Mapping[str, Path]
) -> tuple[FloatNetwork, list[np.dtype[Any]]]:
    """All networks of a query as one, and the element type of each flat input.

    Raises:
        ModelError: a file that is no ONNX file, or contradicts itself.
        UnsupportedError: an operator without a rule; the message names it.
    """
    try:
        return _read(query, paths)
    except (
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ModelError(
            f"certificates: the network cannot be read: {type(error).__name__} {error}"
        ) from error


def _read(query: Query, paths: Mapping[str, Path]) -> tuple[FloatNetwork, list[np.dtype[Any]]]:
    import bitcrown.check.certificates.floats.rules
    import bitcrown.check.certificates.floats.shape_rules  # noqa: F401  importing enters the rules

    models = [_parse(paths[declared.name]) for declared in query.networks]
    members = [_member(model) for model in models]
    total = sum(size for member in members for size in member.sizes)
    builder = NodeBuilder(total)
    outputs: list[NodeTensor] = []
    dtypes: list[np.dtype[Any]] = []
    start = 0
    for model, member in zip(models, members, strict=True):
        size = sum(member.sizes)
        for dtype, count in zip(member.dtypes, member.sizes, strict=True):
            dtypes += [dtype] * count
        outputs += run_graph(builder, model, start)
        start += size
    if not outputs:
        raise ModelError("certificates: the network has no outputs")
    end = outputs[0].node if len(outputs) == 1 else _joined(builder, outputs)
    names = builder.names if len(models) == 1 else {}
    return folded(FloatNetwork(tuple(builder.nodes), end, names)), dtypes


def folded(network: FloatNetwork) -> FloatNetwork:
    """The same function where a node that only adds a bias to a matrix without one is part of
    it."""
    nodes = list(network.nodes)
    readers = [0] * len(nodes)
    for node in nodes:
        for source in node.sources:
            readers[source] += 1
    readers[network.output] += 1
    place: list[int] = []
    kept: list[FloatNode] = []
    for node in nodes:
        if not isinstance(node, InputNode):
            node = replace(node, sources=tuple(place[i] for i in node.sources))  # type: ignore[arg-type]
        before = kept[node.sources[0]] if len(node.sources) == 1 else None
        adds_only = isinstance(node, CombineNode) and all(
            part.ndim == 0 and part == 1.0 for part in node.factors
        )
        if adds_only and isinstance(before, DenseNode | ConvNode) and not before.bias.any():
            old = network.nodes[len(place)].sources[0]
            if readers[old] == 1:
                assert isinstance(node, CombineNode)
                kept[place[old]] = replace(before, bias=node.bias)
                place.append(place[old])
                continue
        kept.append(node)
        place.append(len(kept) - 1)
    names = {name: place[number] for name, number in network.names.items()}
    return FloatNetwork(tuple(kept), place[network.output], names)


def _joined(builder: NodeBuilder, outputs: Sequence[NodeTensor]) -> int:
    return concatenated(
        builder, [NodeTensor(item.node, (math.prod(item.shape),)) for item in outputs], 0
    ).node


def _parse(path: Path) -> Any:
    model = onnx_model(path)
    if any(item.domain not in ("", "ai.onnx") for item in model.graph.node) or model.functions:
        raise UnsupportedError(f"certificates: {path} uses operators outside the ONNX standard")
    if any(item.data_location for item in model.graph.initializer):
        raise UnsupportedError(f"certificates: {path} keeps its weights in other files")
    return model


def _member(model: Any) -> Member:
    dtypes, sizes = [], []
    for item in graph_inputs(model):
        dtype = element_type(item)
        if dtype not in _FLOATS:
            raise UnsupportedError(
                f"certificates: the network's input {item.name!r} has the type {dtype}, not floats"
            )
        dtypes.append(dtype)
        sizes.append(math.prod(extents(item)))
    return Member(tuple(dtypes), tuple(sizes))


def run_graph(builder: NodeBuilder, model: Any, start: int) -> list[NodeTensor]:
    """Add the nodes of one file, whose flat inputs begin at ``start``; returns its outputs."""
    from onnx import numpy_helper

    require_one_writer(model)
    tensors: dict[str, GraphTensor] = {
        item.name: np.asarray(numpy_helper.to_array(item)) for item in model.graph.initializer
    }
    for item in graph_inputs(model):
        shape = extents(item)
        index = np.arange(start, start + math.prod(shape)).reshape(shape)
        tensors[item.name] = builder.gather(NodeTensor(0, (builder.nodes[0].size,)), index)
        start += math.prod(shape)
    for node in model.graph.node:
        inputs = tuple(tensors[name] if name else None for name in node.input)
        call = Call(
            node.op_type,
            node.name or node.output[0],
            inputs,
            attributes_of(node),
            tuple(node.output),
        )
        for name, tensor in zip(node.output, _outcome(builder, call), strict=False):
            tensors[name] = tensor
    found = [tensors[item.name] for item in model.graph.output]
    if not all(isinstance(item, NodeTensor) for item in found):
        raise UnsupportedError(
            "certificates: an output of the network does not depend on its input"
        )
    return [item for item in found if isinstance(item, NodeTensor)]


def _outcome(builder: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    if call.op not in FLOAT_RULES:
        raise UnsupportedError(
            f"certificates are written for piecewise-linear networks; node {call.name!r} is a "
            f"{call.op}"
        )
    try:
        return FLOAT_RULES[call.op](builder, call)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise ModelError(
            f"certificates: node {call.name!r} ({call.op}) cannot be read: {error}"
        ) from error
