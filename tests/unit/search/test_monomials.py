"""Constraints with products: the network that computes them, their rows, and what is decided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

import bitcrown
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.monomials import with_monomials
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.objective import monomials_of, objective_of
from bitcrown.search.outlook import outlook_of
from bitcrown.settings import Settings
from bitcrown.verdict import Status
from tests.unit.model.tiny_models import model_of

WEIGHTS = {
    "w": np.array([[1.0, -0.5, 0.25], [0.5, 1.0, -1.0]], np.float32),
    "v": np.array([[0.5, -1.0], [0.75, 0.25], [-0.5, 1.0]], np.float32),
}


def network(folder: Path) -> Path:
    """``y = relu(x w) v`` of two inputs and two outputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    path = folder / "net.onnx"
    path.write_bytes(model_of(nodes, {"x": [1, 2]}, ["y"], WEIGHTS).SerializeToString())
    return path


def values_of(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.maximum(x @ WEIGHTS["w"], 0) @ WEIGHTS["v"]], axis=1)


def problem(folder: Path, assertions: str):  # type: ignore[no-untyped-def]
    text = (
        "(vnnlib-version <2.0>)(declare-network f (declare-input X real [1,2])"
        " (declare-output Y real [1,2]))"
        "(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0)))"
        "(assert (and (>= X[0,1] -0.5) (<= X[0,1] 1.5)))"
    )
    (folder / "property.vnnlib").write_text(text + assertions)
    return bitcrown.load(network(folder), folder / "property.vnnlib")


@pytest.mark.parametrize(
    "monomials",
    [((0, 1),), ((2, 2), (0, 3), (1, 1)), ((0, 0, 0, 2), (3, 1, 0), (1, 1)), ((3,) * 5, (0, 2))],
)
def test_monomials_are_what_they_say(tmp_path: Path, monomials: tuple[tuple[int, ...]]) -> None:
    graph = with_monomials(read_graph(NetworkFile(network(tmp_path))), monomials)
    x = np.random.default_rng(1).uniform(-1, 1, size=(50, 2))
    v = values_of(x)
    wanted = np.stack([v[:, list(monomial)].prod(axis=1) for monomial in monomials], axis=1)
    found = Network(graph, torch.float64)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, np.concatenate([v[:, 2:], wanted], axis=1), atol=1e-12)


def test_rows_of_products(tmp_path: Path) -> None:
    text = "(assert (<= (* X[0,0] (+ Y[0,1] (* 0.5 X[0,0]))) (+ (* Y[0,0] Y[0,0]) X[0,1] 0.25)))"
    given = problem(tmp_path, text)
    monomials = monomials_of(given)
    assert set(monomials) == {(0, 3), (0, 0), (2, 2)}
    rows = objective_of(given, None, monomials)
    x = np.random.default_rng(2).uniform(-1, 1, size=(50, 2))
    v = values_of(x)
    y = np.stack([v[:, list(m)].prod(axis=1) for m in ((2,), (3,), *monomials)], axis=1)
    assert rows.D is not None
    excess = y @ rows.C[0, 0] + x @ rows.D[0, 0] - rows.rhs[0, 0]
    left = v[:, 0] * (v[:, 3] + 0.5 * v[:, 0]) - v[:, 2] ** 2 - v[:, 1] - 0.25
    np.testing.assert_allclose(excess, 2 * left, atol=1e-9)
    assert np.isinf(objective_of(given).rhs).all()  # without products there is no row


def test_a_coefficient_without_a_row_is_left_out(tmp_path: Path) -> None:
    number = "1." + "0" * 30 + "1"
    text = f"(assert (<= (* X[0,0] Y[0,1] {number}) -9.0))(assert (<= Y[0,0] 5.0))"
    given = problem(tmp_path, text)
    assert monomials_of(given) == ()
    assert np.isfinite(objective_of(given).rhs).sum() == 1
    assert any("left out of proofs" in line for line in outlook_of(given).sentences)


@pytest.mark.parametrize("slack, status", [(1e-3, Status.UNSAT), (-1e-3, Status.SAT)])
def test_the_largest_product_is_found(tmp_path: Path, slack: float, status: Status) -> None:
    """Of ``y_0 y_1 + x_0^2``, which a grid knows to within a step."""
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 801), np.linspace(-0.5, 1.5, 801)), axis=-1)
    v = values_of(grid.reshape(-1, 2))
    most = float((v[:, 2] * v[:, 3] + v[:, 0] ** 2).max())
    text = f"(assert (>= (+ (* Y[0,0] Y[0,1]) (* X[0,0] X[0,0])) {most + slack:.9f}))"
    found = bitcrown.verify(problem(tmp_path, text), Settings(), seconds=10)
    assert found.status is status
    if status is Status.UNSAT:
        text += "(assert (<= Y[0,0] 100.0))"
        asked = bitcrown.verify(problem(tmp_path, text), seconds=10, want_certificate=True)
        assert asked.status is status and "no_certificate" in asked.counters
