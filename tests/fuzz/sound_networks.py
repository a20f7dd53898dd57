"""Sound little networks of every kind that is read, and how to change one field of an ONNX file."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
Damage = Callable[[bytes, random.Random], bytes]


def _packed(model: Any) -> bytes:
    data: bytes = model.SerializeToString()
    return data


def _model(
    nodes: Sequence[Any],
    arrays: dict[str, Any],
    shape: Sequence[Any] = (1, 2),
    kind: int = 1,
    opset: int = 17,
) -> bytes:
    """Nodes from ``x`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    opsets = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 3),
    ]
    return _packed(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


@functools.cache
def dense() -> bytes:
    """Two inputs, three neurons, two outputs: the network of the properties above."""
    arrays = {"w": floats(3, 2), "b": floats(3), "v": floats(2, 3), "c": floats(2)}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], transB=1),
    ]
    return _model(nodes, arrays)


@functools.cache
def float_models() -> tuple[bytes, ...]:
    make = helper.make_node
    conv = [
        make(
            "Conv",
            ["x", "w", "b"],
            ["a"],
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[2, 2],
            group=1,
        ),
        make("BatchNormalization", ["a", "s", "b", "m", "s"], ["n"]),
        make("MaxPool", ["n"], ["p"], kernel_shape=[2, 2], strides=[1, 1]),
        make("AveragePool", ["p"], ["q"], kernel_shape=[1, 1], ceil_mode=1),
        make("Shape", ["q"], ["shape"]),
        make("Slice", ["shape", "zero", "one"], ["first"]),
        make("Concat", ["first", "rest"], ["flat"], axis=0),
        make("Reshape", ["q", "flat"], ["f"]),
        make("MatMul", ["f", "v"], ["y"]),
    ]
    arrays = {
        "w": floats(3, 1, 3, 3), "b": floats(3), "s": np.abs(floats(3)), "m": floats(3),
        "v": floats(27, 2),
        "zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]),
    }  # fmt: skip
    smooth = [
        make("Transpose", ["x"], ["t"], perm=[1, 0]),
        make("Sigmoid", ["t"], ["s"]),
        make("Pad", ["s", "pads"], ["p"]),
        make("ReduceSum", ["p", "axes"], ["r"], keepdims=0),
        make("Softmax", ["r"], ["m"], axis=-1),
        make("Split", ["m", "sizes"], ["a", "b"], axis=0),
        make("Clip", ["a", "low", "high"], ["c"]),
        make("Div", ["c", "b0"], ["d"]),
        make("Pow", ["d", "two"], ["e"]),
        make("Gather", ["e", "index"], ["y"], axis=0),
    ]
    more = {
        "pads": np.array([1, 0, 0, 1]), "axes": np.array([1]), "sizes": np.array([2, 1]),
        "two": np.float32(2.0),
        "low": np.float32(-1), "high": np.float32(1), "b0": np.float32(3), "index": np.array([1,
        0]),
    }  # fmt: skip
    upsampled = [
        make("Unsqueeze", ["x", "axes"], ["u"]),
        make(
            "ConvTranspose",
            ["u", "w"],
            ["a"],
            strides=[2, 2],
            pads=[0, 0, 1, 1],
            output_padding=[1, 1],
        ),
        make("Resize", ["a", "", "scales"], ["z"], mode="nearest"),
        make("LeakyRelu", ["z"], ["l"], alpha=0.1),
        make("ReduceMean", ["l"], ["y"], keepdims=0),
    ]
    last = {
        "axes": np.array([0, 1]),
        "w": floats(1, 1, 2, 2),
        "scales": np.array([1, 1, 2, 2], dtype=np.float32),
    }
    return (
        dense(),
        _model(conv, arrays, ("batch", 1, 8, 8)),
        _model(smooth, more, (1, 2)),
        _model(upsampled, last, (2, 2)),
        (ROOT / "benchmarks/quickstart/onnx/vdp.onnx").read_bytes(),
    )


@functools.cache
def quantized_models() -> tuple[bytes, ...]:
    make = helper.make_node
    qdq = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make("DequantizeLinear", ["wq", "ws", "wz"], ["w"]),
        make("Gemm", ["d", "w", "b"], ["h"]),
        make("Relu", ["h"], ["r"]),
        make("QuantizeLinear", ["r", "s", "z"], ["q2"]),
        make("DequantizeLinear", ["q2", "s", "z"], ["y"]),
    ]
    arrays = {
        "s": np.float32(0.05), "z": np.uint8(7), "wq": np.array([[3, -5], [7, 100]], np.int8),
        "ws": np.float32(0.02),
        "wz": np.int8(0), "b": np.array([0.5, -0.25], np.float32),
    }  # fmt: skip
    integers = [
        make(
            "QLinearConv",
            ["x", "s", "z", "wq", "s", "wz", "s", "z", "bias"],
            ["c"],
            pads=[1, 1, 1, 1],
        ),
        make("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        make("Flatten", ["p"], ["f"]),
        make("QLinearMatMul", ["f", "s", "z", "v", "s", "wz", "s", "z"], ["m"]),
        make("DequantizeLinear", ["m", "s", "z"], ["y"]),
    ]
    more = {
        "s": np.float32(0.05), "z": np.uint8(7), "wz": np.int8(0),
        "wq": np.arange(-9, 9, dtype=np.int8).reshape(2, 1, 3, 3),
        "v": np.arange(-9, 9, dtype=np.int8)[:16].reshape(8, 2), "bias": np.array([5, -3],
        np.int32),
    }  # fmt: skip
    dynamic = [
        make("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        make("MatMulInteger", ["q", "w", "qz"], ["m"]),
        make("Cast", ["m"], ["f"], to=1),
        make("Mul", ["qs", "ws"], ["scale"]),
        make("Mul", ["f", "scale"], ["y"]),
    ]
    last = {"w": np.array([[3, -5], [7, 100]], np.int8), "ws": np.float32(0.02)}
    return (
        _model(qdq, arrays),
        _model(integers, more, (1, 1, 5, 5), TensorProto.UINT8),
        _model(dynamic, last),
    )


@functools.cache
def odd_models() -> tuple[bytes, ...]:
    """A scalar output behind scalars inside, outputs that do not depend on the input, and one that
    is no tensor."""
    make = helper.make_node
    scalar = [
        make("Gemm", ["x", "w", "b"], ["h"], transB=1),
        make("Tanh", ["h"], ["t"]),
        make("Relu", ["h"], ["r"]),
        make("Add", ["t", "r"], ["a"]),
        make("ReduceSum", ["a"], ["s"], keepdims=0),
        make("Relu", ["s"], ["y"]),
    ]
    constant = [make("Mul", ["x", "zero"], ["m"]), make("Relu", ["m"], ["y"])]
    stairs = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make("Mul", ["d", "zero"], ["m"]),
        make("QuantizeLinear", ["m", "s", "z"], ["q2"]),
        make("DequantizeLinear", ["q2", "s", "z"], ["y"]),
    ]
    scale = {"s": np.float32(0.05), "z": np.uint8(7), "zero": np.float32(0)}
    mapped = [
        make("Gemm", ["x", "w", "b"], ["h"], transB=1),
        make("ZipMap", ["h"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    return (
        _model(scalar, {"w": floats(3, 2), "b": floats(3)}),
        _model(constant, {"zero": np.float32(0)}),
        _model(stairs, scale),
        _untyped(_model(mapped, {"w": floats(3, 2), "b": floats(3)})),
    )


def _untyped(data: bytes) -> bytes:
    model = onnx.ModelProto.FromString(data)
    model.graph.output[0].ClearField("type")
    return _packed(model)


def onnx_inside(data: bytes, rng: random.Random, damage: Damage) -> bytes:
    """One field of the protobuf changed, everything else left whole."""
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # noqa: BLE001  not an ONNX file any more
        return damage(data, rng)
    for _ in range(rng.choice((1, 1, 2))):
        _change_model(model, rng, damage)
    return _packed(model)


INTEGERS = (-(2**63), -(2**31), -100, -3, -1, 0, 1, 2, 7, 2**31, 2**40, 2**62, 2**63 - 1)
REALS = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e38, -1e38, 1e-45)
OPERATORS = (
    "Gemm", "MatMul", "Relu", "Conv", "Reshape", "Softmax", "ReduceSum", "Cast", "Identity",
    "Sign", "Floor", "Mod",
    "Constant", "Concat", "QuantizeLinear", "DequantizeLinear", "Einsum", "LSTM", "Loop", "If",
    "NonZero", "Exp",
    "Sqrt",
)  # fmt: skip


def _change_model(model: Any, rng: random.Random, damage: Damage) -> None:
    graph = model.graph
    kind = rng.randrange(11)
    node = rng.choice(graph.node) if graph.node else None
    tensor = rng.choice(graph.initializer) if graph.initializer else None
    if kind < 3 and node is not None and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f = rng.choice(INTEGERS), rng.choice(REALS)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTEGERS)
    elif kind == 3 and node is not None:
        node.op_type = rng.choice(OPERATORS)
    elif kind == 4 and node is not None and node.input:
        if rng.random() < 0.5:
            del node.input[rng.randrange(len(node.input))]
        else:
            node.input[rng.randrange(len(node.input))] = rng.choice(
                ["", "x", "y", *(t.name for t in graph.initializer)]
            )
    elif kind == 5 and graph.node:
        at = rng.randrange(len(graph.node))
        if rng.random() < 0.5:
            del graph.node[at]
        else:
            graph.node.insert(rng.randrange(len(graph.node)), graph.node[at])
    elif kind == 6 and graph.input[0].type.tensor_type.shape.dim:
        rng.choice(graph.input[0].type.tensor_type.shape.dim).dim_value = rng.choice(INTEGERS)
    elif kind == 7:
        graph.input[0].type.tensor_type.elem_type = rng.randrange(25)
    elif kind == 8 and tensor is not None and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTEGERS)
    elif kind == 9 and tensor is not None:
        tensor.data_type = rng.randrange(25)
    elif tensor is not None:
        _change_values(tensor, rng, damage)


def _change_values(tensor: Any, rng: random.Random, damage: Damage) -> None:
    try:
        value = numpy_helper.to_array(tensor).copy()
    except Exception:  # noqa: BLE001  damaged before
        return
    if not value.size or value.dtype.kind not in "fiu":
        tensor.raw_data = damage(tensor.raw_data, rng)
        return
    place = np.unravel_index(rng.randrange(value.size), value.shape)
    if value.dtype.kind == "f":
        value[place] = rng.choice(REALS)
    else:
        info = np.iinfo(value.dtype)
        value[place] = min(max(rng.choice(INTEGERS), int(info.min)), int(info.max))
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
