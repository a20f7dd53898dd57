"""Formats of numbers, and in which way the operators of ONNX round: the tables of ``roundings``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitcrown.model.graph import Node
from bitcrown.model.lowering.activation import WHOLE

CONTRIB = "com.microsoft."
SMOOTH = 16.0
SMOOTH_HALF = 2.0
"""The same in steps of a sixteen-bit type, next to which the error of float32 is nothing."""


class Format(NamedTuple):
    """Unit roundoff, smallest number (the smallest normal one where others may be flushed to zero),
    largest number."""

    unit: float
    least: float
    largest: float


FORMATS = {
    "float16": Format(2.0**-11, 2.0**-24, 65504.0),
    "bfloat16": Format(2.0**-8, 2.0**-126, (2.0 - 2.0**-7) * 2.0**127),
    "float32": Format(2.0**-24, 2.0**-126, (2.0 - 2.0**-23) * 2.0**127),
    "float64": Format(2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max)),
}
HALVES = ("float16", "bfloat16")
CASTS = WHOLE | {1: "float32", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}
REQUANTIZED = 4.0
RESULTS = {
    **dict.fromkeys(("ArgMax", "ArgMin"), "int64"),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"), "bool"),
    **dict.fromkeys(("Not", "And", "Or", "Xor"), "bool"),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), "int32"),
    "ai.onnx.ml.Scaler": "float32",
}
"""Result types of operators whose operands' types do not say them."""
TYPED_BY = {"Pow": 0, "Resize": 0, "Upsample": 0, "OneHot": 2}
"""Operators with operands of several types, and the one whose type their result has."""
NARROW_INTEGERS = ("bool", "int8", "uint8", "int16", "uint16")

EXACT = {
    *("Abs", "Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather"),
    *("GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax"),
    *(
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Sign",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
    ),
    *("Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor"),
    *("ArgMax", "ArgMin", "Hardmax", "TopK"),
    *("ai.onnx.ml.ArrayFeatureExtractor", "ai.onnx.ml.Binarizer"),
    "DynamicQuantizeLinear",  # its enclosure counts the rounding of its quotients
}
INTEGRAL = {"Ceil", "Floor", "Round"}
SINGLE = {"Add", "Sub", "Mul", "Div", "Gemm", "MatMul", "Conv", "ConvTranspose", "Sum", "ReduceSum"}
"""Of those treated step by step: no constant of the kernel is rounded beforehand."""
EACH = SINGLE | {
    *("Atan", "AveragePool", "Celu", "Cos", "CumSum", "Elu", "Erf", "Exp", "Gelu"),
    *("GlobalAveragePool", "HardSigmoid", "HardSwish", "Log", "LpNormalization", "Mean", "Mish"),
    *("Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMean"),
    *("ReduceSumSquare", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Swish"),
    *("Tanh", "RMSNormalization", "SimplifiedLayerNormalization"),
    *(CONTRIB + name for name in ("SkipSimplifiedLayerNormalization", "BiasGelu", "FastGelu")),
    *(CONTRIB + name for name in ("Gelu", "QuickGelu", "DynamicQuantizeMatMul")),
    *(CONTRIB + name for name in ("MatMulIntegerToFloat", "FusedMatMul")),
    *("MatMulInteger", "ConvInteger", "ai.onnx.ml.Scaler"),
}
NORMALISED = {
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    *("MeanVarianceNormalization", CONTRIB + "SkipLayerNormalization"),
}
WRAPPING = {
    *("Abs", "Add", "CumSum", "Einsum", "Gemm", "MatMul", "Mul", "Neg", "PRelu", "Pow"),
    *("ReduceL1", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Scatter", "ScatterElements"),
    *("ScatterND", "Sub", "Sum"),
}
"""Operators whose results may leave the type of the whole numbers that they compute with."""
RECURRENT = {"LSTM", "GRU", "RNN", CONTRIB + "DynamicQuantizeLSTM"}
FRACTIONAL = (EACH | NORMALISED | RECURRENT) - WRAPPING - {"Div", "MatMulInteger", "ConvInteger"}
FRACTIONAL |= {"LogSoftmax", "LpPool", "ReduceLogSumExp", "Softmax"}
"""Operators whose values are no whole numbers where their operands are: the runtime cuts them."""
ARITHMETIC: dict[str, Callable[[Node], int]] = {
    "Linear": lambda node: int(node.params["weight"].shape[1]) + 4,
    "MatMulLeft": lambda node: int(node.params["matrix"].shape[1]) + 4,
    "Conv": lambda node: int(node.params["weight"][0].size) + 4,
    "ConvTranspose": lambda node: int(node.params["weight"][:, 0].size) + 4,
    "ReduceSum": lambda node: int(node.attrs["count"]),
    "AveragePool": lambda node: math.prod(node.attrs["kernel"]) + 1,
    "Scale": lambda node: 2 if len(node.params) > 1 else 0,
    **dict.fromkeys(("Add", "Sub", "Mul", "Square", "Reciprocal", "Sqrt"), lambda node: 0),
}
"""How many roundings, each of the size of the absolute terms, precede that of the result."""
CURVED = {"Sigmoid", "Tanh", "Atan", "Exp", "Log", "Sin", "Cos", "Erf", "Softplus", "Elu"}
