"""The state of reading a quantized file against the network of a certificate, and what every rule
needs.

Nothing is compiled here. The certificate's network says which sums and steps the file consists of;
the rules of ``elementwise``, ``sums`` and their like follow the file's operators, keep for
every tensor what it is as a function of some node's integers, and where integers are made, look for
the node that encloses them. What no node encloses ends the reading with ``Reject``: a wrong network
cannot pass, and neither can one that is right in a way that is not understood.

**Roots.** Some nodes compute nothing new: gathers, sums of one source, copies of a dense node or a
convolution with some rows negated. An element of such a node is ``factor * r + shift`` of an
element r of an earlier node, its root (``Origin``); tensors are described by roots only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.integers.affine import LinearRows
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import StepNode
from bitcrown.check.certificates.quantized.chain import (
    INPUT,
    INTEGER_LIMIT,
    TO_FLOAT,
    Chain,
    ChainLink,
    ChainTensor,
    NumpyArray,
    encloses,
    farthest,
    tabled,
    values_of,
)

_MOST_VALUES = 1 << 16
_MOST_VIEWS = 6
_Rule = Callable[["FileReading", "Operator"], None]
_RULES: dict[str, _Rule] = {}


@dataclass(frozen=True)
class Operator:
    """One node of the file; ``op`` is its type with its domain in front, but for the standard
    one."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any]
    proto: Any
    opset: int

    def has(self, position: int) -> bool:
        return position < len(self.inputs) and bool(self.inputs[position])

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


def quantized_rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Register the rule of the operators ``names``."""

    def remember(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return remember


@dataclass(frozen=True, eq=False)
class Origin:
    """Element n of a node is ``factor[n] * r + shift[n]`` with r element ``elements[n]`` of node
    ``nodes[n]``."""

    nodes: NumpyArray
    elements: NumpyArray
    factor: NumpyArray
    shift: NumpyArray

    def is_of(self, tensor: ChainTensor) -> bool:
        return np.array_equal(self.nodes, tensor.nodes) and np.array_equal(
            self.elements, tensor.elements
        )


@dataclass
class FileReading:
    """``grids``: integers and scales (both of the constant's shape) that a constant was dequantized
    from."""

    net: IntegerCircuit
    shape: tuple[int, ...] = ()
    constants: dict[str, NumpyArray] = field(default_factory=dict)
    grids: dict[str, tuple[NumpyArray, NumpyArray]] = field(default_factory=dict)
    tensors: dict[str, list[ChainTensor]] = field(default_factory=dict)
    entry: Chain | None = None
    origins: list[Origin] = field(default_factory=list)
    viewed: dict[str, list[ChainTensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reach = max((max(map(abs, row)) for row in (*self.net.low, *self.net.high)), default=0)
        need(
            reach < INTEGER_LIMIT // 4,
            "the network has integers beyond 60 bits, which no quantized file has",
        )
        self.origins = list(_origins(self.net))

    def constant(self, node: Operator, position: int, default: Any = None) -> NumpyArray:
        if not node.has(position) and default is not None:
            return np.asarray(default)
        need(
            node.has(position) and node.inputs[position] in self.constants,
            f"{node}: input {position} is no constant",
        )
        return self.constants[node.inputs[position]]

    def given(self, name: str) -> list[ChainTensor]:
        need(name in self.tensors, f"{name!r} is expected to depend on the input")
        return self.tensors[name]

    def bind(self, node: Operator, tensors: list[ChainTensor]) -> None:
        need(bool(tensors), f"no node of the certificate's network computes {node}")
        for tensor in tensors[:1]:
            self.check_width(tensor, node)
        self.tensors[node.outputs[0]] = tensors[:_MOST_VIEWS]

    def check_width(self, tensor: ChainTensor, node: Operator) -> None:
        """Integers have to stay in the range of their type: the runtime wraps there."""
        if tensor.is_float or tensor.size == 0:
            return
        low, high = integer_range(tensor.dtype)
        least, greatest = self.range_of(tensor)
        need(low <= least and greatest <= high, f"{node} can leave the range of {tensor.dtype}")

    def range_of(self, tensor: ChainTensor) -> tuple[int, int]:
        """Least and greatest integer of a tensor of integers: its chain is monotone, so the ends of
        what it acts on decide."""
        if tensor.size and int(tensor.nodes[0]) == INPUT:
            ends = [farthest(tensor.chain, sign, tensor.size)[1] for sign in (-1, 1)]
            return int(np.min(ends)), int(np.max(ends))
        least, greatest = values_of(
            tensor.chain, np.stack(self.ends(tensor), axis=1), np.arange(tensor.size)
        )
        return int(least.min(initial=0)), int(greatest.max(initial=0))

    def ends(self, tensor: ChainTensor) -> tuple[NumpyArray, NumpyArray]:
        """[N] least and greatest number that the chain of each element acts on, over the declared
        range of the input."""
        if tensor.size and int(tensor.nodes[0]) == INPUT:
            most = np.full(tensor.size, np.finfo(np.float32).max, np.float32)
            return -most, most
        return tensor.picked(self.net.low), tensor.picked(self.net.high)

    def views(self, name: str) -> list[ChainTensor]:
        """Everything that the tensor is known to be: as it stands, and as the integers of steps
        inside its chain."""
        if name not in self.viewed:
            found: list[ChainTensor] = []
            for tensor in self.given(name):
                for view in self._views(tensor):
                    if not any(
                        np.array_equal(view.nodes, v.nodes) and len(view.chain) >= len(v.chain)
                        for v in found
                    ):
                        found.append(view)
            need(
                bool(found),
                f"{name!r} is used as integers, but is a real number that was not quantized as "
                "declared",
            )
            self.viewed[name] = found
        return self.viewed[name]

    def _views(self, tensor: ChainTensor) -> Iterator[ChainTensor]:
        if tensor.size and int(tensor.nodes[0]) == INPUT:
            for length in tensor.whole_prefixes():
                if self._enter(tensor, length):
                    nodes = np.zeros(tensor.size, dtype=np.int64)
                    yield replace(tensor, nodes=nodes, chain=self._rest(tensor, length))
                    return
            return
        yield tensor
        for number, stairs in self.staircases(tensor):
            origin = self.origins[stairs.source]
            own = np.full(tensor.size, number), np.arange(tensor.size)
            low, high = (np.array(side[stairs.source]) for side in (self.net.low, self.net.high))
            for length in tensor.whole_prefixes():
                if encloses(stairs, tensor, length, origin.factor, origin.shift, (low, high)):
                    rest = self._rest(tensor, length)
                    yield replace(tensor, nodes=own[0], elements=own[1], chain=rest, keys=None)
                    break
            else:
                table = self._table(number, stairs, tensor, origin) if tensor.is_float else None
                if table is not None:
                    yield replace(tensor, nodes=own[0], elements=own[1], chain=(table,), keys=None)

    def staircases(self, tensor: ChainTensor) -> Iterator[tuple[int, StepNode]]:
        """Staircases on just these integers, up to sign and a constant."""
        for number, stairs in self.net.compiled.items():
            if isinstance(stairs, StepNode) and self.net.sizes[number] == tensor.size:
                origin = self.origins[stairs.source]
                if origin.is_of(tensor) and (np.abs(origin.factor) == 1).all():
                    yield number, stairs

    def _rest(self, tensor: ChainTensor, length: int) -> Chain:
        """What follows the first steps, on integers; a float32 number goes on as one."""
        probe = np.zeros((1, 1), np.float32 if int(tensor.nodes[0]) == INPUT else np.int64)
        is_float = (
            values_of(tensor.chain[:length], probe, np.zeros(1, dtype=np.int64))[0].dtype.kind
            == "f"
        )
        return (*((TO_FLOAT,) if is_float else ()), *tensor.chain[length:])

    def _enter(self, tensor: ChainTensor, length: int) -> bool:
        """Whether the first steps on the file's real input give node 0, with all of its declared
        range and no more."""
        order, size = tensor.elements, self.net.sizes[0]
        if tensor.size != size or not np.array_equal(np.sort(order), np.arange(size)):
            return False
        chain = tuple(step.picked(np.argsort(order)) for step in tensor.chain[:length])
        if self.entry is not None:
            return len(chain) == len(self.entry) and all(
                a.is_same(b) for a, b in zip(chain, self.entry, strict=True)
            )
        ends = np.stack([farthest(chain, sign, size)[1] for sign in (-1, 1)], axis=1)
        fits = np.array_equal(ends.min(axis=1), self.net.low[0]) and np.array_equal(
            ends.max(axis=1), self.net.high[0]
        )
        self.entry = chain if fits else None
        return fits

    def _table(
        self, number: int, stairs: StepNode, tensor: ChainTensor, origin: Origin
    ) -> ChainLink | None:
        """The tensor as a function of an exact staircase's level, if it is one: equal levels have
        equal values."""
        known = self.table(tensor)
        if (
            known is None
            or stairs.late != stairs.early
            or any(row is not stairs.late[0] for row in stairs.late)
        ):
            return None
        if (origin.factor != origin.factor[0]).any() or (origin.shift != origin.shift[0]).any():
            return None
        # the level of every integer q that the tensor's root can be, and the tensor's value there
        first, values = known
        q = first + np.arange(len(values))
        a = origin.factor[0] * q + origin.shift[0]
        steps = np.array(
            [max(-INTEGER_LIMIT, min(INTEGER_LIMIT, t)) for t in stairs.late[0]], dtype=np.int64
        )
        levels = stairs.base[0] + np.searchsorted(steps, a, side="right")
        # one value a level, the last one met; a function of the level only if all values agree
        low, high = int(levels.min()), int(levels.max())
        order = np.argsort(levels, kind="stable")
        place = np.searchsorted(levels[order], np.arange(low, high + 1), side="right") - 1
        lookup = values[order][place]
        if high - low >= _MOST_VALUES or not np.array_equal(lookup[levels - low], values):
            return None
        name = tabled(f"levels from {low}", lookup)
        return ChainLink(name, lambda t: lookup[np.clip(t - low, 0, high - low)])

    def table(self, tensor: ChainTensor) -> tuple[int, NumpyArray] | None:
        """The first integer and the values [K] of a tensor that is one pinned function of few
        integers, alike in all elements; otherwise None.
        """
        low, high = self.ends(tensor)
        first, last = int(low.min()), int(high.max())
        if not tensor.is_uniform() or last - first >= _MOST_VALUES:
            return None
        least, greatest = values_of(
            tensor.chain, np.arange(first, last + 1)[None], np.zeros(1, dtype=np.int64)
        )
        return (first, least[0]) if np.array_equal(least, greatest) else None


def _origins(net: IntegerCircuit) -> Iterator[Origin]:
    """The roots of every node, in order."""
    found: list[Origin] = []
    for number, size in enumerate(net.sizes):
        step = net.compiled.get(number)
        own = Origin(
            np.full(size, number),
            np.arange(size),
            np.ones(size, np.int64),
            np.zeros(size, np.int64),
        )
        node = net.nodes[number]
        moves = node["op"] == "gather" or (node["op"] == "sum" and len(node["sources"]) == 1)
        if isinstance(step, LinearRows) and moves and all(len(row) == 1 for row in step.rows):
            own = _passed_on(step, found, own)
        elif isinstance(step, LinearRows) and node["op"] in ("dense", "conv"):
            for other in range(number):
                copy = _signed_copy(net, number, other)
                if copy is not None and (found[other].nodes == other).all():
                    own = Origin(found[other].nodes, found[other].elements, copy, own.shift)
                    break
        found.append(own)
        yield own


def _passed_on(step: LinearRows, found: list[Origin], own: Origin) -> Origin:
    """Elements that are multiples of one element each."""
    parts = [(found[s], e, w, b) for ((s, e, w),), b in zip(step.rows, step.bias, strict=True)]
    values = [
        (int(o.nodes[e]), int(o.elements[e]), w * int(o.factor[e]), w * int(o.shift[e]) + b)
        for o, e, w, b in parts
    ]
    if any(abs(f) >= 2**31 or abs(c) >= 2**31 for _, _, f, c in values):
        return own
    nodes, elements, factor, shift = (
        np.array(column, dtype=np.int64) for column in zip(*values, strict=True)
    )
    return Origin(nodes, elements, factor, shift)


def _signed_copy(net: IntegerCircuit, number: int, other: int) -> NumpyArray | None:
    """The sign of every element, if one node computes what the other does, or the negative of
    it."""
    a, b = net.compiled.get(number), net.compiled.get(other)
    if (
        not isinstance(a, LinearRows)
        or not isinstance(b, LinearRows)
        or net.nodes[number]["op"] != net.nodes[other]["op"]
    ):
        return None
    if len(a.rows) != len(b.rows) or a.sources != b.sources:
        return None
    signs = []
    for one, two, c, d in zip(a.rows, b.rows, a.bias, b.bias, strict=True):
        if one == two and c == d:
            signs.append(1)
        elif c == -d and [(s, e, -w) for s, e, w in two] == one:
            signs.append(-1)
        else:
            return None
    return np.array(signs, dtype=np.int64)


def integer_range(dtype: Any) -> tuple[int, int]:
    """Least and greatest number of an integer type, by the name that ONNX has for it."""
    name = np.dtype(dtype).name
    digits = "".join(c for c in name if c.isdigit())
    need(
        bool(digits) and name.removesuffix(digits) in ("int", "uint"),
        f"numbers of type {name} are not integers",
    )
    bits = int(digits)
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
