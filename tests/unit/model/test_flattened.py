"""Functions that a file defines, and nodes in any order, are what onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitcrown.errors import ModelError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from tests.fuzz.graphs import OPSETS

SHAPE = (1, 3)
VERSION = max(version for version in OPSETS if version <= 17)


def leaky(name: str = "Leaky", default: float | None = None, domain: str = "own") -> Any:
    """A function of one attribute, which may have a default."""
    node = helper.make_node("LeakyRelu", ["a"], ["b"])
    node.attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    )
    return helper.make_function(
        domain,
        name,
        ["a"],
        ["b"],
        [node],
        [helper.make_opsetid("", VERSION)],
        attributes=["alpha"] if default is None else [],
        attribute_protos=[] if default is None else [helper.make_attribute("alpha", default)],
    )


def twice() -> Any:
    """A function of functions, with names that the network uses as well."""
    call = {"domain": "own", "alpha": 0.3}
    nodes = [
        helper.make_node("Leaky", ["x"], ["t"], **call),
        helper.make_node("Leaky", ["t"], ["y"], **call),
    ]
    imports = [helper.make_opsetid("", VERSION), helper.make_opsetid("own", 1)]
    return helper.make_function("own", "Twice", ["x"], ["y"], nodes, imports)


def negation(name: str) -> Any:
    nodes = [helper.make_node("Neg", ["a"], ["b"])]
    return helper.make_function("", name, ["a"], ["b"], nodes, [helper.make_opsetid("", VERSION)])


def called(op: str, read: str, written: str, **attrs: float) -> NodeProto:
    return helper.make_node(op, [read], [written], domain="own", **attrs)


def branch(node: NodeProto) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, SHAPE)
    return helper.make_graph([node], "branch", [], [out])


CASES: dict[str, tuple[list[NodeProto], list[Any]]] = {
    "attribute": ([called("Leaky", "x", "y", alpha=0.7)], [leaky()]),
    "default": ([called("Leaky", "x", "y")], [leaky(default=0.9)]),
    "nested": ([called("Twice", "x", "t"), called("Twice", "t", "y")], [leaky(), twice()]),
    "named like a standard operator": (
        [helper.make_node("Relu", ["x"], ["y"])],
        [negation("Relu")],
    ),
    "in a branch": (
        [
            helper.make_node(
                "If",
                ["yes"],
                ["y"],
                then_branch=branch(called("Leaky", "x", "p", alpha=0.5)),
                else_branch=branch(helper.make_node("Relu", ["x"], ["q"])),
            )
        ],
        [leaky()],
    ),
    "order": (
        [
            helper.make_node("Relu", ["s"], ["y"]),
            helper.make_node("Sub", ["t", "x"], ["s"]),
            helper.make_node("Neg", ["x"], ["t"]),
        ],
        [],
    ),
}


def saved(nodes: list[NodeProto], functions: list[Any], path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy"]
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [yes])
    imports = [helper.make_opsetid("", VERSION), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_runtime_computes(case: str, tmp_path: Path) -> None:
    file = NetworkFile(saved(*CASES[case], tmp_path / "n.onnx"))
    graph = read_graph(file)
    crosscheck(graph, file, seed=0)
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    for point in (np.array([[-1.0, 0.25, 2.0]]), np.array([[0.5, -3.0, -0.125]])):
        (expected,) = session.run(None, {"x": point.astype(np.float32)})
        found = Network(graph, torch.float64)(torch.from_numpy(point)).numpy()
        np.testing.assert_allclose(found.reshape(SHAPE), expected, rtol=1e-6)


def test_nodes_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "t"], ["s"]),
        helper.make_node("Neg", ["s"], ["t"]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    with pytest.raises(ModelError, match="wait for each other"):
        read_graph(NetworkFile(saved(nodes, [], tmp_path / "n.onnx")))
