"""Small random networks, as graphs and as ONNX files with properties, for tests of bounds and
search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitcrown.model.graph import Graph, Node


def dense_graph(seed: int, sizes: list[int], op: str = "Relu", residual: bool = False) -> Graph:
    """Fully connected network with ``op`` between layers; ``residual`` adds each hidden layer to
    the one before."""
    random = np.random.default_rng(seed)
    nodes = {"x": Node("x", "Input", (), (1, sizes[0]))}
    last = "x"
    for k in range(1, len(sizes)):
        weight = random.normal(size=(sizes[k], sizes[k - 1])) / np.sqrt(sizes[k - 1])
        params = {
            "weight": weight.astype(np.float32).astype(np.float64),
            "bias": random.normal(size=sizes[k]) * 0.3,
        }
        params["bias"] = params["bias"].astype(np.float32).astype(np.float64)
        nodes[f"z{k}"] = Node(f"z{k}", "Linear", (last,), (1, sizes[k]), {}, params)
        if k + 1 == len(sizes):
            return Graph(nodes, ("x",), (f"z{k}",), ("float32",))
        nodes[f"a{k}"] = Node(f"a{k}", op, (f"z{k}",), (1, sizes[k]))
        if residual and sizes[k] == sizes[k - 1] and k > 1:
            nodes[f"s{k}"] = Node(f"s{k}", "Add", (f"a{k}", last), (1, sizes[k]))
            last = f"s{k}"
        else:
            last = f"a{k}"
    raise AssertionError("sizes needs an output")


def conv_graph(seed: int) -> Graph:
    """Two convolutions with ReLU and a dense output on a 1x2x5x5 input."""
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) * 0.4).astype(np.float32).astype(np.float64)

    conv = {"strides": [1, 1], "pads": [1, 1], "dilations": [1, 1], "group": 1}
    down = {**conv, "strides": [2, 2]}
    nodes = [
        Node("x", "Input", (), (1, 2, 5, 5)),
        Node(
            "c1",
            "Conv",
            ("x",),
            (1, 3, 5, 5),
            conv,
            {"weight": weight(3, 2, 3, 3), "bias": weight(3)},
        ),
        Node("r1", "Relu", ("c1",), (1, 3, 5, 5)),
        Node(
            "c2",
            "Conv",
            ("r1",),
            (1, 3, 3, 3),
            down,
            {"weight": weight(3, 3, 3, 3), "bias": weight(3)},
        ),
        Node("r2", "Relu", ("c2",), (1, 3, 3, 3)),
        Node("f", "Reshape", ("r2",), (1, 27), {"shape": (1, 27)}),
        Node("y", "Linear", ("f",), (1, 3), {}, {"weight": weight(3, 27), "bias": weight(3)}),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


def save_onnx(graph: Graph, path: Path) -> None:
    """Write a ``dense_graph`` as ONNX (Gemm and activations)."""
    protos, weights = [], []
    for node in graph.nodes.values():
        if node.op == "Linear":
            for key, value in node.params.items():
                weights.append(
                    numpy_helper.from_array(value.astype(np.float32), f"{node.name}.{key}")
                )
            names = [node.inputs[0], f"{node.name}.weight", f"{node.name}.bias"]
            protos.append(helper.make_node("Gemm", names, [node.name], transB=1))
        elif node.op != "Input":
            protos.append(helper.make_node(node.op, list(node.inputs), [node.name]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(graph.nodes["x"].shape))]
    output = graph.outputs[0]
    outputs = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, list(graph.nodes[output].shape))
    ]
    model = helper.make_model(
        helper.make_graph(protos, "net", inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    model.ir_version = 8
    onnx.save(model, str(path))


def box_property(lower: np.ndarray, upper: np.ndarray, outputs: int, formula: str) -> str:
    """A VNN-LIB 1.0 text: the box (as exact decimals of its floats) and one output assertion."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, up) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        lines += [f"(assert (>= X_{i} {low!r}))", f"(assert (<= X_{i} {up!r}))"]
    return "\n".join([*lines, f"(assert {formula})"]) + "\n"
