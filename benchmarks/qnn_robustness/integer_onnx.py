"""An exact fixed-point network as ONNX: the form in which the benchmark suite is written.

uint8 input, and for every layer ``MatMulInteger`` (uint8 by int8) or ``ConvInteger``, ``Add`` of an
int32 constant, ``Clip`` and ``BitShift``:

    clip((a + half) >> s, low, high) = (clip(a + half - low 2^s, 0, (high - low) 2^s + 2^s - 1) >>
    s) + low

The shift acts on numbers that are not negative, because BitShift exists for unsigned types only and
because ``>>`` then is the rounding down that ``floor`` means. Every number is an integer of at most
32 bits: nothing depends on an order of summation, and graph optimisations have nothing to fold.
onnxruntime was equal bit for bit on all test images, with optimisations on and off.

Input: ``X``, uint8, [1, N] (or [1, C, H, W]). Output: ``Y``, int32, the integers of the output
node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bitcrown.quant.network.assembly import node_range
from bitcrown.quant.network.graph import (
    Conv,
    Dense,
    Gather,
    Input,
    IntegerNetwork,
    Ints,
    MaxPool,
    QuantError,
    Stairs,
)

OPSET, IR_VERSION = 13, 8
NARROWEST = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


@dataclass
class _Writer:
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def step(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attrs)
        )
        return output


def shift_form(node: Stairs) -> tuple[int, Ints]:
    """The shift s and the addends [C] for which the step is ``(clip(a + addend, 0, ((K + 1) << s) -
    1) >> s) + base``.

    The thresholds of such a step are ``2^s (k + 1) - addend``. Raises ``QuantError`` for any other
    staircase.
    """
    rows = node.late
    gaps = np.diff(rows, axis=1)
    width = int(gaps[0, 0]) if gaps.size else 1
    if (
        not node.is_exact()
        or rows.shape[1] < 1
        or (gaps != width).any()
        or width < 1
        or width & (width - 1)
    ):
        raise QuantError(
            f"the step {node.note!r} is not a shift with rounding and clipping, so it has no "
            "integer ONNX form"
        )
    return width.bit_length() - 1, width - rows[:, 0]


def export_onnx(network: IntegerNetwork) -> Any:
    """An ``onnx.ModelProto`` of Dense, Conv, MaxPool and reshaped layers with shift-form
    staircases, one after another.

    Raises ``QuantError`` where a number does not fit the types above.
    """
    writer = _Writer()
    low, high = _ranges(network)
    entry = network.nodes[0]
    assert isinstance(entry, Input)
    if entry.low.min() < 0 or entry.high.max() > 255:
        raise QuantError(
            "the network's input does not fit uint8, the input type of the exported form"
        )
    current, kind = "X", np.dtype(np.uint8)
    for number, node in enumerate(network.nodes[1 : network.output + 1], start=1):
        if isinstance(node, Input) or _source(node) != number - 1:
            raise QuantError("only networks whose layers follow one another are exported")
        if isinstance(node, Stairs):
            final = number == network.output
            current, kind = _write_steps(writer, node, current, number, final)
        elif isinstance(node, Dense | Conv):
            if max(-int(low[number].min()), int(high[number].max())) >= 2**30:
                raise QuantError(
                    "an accumulator needs more than 31 bits, the width of the exported form"
                )
            if isinstance(node, Dense) and len(network.nodes[node.source].shape) > 1:
                current = writer.step("Flatten", [current], f"flat_{number}")
            current = _write_sum(writer, node, current, kind, number)
        elif isinstance(node, MaxPool):
            current = _write_pool(writer, node, current, number)
        else:
            raise QuantError(f"{type(node).__name__} has no exported form")
    if not isinstance(network.nodes[network.output], Stairs):
        current = writer.step("Cast", [current], "Y", to=TensorProto.INT32)
    shape = network.nodes[network.output].shape
    graph = helper.make_graph(
        writer.nodes,
        "bitcrown",
        [helper.make_tensor_value_info("X", TensorProto.UINT8, [1, *entry.shape])],
        [helper.make_tensor_value_info(current, TensorProto.INT32, [1, *shape])],
        writer.tensors,
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="bitcrown"
    )


def _source(node: Any) -> int:
    if isinstance(node, Gather):
        in_order = len(node.sources) == 1 and bool((node.index == np.arange(len(node.index))).all())
        return node.sources[0] if in_order else -1
    return int(getattr(node, "source", -1))


def _ranges(network: IntegerNetwork) -> tuple[list[Ints], list[Ints]]:
    low: list[Ints] = []
    high: list[Ints] = []
    for node in network.nodes:
        ends = node_range(node, low, high)
        low.append(ends[0])
        high.append(ends[1])
    return low, high


def _narrow(values: Ints, what: str) -> Any:
    """As int8, or uint8 where that is needed."""
    for dtype, (low, high) in ((np.int8, (-128, 127)), (np.uint8, (0, 255))):
        if values.min(initial=0) >= low and values.max(initial=0) <= high:
            return values.astype(dtype)
    raise QuantError(
        f"{what} from {values.min()} to {values.max()} do not fit 8 bits, the width of the "
        "exported form"
    )


def _write_sum(writer: _Writer, node: Dense | Conv, current: str, kind: Any, number: int) -> str:
    weight = _narrow(node.weight.T if isinstance(node, Dense) else node.weight, "weights")
    if kind == np.dtype(np.int8) and weight.dtype != np.int8:
        raise QuantError("signed activations with unsigned weights have no exported form")
    name = writer.constant(f"weight_{number}", np.ascontiguousarray(weight))
    bias = node.bias.astype(np.int32)
    if isinstance(node, Dense):
        total = writer.step("MatMulInteger", [current, name], f"product_{number}")
        return writer.step("Add", [total, writer.constant(f"bias_{number}", bias)], f"sum_{number}")
    if node.pad_value:
        raise QuantError("a convolution padded with another number than 0 has no exported form")
    total = writer.step(
        "ConvInteger",
        [current, name],
        f"product_{number}",
        strides=list(node.strides),
        pads=list(node.padding),
        dilations=list(node.dilations),
        group=node.groups,
    )
    return writer.step(
        "Add", [total, writer.constant(f"bias_{number}", bias[:, None, None])], f"sum_{number}"
    )


def _write_steps(
    writer: _Writer, node: Stairs, current: str, number: int, final: bool
) -> tuple[str, Any]:
    shift, addends = shift_form(node)
    levels, low = node.late.shape[1] + 1, int(node.base[0])
    if (node.base != low).any() or max(np.abs(addends).max(), levels << shift) >= 2**30:
        raise QuantError(
            f"the step {node.note!r} does not fit 32 bits, or its channels begin at different "
            "levels"
        )
    addend = addends.astype(np.int32)
    if len(addend) > 1:
        addend = addend.reshape(-1, *(1,) * (len(node.shape) - 1))
    shifted = writer.step(
        "Add", [current, writer.constant(f"half_{number}", addend)], f"shifted_{number}"
    )
    ends = [
        writer.constant(f"{name}_{number}", np.array(value, dtype=np.int32))
        for name, value in (("zero", 0), ("top", (levels << shift) - 1))
    ]
    clipped = writer.step("Clip", [shifted, *ends], f"clipped_{number}")
    unsigned = writer.step("Cast", [clipped], f"unsigned_{number}", to=TensorProto.UINT32)
    amount = writer.constant(f"amount_{number}", np.array(shift, dtype=np.uint32))
    levelled = writer.step("BitShift", [unsigned, amount], f"level_{number}", direction="RIGHT")
    signed = writer.step("Cast", [levelled], f"signed_{number}", to=TensorProto.INT32)
    based = writer.step(
        "Add",
        [signed, writer.constant(f"base_{number}", np.array(low, np.int32))],
        f"based_{number}",
    )
    if final:
        return writer.step("Identity", [based], "Y"), np.dtype(np.int32)
    for dtype, (least, most) in NARROWEST.items():
        if least <= low and low + levels - 1 <= most:
            target = helper.np_dtype_to_tensor_dtype(dtype)
            return writer.step("Cast", [based], f"activation_{number}", to=target), dtype
    raise QuantError(
        f"activations from {low} to {low + levels - 1} do not fit 8 bits, the width of the "
        "exported form"
    )


def _write_pool(writer: _Writer, node: MaxPool, current: str, number: int) -> str:
    return writer.step(
        "MaxPool",
        [current],
        f"pool_{number}",
        kernel_shape=list(node.kernel),
        strides=list(node.strides),
        pads=list(node.padding),
    )
