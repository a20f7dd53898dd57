"""The checker's rules for operators that act on single elements, or move them.

A step is what onnxruntime computes for one element with known operands: one correctly rounded
float32 operation, or an exact one on integers. So each is monotone, which
``quantized_chain.encloses`` needs. Moves are done to the numbers of the elements by onnxruntime
itself. Quant and BipolarQuant follow the QONNX specification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from bitcrown.check.certificates.documents import Reject, need
from bitcrown.check.certificates.quantized.chain import (
    FLOAT32,
    INPUT,
    TO_FLOAT,
    ChainStep,
    ChainTensor,
    NumpyArray,
    as_parameter,
)
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    computed,
    integer_range,
    quantized_rule,
)

_EXACT = 1 << 53
QONNX = ("onnx.brevitas", "finn.custom_op.general", "qonnx.custom_op.general")
QONNX_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.sign(v) * np.ceil(np.abs(v)),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": lambda v: np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)),
    "HALF_DOWN": lambda v: np.sign(v) * np.ceil(np.abs(v) - np.float32(0.5)),
}


def stepped(
    reading: FileReading,
    node: Operator,
    tensors: list[ChainTensor],
    step: ChainStep,
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
    (``quantized_sums``)."""
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
        "Div": (np.divide if is_float else _cut_quotient, not is_float),
        "Max": (np.maximum, keeps),
        "Min": (np.minimum, keeps),
    }
    function, keeps = functions[node.op]
    stepped(
        reading, node, tensors, ChainStep(f"{node.op} {known}", function, (operand,), keeps=keeps)
    )


def _is_exact(reading: FileReading, op: str, tensor: ChainTensor, operand: NumpyArray) -> bool:
    """Whether no result can leave what float64 and int64 hold: nothing wraps in the checker, then,
    and ``check_width`` sees whether anything does in the file."""
    if operand.dtype.kind not in "iu":
        return False
    size = max(-int(operand.min(initial=0)), int(operand.max(initial=0)))
    reach = max(map(abs, reading.range_of(tensor)))
    return (reach * size if op == "Mul" else reach + size) < _EXACT


def _cut_quotient(values: NumpyArray, divisor: NumpyArray) -> NumpyArray:
    return np.asarray(np.sign(values) * np.sign(divisor) * (np.abs(values) // np.abs(divisor)))


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
    zero = np.zeros(1, FLOAT32 if tensors[0].is_float else np.int64)
    slope = np.array([node.attrs.get("alpha", 0.01)], FLOAT32)
    need(
        node.op != "LeakyRelu" or (slope[0] >= 0 and tensors[0].is_float), f"{node} is not monotone"
    )
    whole = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.rint, "Sign": np.sign}
    if node.op in whole:
        step = ChainStep(node.op, whole[node.op], whole=True)
    elif node.op == "Relu":
        step = ChainStep("Relu", np.maximum, (zero,), keeps=True)
    elif node.op == "Neg":
        step = ChainStep("Neg", np.negative, keeps=True)
    else:
        step = ChainStep("LeakyRelu", lambda v, a: np.where(v >= 0, v, v * a), (slope,))
    stepped(reading, node, tensors, step)


@quantized_rule("Clip")
def clip(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    reach = np.finfo(np.float32)
    ends: Any = (reach.min, reach.max) if tensors[0].is_float else integer_range(tensors[0].dtype)
    kind: Any = FLOAT32 if tensors[0].is_float else np.int64
    given = []
    for position, key in ((1, "min"), (2, "max")):
        value = (
            reading.constant(node, position)
            if node.has(position)
            else node.attrs.get(key, ends[position - 1])
        )
        given.append(np.asarray(value, dtype=kind).reshape(-1))
    need(
        all(v.size == 1 and not np.isnan(v).any() for v in given),
        f"{node} has ends that are not numbers",
    )
    low, high = (np.clip(v, ends[0], ends[1]).astype(kind) for v in given)
    keeps = is_whole(low) and is_whole(high)
    stepped(reading, node, tensors, ChainStep("Clip", _clipped, (low, high), keeps=keeps))


def _clipped(values: NumpyArray, low: NumpyArray, high: NumpyArray) -> NumpyArray:
    return np.asarray(np.minimum(np.maximum(values, low), high))


@quantized_rule("BatchNormalization")
def batch_normalization(reading: FileReading, node: Operator) -> None:
    """``x * f + (bias - mean * f)`` with ``f = scale * (1 / sqrt(var + eps))``, all in float32."""
    need(not node.attrs.get("training_mode", 0), f"{node} is in training mode")
    scale, bias, mean, variance = (reading.constant(node, k).astype(FLOAT32) for k in range(1, 5))
    with np.errstate(all="ignore"):
        factor = scale * (
            np.float32(1) / np.sqrt(variance + np.float32(node.attrs.get("epsilon", 1e-5)))
        )
        addend = finite(bias - mean * finite(factor, node), node)
    tensors = reading.given(node.inputs[0])
    shape = tensors[0].shape
    axes = (1, -1, *(1,) * (len(shape) - 2))
    product = ChainStep("factor", np.multiply, (as_parameter(factor.reshape(axes), shape),))
    total = ChainStep("addend", np.add, (as_parameter(addend.reshape(axes), shape),))
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
        ChainStep(f"shift {right}", function, (amount.reshape(1),), keeps=True),
    )


@quantized_rule("Cast")
def cast(reading: FileReading, node: Operator) -> None:
    tensors = reading.given(node.inputs[0])
    target = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
    if target == tensors[0].dtype:
        reading.bind(node, tensors)
    elif target == FLOAT32:
        stepped(reading, node, tensors, TO_FLOAT, FLOAT32)
    else:
        need(target.kind in "iu", f"{node} goes to {target}")
        whole = tensors[0].is_float
        function: Any = (lambda v: np.trunc(v).astype(np.int64)) if whole else np.asarray
        stepped(
            reading,
            node,
            tensors,
            ChainStep(f"to integers {whole}", function, whole=True, keeps=True),
            target,
        )


def parameters(
    reading: FileReading, node: Operator, shape: tuple[int, ...], default: Any
) -> tuple[NumpyArray, NumpyArray, Any]:
    """Scale (float32) and zero point (int64) of a quantizer, shaped to broadcast over ``shape``,
    and its type."""
    scale = reading.constant(node, 1)
    positive = scale.dtype == FLOAT32 and bool(np.isfinite(scale).all()) and bool((scale > 0).all())
    need(
        positive and not node.attrs.get("block_size", 0),
        f"{node} has scales that are not positive float32 numbers",
    )
    target = int(node.attrs.get("output_dtype", 0))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target)) if target else np.dtype(default)
    zero = reading.constant(node, 2) if node.has(2) else np.zeros(scale.shape, dtype)
    return _along(scale, node, shape), _along(zero.astype(np.int64), node, shape), zero.dtype


def _along(value: NumpyArray, node: Operator, shape: tuple[int, ...]) -> NumpyArray:
    if value.size == 1:
        return value.reshape(())
    axis = int(node.attrs.get("axis", 1))
    need(
        value.ndim == 1 and -len(shape) <= axis < len(shape) and shape[axis] == len(value),
        f"{node} has bad scales",
    )
    return value.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])


@quantized_rule("QuantizeLinear")
def quantize(reading: FileReading, node: Operator) -> None:
    """``clip(rint(x / scale) + zero)``."""
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == FLOAT32, f"{node} takes {tensors[0].dtype}")
    scale, zero, dtype = parameters(reading, node, tensors[0].shape, np.uint8)
    low, high = integer_range(dtype)

    def levels(values: NumpyArray, s: NumpyArray, z: NumpyArray) -> NumpyArray:
        return np.asarray(np.rint(np.clip(values / s, low - z, high - z)).astype(np.int64) + z)

    params = as_parameter(scale, tensors[0].shape), as_parameter(zero, tensors[0].shape)
    stepped(
        reading, node, tensors, ChainStep(f"quantize {dtype}", levels, params, whole=True), dtype
    )


@quantized_rule("DequantizeLinear")
def dequantize(reading: FileReading, node: Operator) -> None:
    """``float32(q - zero) * scale``."""
    tensors = reading.given(node.inputs[0])
    scale, zero, _ = parameters(reading, node, tensors[0].shape, tensors[0].dtype)
    params = as_parameter(scale, tensors[0].shape), as_parameter(zero, tensors[0].shape)
    step = ChainStep("dequantize", lambda q, s, z: (q - z).astype(np.float32) * s, params)
    stepped(reading, node, tensors, step, FLOAT32)


def quant_settings(
    reading: FileReading, node: Operator
) -> tuple[NumpyArray, int, tuple[int, int], str]:
    """Scale, zero point, range and rounding mode of a Quant node."""
    scale = reading.constant(node, 1).astype(FLOAT32)
    zero, bits = (reading.constant(node, k).reshape(-1) for k in (2, 3))
    mode = node.attrs.get("rounding_mode", "ROUND").upper()
    need(
        bool(np.isfinite(scale).all() and (scale > 0).all()),
        f"{node} has a scale that is not positive",
    )
    one_each = (
        zero.size == 1
        and bits.size == 1
        and float(bits[0]) in range(1, 17)
        and float(zero[0]).is_integer()
    )
    need(
        one_each and mode in QONNX_ROUNDINGS,
        f"{node} has a zero point, bits or a rounding that are not known here",
    )
    b, narrow = int(bits[0]), int(bool(node.attrs.get("narrow", 0)))
    ends = (
        (-(2 ** (b - 1)) + narrow, 2 ** (b - 1) - 1)
        if node.attrs.get("signed", 1)
        else (0, 2**b - 1 - narrow)
    )
    return scale, int(zero[0]), ends, mode


def rounded_levels(
    values: NumpyArray, scale: NumpyArray, zero: int, ends: tuple[int, int], mode: str
) -> NumpyArray:
    """``round(clip(x / scale + zero))``."""
    with np.errstate(all="ignore"):
        clipped = np.clip(
            values / scale + np.float32(zero), np.float32(ends[0]), np.float32(ends[1])
        )
    if np.isnan(clipped).any():
        raise Reject("a value to be quantized is not a number")
    return np.asarray(QONNX_ROUNDINGS[mode](clipped).astype(np.int64))


@quantized_rule(*(f"{domain}.Quant" for domain in QONNX))
def quant(reading: FileReading, node: Operator) -> None:
    scale, zero, ends, mode = quant_settings(reading, node)
    if node.inputs[0] in reading.constants:
        value = reading.constants[node.inputs[0]].astype(FLOAT32)
        keep_grid(reading, node, rounded_levels(value, scale, zero, ends, mode) - zero, scale)
        return
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == FLOAT32, f"{node} takes {tensors[0].dtype}")
    s = as_parameter(scale, tensors[0].shape)
    rounded = ChainStep(
        f"Quant {mode} {ends} {zero}",
        lambda v, c: rounded_levels(v, c, zero, ends, mode),
        (s,),
        whole=True,
    )
    back = ChainStep(
        "dequantize", lambda q, c, z: (q - z).astype(np.float32) * c, (s, np.array([zero]))
    )
    reading.bind(node, [tensor.then(rounded).then(back) for tensor in tensors])


@quantized_rule(*(f"{domain}.BipolarQuant" for domain in QONNX))
def bipolar(reading: FileReading, node: Operator) -> None:
    """``scale`` for x >= 0, ``-scale`` below."""
    scale = reading.constant(node, 1).astype(FLOAT32)
    need(
        bool(np.isfinite(scale).all() and (scale > 0).all()),
        f"{node} has a scale that is not positive",
    )
    if node.inputs[0] in reading.constants:
        ints = np.where(reading.constants[node.inputs[0]] >= 0, 1, -1).astype(np.int64)
        keep_grid(reading, node, ints, scale)
        return
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == FLOAT32, f"{node} takes {tensors[0].dtype}")
    is_positive = ChainStep("is not negative", _is_not_negative, whole=True)
    back = ChainStep(
        "sign",
        lambda q, c: (2 * q - 1).astype(np.float32) * c,
        (as_parameter(scale, tensors[0].shape),),
    )
    reading.bind(node, [tensor.then(is_positive).then(back) for tensor in tensors])


def _is_not_negative(values: NumpyArray) -> NumpyArray:
    need(not bool(np.isnan(values).any()), "a value to be quantized is not a number")
    return np.asarray((values >= 0).astype(np.int64))


def keep_grid(reading: FileReading, node: Operator, ints: NumpyArray, scale: NumpyArray) -> None:
    """A constant that was dequantized: its values, and the integers and scales behind them."""
    reading.constants[node.outputs[0]] = ints.astype(np.float32) * scale.astype(FLOAT32)
    reading.grids[node.outputs[0]] = ints, np.broadcast_to(scale.astype(np.float64), ints.shape)


MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


@quantized_rule(*MOVES)
def move(reading: FileReading, node: Operator) -> None:
    name = node.inputs[0]
    others: list[NumpyArray | None] = [
        reading.constants.get(other) if other else None for other in node.inputs[1:]
    ]
    need(
        all(v is not None or not i for v, i in zip(others, node.inputs[1:], strict=True)),
        f"{node} moves by the input",
    )
    if name in reading.constants:
        (reading.constants[node.outputs[0]],) = computed(node, [reading.constants[name], *others])
        if name in reading.grids:
            ints, scales = (
                computed(node, [np.ascontiguousarray(g), *others])[0] for g in reading.grids[name]
            )
            reading.grids[node.outputs[0]] = ints, scales
        return
    tensors = reading.given(name)
    if (
        tensors[0].size and int(tensors[0].nodes[0]) != INPUT
    ):  # a node that is known in this order is so moved, too
        tensors = reading.views(name)
    (index,) = computed(node, [np.arange(tensors[0].size).reshape(tensors[0].shape), *others])
    reading.bind(node, [tensor.moved(index) for tensor in tensors])


@quantized_rule("Concat")
def concat(reading: FileReading, node: Operator) -> None:
    parts = [reading.views(name) for name in node.inputs]
    found = []
    for first in parts[0]:
        kinds = [(step.name, len(step.params)) for step in first.chain]
        same = [
            next((v for v in p if [(s.name, len(s.params)) for s in v.chain] == kinds), None)
            for p in parts
        ]
        chosen = [v for v in same if v is not None]
        if len(chosen) == len(parts) and all(
            v.dtype == first.dtype and v.keys is None for v in chosen
        ):
            found.append(_joined(chosen, int(node.attrs["axis"])))
    reading.bind(node, found)


def _joined(parts: list[ChainTensor], axis: int) -> ChainTensor:
    start = np.cumsum([0, *(part.size for part in parts)])
    index = np.concatenate(
        [s + np.arange(p.size).reshape(p.shape) for s, p in zip(start, parts, strict=False)],
        axis=axis,
    )
    chain = [
        replace(
            steps[0],
            whole=all(step.whole for step in steps),
            keeps=all(step.keeps for step in steps),
            params=tuple(
                np.concatenate(
                    [
                        np.broadcast_to(p, (part.size,))
                        for p, part in zip(params, parts, strict=True)
                    ]
                )
                for params in zip(*(step.params for step in steps), strict=True)
            ),
        )
        for steps in zip(*(part.chain for part in parts), strict=True)
    ]
    nodes, elements = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("nodes", "elements")
    )
    whole = ChainTensor(nodes, elements, (len(nodes),), parts[0].dtype, tuple(chain))
    return whole.moved(index)
