"""Networks whose inputs have different types: a float tensor beside a whole number. Every question
about one ended with a TypeError of numpy, which compares an array of classes with a class as if
that were a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

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


def masked(path: Path) -> Path:
    """``x_0 m_0 + x_1 m_1`` with a mask ``m`` of truth values."""
    nodes = [
        helper.make_node("Where", ["m", "x", "zero"], ["kept"]),
        helper.make_node("ReduceSum", ["kept"], ["y"], keepdims=0),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("m", TensorProto.BOOL, [2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], [zero])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("mask", "limit", "expected"),
    [
        (((0, 0), (1, 1)), "1.1", Status.UNSAT),
        (((0, 0), (1, 1)), "0.9", Status.SAT),
        (((0, 1), (0, 1)), "2.1", Status.UNSAT),
        (((0, 1), (0, 1)), "1.9", Status.SAT),
    ],
)
def test_truth_values(
    mask: tuple[tuple[int, int], ...], limit: str, expected: Status, tmp_path: Path
) -> None:
    prop = tmp_path / "p.vnnlib"
    text = "".join(f"(declare-const {name} Real)" for name in ["X_0", "X_1", "X_2", "X_3", "Y_0"])
    for i, (low, high) in enumerate([(0, 1), (0, 1), *mask]):
        text += f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))"
    prop.write_text(text + f"(assert (>= Y_0 {limit}))")
    problem = load(masked(tmp_path / "n.onnx"), prop)
    verdict = verify(problem, Settings(device="cpu", threads=1), cpu_seconds=10)
    assert verdict.status is expected
