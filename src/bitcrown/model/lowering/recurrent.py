"""Recurrent layers (``LSTM``, ``GRU``, ``RNN``) unrolled: one step of the cell for each element of
the sequence.

The sequence has as many elements as the file says, so a layer is a feed-forward network: affine
maps of the input and of the state before, activations, and products of gates. The product with the
input is one affine map for the whole sequence. Gates stand one below the other in the weights, in
the order of the standard: ``i o f c`` (LSTM), ``z r h`` (GRU).

``DynamicQuantizeLSTM`` has weights of integers, ``W [D, I, G H]``, and quantizes what meets them:
the whole input sequence at once, and each state before it is used.

Legend: ``T`` steps, ``B`` batch, ``I`` inputs, ``H`` state, ``G`` gates, ``D`` directions (1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_DYNAMIC = "com.microsoft.DynamicQuantizeLSTM"
_SMOOTH = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "softplus": "Softplus"}
_MOST_STEPS = 1024
Step = Callable[[str, tuple[str, ...]], tuple[str, ...]]


@dataclass(frozen=True)
class _Cell:
    """One direction of a layer: ``W [G H, I]``, ``R [G H, H]``, biases ``[G H]`` of input and
    state."""

    b: Builder
    node: OnnxNode
    size: int
    w: np.ndarray
    r: np.ndarray
    w_bias: np.ndarray
    r_bias: np.ndarray
    peepholes: np.ndarray | None
    activations: tuple[str, ...]
    limit: float
    """Arguments of activations are clipped to ``[-limit, limit]``."""
    is_quantized: bool = False
    """Whether states are quantized before they meet the weights."""

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return self.b.emit("Linear", (x,), params=params)

    def gate(self, x: str, index: int) -> str:
        """Gate ``index`` of ``x [B, G H]``."""
        return self.b.sliced(x, 1, index * self.size, (index + 1) * self.size)

    def activated(self, x: str, which: int) -> str:
        if np.isfinite(self.limit):
            x = self.b.emit("Clip", (x,), {"min": -self.limit, "max": self.limit})
        return self.b.emit(self.activations[which], (x,))

    def added(self, *parts: str) -> str:
        total = parts[0]
        for part in parts[1:]:
            total = self.b.binary("Add", total, part)
        return total

    def seen(self, x: str, cell: str, index: int) -> str:
        """``x + p_index * cell``: what the gate sees of the cell state through its peephole."""
        if self.peepholes is None:
            return x
        weight = self.peepholes[index * self.size : (index + 1) * self.size]
        return self.b.binary("Add", x, self.b.scaled(cell, weight, None))

    def rnn(self, x: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """``h' = f(W x + R h + b)``."""
        return (self.activated(self.added(x, self.linear(state[0], self.r, self.r_bias)), 0),)

    def lstm(self, x: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """``c' = f c + i g``, ``h' = o tanh(c')`` with gates ``i o f`` and candidate ``g``."""
        h, c = state
        h = self.b.emit("DynamicQuantize", (h,)) if self.is_quantized else h
        total = self.added(x, self.linear(h, self.r, self.r_bias))
        i = self.activated(self.seen(self.gate(total, 0), c, 0), 0)
        forget = self.activated(self.seen(self.gate(total, 2), c, 2), 0)
        candidate = self.activated(self.gate(total, 3), 1)
        kept, new = self.b.binary("Mul", forget, c), self.b.binary("Mul", i, candidate)
        c = self.b.binary("Add", kept, new)
        o = self.activated(self.seen(self.gate(total, 1), c, 1), 0)
        return self.b.binary("Mul", o, self.b.emit(self.activations[2], (c,))), c

    def gru(self, x: str, state: tuple[str, ...]) -> tuple[str, ...]:
        """``h' = (1 - z) n + z h`` with the candidate ``n``, which sees ``h`` through the reset
        gate ``r``."""
        h, size, b = state[0], self.size, self.b
        gates = self.added(
            b.sliced(x, 1, 0, 2 * size), self.linear(h, self.r[: 2 * size], self.r_bias[: 2 * size])
        )
        z = self.activated(self.gate(gates, 0), 0)
        r = self.activated(self.gate(gates, 1), 0)
        weight, bias = self.r[2 * size :], self.r_bias[2 * size :]
        if self.node.attrs.get("linear_before_reset", 0):
            through = b.binary("Mul", r, self.linear(h, weight, bias))
        else:
            through = self.linear(b.binary("Mul", r, h), weight, bias)
        n = self.activated(self.added(b.sliced(x, 1, 2 * size, 3 * size), through), 1)
        # (1 - z) n + z h = n + z (h - n): one product instead of two, so one relaxation
        return (b.binary("Add", n, b.binary("Mul", z, b.binary("Sub", h, n))),)

    def run(
        self, x: str, state: tuple[str, ...], backward: bool
    ) -> tuple[list[str], tuple[str, ...]]:
        """States ``h [B, H]`` of all steps in the order of the sequence, and the last state."""
        steps, batch, _ = self.b.shape(x)
        mapped = self.linear(x, self.w, self.w_bias)
        step: Step = {"RNN": self.rnn, "GRU": self.gru, "LSTM": self.lstm}[self.node.op]
        found = []
        for t in reversed(range(steps)) if backward else range(steps):
            row = self.b.reshaped(self.b.sliced(mapped, 0, t, t + 1), (batch, len(self.w)))
            state = step(row, state)
            found.append(state[0])
        return found[::-1] if backward else found, state


@lowers(_DYNAMIC)
def quantized_recurrent(b: Builder, node: OnnxNode) -> None:
    """An ``LSTM`` whose first weights are what the integers stand for. Inputs from the ninth on:
    scale and zero point of ``W``, those of ``R``, one a direction or one a column."""
    b.source = node.name
    names = []
    for k, place in ((1, 8), (2, 10)):
        weight = b.constant(node.inputs[k], "the weights").astype(np.float64)
        scale, zero = (
            b.constant(node.inputs[place + i], "a scale or zero point").astype(np.float64)
            for i in range(2)
        )
        spread = [part.reshape(len(weight), 1, -1) for part in (scale, zero)]
        names.append(f"{node.inputs[k]}/{node.name}/real")
        b.constants[names[-1]] = ((weight - spread[1]) * spread[0]).swapaxes(1, 2)
    inputs = (node.inputs[0], *names, *node.inputs[3:8])
    _unroll(b, replace(node, op="LSTM", inputs=inputs), is_quantized=True)


@lowers("LSTM", "GRU", "RNN")
def recurrent(b: Builder, node: OnnxNode) -> None:
    _unroll(b, node, is_quantized=False)


def _unroll(b: Builder, node: OnnxNode, is_quantized: bool) -> None:
    given = dict(enumerate(node.inputs))
    if node.attrs.get("layout", 0):  # onnxruntime has no kernel for it either
        raise UnsupportedError(f"node {node.name!r} ({node.op}) has its batch first")
    x = b.node_of(node.inputs[0])
    x = b.emit("DynamicQuantize", (x,)) if is_quantized else x
    steps, batch, _ = b.shape(x)
    if steps > _MOST_STEPS:
        raise UnsupportedError(f"node {node.name!r} ({node.op}) has a sequence of {steps} steps")
    if given.get(4) and any(n != steps for n in b.integers(node.inputs[4], "the lengths")):
        raise UnsupportedError(
            f"node {node.name!r} ({node.op}) has sequences shorter than its input"
        )
    directions = 2 if node.attrs.get("direction", "forward") == "bidirectional" else 1
    states = [given.get(5, ""), given.get(6, "")][: 2 if node.op == "LSTM" else 1]
    rows: list[list[str]] = []
    lasts: list[tuple[str, ...]] = []
    for d in range(directions):
        cell = replace(_cell(b, node, d, directions), is_quantized=is_quantized)
        start = tuple(_start(b, tensor, d, (batch, cell.size)) for tensor in states)
        is_backward = d == 1 or node.attrs.get("direction") == "reverse"
        found, last = cell.run(x, start, is_backward)
        rows.append(found)
        lasts.append(last)
    size = b.shape(rows[0][0])[1]
    for output, tensor in enumerate(node.outputs):
        if not tensor:
            continue
        if output == 0:  # [T, D, B, H]
            parts = [rows[d][t] for t in range(steps) for d in range(directions)]
            value = b.reshaped(_stacked(b, parts), (steps, directions, batch, size))
        else:  # [D, B, H]
            value = _stacked(b, [last[output - 1] for last in lasts])
        b.bind(node, value, output)


def _stacked(b: Builder, parts: list[str]) -> str:
    """``[k, B, H]`` of ``k`` parts ``[B, H]``."""
    wide = [b.reshaped(part, (1, *b.shape(part))) for part in parts]
    return wide[0] if len(wide) == 1 else b.emit("Concat", tuple(wide), {"axis": 0})


def _cell(b: Builder, node: OnnxNode, direction: int, directions: int) -> _Cell:
    gates = _GATES[node.op]
    w, r = (
        b.constant(tensor, what).astype(np.float64)[direction]
        for tensor, what in zip(node.inputs[1:3], ("the weights", "the recurrence"), strict=True)
    )
    size = r.shape[1]
    if w.shape[0] != gates * size or r.shape[0] != gates * size:
        raise ModelError(f"node {node.name!r} ({node.op}): its weights do not fit {size} states")
    bias = np.zeros(2 * gates * size)
    if len(node.inputs) > 3 and node.inputs[3]:
        bias = b.constant(node.inputs[3], "the bias").astype(np.float64)[direction]
    peepholes = None
    if len(node.inputs) > 7 and node.inputs[7]:
        peepholes = b.constant(node.inputs[7], "the peepholes").astype(np.float64)[direction]
    if node.attrs.get("input_forget", 0):
        raise UnsupportedError(f"node {node.name!r}: gates of input and forgetting are coupled")
    return _Cell(
        b,
        node,
        size,
        w,
        r,
        bias[: gates * size],
        bias[gates * size :],
        peepholes,
        _activations(node, direction, directions),
        node.real("clip", float("inf")),
    )


def _activations(node: OnnxNode, direction: int, directions: int) -> tuple[str, ...]:
    count = len(_ACTIVATIONS[node.op])
    names = list(node.attrs.get("activations") or _ACTIVATIONS[node.op] * directions)
    words = [w.decode() if isinstance(w, bytes) else str(w) for w in names]
    mine = words[direction * count : (direction + 1) * count]
    if len(mine) != count or any(word.lower() not in _SMOOTH for word in mine):
        raise UnsupportedError(f"node {node.name!r} ({node.op}) with activations {words}")
    return tuple(_SMOOTH[word.lower()] for word in mine)


def _start(b: Builder, tensor: str, direction: int, shape: tuple[int, int]) -> str:
    """The first state ``[B, H]`` of a direction, zero where none is given."""
    if not tensor:
        return b.known(np.zeros(shape))
    return b.reshaped(b.sliced(b.node_of(tensor), 0, direction, direction + 1), shape)
