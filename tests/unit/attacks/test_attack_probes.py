"""Probes: hundreds of boxes, cases of one box judged together, directed corners, ties between
inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.attacks.property.probes import BoxRows, CaseRows, Slope, probe
from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.reader import parse_query
from bitcrown.verdict import Witness


def linear_network(path: Path, weight: np.ndarray) -> Path:
    """``y = x W`` with one point a call."""
    n, m = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, m])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def problem_of(path: Path, n: int, m: int, *asserts: str) -> Problem:
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + [
        f"(declare-const Y_{i} Real)" for i in range(m)
    ]
    return problem_from_query(
        parse_query("\n".join([*lines, *(f"(assert {a})" for a in asserts)])), {"N": path}
    )


def probed(problem: Problem, seconds: float = 20.0) -> Witness | None:
    replay = RuntimeReplay(problem.query, problem.networks)
    return probe(
        problem, replay, Confirmer(problem, replay), Budget.of_cpu_seconds(10 * seconds), 0, seconds
    )


def cube(n: int, low: float, high: float) -> list[str]:
    return [f"(and (>= X_{i} {low}) (<= X_{i} {high}))" for i in range(n)]


@pytest.mark.parametrize("place", [0, 150, 299])
def test_the_one_box_of_hundreds_that_is_violated(tmp_path: Path, place: int) -> None:
    path = linear_network(tmp_path / "n.onnx", np.ones((1, 1)))
    boxes = []
    for k in range(300):
        bound = k + 0.9 if k == place else k + 1.1
        boxes.append(f"(and (>= X_0 {k}) (<= X_0 {k + 1}) (>= Y_0 {bound}))")
    witness = probed(problem_of(path, 1, 1, f"(or {' '.join(boxes)})"))
    assert witness is not None and place + 0.9 <= witness.inputs["X"][0] <= place + 1


def test_a_corner_of_many_dimensions_that_no_random_corner_meets(tmp_path: Path) -> None:
    n, random = 60, np.random.default_rng(5)
    weight = random.normal(size=(n, 3))
    path = linear_network(tmp_path / "n.onnx", weight)
    reach = [0.97 * float(np.abs(weight[:, j] - weight[:, 0]).sum()) for j in (1, 2)]
    cases = " ".join(
        f"(and (>= Y_{j} (+ Y_0 {reach[j - 1] * scale})))" for j, scale in ((1, 2.0), (2, 1.0))
    )
    problem = problem_of(path, n, 3, *cube(n, -1, 1), f"(or {cases})")
    assert len(problem.cases) == 2 and problem.cases[0].lower is problem.cases[1].lower
    witness = probed(problem)
    assert witness is not None
    assert witness.outputs["Y"][2] - witness.outputs["Y"][0] >= reach[1]


def test_the_slope_knows_the_corner_of_a_linear_function() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(12, 2))
    slope = Slope(12, 2)
    for _ in range(4):
        shares = random.random((256, 12))
        slope.add(shares, shares @ weight + 5.0)
    slope.add(np.ones((3, 12)), np.full((3, 2), np.nan))  # says nothing
    assert slope.count == 1024
    signs = np.sign(slope.products - np.outer(slope.shares, slope.outputs / slope.count))
    strong = np.abs(weight) > 0.3
    assert (signs == np.sign(weight))[strong].all()


def test_tied_inputs_are_probed_on_the_tie(tmp_path: Path) -> None:
    path = linear_network(tmp_path / "n.onnx", np.array([[1.0], [1.0], [-2.0]]))
    ties = ["(<= X_0 X_1)", "(>= X_0 X_1)", "(<= X_1 X_2)", "(>= X_1 X_2)"]
    witness = probed(problem_of(path, 3, 1, *cube(3, 0, 1), *ties, "(>= Y_0 -0.001)"))
    assert witness is not None and len(set(witness.inputs["X"].tolist())) == 1


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("(<= (* X_0 Y_0) 3)", lambda x, y: 3 - x[:, 0] * y[:, 0]),
        ("(<= (+ (* 2 X_0) Y_0) (+ X_1 4))", lambda x, y: 4 + x[:, 1] - 2 * x[:, 0] - y[:, 0]),
    ],
)
def test_margins_of_mixed_constraints(
    tmp_path: Path, constraint: str, expected: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    problem = problem_of(
        linear_network(tmp_path / "n.onnx", np.ones((2, 1))), 2, 1, *cube(2, -5, 5), constraint
    )
    replay = RuntimeReplay(problem.query, problem.networks)
    rows = BoxRows(Confirmer(problem, replay).box(problem.cases[0]), [CaseRows(problem.cases[0])])
    random = np.random.default_rng(1)
    x, y = random.normal(size=(9, 2)), random.normal(size=(9, 1))
    margin, which = rows.margin(x, y)
    np.testing.assert_allclose(margin, expected(x, y))
    assert not which.any()
    y[3] = np.nan
    assert rows.margin(x, y)[0][3] == -np.inf
