"""Probes and gradient descent find planted violations, repeatably, and hand out nothing that is not
confirmed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.probes import probe
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.truth import AssertionCheck
from bitcrown.check.witness import Confirmer
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.reader import parse_query
from bitcrown.verdict import Witness

torch.set_num_threads(1)
N = 4


def bump_network(path: Path, centre: list[float], batch: int | str = "batch") -> Path:
    """``y = 1 - 4 * max_i |x_i - centre_i|`` by sums of ReLUs over each input: positive only near
    ``centre``."""
    n = len(centre)
    first = np.concatenate([np.eye(n), -np.eye(n)], axis=1).astype(np.float32)
    bias = np.concatenate([-np.float32(centre), np.float32(centre)])
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["z"]),
            helper.make_node("Relu", ["z"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
        ],
        "bump",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1])],
        [
            numpy_helper.from_array(first, "w1"),
            numpy_helper.from_array(bias, "b1"),
            numpy_helper.from_array(np.full((2 * n, 1), -4, np.float32), "w2"),
            numpy_helper.from_array(np.ones(1, np.float32), "b2"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def opened(path: Path, *asserts: str, n: int = N) -> tuple[Problem, RuntimeReplay, Confirmer]:
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(n)] + [
        f"(assert {a})" for a in asserts
    ]
    problem = problem_from_query(parse_query("\n".join(lines)), {"N": path})
    replay = RuntimeReplay(problem.query, problem.networks)
    return problem, replay, Confirmer(problem, replay)


def holds(problem: Problem, replay: RuntimeReplay, witness: Witness) -> bool:
    """Once more, from nothing but the inputs."""
    inputs, outputs = replay.run(witness.inputs["X"].astype(np.float64))
    assert outputs[0].tolist() == witness.outputs["Y"].tolist()
    return AssertionCheck(problem.query).holds({"X": inputs[0], "Y": outputs[0]})


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize(
    "asserts", [("(>= Y_0 -0.5)",), ("(>= (* Y_0 Y_0) 300)",), ("(or (>= Y_0 -0.5) (>= Y_0 5))",)]
)
def test_probes_find_what_is_planted(
    tmp_path: Path, batch: int | str, asserts: tuple[str, ...]
) -> None:
    problem, replay, confirmer = opened(
        bump_network(tmp_path / "net.onnx", [0.3, -0.4, 0.6, 0.1], batch), *asserts
    )
    found = [
        probe(problem, replay, confirmer, Budget.of_cpu_seconds(60), seed, 10.0)
        for seed in (0, 0, 1)
    ]
    points = [witness.inputs["X"].tolist() for witness in found if witness is not None]
    assert len(points) == 3 and points[0] == points[1]
    assert all(holds(problem, replay, witness) for witness in found if witness is not None)


def test_probes_with_a_strict_bound_that_is_only_touched(tmp_path: Path) -> None:
    path = bump_network(tmp_path / "net.onnx", [0.0] * N)  # the middle of the box gives exactly 1
    problem, replay, confirmer = opened(path, "(>= Y_0 1)")
    assert probe(problem, replay, confirmer, Budget.of_cpu_seconds(60), 0) is not None
    problem, replay, confirmer = opened(path, "(> Y_0 1)")
    assert probe(problem, replay, confirmer, Budget.of_cpu_seconds(60), 0, 0.05) is None
    problem, replay, confirmer = opened(path, "(>= Y_0 1.0000000001)")
    assert probe(problem, replay, confirmer, Budget.of_cpu_seconds(60), 0, 0.05) is None


def test_probes_end_with_the_budget(tmp_path: Path) -> None:
    problem, replay, confirmer = opened(
        bump_network(tmp_path / "net.onnx", [0.0] * N), "(>= Y_0 0)"
    )
    assert probe(problem, replay, confirmer, Budget.of_seconds(-1), 0) is None
    problem, replay, confirmer = opened(tmp_path / "net.onnx", "(>= Y_0 0)", "(<= X_0 -3)")
    assert (
        not problem.cases and probe(problem, replay, confirmer, Budget.of_cpu_seconds(9), 0) is None
    )


def test_probes_need_no_torch() -> None:
    script = (
        "import sys, bitcrown.attacks.property.probes; print('torch' in sys.modules, "
        "'onnxruntime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def descend(
    path: Path, rhs: list[float], seed: int, budget: Budget, steps: int = 60
) -> tuple[np.ndarray, list[int]]:
    """One case for each of ``rhs``: violated where ``-y <= rhs``."""
    network = Network(read_graph(path), torch.float32)
    b = len(rhs)
    target = Target(-torch.ones(b, 1, 1), None, torch.tensor(rhs).reshape(b, 1))
    lower, upper = -torch.ones(b, N), torch.ones(b, N)
    generator = torch.Generator().manual_seed(seed)
    points, case, _ = pgd(network, lower, upper, target, generator, steps, 6, budget)
    assert bool(((points >= -1) & (points <= 1)).all())
    return points.double().numpy(), case.tolist()


@pytest.mark.parametrize("is_proof_mode", [False, True])
def test_descent_finds_what_is_planted(tmp_path: Path, is_proof_mode: bool) -> None:
    path = bump_network(tmp_path / "net.onnx", [0.31, -0.42, 0.63, 0.14])
    problem, replay, confirmer = opened(path, "(or (>= Y_0 4) (>= Y_0 0.5))")
    with torch.set_grad_enabled(not is_proof_mode):
        points, case = descend(path, [-4.0, -0.5], 0, Budget.of_cpu_seconds(60))
        again, _ = descend(path, [-4.0, -0.5], 0, Budget.of_cpu_seconds(60))
    assert points.shape == (12, N) and np.array_equal(points, again)
    assert case[0] == 1
    witness = confirmer.confirm(points[0], problem.cases[1])
    assert witness is not None and holds(problem, replay, witness)


def test_descent_on_what_cannot_be_violated(tmp_path: Path) -> None:
    path = bump_network(tmp_path / "net.onnx", [0.3, -0.4, 0.6, 0.1])
    problem, _, confirmer = opened(path, "(>= Y_0 1.5)")
    points, _ = descend(path, [-1.5], 3, Budget.of_cpu_seconds(60))
    assert all(confirmer.confirm(point, problem.cases[0]) is None for point in points)
    points, _ = descend(path, [-1.5], 3, Budget.of_seconds(-1))
    assert np.isfinite(points).all() and points[0].shape == (N,)


def test_descent_where_no_output_depends_on_the_input(tmp_path: Path) -> None:
    class Flat(Network):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), 1)

    network = Flat(read_graph(bump_network(tmp_path / "net.onnx", [0.0] * N)), torch.float32)
    target = Target(torch.ones(1, 1, 1), None, torch.zeros(1, 1))
    generator = torch.Generator().manual_seed(0)
    points, _, _ = pgd(
        network,
        torch.zeros(1, N),
        torch.ones(1, N),
        target,
        generator,
        20,
        4,
        Budget.of_cpu_seconds(9),
    )
    assert points.shape == (4, N) and bool(torch.isfinite(points).all())


def test_padding_rows_and_input_terms() -> None:
    c, d = torch.tensor([[[1.0], [9.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    target = Target(c, d, torch.tensor([[3.0, torch.inf]]))
    x, y = torch.tensor([[[1.0, 5.0], [0.0, 5.0]]]), torch.tensor([[[2.0], [2.0]]])
    assert target.excess(x, y).tolist() == [[1.0, -1.0]]
