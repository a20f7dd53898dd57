"""A loop is the nodes of its rounds: what onnxruntime computes, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from bitcrown.errors import UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph

SHAPE = (1, 3)
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def body(nodes: list[NodeProto], outputs: tuple[str, ...], **constants: Any) -> GraphProto:
    """Inputs: ``i``, ``go``, ``s``; the first output is the condition, the second the state."""
    kinds = ((INT, []), (BOOL, []), (FLOAT, SHAPE))
    ends = [
        helper.make_tensor_value_info(n, *k) for n, k in zip(("i", "go", "s"), kinds, strict=True)
    ]
    out = [helper.make_tensor_value_info(outputs[0], BOOL, [])]
    out += [helper.make_tensor_value_info(name, FLOAT, SHAPE) for name in outputs[1:]]
    weights = [numpy_helper.from_array(np.array(v), n) for n, v in constants.items()]
    return helper.make_graph(nodes, "body", ends, out, weights)


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> NodeProto:
    """Names are separated by spaces; ``-`` is one left out."""
    return helper.make_node(op, [n.strip("-") for n in inputs.split()], outputs.split(), **attrs)


def layer(to: str = "t") -> list[NodeProto]:
    """``relu(w s + i)``, with a weight from outside."""
    return [
        node("Cast", "i", "number", to=FLOAT),
        node("MatMul", "s w", "product"),
        node("Add", "product number", "sum"),
        node("Relu", "sum", to),
    ]


def branch(op: str, read: str, name: str) -> GraphProto:
    return helper.make_graph(
        [node(op, read, name)], "branch", [], [helper.make_tensor_value_info(name, FLOAT, SHAPE)]
    )


ONCE = node("Identity", "go", "again")
PLAIN = body([*layer(), ONCE], ("again", "t"))
UNTIL = body([*layer(), node("Less", "i limit", "again")], ("again", "t"), limit=np.array(2))
COLLECTING = body([*layer(), node("Neg", "t", "u"), ONCE], ("again", "t", "u", "t"))
CHOOSING = body(
    [
        *layer("q"),
        node("Equal", "i one", "is_one"),
        node(
            "If",
            "is_one",
            "t",
            then_branch=branch("Neg", "q", "p"),
            else_branch=branch("Abs", "q", "p"),
        ),
        ONCE,
    ],
    ("again", "t"),
    one=np.array(1),
)
INNER = body(
    [node("Add", "s q", "both"), node("Relu", "both", "r"), node("Identity", "go", "goes")],
    ("goes", "r"),
)
NESTED = body(
    [*layer("q"), node("Loop", "few go q", "t", body=INNER, name="L"), ONCE], ("again", "t")
)
STEERED = body(
    [*layer(), node("ReduceMax", "t", "m", keepdims=0), node("Less", "m far", "again")],
    ("again", "t"),
    far=np.array(9, np.float32),
)
CASES: dict[str, list[NodeProto]] = {
    "counted": [node("Loop", "three yes x", "y", body=PLAIN)],
    "never": [node("Loop", "three no x", "y", body=PLAIN)],
    "until": [node("Loop", "- - x", "y", body=UNTIL)],
    "counted before": [node("Loop", "two yes x", "y", body=UNTIL)],
    "by a shape": [node("Size", "x", "n"), node("Loop", "n yes x", "y", body=PLAIN)],
    "collecting": [
        node("Loop", "three yes x", "z a b", body=COLLECTING),
        node("Concat", "a b", "c", axis=1),
        node("Gather", "c places", "d", axis=0),
        node("Sub", "d z", "e"),
        node("ReduceSum", "e axes", "f", keepdims=0),
        node("Unsqueeze", "f axis", "y"),
    ],
    "choosing": [node("Loop", "three yes x", "y", body=CHOOSING)],
    "nested": [node("Loop", "two yes x", "y", body=NESTED, name="L")],
    "twice": [
        node("Loop", "two yes x", "z", body=PLAIN, name="L"),
        node("Loop", "three yes z", "y", body=PLAIN, name="M"),
    ],
}


def saved(nodes: list[NodeProto], path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, FLOAT, SHAPE) for name in "xy"]
    weights = {
        "w": np.array([[0.5, -0.3, 0.1], [0.2, 0.7, -0.4], [-0.6, 0.1, 0.9]], np.float32),
        **{"two": np.array(2), "three": np.array(3), "few": np.array(2)},
        **{"yes": np.array(True), "no": np.array(False)},
        **{"axis": np.array([0]), "axes": np.array([0, 1]), "places": np.array([2, 0])},
    }
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_runtime_computes(case: str, tmp_path: Path) -> None:
    file = NetworkFile(saved(CASES[case], tmp_path / "n.onnx"))
    graph = read_graph(file)
    crosscheck(graph, file, seed=0)
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    for point in (np.array([[-1.0, 0.25, 2.0]]), np.array([[0.5, -3.0, -0.125]])):
        (expected,) = session.run(None, {"x": point.astype(np.float32)})
        found = Network(graph, torch.float64)(torch.from_numpy(point)).numpy()
        np.testing.assert_allclose(found.reshape(SHAPE), expected, rtol=1e-5, atol=1e-6)


def test_a_loop_that_values_steer_is_refused(tmp_path: Path) -> None:
    nodes = [node("Loop", "three yes x", "y", body=STEERED)]
    with pytest.raises(UnsupportedError, match="the condition of a loop"):
        read_graph(NetworkFile(saved(nodes, tmp_path / "n.onnx")))


def test_a_loop_without_end_is_refused(tmp_path: Path) -> None:
    nodes = [node("Loop", "- - x", "y", body=body([node("Relu", "s", "t"), ONCE], ("again", "t")))]
    with pytest.raises(UnsupportedError, match="more than"):
        read_graph(NetworkFile(saved(nodes, tmp_path / "n.onnx")))


def test_a_loop_without_a_round_collects_nothing(tmp_path: Path) -> None:
    nodes = [node("Loop", "three no x", "z a b", body=COLLECTING), node("Add", "z a", "y")]
    with pytest.raises(UnsupportedError, match="without a round"):
        read_graph(NetworkFile(saved(nodes, tmp_path / "n.onnx")))
