"""What the lowering functions write to: a graph under construction, and the table of those
functions.

An ONNX tensor is either a constant (a numpy array, exact) or the name of an engine node. Shapes of
new nodes are found by running the operator's forward function once on zeros (torch's ``meta``
device costs a second of imports).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.graph import Node
from bitcrown.model.registry import op_row


@dataclass(frozen=True)
class OnnxNode:
    """One node of the file: operator, attributes as Python values, tensor names; ``opset`` of its
    domain."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    opset: int

    def real(self, key: str, default: float) -> float:
        """A real attribute: in a file it is a float32, and so is the standard's default for one
        that is left out."""
        with np.errstate(over="ignore"):
            return float(np.float32(self.attrs.get(key, default)))


@dataclass(frozen=True)
class Unit:
    """The file's value is the value here times each named scale to its power, plus the zero point
    ``zero_of``.

    Scales and zero points that depend on the input go by the name of the integers they belong to.
    """

    powers: Mapping[str, int]
    zero_of: str = ""


Lowering = Callable[["Builder", OnnxNode], None]
LOWERINGS: dict[str, Lowering] = {}
LARGEST = 1 << 28
"""Entries of the largest tensor a model may have: files are untrusted and shapes are cheap to
write."""


HUGE = 1e30
"""From where on a limit is kept apart: a sum with it has no digit left of what it limits."""
_MOST_LIMITS = 8


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
    units: dict[str, Unit] = field(default_factory=dict)
    """Of ONNX tensors that are not what they are in the file (see ``dynamic_quantization``)."""
    removed: dict[str, np.ndarray] = field(default_factory=dict)
    """Entries of ONNX tensors that are minus infinity in the file and anything finite here: masks
    of attentions, which only some operators may read."""
    source: str = ""
    dtypes: dict[str, str] = field(default_factory=dict)
    """Element types of ONNX tensors that depend on the input (see ``model.roundings``)."""
    readers: Counter[str] = field(default_factory=Counter)
    """How many nodes and outputs of the file read each ONNX tensor."""
    unrounded: list[str] = field(default_factory=list)
    """Operators, and names of nodes, of which nobody knows how the runtime rounds."""
    steps: set[str] = field(default_factory=set)
    """Operators read so far where rounding decides on which side of a step a value falls."""

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.constants

    def constant(self, tensor: str, what: str) -> np.ndarray:
        """The value of a tensor that must be constant; raises ``UnsupportedError`` if it depends on
        the input."""
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
        self.tensors[tensor] = self.emit(
            "Constant", (), params={"value": value.astype(np.float64)}, name=tensor
        )
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
        """Append an engine node and return its name (made unique from ``name`` or the current ONNX
        node)."""
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
        self,
        op: str,
        inputs: Sequence[str],
        attrs: Mapping[str, Any],
        params: Mapping[str, np.ndarray],
    ) -> tuple[int, ...]:
        shapes = [self.nodes[source].shape for source in inputs]
        if _upper_size(op, shapes, attrs, params) > LARGEST:
            raise ModelError(
                f"node {self.source!r} ({op}) makes a tensor of more than {LARGEST} entries"
            )
        draft = Node("", op, tuple(inputs), (), attrs, params)
        zero = torch.zeros(())
        tensors = [zero.expand(1, *shape) for shape in shapes]
        weights = {key: zero.expand(value.shape) for key, value in params.items()}
        try:
            with torch.no_grad():
                value = op_row(op).forward(draft, weights, tensors)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ModelError(
                f"node {self.source!r} ({op}) does not fit its input shapes: {error}"
            ) from error
        if value.numel() > LARGEST:
            raise ModelError(
                f"node {self.source!r} ({op}) makes a tensor of more than {LARGEST} entries"
            )
        return tuple(value.shape[1:])

    def bind(self, node: OnnxNode, name: str, output: int = 0) -> None:
        """Make ``name`` the value of an ONNX node's output.

        A node just emitted, which nothing reads yet, takes the name of the ONNX tensor: people ask
        for it by that.
        """
        target = node.outputs[output]
        is_new = name == next(reversed(self.nodes)) and self.nodes[name].source == node.name
        if (
            is_new
            and self.nodes[name].op not in ("Input", "Constant")
            and target
            and target not in self.nodes
        ):
            self.nodes[target] = replace(self.nodes.pop(name), name=target)
            name = target
        self.tensors[target] = name

    def expanded(self, name: str, shape: tuple[int, ...]) -> str:
        """``name`` broadcast to ``shape`` (itself where nothing is to do)."""
        return name if self.shape(name) == shape else self.emit("Expand", (name,), {"shape": shape})

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        target = tuple(int(extent) for extent in shape)
        return (
            name if self.shape(name) == target else self.emit("Reshape", (name,), {"shape": target})
        )

    def scaled(
        self, name: str, scale: np.ndarray | float | None, shift: np.ndarray | float | None
    ) -> str:
        """``name * scale + shift`` with constants that broadcast; the result may be wider than
        ``name``."""
        params = {}
        shape = self.shape(name)
        for key, value in (("scale", scale), ("shift", shift)):
            if value is not None:
                params[key] = np.asarray(value, dtype=np.float64)
                shape = np.broadcast_shapes(shape, params[key].shape)
        return self.emit("Scale", (self.expanded(name, shape),), params=params)

    def binary(self, op: str, a: str, b: str) -> str:
        """``Add``, ``Sub`` or ``Mul`` of two nodes with broadcasting; a constant operand makes it a
        ``Scale``."""
        left, right = self._known(a), self._known(b)
        if right is not None:
            shift = None if op == "Mul" else right if op == "Add" else -right
            return self.scaled(a, right if op == "Mul" else None, shift)
        if left is not None:
            scale = {"Add": None, "Sub": -1.0, "Mul": left}[op]
            return self.scaled(b, scale, None if op == "Mul" else left)
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        return self.emit(op, (self.expanded(a, shape), self.expanded(b, shape)))

    def known(self, value: np.ndarray) -> str:
        """A ``Constant`` node."""
        return self.emit("Constant", (), params={"value": np.asarray(value, dtype=np.float64)})

    def _known(self, name: str) -> np.ndarray | None:
        return self.nodes[name].params["value"] if self.nodes[name].op == "Constant" else None

    def summed(self, name: str, axes: Sequence[int], keep: bool) -> str:
        """Sum over ``axes`` (none of them: unchanged)."""
        if not axes:
            return name
        count = math.prod(self.shape(name)[axis] for axis in axes)
        return self.emit(
            "ReduceSum", (name,), {"axes": tuple(axes), "keepdims": keep, "count": count}
        )

    def sliced(self, name: str, axis: int, start: int, end: int) -> str:
        """Entries ``start`` to ``end`` along one axis."""
        cut = [(0, extent, 1) for extent in self.shape(name)]
        cut[axis] = (start, end, 1)
        return self.emit("Slice", (name,), {"slices": tuple(cut)})

    def gathered(self, name: str, axis: int, indices: np.ndarray) -> str:
        """``np.take(name, indices, axis)``; a run of neighbours becomes a ``Slice``."""
        extent = self.shape(name)[axis]
        indices = np.where(indices < 0, indices + extent, indices).astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= extent):
            raise ModelError(
                f"node {self.source!r} reads an entry outside an axis of extent {extent}"
            )
        if (
            indices.ndim == 1
            and indices.size
            and np.array_equal(indices, indices[0] + np.arange(indices.size))
        ):
            if indices.size == extent:
                return name
            return self.sliced(name, axis, int(indices[0]), int(indices[-1]) + 1)
        return self.emit("Gather", (name,), {"axis": axis, "indices": indices})

    def transposed(self, name: str, perm: Sequence[int]) -> str:
        return self.emit("Transpose", (name,), {"perm": tuple(perm)})

    def along(self, name: str, axis: int, matrix: np.ndarray) -> str:
        """Apply ``matrix [out, extent]`` to every line along one axis."""
        rank = len(self.shape(name))
        perm = [i for i in range(rank) if i != axis] + [axis]
        moved = name if axis == rank - 1 else self.transposed(name, perm)
        value = self.emit(
            "Linear", (moved,), params={"weight": np.asarray(matrix, dtype=np.float64)}
        )
        return value if axis == rank - 1 else self.transposed(value, np.argsort(perm).tolist())

    def relu(self, name: str) -> str:
        return self.emit("Relu", (name,))

    def leaky(self, x: str, slope: np.ndarray | float) -> str:
        """``s x + (1 - s) relu(x)``."""
        rest = 1.0 - np.asarray(slope, dtype=np.float64)
        return self.binary(
            "Add", self.scaled(x, slope, None), self.scaled(self.relu(x), rest, None)
        )

    def absolute(self, x: str) -> str:
        """``|x| = 2 relu(x) - x``."""
        return self.leaky(x, -1.0)

    def unlimited(self) -> float:
        """From where on a limit is none: exporters write the greatest number of a type for it.
        Smaller ones bind."""
        widest = np.float64 if "float64" in self.dtypes.values() else np.float32
        return float(np.finfo(widest).max)

    def maximum(self, a: str, b: str) -> str:
        """``max(a, b) = b + relu(a - b)``: splits like any other ReLU, and loses no digit unless
        ``b`` is huge."""
        limit = self._known(b)
        if limit is None and self._known(a) is None:
            shape = np.broadcast_shapes(self.shape(a), self.shape(b))
            a, b = self.expanded(a, shape), self.expanded(b, shape)
            d = self.emit("Sub", (a, b))
            return self.emit("Larger", (self.relu(d), b, a, d))
        if limit is not None and (limit <= -HUGE).any():
            return self._limited(
                a, limit, "min", limit <= -HUGE, limit <= -self.unlimited(), self.maximum
            )
        return self.binary("Add", self.relu(self.binary("Sub", a, b)), b)

    def minimum(self, a: str, b: str) -> str:
        """``min(a, b) = b - relu(b - a)``."""
        limit = self._known(b)
        if limit is None and self._known(a) is None:
            lesser = self.maximum(self.scaled(a, -1.0, None), self.scaled(b, -1.0, None))
            return self.scaled(lesser, -1.0, None)
        if limit is not None and (limit >= HUGE).any():
            return self._limited(
                a, limit, "max", limit >= HUGE, limit >= self.unlimited(), self.minimum
            )
        return self.binary("Sub", b, self.relu(self.binary("Sub", b, a)))

    def _limited(
        self,
        a: str,
        limit: np.ndarray,
        key: str,
        is_huge: np.ndarray,
        is_none: np.ndarray,
        best: Callable[[str, str], str],
    ) -> str:
        """``best(a, limit)``, by a ``Clip`` where the limit ``is_huge``, and ``a`` itself where it
        ``is_none``."""
        a = self.expanded(a, np.broadcast_shapes(self.shape(a), limit.shape))
        parts: list[tuple[np.ndarray, str]] = [(is_none, a)] if is_none.any() else []
        for value in np.unique(limit[is_huge & ~is_none]):
            ends = {"min": -math.inf, "max": math.inf, key: float(value)}
            parts.append((limit == value, self.emit("Clip", (a,), ends)))
        if not is_huge.all():
            parts.append((~is_huge, best(a, self.known(np.where(is_huge, 0.0, limit)))))
        if len(parts) > _MOST_LIMITS:
            raise UnsupportedError(
                f"node {self.source!r}: limits of {len(parts)} magnitudes beyond {HUGE:g}"
            )
        if len(parts) == 1:
            return parts[0][1]
        chosen = [self.scaled(part, where.astype(np.float64), None) for where, part in parts]
        total = chosen[0]
        for part in chosen[1:]:
            total = self.binary("Add", total, part)
        return total

    def axis(self, value: int, rank: int) -> int:
        """``value`` counted from the front. Raises ``ModelError`` if there is no such axis."""
        if not -rank <= value < rank:
            raise ModelError(f"node {self.source!r} names axis {value} of a tensor of rank {rank}")
        return int(value) + rank if value < 0 else int(value)


def _upper_size(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    attrs: Mapping[str, Any],
    params: Mapping[str, np.ndarray],
) -> float:
    """At least the entries that computing ``op`` allocates, for the operators that can blow a small
    file up."""
    if op == "Pad":
        return float(
            math.prod(
                e + abs(p) + abs(q) for e, p, q in zip(shapes[0], *attrs["pads"], strict=True)
            )
        )
    if op in ("Conv", "ConvTranspose"):
        weight, strides = (
            params["weight"].shape,
            attrs["strides"] if op == "ConvTranspose" else attrs["dilations"],
        )
        spans = (
            (shapes[0][2 + i] if op == "Conv" else shapes[0][2 + i] * abs(strides[i]))
            + 2 * abs(attrs["pads"][i])
            + abs(attrs["dilations"][i]) * weight[2 + i]
            for i in range(len(weight) - 2)
        )
        return float(math.prod(spans) * max(weight[:2]) * shapes[0][0])
    if op in ("Linear", "MatMulLeft"):
        matrix = next(iter(params.values())).shape
        return float(math.prod(shapes[0]) / max(1, matrix[1]) * matrix[0])
    if op == "Gather":
        return float(
            attrs["indices"].size * math.prod(shapes[0]) / max(1, shapes[0][attrs["axis"]])
        )
    return float(math.prod(attrs["shape"])) if op == "Expand" else 0.0
