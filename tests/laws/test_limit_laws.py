"""Limits that hold of the real function do not bind what the runtime rounds: of three numbers over
their root mean square none exceeds the root of 3, and onnxruntime computes floats above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph


def divided() -> list[onnx.NodeProto]:
    return [helper.make_node("Div", ["x", "root"], ["y"])]


def multiplied() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Reciprocal", ["root"], ["r"]),
        helper.make_node("Mul", ["x", "r"], ["y"]),
    ]


@pytest.mark.parametrize("last", [divided, multiplied])
def test_rounded_values_lie_in_the_bounds_of_the_runtime(
    last: Callable[[], list[onnx.NodeProto]], tmp_path: Path
) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        *last(),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    path = tmp_path / "net.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    points = np.zeros((3000, 1, 3), np.float32)
    points[:, 0, 0] = np.random.default_rng(0).uniform(1, 2, 3000)
    largest = max(float(session.run(None, {"x": x})[0].max()) for x in points)
    tops = {}
    for semantics in ("real", "runtime"):
        network = Network(read_graph(path, semantics), torch.float64)
        box = network.tensor([[1.0, 0.0, 0.0]]), network.tensor([[2.0, 0.0, 0.0]])
        tops[semantics] = float(interval_bounds(network, *box)[network.graph.outputs[0]][1].max())
    assert tops["real"] == pytest.approx(math.sqrt(3), abs=1e-12)  # the limit is known
    assert math.sqrt(3) + 1e-9 < largest <= tops["runtime"]
