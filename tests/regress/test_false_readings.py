"""Networks that were read as another function far from where readings are compared with the
runtime: each property has a counterexample in onnxruntime, and none was left by the bounds."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.api import load, verify
from bitcrown.errors import BitcrownError
from bitcrown.settings import Settings
from bitcrown.verdict import Status
from tests.fuzz.float_family import only_proofs

FOUR = (1, 4)


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    kind: str,
    constants: dict[str, np.ndarray],
    outputs: tuple[str, ...] = ("y",),
) -> Path:
    """``nodes`` from the input ``x`` of four entries to float outputs."""
    ends = [
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), FOUR)]
        for name, dtype in (("x", np.dtype(kind)), *((o, np.dtype("float32")) for o in outputs))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        ends[0],
        [end for (end,) in ends[1:]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph)
    model.ir_version, model.opset_import[0].version = 10, 21
    onnx.save(model, path)
    return path


def is_proved(
    net: Path, low: float, high: float, outputs: int, asked: str, semantics: str = "real"
) -> bool:
    """Whether bounds alone prove ``asked`` of four inputs between ``low`` and ``high``."""
    text = "".join(f"(declare-const X_{i} Real)" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(outputs))
    text += "".join(f"(assert (>= X_{i} {low!r}))(assert (<= X_{i} {high!r}))" for i in range(4))
    prop = net.with_suffix(".vnnlib")
    prop.write_text(text + asked)
    with only_proofs():
        try:
            settings = Settings(device="cpu", threads=1, semantics=semantics)
            verdict = verify(load(net, prop), settings, cpu_seconds=0.5)
        except BitcrownError:
            return False
    return verdict.status is Status.UNSAT


def reached(net: Path, value: float, kind: str) -> np.ndarray:
    """What onnxruntime computes where all inputs are ``value``."""
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": np.full(FOUR, value, dtype=kind)})[0]
    return found


@pytest.mark.parametrize(
    ("op", "kind", "low", "high", "worst"),
    [
        ("Abs", "int8", -128, -100, -128),
        ("Neg", "int8", -128, -100, -128),
        ("Add", "int8", 100, 127, 127),
        ("Mul", "int32", 60000, 70000, 60000),
        ("Add", "int64", 2**62, 2**62 + 1024, 2**62),
    ],
)
def test_whole_numbers_wrap_around(
    op: str, kind: str, low: int, high: int, worst: int, tmp_path: Path
) -> None:
    """They were computed as real numbers, which never leave their type."""
    inputs = ["x"] if op in ("Abs", "Neg") else ["x", "x"]
    nodes = [helper.make_node(op, inputs, ["a"])]
    nodes.append(helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT))
    net = saved(tmp_path / "n.onnx", nodes, kind, {})
    assert (reached(net, worst, kind) < 0).all()
    assert not is_proved(net, low, high, 4, "(assert (<= Y_0 -1))")


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_whole_numbers_within_their_type_are_proved(op: str, tmp_path: Path) -> None:
    nodes = [helper.make_node(op, ["x", "x"], ["a"])]
    nodes.append(helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT))
    net = saved(tmp_path / "n.onnx", nodes, "int32", {})
    assert is_proved(net, 1000, 3000, 4, "(assert (<= Y_0 -1))")


@pytest.mark.parametrize(
    ("op", "operand", "least"),
    [
        ("Pow", np.array(0.5, np.float32), 1.4),
        ("Pow", np.array(-1), 0.3),
        ("ReduceL2", np.array([1]), 5.05),
        ("ReduceLogSum", np.array([1]), 2.05),
        ("ReduceLogSumExp", np.array([1]), 3.3),
        ("Resize", np.array([1, 2], np.float32), 2.1),
    ],
)
def test_whole_numbers_are_cut(op: str, operand: np.ndarray, least: float, tmp_path: Path) -> None:
    """Roots, logarithms and what lies between two pixels were computed as real numbers: of 2, 2, 3,
    3 the result is at least ``least``, and a whole number below it in onnxruntime. (One output is
    large, so that readings are compared roughly.)"""
    inputs = ["x", "", "c"] if op == "Resize" else ["x", "c"]
    mode = {"mode": "linear"} if op == "Resize" else {}
    nodes = [
        helper.make_node(op, inputs, ["a"], **mode),
        helper.make_node("Expand", ["a", "shape"], ["b"]),
        helper.make_node("Gather", ["b", "places"], ["d"], axis=1),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["e", "large"], ["y"]),
    ]
    width, place = (8, 3) if op == "Resize" else (4, 1)
    known = {"c": operand, "shape": np.array([1, width]), "places": np.full(4, place)}
    known["large"] = np.array([0, 0, 0, 1e6], np.float32)
    net = saved(tmp_path / "n.onnx", nodes, "int32", known)
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([[2, 2, 3, 3]], np.int32)})
    assert float(found[0, 1]) < least
    fixed = "".join(f"(assert (= X_{i} {v}))" for i, v in enumerate((2, 2, 3, 3)))
    assert not is_proved(net, 2, 3, 4, f"{fixed} (assert (<= Y_1 {least!r}))")


def test_a_quantizer_has_the_type_that_it_names(tmp_path: Path) -> None:
    """Without a zero point it was taken for uint8, which ends at 255 and not at 127."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s"], ["q"], output_dtype=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    net = saved(tmp_path / "n.onnx", nodes, "float32", {"s": np.float32(0.1)}, ("y", "z"))
    assert (reached(net, 20.0, "float32") < 12.8).all()
    assert not is_proved(net, 19, 21, 8, "(assert (<= Y_0 12.8))")


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_root_of_a_negative_number_is_no_number(shift: float, tmp_path: Path) -> None:
    """``IsNaN`` was taken for false everywhere; it is not below -100."""
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Sqrt", ["a"], ["r"]),
        helper.make_node("IsNaN", ["r"], ["n"]),
        helper.make_node("Where", ["n", "m", "r"], ["w"]),
        helper.make_node("Add", ["w", "s"], ["y"]),
    ]
    constants = {"c": np.float32(100), "m": np.float32(-1), "s": np.float32(shift)}
    net = saved(tmp_path / "n.onnx", nodes, "float32", constants)
    assert (reached(net, -150.0, "float32") == shift - 1).all()
    assert not is_proved(net, -200, -50, 4, f"(assert (<= Y_0 {shift - 0.5}))")


def test_a_root_of_a_square_is_a_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["q"]),
        helper.make_node("Add", ["q", "c"], ["a"]),
        helper.make_node("Sqrt", ["a"], ["r"]),
        helper.make_node("Div", ["x", "r"], ["d"]),
        helper.make_node("IsNaN", ["d"], ["n"]),
        helper.make_node("Where", ["n", "c", "d"], ["y"]),
    ]
    net = saved(tmp_path / "n.onnx", nodes, "float32", {"c": np.float32(0.1)})
    assert is_proved(net, -2, 2, 4, "(assert (>= Y_0 100))")


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("large", [1e10, 1e8])
def test_offsets_that_cancel_leave_the_rounding_of_what_they_were(
    large: float, is_dense: bool, tmp_path: Path
) -> None:
    """``((x + 0.4 g) + large) - large`` where ``g`` is the distance of floats at ``large``: merged
    into ``x + 0``, while the sum at ``x = 0.2 g`` is ``0.6 g``, and ``g`` as rounded."""
    gap = float(np.spacing(large))
    offsets = np.array([0.4 * gap, large, -large])
    nodes, source = [], "x"
    for k, name in enumerate(("a", "b", "d")):
        if is_dense:
            nodes.append(helper.make_node("Gemm", [source, "w", f"c{k}"], [name]))
        else:
            nodes.append(helper.make_node("Add", [source, f"c{k}"], [name]))
        source = name
    nodes.append(helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT))
    constants = {f"c{k}": np.full(4, offset) for k, offset in enumerate(offsets)}
    net = saved(tmp_path / "n.onnx", nodes, "float64", {"w": np.eye(4), **constants})
    assert (reached(net, 0.2 * gap, "float64") >= 0.5 * gap).all()
    assert not is_proved(net, 0.0, 0.2 * gap, 4, f"(assert (>= Y_0 {0.5 * gap!r}))")


@pytest.mark.parametrize(("asked", "is_true"), [(4.0, False), (1e25, True)])
def test_a_normalisation_whose_offset_cancels(asked: float, is_true: bool, tmp_path: Path) -> None:
    """``s (x - 1e17) + b`` was ``s x`` where ``b`` is ``1e17 s`` as rounded; the real function is
    8.4 above that. (The other output is large, so that readings agree.)"""
    mean, variance = 1e17, 1.0 + float(np.float32(1e-5))
    offset = mean * (1.0 / np.sqrt(variance))
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["a"], axis=1),
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "g"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["v"]),
        helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT),
    ]
    numbers = {"g": [1.0], "b": [offset], "m": [mean], "w": [[1.0, 1e17, 0.0, 0.0]]}
    constants = {name: np.array(value) for name, value in numbers.items()}
    constants |= {"zero": np.array([0])}
    net = saved(tmp_path / "n.onnx", nodes, "float64", constants)
    difference = Fraction(float(offset)) ** 2 * Fraction(variance) - Fraction(mean) ** 2
    assert difference > 16 * Fraction(mean)  # offset > mean / sqrt(variance) + 8
    assert is_proved(net, 0, 1, 4, f"(assert (>= Y_0 {asked}))") == is_true


@pytest.mark.parametrize(("low", "high"), [(-4, 1), (-4, 0.01)])
def test_what_is_chosen_where_a_root_is_none_is_true(
    low: float, high: float, tmp_path: Path
) -> None:
    """``x tanh(sqrt(x))`` where ``x >= 0``, else ``x``: lines above the root were below zero left
    of it, which left no value for what nobody reads there."""
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "zero"], ["c"]),
        helper.make_node("Sqrt", ["x"], ["r"]),
        helper.make_node("Tanh", ["r"], ["t"]),
        helper.make_node("Mul", ["t", "x"], ["p"]),
        helper.make_node("Where", ["c", "p", "x"], ["y"]),
    ]
    net = saved(tmp_path / "n.onnx", nodes, "float32", {"zero": np.float32(0)})
    assert (reached(net, -4.0, "float32") == -4).all()
    assert not is_proved(net, low, high, 4, "(assert (<= Y_0 -3.99))")


@pytest.mark.parametrize(
    ("function", "comparison", "limit"), [("Sqrt", "LessOrEqual", 1), ("Log", "Less", 0)]
)
def test_what_is_no_number_compares_like_none(
    function: str, comparison: str, limit: float, tmp_path: Path
) -> None:
    """``Where(sqrt(x) <= 1, -1, x)`` is ``x`` where ``x`` is negative."""
    nodes = [
        helper.make_node(function, ["x"], ["r"]),
        helper.make_node(comparison, ["r", "one"], ["c"]),
        helper.make_node("Where", ["c", "m", "x"], ["y"]),
    ]
    constants = {"one": np.float32(limit), "m": np.float32(-1)}
    net = saved(tmp_path / "n.onnx", nodes, "float32", constants)
    assert (reached(net, -4.0, "float32") == -4).all()
    for low, high in ((-4, -1), (-4, 0.01)):
        assert not is_proved(net, low, high, 4, "(assert (<= Y_0 -3.99))")


def test_a_largest_entry_among_what_is_no_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sqrt", ["x"], ["r"]),
        helper.make_node("Concat", ["h", "r"], ["both"], axis=1),
        helper.make_node("ArgMax", ["both"], ["i"], axis=1),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "zeros"], ["y"]),
    ]
    constants = {"h": np.float32([[0.5]]), "zeros": np.zeros((1, 4), np.float32)}
    net = saved(tmp_path / "n.onnx", nodes, "float32", constants)
    found = float(reached(net, -4.0, "float32")[0, 0])
    asked = f"(assert (<= Y_0 {found + 0.5}))(assert (>= Y_0 {found - 0.5}))"
    assert not is_proved(net, -4, -1, 4, asked)


def branch(name: str, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.GraphProto:
    """A graph that ends with the tensor ``end``."""
    tensors = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    ends = [helper.make_tensor_value_info("end", TensorProto.FLOAT, FOUR)]
    return helper.make_graph(nodes, name, [], ends, tensors)


@pytest.mark.parametrize("is_inside", [False, True])
def test_names_of_a_branch_are_its_own(is_inside: bool, tmp_path: Path) -> None:
    """``x + w + w'`` where a branch has its own ``w``, a little smaller: that one was read for all
    that came behind, in the outer graph and in another branch."""
    total = helper.make_node("Add", ["x", "w"], ["end"])
    own = branch("own", [total], w=np.float32([200]))
    none = branch("none", [helper.make_node("Identity", ["x"], ["end"])])
    nodes = [helper.make_node("If", ["is"], ["o"], then_branch=own, else_branch=none)]
    if is_inside:
        more = branch("more", [helper.make_node("Add", ["o", "w"], ["end"])])
        nodes.append(helper.make_node("If", ["is"], ["y"], then_branch=more, else_branch=none))
    else:
        nodes.append(helper.make_node("Add", ["o", "w"], ["y"]))
    constants = {"is": np.array(True), "w": np.float32([200.125])}
    net = saved(tmp_path / "n.onnx", nodes, "float32", constants)
    assert (reached(net, 1.0, "float32") == 401.125).all()
    assert not is_proved(net, 0, 1, 4, "(assert (>= Y_0 401.1))")
    assert is_proved(net, 0, 1, 4, "(assert (>= Y_0 401.2))")
