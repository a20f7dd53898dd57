"""Every ONNX operator with a lowering, in its variants, against onnxruntime on a model of one
node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from onnx import helper

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph
from bitcrown.model.lowering import LOWERINGS
from bitcrown.model.lowering.quantization import QUANTIZERS
from bitcrown.model.onnx_reader import read_graph


class Case(NamedTuple):
    op: str
    operands: tuple[Any, ...]
    """A tuple is the shape of a network input, an array a weight, ``""`` an input left out."""
    attrs: dict[str, Any]
    opset: int
    outputs: int

    def __str__(self) -> str:
        shapes = ",".join(
            "x".join(map(str, o)) if isinstance(o, tuple) else "c" for o in self.operands
        )
        return f"{self.op}-{shapes}-" + ",".join(
            f"{key}={value}" for key, value in self.attrs.items()
        )


def case(op: str, *operands: Any, opset: int = 17, outputs: int = 1, **attrs: Any) -> Case:
    return Case(op, operands, attrs, opset, outputs)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(weight(*shape)) + 0.5


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


IMAGE = (1, 2, 5, 6)
ELEMENTWISE = [
    *(
        case(op, (2, 3))
        for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Sin", "Cos", "Neg", "Abs", "Softplus", "Erf")
    ),
    *(
        case(op, (2, 3))
        for op in (
            "Atan",
            "Log",
            "Sqrt",
            "Reciprocal",
            "Identity",
            "Softsign",
            "HardSwish",
            "Sign",
            "Floor",
        )
    ),
    *(
        case(op, (2, 3))
        for op in ("Ceil", "Round", "Dropout", "Elu", "Selu", "Celu", "HardSigmoid", "LeakyRelu")
    ),
    case("Mish", (2, 3), opset=18),
    case("Gelu", (2, 3), opset=20),
    case("Gelu", (2, 3), opset=20, approximate="tanh"),
    case("Elu", (2, 3), alpha=0.3),
    case("Celu", (2, 3), alpha=0.3),
    case("Selu", (2, 3), alpha=0.3, gamma=2.0),
    case("HardSigmoid", (2, 3), alpha=0.3, beta=0.4),
    case("LeakyRelu", (2, 3), alpha=0.3),
    case("PRelu", (2, 3), f32(0.1, 0.2, 0.3)),
    case("Clip", (2, 3), scalar(-0.5), scalar(0.25)),
    case("Clip", (2, 3), scalar(0.0)),
    case("Clip", (2, 3), scalar(-0.5)),
    case("Clip", (2, 3), "", scalar(0.25)),
    case("Clip", (2, 3), opset=7, min=0.0, max=6.0),
    case("Cast", (2, 3), to=1),
]
ARITHMETIC = [
    *(case(op, (2, 3), (2, 3)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    *(case(op, (2, 3), (3,)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(case(op, (1,), (4, 2, 3)) for op in ("Add", "Sub", "Mul", "Div", "Max")),
    *(case(op, (2, 3), positive(3)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(case(op, positive(4, 2, 3), (2, 3)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    case("Max", (2, 3), (2, 3), (1, 3), weight(2, 1)),
    case("Mean", (2, 3), (2, 3), (1, 3)),
    *(
        case("Pow", (2, 3), scalar(exponent))
        for exponent in (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 0.5, -1.0, 13.0, -2.0, 0.75, 2.5, -1.5)
    ),
    case("Where", np.array([True, False, True]), (2, 3), (2, 3)),
    case("Where", np.array([True, False, True]), (2, 3), weight(2, 3)),
]
SHAPES = [
    case("Reshape", (2, 3, 4), ints(0, -1)),
    case("Reshape", (2, 3, 4), ints(4, 6)),
    case("Flatten", (2, 3, 4)),
    case("Flatten", (2, 3, 4), axis=0),
    case("Flatten", (2, 3, 4), axis=-1),
    case("Squeeze", (1, 3, 1), ints(0)),
    case("Squeeze", (1, 3, 1)),
    case("Squeeze", (1, 3, 1), opset=11, axes=[-1]),
    case("Unsqueeze", (2, 3), ints(0, -1)),
    case("Unsqueeze", (2, 3), opset=11, axes=[1]),
    case("Transpose", (2, 3, 4)),
    case("Transpose", (2, 3, 4), perm=[2, 0, 1]),
    case("Concat", (2, 3), (2, 1), weight(2, 2), axis=1),
    case("Concat", (2, 3), (1, 3), axis=-2),
    case("Slice", (4, 6), ints(1, -4), ints(3, 100)),
    case("Slice", (4, 6), ints(0), ints(6), ints(1), ints(2)),
    case("Slice", (4, 6), ints(-1), ints(-100), ints(1), ints(-2)),
    case("Slice", (4, 6), ints(4), ints(1), ints(-1), ints(-1)),
    case("Slice", (4, 6), opset=9, starts=[1], ends=[-1], axes=[1]),
    case("Split", (4, 6), ints(1, 5), axis=1, outputs=2),
    case("Split", (4, 6), axis=0, outputs=2),
    case("Split", (4, 6), opset=11, split=[2, 1, 3], axis=1, outputs=3),
    case("Split", (4, 5), opset=18, num_outputs=2, axis=1, outputs=2),
    case("Gather", (4, 6), ints(3, 0, -1), axis=1),
    case("Gather", (4, 6), np.array(2, dtype=np.int64)),
    case("Gather", (4, 6), np.array([[0, 1], [3, 3]], dtype=np.int64), axis=0),
    case("Pad", (2, 3), ints(1, 0, 0, 2), scalar(0.7)),
    case("Pad", (2, 3), ints(1, 2), scalar(0.7), ints(1), opset=18),
    case("Pad", (2, 3), ints(0, -1, 0, 2)),
    case("Pad", (2, 3), opset=10, pads=[1, 0, 0, 2], value=1.5),
    case("Pad", (2, 4), ints(1, 2, 0, 3), mode="reflect"),
    case("Pad", (2, 4), ints(1, 2, 0, 3), mode="edge"),
    case("Expand", (3, 1), ints(2, 1, 4)),
    case("Expand", (3, 4), ints(4)),
    case("ReverseSequence", (3, 2, 4), ints(3, 2), batch_axis=1, time_axis=0),
    case("Tile", (2, 3), ints(2, 3)),
    case("Trilu", (2, 3, 4)),
    case("Trilu", (3, 4), np.array(-1), upper=0),
    case("Trilu", (3, 4), np.array(1), upper=1),
    case("DepthToSpace", (1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", (1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", (1, 2, 4, 6), blocksize=2),
    case("CumSum", (2, 4), np.array(1, dtype=np.int64)),
    case("CumSum", (2, 4), np.array(0, dtype=np.int64), reverse=1, exclusive=1),
]
REDUCTIONS = [
    *(
        case(op, (2, 3, 5), opset=13, axes=axes, keepdims=keep)
        for op in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceSumSquare",
            "ReduceL1",
            "ReduceL2",
        )
        for axes, keep in (([1], 0), ([-1, 0], 1))
    ),
    case("ReduceSum", (2, 3), ints(1), keepdims=0),
    case("ReduceSum", (2, 3)),
    case("ReduceSum", (2, 3), ints(), noop_with_empty_axes=1),
    case("ReduceMax", (2, 3), opset=13),
    case("ReduceMean", (2, 3), ints(0), opset=18),
    case("ReduceLogSumExp", (2, 3), opset=13, axes=[1]),
    case("ReduceLogSum", (2, 3), opset=13, axes=[1]),
    case("ReduceProd", (2, 3, 5), opset=13, axes=[-1]),
    case("ReduceProd", (2, 3), ints(0, 1), opset=18, keepdims=0),
    case("GlobalAveragePool", IMAGE),
    case("GlobalMaxPool", IMAGE),
    case("Softmax", (2, 4)),
    case("Softmax", (2, 3, 4), axis=1),
    case("Softmax", (2, 3, 4), axis=1, opset=11),
    case("LogSoftmax", (2, 4), axis=0),
    case("LayerNormalization", (2, 3, 4), weight(4), weight(4, seed=1)),
    case("LayerNormalization", (2, 3, 4), weight(3, 4), axis=1, epsilon=0.01),
    case("InstanceNormalization", IMAGE, weight(2), weight(2, seed=1)),
    case("LpNormalization", (2, 4), axis=1),
    case("LpNormalization", (2, 4), axis=0, p=1),
    case("BatchNormalization", IMAGE, weight(2), weight(2, seed=1), weight(2, seed=2), positive(2)),
    case("BatchNormalization", (2, 3), weight(3), weight(3), weight(3), positive(3), epsilon=0.1),
]
PRODUCTS = [
    case("Gemm", (2, 3), weight(3, 4), weight(4)),
    case("Gemm", (2, 3), weight(4, 3), weight(1, 4), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", (3, 2), weight(3, 4), weight(2, 4), transA=1),
    case("Gemm", (2, 3), weight(3, 4), (4,), beta=0.5),
    case("Gemm", weight(2, 3), (3, 4), weight(4), alpha=2.0),
    case("Gemm", weight(3, 2), (4, 3), transA=1, transB=1),
    case("Gemm", (2, 3), (3, 4), alpha=0.5),
    *(
        case("MatMul", left, right)
        for left, right in (
            ((2, 3), weight(3, 4)),
            ((5, 2, 3), weight(3, 4)),
            ((2, 3), weight(3)),
            ((3,), weight(3, 4)),
            ((2, 3), weight(5, 3, 4)),
            (weight(2, 3), (3, 4)),
            (weight(2, 3), (3, 1)),
            (weight(2, 3), (3,)),
            (weight(2, 3), (5, 3, 4)),
            (weight(3), (3, 4)),
            (weight(3), (5, 3, 1)),
            (weight(5, 2, 3), (3, 4)),
            ((2, 3), (3, 4)),
            ((5, 2, 3), (1, 3, 4)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((3,), (3,)),
        )
    ),
]
WINDOWS = [
    case("Conv", IMAGE, weight(4, 2, 3, 3), weight(4)),
    case("Conv", IMAGE, weight(4, 2, 3, 2), strides=[2, 1], pads=[1, 0, 1, 0]),
    case("Conv", IMAGE, weight(4, 2, 2, 2), pads=[1, 0, 0, 2], dilations=[2, 1]),
    case("Conv", IMAGE, weight(4, 1, 3, 3), group=2, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, weight(4, 2, 2, 3), auto_pad="SAME_LOWER"),
    case("Conv", IMAGE, weight(4, 2, 2, 3), auto_pad="VALID"),
    case("Conv", (3, 2, 7), weight(4, 2, 3), strides=[2]),
    case("Conv", (1, 2, 3, 4, 5), weight(3, 2, 2, 2, 2), pads=[1] * 6),
    case("ConvTranspose", IMAGE, weight(2, 3, 3, 3), weight(3)),
    case(
        "ConvTranspose",
        IMAGE,
        weight(2, 3, 3, 3),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    case("ConvTranspose", IMAGE, weight(2, 3, 3, 3), strides=[2, 1], pads=[1, 0, 0, 2]),
    case("ConvTranspose", IMAGE, weight(2, 2, 2, 3), group=2, dilations=[2, 1]),
    case("ConvTranspose", IMAGE, weight(2, 3, 3, 3), strides=[2, 2], output_shape=[10, 12]),
    case("ConvTranspose", IMAGE, weight(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", (1, 2, 4), weight(2, 3, 3)),
    *(
        case(op, IMAGE, **attrs)
        for op in ("MaxPool", "AveragePool")
        for attrs in (
            {"kernel_shape": [2, 3]},
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 2], "pads": [2, 0, 0, 1]},
            {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
            {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        )
    ),
    case("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", (1, 2, 7), kernel_shape=[3], strides=[2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 2], pads=[2, 0, 0, 1], count_include_pad=1),
    case("AveragePool", IMAGE, opset=19, kernel_shape=[2, 2], dilations=[2, 2]),
    case("Upsample", IMAGE, f32(1, 1, 2, 2), opset=9),
    case("Upsample", IMAGE, f32(1, 1, 2, 3), opset=9, mode="linear"),
    *(
        case("Resize", IMAGE, "", f32(1, 1, 2, 1.5), mode=mode, coordinate_transformation_mode=rule)
        for mode in ("nearest", "linear", "cubic")
        for rule in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        case("Resize", IMAGE, "", f32(1, 1, 0.6, 1.5), nearest_mode=rounding)
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    case("Resize", IMAGE, "", f32(1, 1, 0.6, 1.5), mode="cubic", cubic_coeff_a=-0.5),
    case("Resize", IMAGE, "", f32(1, 1, 3, 1.5), mode="cubic", exclude_outside=1),
    case(
        "Resize",
        IMAGE,
        "",
        "",
        ints(1, 2, 8, 9),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
    ),
    case("Resize", IMAGE, f32(1, 1, 2, 2), opset=10),
]
DECIDING = {
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor"),
    *("IsNaN", "IsInf"),
    *("ArgMax", "ArgMin", "Hardmax", "OneHot", "TopK", "Shrink"),
    *("Einsum", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "Scatter"),
    *("GroupNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("MeanVarianceNormalization", "LSTM", "GRU", "RNN"),
    *(f"com.microsoft.{name}" for name in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")),
    "com.microsoft.FusedMatMul",
    *(f"com.microsoft.Skip{name}LayerNormalization" for name in ("", "Simplified")),
}
"""See ``test_chosen_operators``, ``test_attention_masks`` and ``test_quantization``."""
CASES = [*ELEMENTWISE, *ARITHMETIC, *SHAPES, *REDUCTIONS, *PRODUCTS, *WINDOWS]
NOT_IN_ONNXRUNTIME = {"Swish"}
NOT_ALONE = {
    *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *(f"com.microsoft.{name}" for name in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")),
    "com.microsoft.MatMulIntegerToFloat",
}
"""Only read as parts of a layer: see ``test_dynamic_quantization``."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_equals_onnxruntime(case: Case, save: Callable[..., Path]) -> None:
    inputs, weights, names = {}, {}, []
    for index, operand in enumerate(case.operands):
        name = f"t{index}"
        if isinstance(operand, tuple):
            inputs[name] = operand
        elif isinstance(operand, np.ndarray):
            weights[name] = operand
        names.append("" if isinstance(operand, str) else name)
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="only", **case.attrs)
    path = save([node], inputs, weights, outputs, opset=case.opset)
    graph = read_graph(path)
    assert crosscheck(graph, NetworkFile(path), seed=0) < 2e-5
    if any(isinstance(operand, tuple) for operand in case.operands):
        check_bounds(graph)


def check_bounds(graph: Graph) -> None:
    """On a box of positive numbers, where every operator here is defined: finite, and not left by
    any sampled point."""
    network = Network(graph, torch.float64)
    low = torch.full((1, graph.n_inputs), 0.5, dtype=torch.float64)
    bounds = LayerBounder(network, 1 << 28, quick=True).run(low, low + 0.75).bounds
    random = np.random.default_rng(0).random((32, graph.n_inputs))
    points = low + 0.75 * torch.from_numpy(random)
    values = network.activations(points)
    for name in graph.outputs:
        (lower, upper), value = bounds[name], values[name]
        room = 1e-9 * (1 + value.abs())
        assert torch.isfinite(lower).all() and torch.isfinite(upper).all()
        assert (lower <= value + room).all() and (value <= upper + room).all()


def test_every_lowering_has_a_case() -> None:
    here = {case.op for case in CASES} | NOT_IN_ONNXRUNTIME | NOT_ALONE
    classical = {op for op in LOWERINGS if op.startswith("ai.onnx.ml.")}  # test_classical
    assert set(LOWERINGS) - classical == here | DECIDING | QUANTIZERS
