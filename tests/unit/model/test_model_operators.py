"""Matrix products, convolutions, arithmetic and activations, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from operator_cases import Case, cases, check, ints, weight


@cases(
    Case("Gemm", ((1, 3), weight(3, 4), weight(4))),
    Case("Gemm", ((1, 3), weight(4, 3), weight(4)), {"transB": 1}),
    Case("Gemm", ((3, 2), weight(3, 4), weight(1, 4)), {"transA": 1, "alpha": 0.5, "beta": -2.0}),
    Case("Gemm", ((2, 3), weight(3, 4), weight(2, 4)), {"alpha": 2.0, "beta": 3.0}),
    Case("Gemm", ((2, 3), weight(3, 4), weight(2, 1)), {"beta": 3.0}),
    Case("Gemm", ((2, 3), weight(3, 4), np.float32(0.25))),
    Case("Gemm", ((2, 3), weight(3, 4))),
    Case("Gemm", ((2, 3), weight(3, 4), (4,)), {"beta": 0.5}),
    Case("Gemm", (weight(2, 3), (3, 4), weight(4)), {"alpha": 0.5}),
    Case("Gemm", (weight(3, 2), (4, 3), weight(2, 1)), {"transA": 1, "transB": 1, "beta": 2.0}),
    Case("Gemm", ((2, 3), (3, 4), (2, 4)), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((3, 2), (4, 3)), {"transA": 1, "transB": 1, "alpha": -1.5}),
    Case("MatMul", ((2, 3), weight(3, 4))),
    Case("MatMul", ((1, 2, 3), weight(3, 4))),
    Case("MatMul", ((3,), weight(3, 4))),
    Case("MatMul", ((2, 3), weight(3))),
    Case("MatMul", ((3,), weight(3))),
    Case("MatMul", (weight(4, 3), (3, 2))),
    Case("MatMul", (weight(4, 3), (5, 3, 2))),
    Case("MatMul", (weight(4, 3), (3, 1))),
    Case("MatMul", (weight(4, 3), (2, 3, 1))),
    Case("MatMul", (weight(4, 3), (3,))),
    Case("MatMul", (weight(3), (3, 2))),
    Case("MatMul", (weight(3), (3, 1))),
    Case("MatMul", (weight(3), (2, 3, 1))),
    Case("MatMul", (weight(3), (3,))),
    Case("MatMul", ((2, 4, 3), weight(2, 3, 2))),
    Case("MatMul", (weight(2, 4, 3), (3, 2))),
    Case("MatMul", ((4, 3), weight(2, 3, 2))),
    Case("MatMul", ((2, 3), (3, 4))),
    Case("MatMul", ((5, 2, 3), (3, 4))),
    Case("MatMul", ((2, 1, 2, 3), (5, 3, 4))),
    Case("MatMul", ((3,), (3, 4))),
    Case("MatMul", ((2, 3), (3,))),
    Case("MatMul", ((3,), (3,))),
)
def test_matrix_products(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@cases(
    Case("Conv", ((1, 2, 7), weight(3, 2, 3))),
    Case("Conv", ((2, 2, 7), weight(3, 2, 3), weight(3)), {"strides": [2], "pads": [1, 1]}),
    Case("Conv", ((1, 2, 7), weight(3, 2, 3), weight(3)), {"pads": [2, 0], "dilations": [2]}),
    Case("Conv", ((1, 2, 5, 6), weight(3, 2, 3, 2), weight(3))),
    Case(
        "Conv",
        ((2, 2, 5, 6), weight(3, 2, 3, 3), weight(3)),
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    ),
    Case("Conv", ((1, 2, 6, 6), weight(3, 2, 3, 3)), {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    Case("Conv", ((1, 2, 7, 7), weight(3, 2, 2, 3)), {"dilations": [2, 3], "pads": [1, 2, 1, 2]}),
    Case(
        "Conv",
        ((1, 4, 5, 5), weight(6, 2, 3, 3), weight(6)),
        {"group": 2, "strides": [3, 2], "pads": [1, 1, 1, 1]},
    ),
    Case("Conv", ((1, 3, 5, 5), weight(3, 1, 3, 3)), {"group": 3}),
    Case("Conv", ((1, 2, 6, 5), weight(3, 2, 3, 2)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", ((1, 2, 6, 5), weight(3, 2, 4, 2)), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    Case("Conv", ((1, 2, 6, 5), weight(3, 2, 3, 2)), {"auto_pad": "VALID"}),
    Case("Conv", ((1, 1, 3, 4, 4), weight(2, 1, 2, 2, 2), weight(2)), {"strides": [1, 2, 2]}),
    Case("ConvTranspose", ((1, 2, 4), weight(2, 3, 3), weight(3)), {"strides": [2]}),
    Case("ConvTranspose", ((1, 2, 4, 3), weight(2, 3, 3, 3), weight(3))),
    Case(
        "ConvTranspose",
        ((2, 2, 4, 3), weight(2, 3, 3, 3)),
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 4, 3), weight(2, 3, 3, 3)),
        {"strides": [2, 3], "output_padding": [1, 2]},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 4, 3), weight(2, 3, 3, 3), weight(3)),
        {"strides": [2, 2], "pads": [1, 0, 0, 2], "output_padding": [1, 1]},
    ),
    Case("ConvTranspose", ((1, 4, 3, 3), weight(4, 2, 3, 3)), {"group": 2, "dilations": [2, 1]}),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 3), weight(2, 1, 3, 3)),
        {"strides": [2, 2], "output_shape": [6, 6]},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 3), weight(2, 1, 4, 3)),
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 3), weight(2, 1, 4, 3)),
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ),
    Case(
        "ConvTranspose",
        ((1, 2, 3, 3), weight(2, 1, 4, 3)),
        {"strides": [2, 2], "auto_pad": "VALID"},
    ),
)
def test_convolutions(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@cases(
    *(Case(op, ((2, 3), (2, 3)), low=0.5) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, ((2, 3), (3,)), low=0.5) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, ((2, 1), (4, 1, 3)), low=0.5) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, ((2, 3), weight(2, 3) + 2)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(
        Case(op, (weight(2, 3) + 2, (2, 3)), low=0.5)
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    ),
    *(Case(op, ((3,), weight(4, 1, 3) + 2)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(
        Case(op, (weight(4, 1, 3), (2, 1)), low=0.5)
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    ),
    *(Case(op, ((2, 3), (3,), weight(2, 1))) for op in ("Sum", "Mean", "Max", "Min")),
    *(Case(op, ((2, 3),)) for op in ("Sum", "Mean", "Max", "Min")),
    *(Case(op, (weight(2, 3), weight(3), (2, 3))) for op in ("Sum", "Mean", "Max", "Min")),
    *(Case("Pow", ((2, 3), np.float32(k))) for k in (1, 2, 3, 4, 5, 7)),
    *(Case("Pow", ((2, 3), np.float32(k).reshape((1,))), low=0.5) for k in (-1, 0.5)),
    Case("Pow", ((2, 3), ints(2))),
    *(Case(op, ((2, 3), np.float32(v))) for op in ("Max", "Min") for v in (-1e38, 1e38, -np.inf)),
    *(Case(op, (np.array([-1e38, 0.5, 1e38], np.float32), (2, 3))) for op in ("Max", "Min")),
    Case("Neg", ((2, 3),)),
    Case(
        "BatchNormalization",
        ((2, 3, 2), weight(3), weight(3), weight(3), weight(3) + 2),
        {"epsilon": 0.01},
    ),
    Case("BatchNormalization", ((2, 3), weight(3), weight(3), weight(3), weight(3) + 2)),
    Case(
        "BatchNormalization",
        ((1, 3, 2, 2), weight(3), weight(3), weight(3), weight(3) + 2),
        opset=9,
    ),
)
def test_arithmetic(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@cases(
    *(
        Case(op, ((2, 3),))
        for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Abs", "Sign", "Floor", "Ceil")
    ),
    *(Case(op, ((2, 3),)) for op in ("Round", "Erf", "Sin", "Cos", "Identity", "Softsign")),
    *(Case(op, ((2, 3),), low=0.3) for op in ("Log", "Sqrt", "Reciprocal")),
    Case("LeakyRelu", ((2, 3),)),
    Case("LeakyRelu", ((2, 3),), {"alpha": 0.3}),
    Case("LeakyRelu", ((2, 3),), {"alpha": 1.5}),
    Case("PRelu", ((2, 3), weight(3))),
    Case("PRelu", ((1, 3, 2, 2), weight(3, 1, 1))),
    Case("Elu", ((2, 3),)),
    Case("Elu", ((2, 3),), {"alpha": 0.5}),
    Case("Selu", ((2, 3),)),
    Case("Selu", ((2, 3),), {"alpha": 1.5, "gamma": 2.0}),
    Case("Celu", ((2, 3),), {"alpha": 2.0}),
    Case("HardSigmoid", ((2, 3),), low=-6.0, high=6.0),
    Case("HardSigmoid", ((2, 3),), {"alpha": 0.5, "beta": 0.2}),
    Case("HardSwish", ((2, 30),), opset=14, low=-6.0, high=6.0),
    Case("Mish", ((2, 3),), opset=18),
    Case("Gelu", ((2, 3),), opset=20),
    Case("Gelu", ((2, 3),), {"approximate": "tanh"}, opset=20),
    Case("Clip", ((2, 9), np.float32(-0.5), np.float32(1.0))),
    Case("Clip", ((2, 9), np.float32(-0.5))),
    Case("Clip", ((2, 9), None, np.float32(0.5))),
    Case("Clip", ((2, 9), np.float32(0.0))),
    Case("Clip", ((2, 9), np.float32(0.0), np.float32(np.finfo(np.float32).max))),
    Case("Clip", ((2, 9), np.float32(-np.inf), np.float32(0.5))),
    Case("Clip", ((2, 9),)),
    Case("Clip", ((2, 9),), {"min": -0.5, "max": 0.25}, opset=10),
    Case("Clip", ((2, 9),), {"min": 0.5}, opset=7),
    Case("Softmax", ((2, 3),)),
    Case("Softmax", ((2, 3, 2),)),
    Case("Softmax", ((2, 3, 2),), {"axis": 1}),
    Case("Softmax", ((2, 3, 2),), {"axis": 0}),
    Case("Softmax", ((2, 3, 2),), opset=11),
    Case("Softmax", ((2, 3, 2),), {"axis": 2}, opset=11),
    Case("Softmax", ((2, 3, 2),), {"axis": 0}, opset=11),
    Case("Softmax", ((2, 3, 2),), {"axis": -2}, opset=11),
    Case("LogSoftmax", ((2, 3, 2),), {"axis": 1}),
    Case("LogSoftmax", ((2, 3),), opset=11),
    Case("Cast", ((2, 3),), {"to": 1}),
    Case("Dropout", ((2, 3),)),
    Case("Dropout", ((2, 3),), {"ratio": 0.5}, opset=10),
    Case("Dropout", ((2, 3), np.float32(0.5), np.array(False))),
)
def test_activations(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
