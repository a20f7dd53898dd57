"""Elementwise operators with known operands: every one is a monotone step of a chain, in the type
of the file.

Float operators are single float32 operations, each correctly rounded, so that a chain of them is
exact (see ``lattice``). BatchNormalization is what onnxruntime computes for it: the factor
``scale * (1 / sqrt(var + eps))`` and the addend ``bias - mean * factor``, all in float32, then a
product and a sum. Integer operators must not leave the range of their type: onnxruntime wraps
there, and a wrapped accumulator is not monotone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.lattice import (
    CAST,
    FLOAT32,
    RAW,
    ChainStep,
    Lattice,
    picked,
    spread_over,
)
from bitcrown.quant.formats.rule_table import NoRule, Reading, node_label, reads, type_range
from bitcrown.quant.formats.sums import pairwise_sum
from bitcrown.quant.network.graph import Numbers

_Function = Callable[..., Any]


def _operand(reading: Reading, name: str, lattice: Lattice) -> tuple[Numbers, Lattice]:
    """A constant as a parameter [1] or [N], and the tensor, repeated where the constant has more
    elements."""
    value = reading.constants[name]
    if not np.isfinite(value.astype(np.float64)).all():
        raise NoRule(f"constant {name!r} has entries that are not finite")
    shape = np.broadcast_shapes(lattice.shape, value.shape)
    if shape != lattice.shape:
        lattice = _broadcast(reading, lattice, shape)
    return spread_over(value if lattice.is_float else value.astype(np.int64), shape), lattice


def _broadcast(reading: Reading, lattice: Lattice, shape: tuple[int, ...]) -> Lattice:
    index = np.broadcast_to(np.arange(lattice.size).reshape(lattice.shape), shape)
    return rearranged(reading, lattice, index)


def rearranged(reading: Reading, lattice: Lattice, index: Numbers) -> Lattice:
    """The tensor of ``index.shape`` whose elements are those of ``lattice`` at ``index``."""
    flat = np.ascontiguousarray(index, dtype=np.int64).reshape(-1)
    shape, chain = tuple(index.shape), picked(lattice.chain, flat)
    if lattice.node == RAW:
        assert lattice.order is not None
        return Lattice(RAW, shape, lattice.dtype, chain, lattice.order[flat])
    moved = Lattice(lattice.node, shape, lattice.dtype, chain)
    return moved.on(reading.assembly.gather((lattice.node,), flat, moved.sample_shape), chain)


def _stepped(
    reading: Reading, node: OnnxNode, lattice: Lattice, step: ChainStep, dtype: Any = None
) -> None:
    """Bind ``lattice`` with one more step, after a look at overflow where the result is an
    integer."""
    result = lattice.then(step, dtype)
    reading.check_width(result, node_label(node))
    reading.bind(node, result)


@reads("Add", "Sub", "Mul", "Div")
def arithmetic(reading: Reading, node: OnnxNode) -> None:
    left, right = node.inputs
    if not reading.is_constant(left) and not reading.is_constant(right):
        if node.op not in ("Add", "Sub"):
            raise NoRule(
                f"{node_label(node)} of two tensors that both depend on the input is not linear"
            )
        reading.bind(
            node, pairwise_sum(reading, node, reading.lattice(left), reading.lattice(right))
        )
        return
    first = reading.is_constant(left)
    lattice = reading.lattice(right if first else left)
    operand, lattice = _operand(reading, left if first else right, lattice)
    if first and node.op == "Div":
        raise NoRule(f"Div {node.name!r} divides by a tensor that depends on the input")
    _stepped(reading, node, lattice, _arithmetic_step(node, operand, first, lattice.is_float))


def _arithmetic_step(node: OnnxNode, operand: Numbers, first: bool, is_float: bool) -> ChainStep:
    keeps = (
        bool((operand == np.rint(operand)).all()) and float(np.abs(operand).max(initial=0)) < 2**23
    )
    if node.op == "Div":
        if (operand == 0).any():
            raise NoRule(f"Div {node.name!r} divides by zero")
        return ChainStep(
            "Div", np.divide if is_float else _towards_zero, (operand,), keeps_whole=not is_float
        )
    functions: dict[str, _Function] = {
        "Add": np.add,
        "Mul": np.multiply,
        "Sub": _from if first else np.subtract,
    }
    name = "Sub from" if first and node.op == "Sub" else node.op
    # a float product of whole numbers stays whole, but a scale belongs to what follows, not to the
    # integers
    return ChainStep(
        name,
        functions[node.op],
        (operand,),
        keeps_whole=keeps and (node.op != "Mul" or not is_float),
    )


def _from(values: Numbers, minuend: Numbers) -> Numbers:
    return np.asarray(minuend - values)


def _towards_zero(values: Numbers, divisor: Numbers) -> Numbers:
    return np.asarray(np.sign(values) * np.sign(divisor) * (np.abs(values) // np.abs(divisor)))


@reads("Relu")
def relu(reading: Reading, node: OnnxNode) -> None:
    lattice = reading.lattice(node.inputs[0])
    zero = np.zeros(1, dtype=FLOAT32 if lattice.is_float else np.int64)
    _stepped(reading, node, lattice, ChainStep("Relu", np.maximum, (zero,), keeps_whole=True))


@reads("Max", "Min")
def extreme(reading: Reading, node: OnnxNode) -> None:
    if len(node.inputs) != 2 or reading.is_constant(node.inputs[0]) == reading.is_constant(
        node.inputs[1]
    ):
        raise NoRule(f"{node_label(node)} is supported for one tensor and one constant")
    first = reading.is_constant(node.inputs[0])
    lattice = reading.lattice(node.inputs[int(first)])
    operand, lattice = _operand(reading, node.inputs[int(not first)], lattice)
    keeps = bool((operand == np.rint(operand)).all())
    function = np.maximum if node.op == "Max" else np.minimum
    _stepped(reading, node, lattice, ChainStep(node.op, function, (operand,), keeps_whole=keeps))


@reads("Clip")
def clip(reading: Reading, node: OnnxNode) -> None:
    lattice = reading.lattice(node.inputs[0])
    kind: Any = FLOAT32 if lattice.is_float else np.int64
    if lattice.is_float:
        open_: tuple[Any, Any] = (np.finfo(np.float32).min, np.finfo(np.float32).max)
    else:
        open_ = type_range(lattice.dtype)
    ends = []
    for position, key in ((1, "min"), (2, "max")):
        given = (
            reading.constant(node, position) if reading.has(node, position) else node.attrs.get(key)
        )
        ends.append(
            np.asarray(open_[position - 1] if given is None else given, dtype=kind).reshape(1)
        )
    keeps = all(bool(end == np.rint(end)) for end in ends)
    _stepped(reading, node, lattice, ChainStep("Clip", _clipped, tuple(ends), keeps_whole=keeps))


def _clipped(values: Numbers, low: Numbers, high: Numbers) -> Numbers:
    return np.asarray(np.minimum(np.maximum(values, low), high))


@reads("Floor", "Ceil", "Round", "Sign", "Neg", "Identity")
def unary(reading: Reading, node: OnnxNode) -> None:
    lattice = reading.lattice(node.inputs[0])
    functions: dict[str, _Function] = {
        "Floor": np.floor,
        "Ceil": np.ceil,
        "Round": np.rint,
        "Sign": np.sign,
        "Neg": np.negative,
    }
    if node.op == "Identity":
        reading.bind(node, lattice)
        return
    whole = node.op != "Neg"
    _stepped(
        reading,
        node,
        lattice,
        ChainStep(node.op, functions[node.op], whole=whole, keeps_whole=True),
    )


@reads("LeakyRelu")
def leaky_relu(reading: Reading, node: OnnxNode) -> None:
    slope = np.array([node.attrs.get("alpha", 0.01)], dtype=FLOAT32)
    if not slope[0] >= 0:
        raise NoRule(f"LeakyRelu {node.name!r} has a negative slope and is not monotone")
    _stepped(
        reading, node, reading.lattice(node.inputs[0]), ChainStep("LeakyRelu", _leaky, (slope,))
    )


def _leaky(values: Numbers, slope: Numbers) -> Numbers:
    return np.asarray(np.where(values >= 0, values, values * slope))


@reads("BatchNormalization")
def batch_normalization(reading: Reading, node: OnnxNode) -> None:
    if node.attrs.get("training_mode", 0):
        raise NoRule(
            f"BatchNormalization {node.name!r} is in training mode; export the network for "
            "inference"
        )
    lattice = reading.lattice(node.inputs[0])
    scale, bias, mean, variance = (reading.constant(node, k).astype(FLOAT32) for k in range(1, 5))
    with np.errstate(all="ignore"):
        factor = scale * (
            np.float32(1) / np.sqrt(variance + np.float32(node.attrs.get("epsilon", 1e-5)))
        )
        addend = bias - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(addend).all()):
        raise NoRule(f"BatchNormalization {node.name!r} has parameters that are not finite")
    axes = (1, -1, *(1,) * (len(lattice.shape) - 2))
    product = ChainStep(
        "BatchNormalization factor",
        np.multiply,
        (spread_over(factor.reshape(axes), lattice.shape),),
    )
    total = ChainStep(
        "BatchNormalization addend", np.add, (spread_over(addend.reshape(axes), lattice.shape),)
    )
    reading.bind(node, lattice.then(product).then(total))


@reads("BitShift")
def bit_shift(reading: Reading, node: OnnxNode) -> None:
    lattice = reading.lattice(node.inputs[0])
    amount, lattice = _operand(reading, node.inputs[1], lattice)
    low, high = type_range(lattice.dtype)
    if low < 0 or (amount < 0).any() or (amount >= high.bit_length()).any():
        raise NoRule(f"BitShift {node.name!r} needs an unsigned tensor and a shift below its width")
    function = np.right_shift if node.attrs.get("direction") == "RIGHT" else np.left_shift
    _stepped(reading, node, lattice, ChainStep("BitShift", function, (amount,), keeps_whole=True))


@reads("Cast")
def cast(reading: Reading, node: OnnxNode) -> None:
    """Casts that change no number, or round one to float32; a float is cut towards zero."""
    lattice = reading.lattice(node.inputs[0])
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    if target == lattice.dtype:
        reading.bind(node, lattice)
    elif target == FLOAT32:
        reading.bind(node, lattice.then(CAST, FLOAT32))
    elif target.kind == "f":
        raise NoRule(f"Cast {node.name!r} goes to {target}; float32 is supported")
    else:
        _stepped(
            reading, node, lattice, ChainStep("Cast", _cut, whole=True, keeps_whole=True), target
        )


def _cut(values: Numbers) -> Numbers:
    return np.trunc(values).astype(np.int64) if values.dtype.kind == "f" else values
