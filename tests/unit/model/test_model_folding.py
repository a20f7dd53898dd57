"""What exporters compute from shapes and constants is folded while reading, with the results of
onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper
from operator_cases import ints
from tiny_models import Array, model_of, random_feed, run_graph, run_onnxruntime, saved

from bitcrown.errors import ModelError
from bitcrown.model.onnx_reader import read_graph

ARITHMETIC = {"Input", "Scale", "Expand"}
MOVES = {"Input", "Reshape", "Expand", "Slice", "Gather", "Concat", "Constant"}


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    """Operand names separated by blanks; ``-`` is an omitted one."""
    return helper.make_node(
        op, [name.replace("-", "") for name in inputs.split()], outputs.split(), **attrs
    )


def floats(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


class Case(NamedTuple):
    nodes: list[onnx.NodeProto]
    constants: dict[str, Array]
    left: set[str]
    """Operators that may remain."""
    opset: int = 15


TABLE = floats(*range(24)).reshape(4, 6)
CASES = {
    "flatten by shape": Case(
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "g"),
            node("Unsqueeze", "g zeros", "u"),
            node("Concat", "u rest", "c", axis=0),
            node("Reshape", "x c", "y"),
        ],
        {"zero": np.int64(0), "zeros": ints(0), "rest": ints(-1)},
        MOVES,
    ),
    "part of a shape": Case(
        [node("Shape", "x", "s", start=-1), node("Cast", "s", "c", to=1), node("Mul", "x c", "y")],
        {},
        ARITHMETIC,
    ),
    "part of the shape of a constant": Case(
        [node("Shape", "w", "s", start=1, end=3), node("Expand", "x s", "y")],
        {"w": np.zeros((5, 2, 3))},
        MOVES,
    ),
    "shape in a division": Case(
        [
            node("Size", "x", "s"),
            node("Cast", "s", "c", to=1),
            node("Sqrt", "c", "r"),
            node("Div", "x r", "y"),
        ],
        {},
        ARITHMETIC,
    ),
    "expand with where": Case(
        [
            node("Shape", "x", "s"),
            node("Equal", "s two", "q"),
            node("Where", "q four s", "t"),
            node("Unsqueeze", "x one", "u"),
            node("ConstantOfShape", "one", "ones", value=helper.make_tensor("v", 7, [1], [1])),
            node("Concat", "t ones", "c", axis=0),
            node("Reshape", "u c0", "y"),
        ],
        {"two": ints(2), "four": ints(4), "one": ints(1), "c0": ints(3, 2)},
        MOVES,
    ),
    "slice without axes": Case(
        [node("Slice", "w from to - step", "s"), node("Add", "x s", "y")],
        {"w": TABLE, "from": ints(0, 0), "to": ints(4, 6), "step": ints(2, 2)},
        ARITHMETIC,
    ),
    "slice backwards": Case(
        [node("Slice", "w from to axis step", "s"), node("Add", "x s", "y")],
        {
            "w": TABLE[:2],
            "from": ints(-1),
            "to": ints(-(2**62)),
            "axis": ints(-1),
            "step": ints(-2),
        },
        ARITHMETIC,
    ),
    "slice by attributes": Case(
        [node("Slice", "w", "s", starts=[-2], ends=[9], axes=[0]), node("Add", "x s", "y")],
        {"w": TABLE[:, :3]},
        ARITHMETIC,
        opset=9,
    ),
    "integer division": Case(
        [node("Div", "a b", "d"), node("Cast", "d", "c", to=1), node("Mul", "x c", "y")],
        {"a": ints(-7, 7, 9), "b": ints(2, 2, -4)},
        ARITHMETIC,
    ),
    "maximum over no axes named": Case(
        [node("ReduceMax", "w axes", "m", keepdims=0), node("Add", "x m", "y")],
        {"w": floats(1, 5, 3), "axes": ints()},
        ARITHMETIC,
        opset=18,
    ),
    "maximum of nothing": Case(
        [node("ReduceMax", "w axes", "m", noop_with_empty_axes=1), node("Add", "x m", "y")],
        {"w": floats(1, 5, 3), "axes": ints()},
        ARITHMETIC,
        opset=18,
    ),
    "product of a shape": Case(
        [
            node("Shape", "x", "s"),
            node("ReduceProd", "s", "p", keepdims=1, axes=[0]),
            node("Reshape", "x p", "y"),
        ],
        {},
        MOVES,
    ),
    "gemm of constants": Case(
        [node("Gemm", "w v b", "g", alpha=0.5, beta=2.0, transA=1), node("Add", "x g", "y")],
        {"w": TABLE[:3, :2], "v": TABLE[:3, :3], "b": floats(1, 2, 3)},
        ARITHMETIC,
    ),
    "gemm of constants plus the input": Case(
        [node("Gemm", "w v x", "y", alpha=0.5, beta=2.0)],
        {"w": TABLE[:2, :2], "v": TABLE[:2, :3]},
        ARITHMETIC,
    ),
    "split integers": Case(
        [
            node("Split", "w", "a b", axis=0),
            node("Reshape", "x a", "t"),
            node("Reshape", "t b", "y"),
        ],
        {"w": ints(3, 2, 6, 1)},
        MOVES,
        opset=13,
    ),
    "second half of a constant": Case(
        [node("Split", "w", "- b", axis=0), node("Add", "x b", "y")],
        {"w": TABLE[:2, :3]},
        ARITHMETIC,
        opset=13,
    ),
    "larger integer": Case(
        [node("Max", "a b", "m"), node("Reshape", "x m", "y")],
        {"a": ints(1, 6), "b": ints(0, 2)},
        MOVES,
    ),
    "sum of integers": Case(
        [node("ReduceSum", "w axes", "s"), node("Reshape", "x s", "y")],
        {"w": ints(2, 4), "axes": ints(0)},
        MOVES,
    ),
    "range": Case(
        [node("Range", "a b c", "r"), node("Gather", "x r", "y", axis=1)],
        {"a": np.int64(0), "b": np.int64(3), "c": np.int64(2)},
        MOVES,
    ),
    "mask": Case(
        [
            node("Greater", "w v", "g"),
            node("Not", "g", "n"),
            node("Cast", "n", "c", to=1),
            node("Mul", "x c", "y"),
        ],
        {"w": floats(1, 2, 3), "v": floats(2)},
        ARITHMETIC,
    ),
    "quantized weight": Case(
        [node("DequantizeLinear", "w s z", "d", axis=0), node("Mul", "x d", "y")],
        {
            "w": np.arange(6, dtype=np.uint8).reshape(2, 3),
            "s": floats(0.5, 2),
            "z": np.array([1, 4], np.uint8),
        },
        ARITHMETIC,
    ),
    "clip and transpose": Case(
        [
            node("Clip", "w low high", "c"),
            node("Transpose", "c", "t"),
            node("MatMul", "x t", "y"),
        ],
        {"w": TABLE[:, :3], "low": np.float32(2), "high": np.float32(9)},
        {"Input", "Linear"},
    ),
    "tile": Case(
        [node("Tile", "w n", "t"), node("Add", "x t", "y")],
        {"w": floats(1, 2, 3), "n": ints(1)},
        ARITHMETIC,
    ),
    "remainder": Case(  # of a head size, as an attention's exporter writes it
        [
            node("Mod", "a b", "m"),
            node("Div", "a b", "d"),
            node("Add", "m d", "t"),
            node("Reshape", "x t", "y"),
        ],
        {"a": ints(15), "b": ints(10)},
        MOVES,
    ),
    "triangle of ones": Case(
        [
            node("ConstantOfShape", "n", "o", value=helper.make_tensor("v", 1, [1], [1.0])),
            node("Trilu", "o k", "t", upper=0),
            node("MatMul", "x t", "y"),
        ],
        {"n": ints(3, 3), "k": np.int64(0)},
        {"Input", "Linear"},
    ),
    "identity matrix": Case(
        [node("EyeLike", "w", "e", dtype=1, k=1), node("MatMul", "x e", "y")],
        {"w": np.zeros((3, 4), np.int64)},
        {"Input", "Linear"},
    ),
    "one in each row": Case(
        [
            node("Range", "zero three one", "r"),
            node("OneHot", "r three v", "h", axis=-1),
            node("Cast", "h", "c", to=1),
            node("MatMul", "x c", "y"),
        ],
        {"zero": np.int64(0), "three": np.int64(3), "one": np.int64(1), "v": ints(0, 2)},
        {"Input", "Linear", "Scale"},
    ),
    "entry written into a constant": Case(
        [node("ScatterND", "w i u", "s"), node("Add", "x s", "y")],
        {"w": floats(1, 2, 3), "i": np.array([[1]], np.int64), "u": floats(9)},
        ARITHMETIC,
    ),
    "positions of the largest": Case(
        [node("TopK", "w k", "v i", axis=0), node("Gather", "x i", "y", axis=1)],
        {"w": floats(1, 5, 3), "k": ints(2)},
        MOVES,
    ),
    "table of many entries": Case(
        [node("Einsum", "w v", "s", equation="ij,jk->k"), node("Add", "x s", "y")],
        {"w": np.ones((7, 1000), np.float32), "v": np.ones((1000, 3), np.float32)},
        ARITHMETIC,
    ),
    "wide exponent": Case(
        [node("Pow", "x e", "y")], {"e": np.full((4, 1, 3), 2, np.float32)}, {"Square", *MOVES}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_folding(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = saved(model_of(case.nodes, {"x": (2, 3)}, ["y"], case.constants, case.opset), tmp_path)
    graph = read_graph(path)
    assert {kept.op for kept in graph.nodes.values()} <= case.left
    feed = random_feed(graph)
    found, expected = run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


REFUSED = {
    "integer division by zero": Case(
        [node("Div", "w z", "s"), node("Reshape", "x s", "y")], {"z": ints(0)}, set()
    ),
    "negative variance": Case(
        [node("BatchNormalization", "x v v v v", "y")], {"v": floats(1, -1, 1)}, set()
    ),
    "integers beyond float64": Case(
        [node("Max", "huge one", "s"), node("Reshape", "x s", "y")],
        {"huge": ints(2**60 + 1)},
        set(),
    ),
    "resize beyond memory": Case(
        [node("Resize", "x - - huge", "y")], {"huge": ints(1 << 40, 3)}, set()
    ),
    "resize to nothing": Case([node("Resize", "x - - none", "y")], {"none": ints(0, 3)}, set()),
    "one of a million million": Case(
        [node("OneHot", "one depth w", "s"), node("Gather", "s one", "t"), node("Add", "x t", "y")],
        {"depth": np.int64(1 << 40)},
        set(),
    ),
    "padding beyond memory": Case(
        [node("Pad", "w pads", "s"), node("Gather", "s one", "t"), node("Add", "x t", "y")],
        {"pads": ints(1 << 40, 0)},
        set(),
    ),
    "range with step zero": Case(
        [node("Range", "one one z0", "s"), node("Add", "x s", "y")], {}, set()
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_constants(name: str, tmp_path: Path) -> None:
    constants = {"w": ints(2, 3), "one": np.int64(1), "z0": np.int64(0), **REFUSED[name].constants}
    with pytest.raises(ModelError, match="node"):
        read_graph(saved(model_of(REFUSED[name].nodes, {"x": (2, 3)}, ["y"], constants), tmp_path))


@pytest.mark.parametrize("first", [1, 2])
def test_a_branch_whose_condition_is_known_is_taken(first: int, tmp_path: Path) -> None:
    """As an exporter asks whether an axis may be squeezed; the branches read tensors from around
    them, and weights of their own."""

    def branch(op: str, name: str, value: float) -> onnx.GraphProto:
        weight = onnx.numpy_helper.from_array(floats(value), f"w_{name}")
        output = onnx.ValueInfoProto(name=name)
        return helper.make_graph([node(op, f"h w_{name}", name)], name, [], [output], [weight])

    nodes = [
        node("Add", "x x", "h"),
        node("Shape", "x", "s"),
        node("Gather", "s zero", "g"),
        node("Equal", "g one", "q"),
        helper.make_node(
            "If",
            ["q"],
            ["z"],
            then_branch=branch("Mul", "product", 3.0),
            else_branch=branch("Sub", "difference", 5.0),
        ),
        node("Relu", "z", "y"),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1)}
    path = saved(model_of(nodes, {"x": (first, 3)}, ["y"], constants), tmp_path)
    graph = read_graph(path)
    feed = random_feed(graph)
    np.testing.assert_allclose(run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0], rtol=1e-6)
