"""Proofs by cells of what is not true: a cell was left out, or its point was another cell's."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.model.file import NetworkFile
from bitcrown.search.cells import decide_in_cells, input_steps
from bitcrown.search.strategy import Run
from bitcrown.settings import Settings
from bitcrown.verdict import Status

TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
}


def network(
    path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, str], outputs: dict[str, str]
) -> Path:
    """``nodes`` with ``inputs`` and ``outputs`` of shape ``[1, 1]``, types by name."""
    ends = [
        [helper.make_tensor_value_info(name, TYPES[kind], [1, 1]) for name, kind in side.items()]
        for side in (inputs, outputs)
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends))
    model.ir_version, model.opset_import[0].version = 8, 17
    onnx.save(model, path)
    return path


def statuses(net: Path, boxes: list[tuple[str, str]], outputs: int, asked: str) -> set[Status]:
    """What running all cells says of ``asked``: nothing, if they cannot be."""
    text = "".join(f"(declare-const X_{i} Real)" for i in range(len(boxes)))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(outputs))
    for i, (low, high) in enumerate(boxes):
        text += f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))"
    prop = net.with_suffix(".vnnlib")
    prop.write_text(text + asked)
    run = Run(load(net, prop), Settings(device="cpu"), Budget.of_seconds(60, 1 << 28), None)
    verdict = decide_in_cells(run)
    return set() if verdict is None else {verdict.status}


@pytest.mark.parametrize("step", ["Ceil", "Floor", "Round"])
@pytest.mark.parametrize(("kind", "first"), [("float16", 1024), ("float32", 1 << 23)])
def test_a_cut_point_that_the_type_lacks_stands_for_no_cell(
    kind: str, first: int, step: str, tmp_path: Path
) -> None:
    """1031.5 is 1032 in float16: the cell of 1033 was run at the point of another one."""
    net = network(
        tmp_path / "n.onnx", [helper.make_node(step, ["x"], ["y"])], {"x": kind}, {"y": kind}
    )
    for whole in range(first, first + 6):
        asked = f"(assert (>= Y_0 {whole}))(assert (<= Y_0 {whole}))"
        assert statuses(net, [(str(first), str(first + 5))], 1, asked) == {Status.SAT}
    asked = f"(assert (>= Y_0 {first + 6}))"
    assert statuses(net, [(str(first), str(first + 5))], 1, asked) == {Status.UNSAT}


def test_an_input_that_is_an_output_is_read(tmp_path: Path) -> None:
    """It was moved and then read by no node, and counted as one that nothing reads."""
    nodes = [helper.make_node("Floor", ["x"], ["y"]), helper.make_node("Flatten", ["u"], ["z"])]
    inputs, outputs = {"x": "float32", "u": "float32"}, {"y": "float32", "z": "float32"}
    net = network(tmp_path / "n.onnx", nodes, inputs, outputs)
    asked = "(assert (>= Y_1 0.5))(assert (<= Y_0 1))"
    assert Status.UNSAT not in statuses(net, [("0", "3"), ("0", "1")], 2, asked)
    _, unread = input_steps(NetworkFile(net))
    assert unread == set()


def test_an_input_that_chooses_among_itself_is_not_moved(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["a"]),
        helper.make_node("Gather", ["a", "a"], ["y"]),
    ]
    net = network(tmp_path / "n.onnx", nodes, {"x": "int64"}, {"y": "int64"})
    steps, unread = input_steps(NetworkFile(net))
    assert not steps and not unread


def test_zeros_of_both_signs_are_two_cells(tmp_path: Path) -> None:
    """``sigmoid(1 / round(x))`` is 0 for ``x = -0.4`` and 1 for ``x = 0.4``."""
    nodes = [
        helper.make_node("Round", ["x"], ["a"]),
        helper.make_node("Reciprocal", ["a"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["y"]),
    ]
    net = network(tmp_path / "n.onnx", nodes, {"x": "float32"}, {"y": "float32"})
    for asked in ("(assert (>= Y_0 0.9))", "(assert (<= Y_0 0.1))"):
        assert statuses(net, [("-0.4", "0.4")], 1, asked) == {Status.SAT}


@pytest.mark.parametrize(("kind", "first"), [("int64", 1 << 60), ("float64", 1 << 63)])
def test_numbers_that_float64_does_not_count_are_no_cells(
    kind: str, first: int, tmp_path: Path
) -> None:
    """Integers between two float64s were never run; beyond int64 the count itself overflowed."""
    node = helper.make_node("Floor", ["x"], ["y"])
    if kind == "int64":
        node = helper.make_node("Cast", ["x"], ["y"], to=TYPES["float64"])
    net = network(tmp_path / "n.onnx", [node], {"x": kind}, {"y": "float64"})
    box = str(first), str(first + 4096)
    assert statuses(net, [box], 1, f"(assert (>= Y_0 {first + 8192}))") == set()
    near = network(tmp_path / "m.onnx", [node], {"x": kind}, {"y": "float64"})
    assert statuses(near, [("7", "9")], 1, "(assert (>= Y_0 10))") == {Status.UNSAT}
