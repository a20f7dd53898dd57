"""Signs of differences of entries: what they are rewritten to, and what they must not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.passes import simplified

HEIGHT, WIDTH = 3, 4


def segmentation(path: Path, classes: int, last: int, op: str) -> Path:
    """How many pixels of a mask a softmax over ``classes`` agrees with, as segmentation networks
    are exported; the mask is the image's last channel."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(classes, 2, 3, 3)).astype(np.float32),
        "b": random.normal(size=classes).astype(np.float32),
        "depth": np.array([classes], dtype=np.int64),
        "values": np.array([0, 1], dtype=np.int64),
        "one": np.array(1, dtype=np.int64),
        "three": np.array(2, dtype=np.int64),
        "starts": np.array([0], dtype=np.int64),
        "ends": np.array([2], dtype=np.int64),
        "axes": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["image"]),
        helper.make_node("Gather", ["x", "three"], ["mask"], axis=1),
        helper.make_node("Conv", ["image", "w", "b"], ["z"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["z"], ["t"], perm=[0, 3, 2, 1]),
        helper.make_node("Softmax", ["t"], ["s"], axis=3),
        helper.make_node("Transpose", ["s"], ["u"], perm=[0, 3, 2, 1]),
        helper.make_node(op, ["u"], ["i"], axis=1, keepdims=0, select_last_index=last),
        helper.make_node("OneHot", ["i", "depth", "values"], ["h"], axis=1),
        helper.make_node("Gather", ["h", "one"], ["hit"], axis=1),
        *(helper.make_node("Cast", [name], [f"{name}32"], to=6) for name in ("hit", "mask")),
        helper.make_node("Equal", ["hit32", "mask32"], ["same"]),
        helper.make_node("Cast", ["same"], ["number"], to=7),
        helper.make_node("ReduceSum", ["number"], ["count"], keepdims=0),
        helper.make_node("Cast", ["count"], ["y"], to=1),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, HEIGHT, WIDTH))
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_pixels_of_a_class_are_signs_of_logits(
    classes: int, last: int, op: str, tmp_path: Path
) -> None:
    path = segmentation(tmp_path / "net.onnx", classes, last, op)
    graph = read_graph(path)
    operators = [node.op for node in graph.nodes.values()]
    assert not {"Exp", "LogSumExp", "LogShare"} & set(operators)
    if classes == 2:
        assert operators.count("Conv") == 1 and "Gather" not in operators
        (conv,) = (node for node in graph.nodes.values() if node.op == "Conv")
        assert conv.shape == (1, 1, HEIGHT, WIDTH)
    network = Network(graph, torch.float64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    for _ in range(20):
        x = random.normal(size=(1, 3, HEIGHT, WIDTH)).astype(np.float32)
        x[:, 2] = random.integers(0, 2, (HEIGHT, WIDTH))
        (count,) = session.run(None, {"x": x})
        assert network(network.tensor(x.reshape(1, -1))).item() == count


def test_intervals_count_decided_pixels(tmp_path: Path) -> None:
    """A pixel that no input changes counts as what it is, one that is open as 0 to 1."""
    network = Network(read_graph(segmentation(tmp_path / "n.onnx", 2, 0, "ArgMax")), torch.float64)
    x = torch.randn(1, network.graph.n_inputs, dtype=torch.float64)
    x[:, -HEIGHT * WIDTH :] = (x[:, -HEIGHT * WIDTH :] > 0).double()
    radius = torch.full_like(x, 0.05)
    radius[:, -HEIGHT * WIDTH :] = 0
    bounds = interval_bounds(network, x - radius, x + radius)
    (sign,) = (node for node in network.graph.nodes.values() if node.op == "Conv")
    low, up = bounds[sign.name]
    is_open = int((~((low > 0) | (up < 0))).sum())
    least, most = (end.item() for end in bounds[network.graph.outputs[0]])
    assert 0 < is_open < HEIGHT * WIDTH
    assert abs(most - least - is_open) < 1e-9
    assert least - 1e-9 <= network(x).item() <= most + 1e-9


def difference_of(first: tuple[int, int, int], second: tuple[int, int, int]) -> Graph:
    """The sign of a difference of two slices of ``sigmoid(a) - c``, ``c`` being one number for
    each line."""
    nodes = [
        Node("x", "Input", (), (2, 3)),
        Node("s", "Sigmoid", ("x",), (2, 3)),
        Node("c", "ReduceSum", ("x",), (2, 1), {"axes": (1,), "keepdims": True, "count": 3}),
        Node("e", "Expand", ("c",), (2, 3), {"shape": (2, 3)}),
        Node("d", "Sub", ("s", "e"), (2, 3)),
        Node("p", "Slice", ("d",), (2, 1), {"slices": ((0, 2, 1), first)}),
        Node("q", "Slice", ("d",), (2, 1), {"slices": ((0, 2, 1), second)}),
        Node("r", "Reshape", ("d",), (6,), {"shape": (6,)}),
        Node("u", "Slice", ("r",), (2,), {"slices": ((0, 2, 1),)}),
        Node("v", "Slice", ("r",), (2,), {"slices": ((3, 5, 1),)}),
        Node("pq", "Sub", ("p", "q"), (2, 1)),
        Node("uv", "Sub", ("u", "v"), (2,)),
        Node("same", "Sign", ("pq",), (2, 1)),
        Node("other", "Sign", ("uv",), (2,)),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("same", "other"), ("float32",))


def test_only_what_both_entries_have_cancels() -> None:
    """Entries of one line have the same ``c``, those of two lines have not."""
    before = difference_of((0, 1, 1), (2, 3, 1))
    after = simplified(before)
    assert after.nodes[after.nodes["same"].inputs[0]].op == "Reshape"
    behind, waiting = set(), ["same"]
    while waiting:
        node = after.nodes[waiting.pop()]
        behind.add(node.op)
        waiting += node.inputs
    assert "Sigmoid" not in behind and "ReduceSum" not in behind
    assert "Sigmoid" in {node.op for node in after.nodes.values()}
    x = torch.randn(50, 6, dtype=torch.float64)
    networks = [Network(graph, torch.float64) for graph in (before, after)]
    assert torch.equal(networks[0](x), networks[1](x))
