"""Outputs and inner tensors of shape [] are decided as those of shape [1] are, splits included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.search import decision
from bitcrown.verdict import Status


def network(path: Path, n_inputs: int, op: str, rank: int) -> float:
    """``relu(sum(op(W x + b) v) + 5)`` with an inner and an outer tensor of ``rank``; its greatest
    sampled value."""
    random = np.random.default_rng(n_inputs)
    w, b, v = (
        random.normal(size=shape).astype(np.float32) for shape in ((n_inputs, 8), (8,), (1, 8))
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node(op, ["h"], ["r"]),
        helper.make_node("Mul", ["r", "v"], ["m"]),
        helper.make_node("ReduceSum", ["m", "axes"], ["s"], keepdims=0),
        helper.make_node("Add", ["s", "five"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    axes = np.array([0, 1] if rank == 0 else [1])
    arrays = {"w": w, "b": b, "v": v, "axes": axes, "five": np.full((1,) * rank, 5, np.float32)}
    graph = helper.make_graph(
        nodes,
        "scalar",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n_inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1] * rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    x = random.uniform(-1, 1, (20000, n_inputs))
    hidden = np.maximum(x @ w + b, 0) if op == "Relu" else np.tanh(x @ w + b)
    return float(np.maximum((hidden * v).sum(1) + 5, 0).max())


@pytest.mark.parametrize(
    ("n_inputs", "op", "by_input"), [(2, "Relu", True), (2, "Tanh", True), (6, "Relu", False)]
)
def test_a_scalar_is_one_element(
    n_inputs: int, op: str, by_input: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_input:
        monkeypatch.setattr(decision, "FEW_INPUTS", 0)
    found: dict[int, list[Status]] = {}
    for rank in (0, 1):
        greatest = network(tmp_path / "net.onnx", n_inputs, op, rank)
        for threshold in (0.9 * greatest, 1.1 * greatest + 1e-3):
            lines = [f"(declare-const X_{i} Real)" for i in range(n_inputs)] + [
                "(declare-const Y_0 Real)"
            ]
            lines += [f"(assert (>= X_{i} -1)) (assert (<= X_{i} 1))" for i in range(n_inputs)]
            (tmp_path / "p.vnnlib").write_text(
                "\n".join([*lines, f"(assert (>= Y_0 {threshold!r}))"])
            )
            problem = bitcrown.load(tmp_path / "net.onnx", tmp_path / "p.vnnlib")
            found.setdefault(rank, []).append(bitcrown.verify(problem, cpu_seconds=30.0).status)
    assert found[0] == found[1] and found[0][0] is Status.SAT
    assert found[0][1] is Status.UNSAT
