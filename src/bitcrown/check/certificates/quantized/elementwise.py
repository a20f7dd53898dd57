"""The checker's rules for arithmetic on single elements.

A step is what onnxruntime computes for one element with known operands: one correctly rounded
float32 operation, or an exact one on integers. So each is monotone, which ``chain.encloses`` needs.
Integers stay below 2^53 in size, so that nothing wraps in the checker; where something may wrap in
the file, by the width of its type, it is refused (``FileReading.bind``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.onnx_files import cut_quotient
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    INTEGER_LIMIT,
    TO_FLOAT,
    ChainLink,
    ChainTensor,
    NumpyArray,
    as_parameter,
    values_of,
)
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    integer_range,
    quantized_rule,
)

_EXACT = 1 << 53


def stepped(
    reading: FileReading,
    node: Operator,
    tensors: list[ChainTensor],
    step: ChainLink,
    dtype: Any = None,
) -> None:
    reading.bind(node, [tensor.then(step, dtype) for tensor in tensors])


def is_whole(values: NumpyArray) -> bool:
    return (
        bool((values == np.rint(values)).all()) and float(np.abs(values).max(initial=0)) < 2.0**23
    )


def finite(value: NumpyArray, node: Operator) -> NumpyArray:
    need(
        bool(np.isfinite(value.astype(np.float64)).all()),
        f"{node} has an operand that is not finite",
    )
    return value


@quantized_rule("Add", "Sub", "Mul", "Div", "Max", "Min")
def with_constant(reading: FileReading, node: Operator) -> None:
    """One operand is known, the other one depends on the input; two that do are a sum
    (``pairs``)."""
    need(len(node.inputs) == 2, f"{node} has {len(node.inputs)} operands")
    known = [name in reading.constants for name in node.inputs]
    if not any(known):
        from bitcrown.check.certificates.quantized.pairs import sum_of_two

        sum_of_two(reading, node)
        return
    name, other = node.inputs if known[1] else node.inputs[::-1]
    value = finite(reading.constants[other], node)
    tensors = reading.given(name)
    tensors = [_broadcast(t, np.broadcast_shapes(t.shape, value.shape)) for t in tensors]
    is_float = tensors[0].is_float
    if not is_float:
        tensors = [t for t in tensors if _is_exact(reading, node.op, t, value)]
        need(bool(tensors), f"{node} computes integers too large to be followed")
    operand = as_parameter(value if is_float else value.astype(np.int64), tensors[0].shape)
    keeps = is_whole(operand)
    need(
        node.op != "Div" or (known[1] and bool((operand != 0).all())),
        f"{node} divides by what it may not",
    )
    functions: dict[str, tuple[Callable[..., Any], bool]] = {
        "Add": (np.add, keeps),
        "Sub": (np.subtract if known[1] else lambda v, c: c - v, keeps),
        "Mul": (np.multiply, keeps and not is_float),
        "Div": (np.divide if is_float else cut_quotient, not is_float),
        "Max": (np.maximum, keeps),
        "Min": (np.minimum, keeps),
    }
    function, keeps = functions[node.op]
    stepped(
        reading,
        node,
        tensors,
        ChainLink(f"{node.op} {known}", function, (operand,), keeps=keeps),
    )


def _is_exact(reading: FileReading, op: str, tensor: ChainTensor, operand: NumpyArray) -> bool:
    """Whether no result can leave what float64 and int64 hold: nothing wraps in the checker, then,
    and ``check_width`` sees whether anything does in the file."""
    if operand.dtype.kind not in "iu":
        return False
    size = max(-int(operand.min(initial=0)), int(operand.max(initial=0)))
    reach = max(map(abs, reading.range_of(tensor)))
    return (reach * size if op == "Mul" else reach + size) < _EXACT


def _is_within(reading: FileReading, tensor: ChainTensor, target: Any) -> bool:
    """Whether real numbers stay where cutting them to ``target`` is defined: beyond, x86 has the
    least integer for either sign, which does not rise, and the ends would say nothing of what lies
    between."""
    ends = np.stack(reading.ends(tensor), axis=1)
    least, greatest = values_of(tensor.chain, ends, np.arange(tensor.size))
    low, high = (max(-_EXACT, min(_EXACT, end)) for end in integer_range(target))
    return low - 1 < float(least.min(initial=0)) and float(greatest.max(initial=0)) < high + 1


def _broadcast(tensor: ChainTensor, shape: tuple[int, ...]) -> ChainTensor:
    if shape == tensor.shape:
        return tensor
    return tensor.moved(np.broadcast_to(np.arange(tensor.size).reshape(tensor.shape), shape))


@quantized_rule("Relu", "LeakyRelu", "Floor", "Ceil", "Round", "Sign", "Neg", "Identity")
def alone(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    if node.op == "Identity":
        reading.bind(node, tensors)
        return
    zero = np.zeros(1, BINARY32 if tensors[0].is_float else np.int64)
    slope = np.array([node.attrs.get("alpha", 0.01)], BINARY32)
    need(
        node.op != "LeakyRelu" or (slope[0] >= 0 and tensors[0].is_float), f"{node} is not monotone"
    )
    whole = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.rint, "Sign": np.sign}
    if node.op in whole:
        step = ChainLink(node.op, whole[node.op], whole=True)
    elif node.op == "Relu":
        step = ChainLink("Relu", np.maximum, (zero,), keeps=True)
    elif node.op == "Neg":
        step = ChainLink("Neg", np.negative, keeps=True)
    else:
        step = ChainLink("LeakyRelu", lambda v, a: np.where(v >= 0, v, v * a), (slope,))
    stepped(reading, node, tensors, step)


@quantized_rule("Clip")
def clip(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    is_float = tensors[0].is_float
    most = float(np.finfo(np.float32).max) if is_float else INTEGER_LIMIT
    given = []
    for position, key, end in ((1, "min", -most), (2, "max", most)):
        value = (
            reading.constant(node, position)
            if node.has(position)
            else np.asarray(node.attrs.get(key, end))
        )
        need(
            value.size == 1 and not np.isnan(value).any(),
            f"{node} has ends that are not numbers",
        )
        # as Python's numbers, since numpy has -1 for uint64's greatest in int64
        near = max(-most, min(most, value.reshape(()).item()))
        given.append(np.array([near], BINARY32 if is_float else np.int64))
    low, high = given
    keeps = not is_float or (is_whole(low) and is_whole(high))
    stepped(reading, node, tensors, ChainLink("Clip", _clipped, (low, high), keeps=keeps))


def _clipped(values: NumpyArray, low: NumpyArray, high: NumpyArray) -> NumpyArray:
    return np.asarray(np.minimum(np.maximum(values, low), high))


@quantized_rule("BatchNormalization")
def batch_normalization(reading: FileReading, node: Operator) -> None:
    """``x * f + (bias - mean * f)`` with ``f = scale * (1 / sqrt(var + eps))``, all in float32."""
    need(not node.attrs.get("training_mode", 0), f"{node} is in training mode")
    scale, bias, mean, variance = (reading.constant(node, k).astype(BINARY32) for k in range(1, 5))
    with np.errstate(all="ignore"):
        factor = scale * (
            np.float32(1) / np.sqrt(variance + np.float32(node.attrs.get("epsilon", 1e-5)))
        )
        addend = finite(bias - mean * finite(factor, node), node)
    tensors = reading.given(node.inputs[0])
    shape = tensors[0].shape
    axes = (1, -1, *(1,) * (len(shape) - 2))
    product = ChainLink("factor", np.multiply, (as_parameter(factor.reshape(axes), shape),))
    total = ChainLink("addend", np.add, (as_parameter(addend.reshape(axes), shape),))
    reading.bind(node, [tensor.then(product).then(total) for tensor in tensors])


@quantized_rule("BitShift")
def bit_shift(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    amount = reading.constant(node, 1).astype(np.int64)
    low, high = integer_range(tensors[0].dtype)
    fits = (
        low == 0
        and bool((amount >= 0).all() and (amount < high.bit_length()).all())
        and amount.size == 1
    )
    need(fits, f"{node} needs an unsigned tensor and one shift below its width")
    right = node.attrs.get("direction") in ("RIGHT", b"RIGHT")
    if not right:
        factor = np.left_shift(1, np.minimum(amount, 62))
        tensors = [t for t in tensors if _is_exact(reading, "Mul", t, factor)]
        need(bool(tensors), f"{node} computes integers too large to be followed")
    function = np.right_shift if right else np.left_shift
    stepped(
        reading,
        node,
        tensors,
        ChainLink(f"shift {right}", function, (amount.reshape(1),), keeps=True),
    )


@quantized_rule("Cast")
def cast(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    if target == tensors[0].dtype:
        reading.bind(node, tensors)
    elif target == BINARY32:
        stepped(reading, node, tensors, TO_FLOAT, BINARY32)
    else:
        need(target.kind in "iu", f"{node} goes to {target}")
        whole = tensors[0].is_float
        tensors = [t for t in tensors if not whole or _is_within(reading, t, target)]
        need(bool(tensors), f"{node} cuts real numbers that can leave the range of {target}")
        function: Any = (lambda v: np.trunc(v).astype(np.int64)) if whole else np.asarray
        stepped(
            reading,
            node,
            tensors,
            ChainLink(f"to integers {whole}", function, whole=True, keeps=True),
            target,
        )
