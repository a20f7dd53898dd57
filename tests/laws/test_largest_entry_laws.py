"""The largest of many entries: never bounded looser than by their intervals, and split to the end.

Every ONNX operator that takes a maximum is a tournament of ``Larger`` nodes. What is claimed of
them is sampled; that they are exact once split is decided on a network whose range is known:
``max_j z_j - min_k z_k`` of ``z = W x`` on ``[-1, 1]^n`` is at most the largest ``|W_j - W_k|_1``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph

POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
MAXIMA = {
    "MaxPool": ([helper.make_node("MaxPool", ["z"], ["y"], **POOL)], (1, 1, 5, 5)),
    "GlobalMaxPool": ([helper.make_node("GlobalMaxPool", ["z"], ["y"])], (1, 2, 3, 3)),
    "ReduceMax": ([helper.make_node("ReduceMax", ["z"], ["y"], axes=[1])], (2, 7)),
    "ReduceMin": ([helper.make_node("ReduceMin", ["z"], ["y"], axes=[0, 1])], (2, 7)),
    "Max": (
        [
            helper.make_node("Split", ["z"], ["a", "b", "c"], axis=0),
            helper.make_node("Max", ["a", "b", "c"], ["y"]),
        ],
        (3, 4),
    ),
    "Min": (
        [
            helper.make_node("Split", ["z"], ["a", "b", "c"], axis=0),
            helper.make_node("Min", ["a", "b", "c"], ["y"]),
        ],
        (3, 4),
    ),
}


def network_of(nodes: list[onnx.NodeProto], shape: tuple[int, ...], folder: Path) -> Path:
    """``z = W x`` of the given shape, then ``nodes`` from ``z`` to ``y``."""
    rng = np.random.default_rng(7)
    size = int(np.prod(shape))
    weights = {
        "W": rng.normal(size=(4, size)).astype(np.float32),
        "shape": np.array(shape, np.int64),
    }
    dense = [
        helper.make_node("MatMul", ["x", "W"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["z"]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(
        [*dense, *nodes],
        "net",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "net.onnx"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("op", MAXIMA)
def test_bounds_enclose_and_are_no_looser_than_the_entries(op: str, tmp_path: Path) -> None:
    nodes, shape = MAXIMA[op]
    graph = read_graph(network_of(nodes, shape, tmp_path))
    network, out = Network(graph, torch.float64), graph.outputs[0]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        centre, radius = rng.uniform(-1, 1, 4), rng.uniform(0, 1) ** 2
        low, up = (network.tensor((centre + sign * radius)[None]) for sign in (-1, 1))
        interval = interval_bounds(network, low, up)
        enclosure = LayerBounder(network, 1 << 28).run(low, up)
        # rows over all outputs: what passes a maximum downwards may meet the constant
        rows = torch.tensor(rng.normal(size=(1, 6, graph.n_outputs)))
        backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
        least = minimum(backward.run(output_seeds(network, rows)), low, up, backward.gamma)[0]
        points = low + torch.tensor(rng.random((200, 4))) * (up - low)
        values = network(points)
        assert (values @ rows[0].T >= least - 1e-12).all()
        for bounds in (interval, enclosure.bounds):
            lower, upper = (end[0].flatten() for end in bounds[out])
            assert (lower <= values + 1e-12).all() and (values <= upper + 1e-12).all()
        z = next(node for node in graph.nodes.values() if node.op in ("Linear", "Reshape"))
        ends = [end.flatten() for end in interval[z.name]]
        # the range of all entries holds every maximum and minimum of some of them
        assert interval[out][0].min() >= ends[0].min() - 1e-9
        assert interval[out][1].max() <= ends[1].max() + 1e-9


@pytest.mark.parametrize("slack", [0.01, -0.01])
def test_a_search_splits_maxima_to_the_end(slack: float, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["z"], ["a"], axes=[1]),
        helper.make_node("ReduceMin", ["z"], ["b"], axes=[1]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    path = network_of(nodes, (1, 5), tmp_path)
    stored = onnx.load(path).graph.initializer
    weight = numpy_helper.to_array(stored[0]).astype(np.float64)
    truth = max(np.abs(weight[:, j] - weight[:, k]).sum() for j in range(5) for k in range(5))
    names = [f"X_{k}" for k in range(4)]
    lines = [f"(declare-const {name} Real)" for name in [*names, "Y_0"]]
    lines += [f"(assert (>= {name} -1)) (assert (<= {name} 1))" for name in names]
    question = tmp_path / "question.vnnlib"
    question.write_text("\n".join([*lines, f"(assert (>= Y_0 {truth + slack}))"]))
    verdict = bitcrown.verify(bitcrown.load(path, question), cpu_seconds=60)
    assert verdict.status == ("unsat" if slack > 0 else "sat"), verdict
