"""Rows about what stands before a rising function fail and hold where the rows about it do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.objective import Objective
from bitcrown.search.scores import by_scores

SHAPE = (2, 5)


def network_of(
    folder: Path, *nodes: tuple[str, dict[str, Any]], scale: float = 1.0, n: int = 4
) -> Network:
    """Ten sums of ``n`` inputs as ``SHAPE``, and ``nodes`` one after the other behind them."""
    rng = np.random.default_rng(0)
    weight = (scale * rng.normal(size=(n, 10))).astype(np.float32)
    made = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Reshape", ["z", "shape"], ["t0"]),
    ]
    for k, (op, attrs) in enumerate(nodes):
        made.append(helper.make_node(op, [f"t{k}"], [f"t{k + 1}"], **attrs))
    constants = [numpy_helper.from_array(weight, "w")]
    constants.append(numpy_helper.from_array(np.array(SHAPE, dtype=np.int64), "shape"))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n]),
        helper.make_tensor_value_info(f"t{len(nodes)}", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(made, "g", ends[:1], ends[1:], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return Network(read_graph(folder / "net.onnx"), torch.float64)


def objective_of_pairs(pairs: Sequence[tuple[int, int]], limit: float = 0.0) -> Objective:
    """One case a pair: ``2 y_i - 2 y_j <= limit``."""
    matrix = np.zeros((len(pairs), 1, 10))
    for case, (i, j) in enumerate(pairs):
        matrix[case, 0, i], matrix[case, 0, j] = 2.0, -2.0
    rhs = np.full((len(pairs), 1), limit)
    ends = -np.ones((1, 4)), np.ones((1, 4))
    return Objective(matrix, None, rhs, *ends, np.zeros(len(pairs), dtype=np.int64))


def values(network: Network, objective: Objective, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        y = network(x).numpy()
    found: np.ndarray = np.einsum("psm,km->kps", objective.C, y)
    return found


IN_LINE = [(0, 1), (3, 2), (9, 5), (6, 8)]
"""Pairs of one line of five."""
ACROSS = [(0, 5), (1, 7)]
"""Pairs of two lines."""
TURNED = [(0, 2), (9, 1), (3, 5)]
"""Pairs of one line once the two axes are exchanged."""


@pytest.mark.parametrize(
    ("nodes", "pairs", "behind"),
    [
        ([("Softmax", {})], IN_LINE, "z"),
        ([("LogSoftmax", {"axis": 1})], IN_LINE, "z"),
        ([("Softmax", {}), ("Sigmoid", {})], IN_LINE, "z"),
        ([("Tanh", {}), ("Exp", {})], IN_LINE + ACROSS, "z"),
        ([("Softmax", {"axis": 1}), ("Transpose", {"perm": [1, 0]})], TURNED, "z"),
        ([("Transpose", {"perm": [1, 0]}), ("Softmax", {"axis": 0})], TURNED, "z"),
        ([("Softmax", {})], IN_LINE + ACROSS, "share"),
        ([("Softmax", {}), ("Neg", {})], IN_LINE, ""),
        ([("Cos", {})], IN_LINE, ""),
    ],
)
def test_signs_of_rows_are_kept(
    tmp_path: Path,
    nodes: list[tuple[str, dict[str, Any]]],
    pairs: list[tuple[int, int]],
    behind: str,
) -> None:
    network, objective = network_of(tmp_path, *nodes), objective_of_pairs(pairs)
    front, rows = by_scores(network, objective)
    assert (front is not network) == bool(behind)
    ops = {node.op for node in front.graph.nodes.values()}
    assert ("Exp" not in ops and "LogShare" not in ops) == (behind == "z") or not behind
    x = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (500, 4)))
    before, after = values(network, objective, x), values(front, rows, x)
    sure = (np.abs(before) > 1e-12) & (np.abs(after) > 1e-12)
    assert sure.mean() > 0.9
    assert (np.sign(before) == np.sign(after))[sure].all()


def test_other_rows_keep_their_outputs(tmp_path: Path) -> None:
    network = network_of(tmp_path, ("Softmax", {}))
    limited = objective_of_pairs(IN_LINE, 0.25)
    assert by_scores(network, limited)[0] is network
    threefold = objective_of_pairs(IN_LINE)
    threefold.C[0, 0, 4] = 1.0
    assert by_scores(network, threefold)[0] is network
    uneven = objective_of_pairs(IN_LINE)
    uneven.C[0, 0, 0] = 3.0
    assert by_scores(network, uneven)[0] is network
    with_inputs = objective_of_pairs(IN_LINE)
    inputs = np.zeros((len(IN_LINE), 1, 4))
    inputs[1, 0, 2] = 1.0
    with_inputs = Objective(
        with_inputs.C,
        inputs,
        with_inputs.rhs,
        with_inputs.lower,
        with_inputs.upper,
        with_inputs.box,
    )
    assert by_scores(network, with_inputs)[0] is network


@pytest.mark.parametrize("scale", [0.02, 1.0, 300.0])
def test_descent_follows_sums_behind_signs_of_any_size(tmp_path: Path, scale: float) -> None:
    """Of ten signs of sums one is to be turned, whatever the sums are worth: on the way from a
    corner ``a`` of the box to the opposite one it turns at nine tenths, so 40 inputs have to move
    together, and chance never does that."""
    network = network_of(tmp_path, ("Sign", {}), scale=scale, n=40)
    direction = np.sign(np.random.default_rng(0).normal(size=(40, 10))[:, 0])
    ends = torch.from_numpy(np.stack([-0.9 * direction, 0.1 * direction]))
    target = Target(
        torch.tensor([[[-1.0, *[0.0] * 9]]], dtype=torch.float64), None, torch.zeros(1, 1).double()
    )
    found = pgd(
        network,
        ends.amin(0, keepdim=True),
        ends.amax(0, keepdim=True),
        target,
        torch.Generator().manual_seed(0),
        40,
        2,
        Budget.of_cpu_seconds(60),
    )
    assert float(found.excess[0]) <= 0
