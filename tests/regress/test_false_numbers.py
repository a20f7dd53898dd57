"""Numbers that were lost on the way from the file to the bounds: what is no number, products that
fall below the smallest one, and rounding at steps inside a loop. Each property has a counterexample
in onnxruntime, and none was left by the bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from tests.regress.test_false_readings import is_proved, reached, saved

ROOT = [
    helper.make_node("Add", ["x", "ten"], ["shifted"]),
    helper.make_node("Sqrt", ["shifted"], ["root"]),
    helper.make_node("Add", ["root", "five"], ["z"]),
]
CONSTANTS = {
    "ten": np.float32(10),
    "five": np.float32(5),
    "image": np.array([1, 1, 8]),
    "rows": np.array([4, 1]),
    "four": np.array([1, 4]),
    "scale": np.float32(0.1),
    "zero": np.uint8(0),
    "single": np.array([1, 1]),
}
BOTH = [
    helper.make_node("Concat", ["z", "x"], ["both"], axis=1),
    helper.make_node("Reshape", ["both", "image"], ["wide"]),
]
ENDS = {
    "Shrink": [helper.make_node("Shrink", ["z"], ["y"])],
    "ReduceMax": [
        helper.make_node("Concat", ["x", "z"], ["wide"], axis=1),
        helper.make_node("ReduceMax", ["wide"], ["most"]),
        helper.make_node("Expand", ["most", "four"], ["y"]),
    ],
    "MaxPool": [
        *BOTH,
        helper.make_node("MaxPool", ["wide"], ["most"], kernel_shape=[5]),
        helper.make_node("Reshape", ["most", "four"], ["y"]),
    ],
    "GlobalMaxPool": [
        *BOTH,
        helper.make_node("GlobalMaxPool", ["wide"], ["most"]),
        helper.make_node("Reshape", ["most", "single"], ["flat"]),
        helper.make_node("Expand", ["flat", "four"], ["y"]),
    ],
    "Hardmax": [
        helper.make_node("Reshape", ["z", "rows"], ["column"]),
        helper.make_node("Hardmax", ["column"], ["best"]),
        helper.make_node("Reshape", ["best", "four"], ["y"]),
    ],
    "QuantizeLinear": [
        helper.make_node("QuantizeLinear", ["z", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ],
}


@pytest.mark.parametrize("op", ENDS)
def test_an_operator_that_forgets_what_is_no_number(op: str, tmp_path: Path) -> None:
    """``sqrt(x + 10) + 5`` is 5 or more, or NaN, of which these make a number again."""
    net = saved(tmp_path / "net.onnx", ROOT + ENDS[op], "float32", CONSTANTS)
    assert reached(net, -15.0, "float32").min() <= 0.5
    assert not is_proved(net, -20.0, 1.0, 4, "(assert (<= Y_0 0.5))")


def test_the_sign_of_what_is_no_number_in_sixteen_bits(tmp_path: Path) -> None:
    """It is 0 in float16, where it is NaN in float32."""
    half = {
        name: value.astype(np.float16)
        for name, value in CONSTANTS.items()
        if name in ("ten", "five")
    }
    nodes = [
        *ROOT,
        helper.make_node("Sign", ["z"], ["sign"]),
        helper.make_node("Cast", ["sign"], ["y"], to=TensorProto.FLOAT),
    ]
    net = saved(tmp_path / "net.onnx", nodes, "float16", half)
    assert reached(net, -15.0, "float16").max() == 0.0
    assert not is_proved(net, -20.0, 1.0, 4, "(assert (<= Y_0 0.5))")


def test_an_operator_that_forgets_nothing_where_all_are_numbers(tmp_path: Path) -> None:
    """The root of a square, and of what is added to one, is a number."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Add", ["square", "five"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["z"]),
        *ENDS["ReduceMax"],
    ]
    net = saved(tmp_path / "net.onnx", nodes, "float32", CONSTANTS)
    assert is_proved(net, -20.0, 1.0, 4, "(assert (<= Y_0 0.5))")


QUOTIENTS = {
    "a norm": [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axis"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["norm"]),
        helper.make_node("Div", ["x", "norm"], ["q"]),
    ],
    "layers": [helper.make_node("LayerNormalization", ["x", "gain"], ["q"], epsilon=0.0)],
    "no share": [
        helper.make_node("Reciprocal", ["x"], ["inverse"]),
        helper.make_node("Mul", ["inverse", "none"], ["q"]),
    ],
    "a sine": [
        helper.make_node("Div", ["five", "x"], ["quotient"]),
        helper.make_node("Sin", ["quotient"], ["q"]),
    ],
    "a clip": [
        helper.make_node("Div", ["x", "x"], ["quotient"]),
        helper.make_node("Clip", ["quotient", "none", "five"], ["q"]),
    ],
}
IS_ABOVE = [
    helper.make_node("Greater", ["q", "low"], ["above"]),
    helper.make_node("Cast", ["above"], ["y"], to=TensorProto.FLOAT),
]
AT_ZERO = {
    "axis": np.array([1]),
    "gain": np.ones(4, np.float32),
    "none": np.float32(0),
    "five": np.float32(5),
    "low": np.float32(-5),
}


@pytest.mark.parametrize("head", QUOTIENTS)
def test_a_bounded_quotient_of_zeros_is_not_compared(head: str, tmp_path: Path) -> None:
    """Bounds say that ``x / sqrt(sum x^2) > -5``; at 0 it is no number, and the answer no."""
    net = saved(tmp_path / "net.onnx", QUOTIENTS[head] + IS_ABOVE, "float32", AT_ZERO)
    assert reached(net, 0.0, "float32").max() == 0.0
    assert not is_proved(net, -1.0, 1.0, 4, "(assert (<= Y_0 0.5))")


@pytest.mark.parametrize("p", [1, 2])
def test_norms_that_are_zero_at_zero_are_compared(p: int, tmp_path: Path) -> None:
    nodes = [helper.make_node("LpNormalization", ["x"], ["q"], p=p), *IS_ABOVE]
    net = saved(tmp_path / "net.onnx", nodes, "float32", AT_ZERO)
    assert reached(net, 0.0, "float32").max() == 1.0
    assert is_proved(net, -1.0, 1.0, 4, "(assert (<= Y_0 0.5))")


@pytest.mark.parametrize("first", ["Mul", "Gemm"])
def test_factors_whose_product_is_below_all_numbers(first: str, tmp_path: Path) -> None:
    """``x s s / s / s`` of a double ``x``: the merged factor was 0, and all of the network."""
    small = {
        "Mul": helper.make_node("Mul", ["x", "small"], ["t1"]),
        "Gemm": helper.make_node("Gemm", ["x", "matrix"], ["t1"], alpha=1e-38),
    }
    nodes = [
        small[first],
        helper.make_node("Mul", ["t1", "small"], ["t2"]),
        helper.make_node("Mul", ["t2", "large"], ["t3"]),
        helper.make_node("Mul", ["t3", "large"], ["t4"]),
        helper.make_node("Cast", ["t4"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = {
        "small": np.array([[1e-200 if first != "Gemm" else 1.0]]),
        "matrix": np.eye(4) * 1e-300,
        "large": np.array([[1e130]]),
    }
    net = saved(tmp_path / "net.onnx", nodes, "float64", constants)
    low = 1e150 if first != "Gemm" else 1e90
    assert reached(net, low, "float64").max() >= 1.0
    assert not is_proved(net, low, 2 * low, 4, "(assert (>= Y_0 1))")


def loop_of(nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
    """A loop of ``rounds`` rounds that computes ``next`` of ``state``, which begins as ``x``."""
    ends = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
    ]
    going = helper.make_node("Identity", ["going"], ["goes on"])
    results = [
        helper.make_tensor_value_info("goes on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph([going, *nodes], "body", ends, results)
    return helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)


@pytest.mark.parametrize("is_loop", [True, False])
def test_steps_inside_a_loop_or_a_branch(is_loop: bool, tmp_path: Path) -> None:
    """``round(5 x)`` where ``x`` is the float32 next to 0.1: 5 x is rounded to 0.5, and that to 0;
    the real product is above. Steps of the file itself had their rounding, those inside had not."""
    nodes = [
        helper.make_node("Mul", ["x", "five"], ["product"]),
        helper.make_node("Round", ["product"], ["next"]),
    ]
    end = helper.make_tensor_value_info("next", TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "branch", [], [end])
    choice = helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)
    constants = {"five": np.float32(5), "rounds": np.array(1), "true": np.array(True)}
    net = saved(
        tmp_path / "net.onnx", [loop_of(nodes) if is_loop else choice], "float32", constants
    )
    value = float(np.float32(0.1))
    assert reached(net, value, "float32").max() == 0.0
    assert not is_proved(net, value, value, 4, "(assert (<= Y_0 0.5))")


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_outputs_of_layers_may_be_left_out(op: str, tmp_path: Path) -> None:
    """Only the last state has a name."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    nodes = [
        helper.make_node("Reshape", ["x", "sequence"], ["steps"]),
        helper.make_node(op, ["steps", "W", "R"], ["", "last"], hidden_size=4),
        helper.make_node("Reshape", ["last", "four"], ["y"]),
    ]
    constants = {
        "sequence": np.array([4, 1, 1]),
        "four": np.array([1, 4]),
        "W": np.linspace(-1, 1, 4 * gates, dtype=np.float32).reshape(1, -1, 1),
        "R": np.zeros((1, 4 * gates, 4), np.float32),
    }
    net = saved(tmp_path / "net.onnx", nodes, "float32", constants)
    network = Network(read_graph(net), torch.float64)
    found = network(network.tensor(np.full((1, 4), 0.5)))
    np.testing.assert_allclose(found.numpy(), reached(net, 0.5, "float32"), atol=1e-5)


FOLDED = {
    "Pow": (
        [helper.make_node("Pow", ["two", "half"], ["c"])],
        {"two": np.array(2), "half": np.float32(0.5)},
        "(assert (<= Y_0 1.2))",
    ),
    "ReduceProd": (
        [helper.make_node("ReduceProd", ["sides"], ["c"], keepdims=0)],
        {"sides": np.array([70000, 70000], np.int32)},
        "(assert (<= Y_0 3000000000))",
    ),
    "QuantizeLinear": (
        [helper.make_node("QuantizeLinear", ["weight", "step"], ["c"], output_dtype=3)],
        {"weight": np.float32(-1), "step": np.float32(0.01)},
        "(assert (<= Y_0 -50))",
    ),
}


@pytest.mark.parametrize("op", FOLDED)
def test_a_known_number_is_that_of_its_type(op: str, tmp_path: Path) -> None:
    """A power of whole numbers, a product that int32 does not hold, and what is quantized to int8
    by an attribute. An output that is much larger hides a mistake from the comparison."""
    made, constants, asked = FOLDED[op]
    nodes = [
        *made,
        helper.make_node("Cast", ["c"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["x"], ["first", "other"], axis=1, num_outputs=2),
        helper.make_node("Add", ["first", "real"], ["small"]),
        helper.make_node("Mul", ["other", "large"], ["hiding"]),
        helper.make_node("Concat", ["small", "hiding"], ["y"], axis=1),
    ]
    net = saved(tmp_path / "net.onnx", nodes, "float32", constants | {"large": np.float32(1e14)})
    assert not is_proved(net, 0.0, 0.01, 4, asked)


def test_what_overflows_decides_nothing_in_runtime_semantics(tmp_path: Path) -> None:
    """``2 x - 4 x`` is infinity less itself, and NaN lies neither above -1 nor at or below it."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Mul", ["twice", "two"], ["more"]),
        helper.make_node("Sub", ["twice", "more"], ["less"]),
        helper.make_node("Sigmoid", ["less"], ["share"]),
        helper.make_node("Greater", ["share", "minus_one"], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = {"two": np.float32(2), "minus_one": np.float32(-1)}
    net = saved(tmp_path / "net.onnx", nodes, "float32", constants)
    assert reached(net, 3e38, "float32").max() == 0.0
    asked = "(assert (<= Y_0 0.5))"
    assert not is_proved(net, 0.0, 3e38, 4, asked, "runtime")
    assert is_proved(net, 0.0, 1e30, 4, asked, "runtime")
