"""Networks whose inputs have different types: a float tensor beside a whole number. Every question
about one ended with a TypeError of numpy, which compares an array of classes with a class as if
that were a number."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from bitcrown.api import load, verify
from bitcrown.settings import Settings
from bitcrown.verdict import Status

NODES = [
    helper.make_node("Cast", ["n"], ["whole"], to=TensorProto.FLOAT),
    helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
    helper.make_node("Mul", ["sum", "whole"], ["y"]),
]


def network(path: Path) -> Path:
    """``n (x_0 + x_1)``, ``n`` of type int64 between two float tensors' places."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]),
    ]
    graph = helper.make_graph(NODES, "g", ends[:2], ends[2:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(("limit", "expected"), [("5.9", Status.SAT), ("6.1", Status.UNSAT)])
def test_a_float_tensor_and_a_whole_number(limit: str, expected: Status, tmp_path: Path) -> None:
    """``x`` in [0, 1], ``n`` from 1.5 to 3: 2 or 3, so the output is at most 6."""
    prop = tmp_path / "p.vnnlib"
    names = ["X_0", "X_1", "X_2", "Y_0"]
    prop.write_text(
        "".join(f"(declare-const {name} Real)" for name in names)
        + "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 0))(assert (<= X_1 1))"
        + f"(assert (>= X_2 1.5))(assert (<= X_2 3.0))(assert (>= Y_0 {limit}))"
    )
    problem = load(network(tmp_path / "n.onnx"), prop)
    verdict = verify(problem, Settings(device="cpu", threads=1), cpu_seconds=20)
    assert verdict.status is expected
