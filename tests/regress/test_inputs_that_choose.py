"""Inputs that choose what a network is, as exporters write them: a rate behind an ``If``, a length
of a slice. Such files were refused even where the property left one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.api import load, verify
from bitcrown.model.file import NetworkFile
from bitcrown.model.known_inputs import with_known_inputs
from bitcrown.model.onnx_reader import read_graph
from bitcrown.settings import Settings
from bitcrown.verdict import Status

SCALE = np.float32(0.25)


def graph_in_a_node(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    ends = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(nodes, name, [], ends)


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    kind: int,
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...] = (),
) -> Path:
    """``nodes`` from ``x`` (two numbers) and ``n`` to ``y``."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("n", kind, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def rates(path: Path) -> Path:
    """``2 (x_0 + x_1)`` if ``n`` is 16000, else ``3 (x_0 + x_1)``."""
    ways = [
        graph_in_a_node(name, [helper.make_node("Mul", ["s", factor], [name])], name)
        for name, factor in (("double", "two"), ("triple", "three"))
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Equal", ["n", "rate"], ["is_rate"]),
        helper.make_node("If", ["is_rate"], ["y"], then_branch=ways[0], else_branch=ways[1]),
    ]
    constants: dict[str, Any] = {"rate": np.int64(16000)}
    constants |= {"two": np.float32(2), "three": np.float32(3)}
    return saved(path, nodes, TensorProto.INT64, constants)


def status(network: Path, low: int, high: int, limit: float) -> Status:
    """Of ``y >= limit`` for ``x`` in [0, 1] and ``n`` between ``low`` and ``high``."""
    prop = network.with_suffix(".vnnlib")
    text = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0"))
    text += "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(2))
    text += f"(assert (>= X_2 {low}))(assert (<= X_2 {high}))(assert (>= Y_0 {limit}))"
    prop.write_text(text)
    settings = Settings(device="cpu", threads=1)
    return verify(load(network, prop), settings, cpu_seconds=20).status


@pytest.mark.parametrize(
    ("rate", "limit", "expected"),
    [
        (16000, 4.1, Status.UNSAT),
        (16000, 3.9, Status.SAT),
        (8000, 5.9, Status.SAT),
        (8000, 6.1, Status.UNSAT),
    ],
)
def test_a_rate_that_is_known(rate: int, limit: float, expected: Status, tmp_path: Path) -> None:
    assert status(rates(tmp_path / "n.onnx"), rate, rate, limit) is expected


def test_a_rate_that_is_one_of_many(tmp_path: Path) -> None:
    assert status(rates(tmp_path / "n.onnx"), 15990, 16010, 6.1) is Status.UNSAT
    assert status(rates(tmp_path / "n.onnx"), 15990, 16010, 5.9) is Status.SAT


@pytest.mark.parametrize(("length", "limit"), [(1, 1.1), (2, 2.1)])
def test_a_length_that_is_known(length: int, limit: float, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Slice", ["x", "zero", "n"], ["part"]),
        helper.make_node("ReduceSum", ["part"], ["y"], keepdims=0),
    ]
    network = saved(tmp_path / "n.onnx", nodes, TensorProto.INT64, {"zero": np.array([0])}, (1,))
    assert status(network, length, length, limit) is Status.UNSAT
    assert status(network, length, length, limit - 0.2) is Status.SAT


def test_a_name_that_a_graph_inside_has_too(tmp_path: Path) -> None:
    """Only the ``n`` from outside is known; the one in the branch is another tensor."""
    inner = [helper.make_node("Neg", ["s"], ["n"]), helper.make_node("Relu", ["n"], ["own"])]
    ways = [
        graph_in_a_node("a", inner, "own"),
        graph_in_a_node("b", [helper.make_node("Cast", ["n"], ["outer"], to=1)], "outer"),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["n"], ["q"], to=TensorProto.BOOL),
        helper.make_node("If", ["q"], ["y"], then_branch=ways[0], else_branch=ways[1]),
    ]
    network = saved(tmp_path / "n.onnx", nodes, TensorProto.INT64, {})
    content = with_known_inputs(NetworkFile(network), {"n": np.array(1)})
    written = onnx.ModelProto.FromString(content).graph
    first, second = (attribute.g for attribute in written.node[2].attribute)
    reads = {way.name: [list(node.input) for node in way.node] for way in (first, second)}
    assert reads == {"a": [["s"], ["n"]], "b": [["n/known"]]}
    assert list(written.node[1].input) == ["n/known"]


def test_quantizers_in_a_branch_round(tmp_path: Path) -> None:
    """Roundings of onnxruntime were forgotten where quantizers stand inside a graph."""
    quantized = [
        helper.make_node("QuantizeLinear", ["s", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["out"]),
    ]
    way = graph_in_a_node("way", quantized, "out")
    other = graph_in_a_node("other", [helper.make_node("Identity", ["s"], ["same"])], "same")
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["s"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=way, else_branch=other),
    ]
    constants = {"scale": SCALE, "zero": np.int8(0), "yes": np.bool_(True)}
    graph = read_graph(saved(tmp_path / "n.onnx", nodes, TensorProto.INT64, constants))
    assert any(node.rounding is not None for node in graph.nodes.values())
