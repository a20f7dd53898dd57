"""What the lowering functions write to: a graph under construction, and the table of those functions.

An ONNX tensor is either a constant (a numpy array, exact) or the name of an engine node. Shapes of new nodes are found
by running the operator's forward function once on zeros (torch's ``meta`` device would do, but costs a second of imports).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.graph import Node
from bitcrown.model.registry import op_row


@dataclass(frozen=True)
class OnnxNode:
    """One node of the file: operator, attributes as Python values, tensor names; ``opset`` of its domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    opset: int


Lowering = Callable[["Builder", OnnxNode], None]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a lowering function for ONNX operators ``names``."""

    def remember(function: Lowering) -> Lowering:
        for name in names:
            LOWERINGS[name] = function
        return function

    return remember


@dataclass
class Builder:
    nodes: dict[str, Node] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    source: str = ""

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.constants

    def constant(self, tensor: str, what: str) -> np.ndarray:
        """The value of a tensor that must be constant; raises ``UnsupportedError`` if it depends on the input."""
        if tensor not in self.constants:
            raise UnsupportedError(f"{what} of node {self.source!r} depends on the network input")
        return self.constants[tensor]

    def integers(self, tensor: str, what: str) -> list[int]:
        return [int(value) for value in self.constant(tensor, what).reshape(-1)]

    def node_of(self, tensor: str) -> str:
        """Engine node of an ONNX tensor; a constant becomes a ``Constant`` node."""
        if tensor in self.tensors:
            return self.tensors[tensor]
        value = self.constant(tensor, "an operand")
        self.tensors[tensor] = self.emit("Constant", (), params={"value": value.astype(np.float64)}, name=tensor)
        return self.tensors[tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.nodes[name].shape

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, np.ndarray] | None = None,
        name: str = "",
    ) -> str:
        """Append an engine node and return its name (made unique from ``name`` or the current ONNX node)."""
        attrs, params = dict(attrs or {}), dict(params or {})
        base = name or f"{self.source}/{op}"
        unique, count = base, 1
        while unique in self.nodes:
            count += 1
            unique = f"{base}.{count}"
        shape = self._shape_of(op, inputs, attrs, params)
        self.nodes[unique] = Node(unique, op, tuple(inputs), shape, attrs, params, self.source)
        return unique

    def _shape_of(
        self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any], params: Mapping[str, np.ndarray]
    ) -> tuple[int, ...]:
        draft = Node("", op, tuple(inputs), (), attrs, params)
        zero = torch.zeros(())
        tensors = [zero.expand(1, *self.nodes[source].shape) for source in inputs]
        weights = {key: zero.expand(value.shape) for key, value in params.items()}
        try:
            with torch.no_grad():
                value = op_row(op).forward(draft, weights, tensors)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelError(f"node {self.source!r} ({op}) does not fit its input shapes: {error}") from error
        return tuple(value.shape[1:])

    def bind(self, node: OnnxNode, name: str, output: int = 0) -> None:
        """Make ``name`` the value of an ONNX node's output."""
        self.tensors[node.outputs[output]] = name

    def expanded(self, name: str, shape: tuple[int, ...]) -> str:
        """``name`` broadcast to ``shape`` (itself where nothing is to do)."""
        return name if self.shape(name) == shape else self.emit("Expand", (name,), {"shape": shape})

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        target = tuple(int(extent) for extent in shape)
        return name if self.shape(name) == target else self.emit("Reshape", (name,), {"shape": target})

    def scaled(self, name: str, scale: np.ndarray | float | None, shift: np.ndarray | float | None) -> str:
        """``name * scale + shift`` with constants that broadcast; the result may be wider than ``name``."""
        params = {}
        shape = self.shape(name)
        for key, value in (("scale", scale), ("shift", shift)):
            if value is not None:
                params[key] = np.asarray(value, dtype=np.float64)
                shape = np.broadcast_shapes(shape, params[key].shape)
        return self.emit("Scale", (self.expanded(name, shape),), params=params)

    def binary(self, op: str, a: str, b: str) -> str:
        """``Add``, ``Sub`` or ``Mul`` of two nodes with broadcasting."""
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        return self.emit(op, (self.expanded(a, shape), self.expanded(b, shape)))

    def relu(self, name: str) -> str:
        return self.emit("Relu", (name,))

    def maximum(self, a: str, b: str) -> str:
        """``max(a, b) = b + relu(a - b)``: exact, and splits like any other ReLU."""
        return self.binary("Add", b, self.relu(self.binary("Sub", a, b)))

    def axis(self, value: int, rank: int) -> int:
        return value + rank if value < 0 else value
