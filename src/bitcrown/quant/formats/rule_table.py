"""The state of reading a quantized ONNX file, and the table of its operators: one function an
operator.

A tensor of the file is a constant (a numpy array in the file's type, perhaps with the integers and
the scale that it was dequantized from) or a ``Lattice``. Rules write into ``Reading``; a node whose
inputs are all constant is computed by onnxruntime itself, so that its value has the file's own
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.lattice import (
    CAST,
    FLOAT32,
    RAW,
    ChainStep,
    Lattice,
    chain_values,
    channels_of,
    is_same_chain,
    picked,
)
from bitcrown.quant.network.assembly import Assembly
from bitcrown.quant.network.entry import RoundedEntry
from bitcrown.quant.network.graph import Entry, Input, Ints, Numbers, QuantError

ReadingRule = Callable[["Reading", OnnxNode], None]
READING_RULES: dict[str, ReadingRule] = {}

_MOST_BLURRED = 1 << 12
_LOOKS = 32
"""Places of an accumulator's range at which a step is looked at before it is compiled."""
_MOST_LEVELS = 2**24
"""Whole numbers beyond this size are no longer all float32 numbers."""


def reads(*names: str) -> Callable[[ReadingRule], ReadingRule]:
    """Register a rule for the ONNX operators ``names`` (with their domain, but for the standard
    one)."""

    def remember(function: ReadingRule) -> ReadingRule:
        for name in names:
            READING_RULES[name] = function
        return function

    return remember


def node_label(node: OnnxNode) -> str:
    """How messages name a node."""
    return f"{node.op} {node.name!r}"


class NoRule(QuantError):
    """The operator is known, but not what the file does with it; collected like unknown
    operators."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The integers behind a dequantized constant: value = ``ints * scale`` up to the rounding of
    that product.

    ``ints``: int64, zero point subtracted; ``scale``: float64; both of the constant's shape.
    """

    ints: Ints
    scale: Numbers


@dataclass
class Reading:
    assembly: Assembly = field(default_factory=Assembly)
    constants: dict[str, Numbers] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    tensors: dict[str, Lattice] = field(default_factory=dict)
    trace: dict[str, int] = field(default_factory=dict)
    """Integer tensors of the file and their nodes, for the comparison with the runtime."""
    final: frozenset[str] = frozenset()
    """Tensors that nothing but a DequantizeLinear separates from the outputs."""
    entry: Entry | None = None
    entry_chain: tuple[ChainStep, ...] = ()
    input_shape: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)

    def lattice(self, name: str) -> Lattice:
        try:
            return self.tensors[name]
        except KeyError:
            raise NoRule(
                f"{name!r} is expected to depend on the input, but is a constant or is missing"
            ) from None

    def constant(self, node: OnnxNode, position: int, default: Any = None) -> Numbers:
        """Input ``position`` of the node, which has to be known; ``default`` where it is left
        out."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        if not name and default is not None:
            return np.asarray(default)
        if name not in self.constants:
            raise NoRule(f"{node.op} {node.name!r} needs a constant as input {position}")
        return self.constants[name]

    def has(self, node: OnnxNode, position: int) -> bool:
        return position < len(node.inputs) and bool(node.inputs[position])

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def bind(self, node: OnnxNode, lattice: Lattice) -> None:
        self.tensors[node.outputs[0]] = lattice

    def bind_settled(self, node: OnnxNode, lattice: Lattice) -> None:
        """Bind an integer tensor as a node of its own, and remember it for the comparison with the
        runtime."""
        if node.outputs[0] not in self.final:
            self._check_sharpness(lattice, node_label(node))
        settled = self.settled(lattice)
        self.tensors[node.outputs[0]] = settled
        low, high = type_range(lattice.dtype)
        if high - low >= 255:  # Python cannot fetch narrower tensors from onnxruntime
            self.trace[node.outputs[0]] = settled.node

    def _check_sharpness(self, lattice: Lattice, label: str) -> None:
        """Refuse steps of 16 bits behind sums in float32 that are not exact. An interval of reals
        says as much there: half a step is nothing, the order of summation is open all the same,
        and every one of the thresholds costs."""
        if lattice.node == RAW or not any(step.spread for step in lattice.chain):
            return
        shape = self.assembly.nodes[lattice.node].shape
        channels = channels_of(lattice.chain, lattice.size, shape)
        low = self.assembly.low[lattice.node].reshape(channels, -1).min(axis=1)
        high = self.assembly.high[lattice.node].reshape(channels, -1).max(axis=1)
        share = np.arange(_LOOKS + 1) / _LOOKS
        q = low[:, None] + np.floor(share * (high - low)[:, None]).astype(np.int64)
        index = np.arange(channels) * (lattice.size // channels)
        least, greatest = chain_values(lattice.chain, q, index)
        levels = int((greatest.max(axis=1) - least.min(axis=1)).max(initial=0))
        if levels > _MOST_BLURRED and (least != greatest).any():
            raise NoRule(
                f"{label} has {levels + 1} levels behind float32 sums in no specified order"
            )

    def ends(self, lattice: Lattice) -> tuple[Numbers, Numbers]:
        """[N] least and greatest value of every element over the network's whole input range."""
        index = np.arange(lattice.size)
        if lattice.node == RAW:
            reach = np.finfo(np.float32)
            q = np.broadcast_to(np.array([reach.min, reach.max], np.float32), (lattice.size, 2))
        else:
            q = np.stack(
                [self.assembly.low[lattice.node], self.assembly.high[lattice.node]], axis=1
            )
        least, greatest = chain_values(lattice.chain, q, index)
        return least.min(axis=1), greatest.max(axis=1)

    def check_width(self, lattice: Lattice, label: str) -> None:
        """Refuse integers that can leave the range of their type: the runtime wraps there."""
        if lattice.is_float:
            return
        low, high = type_range(lattice.dtype)
        least, greatest = self.ends(lattice)
        if least.min(initial=0) < low or greatest.max(initial=0) > high:
            reach = f"{int(least.min())} to {int(greatest.max())}"
            raise NoRule(f"{label} can leave the range of {lattice.dtype} ({reach}); clip first")

    def settled(self, lattice: Lattice) -> Lattice:
        """The same tensor with an empty chain; its values have to be whole numbers."""
        if lattice.node == RAW:
            return self._entered(lattice)
        if not lattice.chain:
            return lattice
        source = self.assembly.nodes[lattice.node]
        channels = channels_of(lattice.chain, lattice.size, source.shape)
        index = np.arange(channels) * (lattice.size // channels)

        def levels(q: Ints) -> tuple[Ints, Ints]:
            least, greatest = chain_values(lattice.chain, q, index)
            level: Ints = least.astype(np.int64)
            return level, level if greatest is least else greatest.astype(np.int64)

        note = ", ".join(step.name for step in lattice.chain)
        if self.assembly.is_identity(lattice.node, channels, levels):
            return lattice.on(lattice.node)
        return lattice.on(self.assembly.staircase(lattice.node, channels, levels, note))

    def _entered(self, lattice: Lattice) -> Lattice:
        """The input node, made by the first step that turns the whole real input into integers."""
        order = lattice.order
        assert order is not None
        if (
            len(order) != int(np.prod(self.input_shape))
            or (np.sort(order) != np.arange(len(order))).any()
        ):
            raise NoRule(
                "only a part of the input is quantized, or a part of it twice; quantize the whole "
                "input once"
            )
        chain = picked(lattice.chain, np.argsort(order))
        if self.entry is None:
            self.enter_rounded(chain, lattice)
        elif not is_same_chain(chain, self.entry_chain):
            raise NoRule("the input is quantized in two different ways; quantize it once")
        node = self.assembly.gather((0,), order, lattice.sample_shape)
        return Lattice(node, lattice.shape, lattice.dtype)

    def enter_rounded(self, chain: tuple[ChainStep, ...], lattice: Lattice) -> None:
        size = lattice.size

        def levels(values: Numbers) -> Ints:
            """[B, N] -> [B, N]."""
            return chain_values(chain, values.T, np.arange(size))[0].T.astype(np.int64)

        self.entry, self.entry_chain = RoundedEntry(size, levels), chain
        far = self.entry.reach()
        extremes = np.broadcast_to(np.array([-far, far], np.float32), (size, 2))
        if np.abs(chain_values(chain, extremes, np.arange(size))[0]).max(initial=0) >= _MOST_LEVELS:
            raise NoRule("the input is rounded without limits; clip it, or quantize it to 8 bits")
        ends = levels(extremes.T)
        self.assembly.add(
            Input(self.input_shape[1:] or (size,), ends.min(axis=0), ends.max(axis=0))
        )

    def whole(self, lattice: Lattice) -> Lattice:
        """Settle the longest first part of a float chain that gives whole numbers; the rest stays a
        chain."""
        if not lattice.is_float:
            return self.settled(lattice)
        length, running = 0, False
        for position, step in enumerate(lattice.chain):
            running = step.whole or (running and step.keeps_whole)
            length = position + 1 if running else length
        first, rest = lattice.chain[:length], lattice.chain[length:]
        if not first or (first == (CAST,) and lattice.node != RAW):
            return lattice
        settled = self.settled(Lattice(lattice.node, lattice.shape, FLOAT32, first, lattice.order))
        return Lattice(settled.node, lattice.shape, FLOAT32, (CAST, *rest))


def type_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Least and greatest number of an integer type of 2 to 64 bits, as ONNX names them."""
    name = np.dtype(dtype).name
    digits = "".join(c for c in name if c.isdigit())
    if not digits or name.removesuffix(digits) not in ("int", "uint"):
        raise NoRule(f"numbers of type {name} are not integers")
    bits = int(digits)
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
