"""The audit finds what a wrong ``unsat`` hides, exactly and repeatably."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_nets import affine, opened, property_1, unit_box

from bitcrown.check.audit import audit
from bitcrown.errors import PropertyError


def test_a_violation_in_a_corner_is_found(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0, -1.0, 1.0]])
    problem, replay, confirmer = opened(property_1(3, 1, *unit_box(3), "(>= Y_0 2)"), net)
    witness = audit(problem, replay, confirmer, 200, 0)
    assert witness is not None and witness.inputs["X"].tolist() == [1.0, 0.0, 1.0]
    assert witness.outputs["Y"].tolist() == [2.0]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0, -1.0, 1.0]])
    problem, replay, confirmer = opened(property_1(3, 1, *unit_box(3), "(> Y_0 2)"), net)
    assert audit(problem, replay, confirmer, 200, 0) is None
    problem, replay, confirmer = opened(
        property_1(3, 1, *unit_box(3), "(<= X_0 -1)", "(> Y_0 2)"), net
    )
    assert not problem.cases and audit(problem, replay, confirmer, 200, 0) is None


def test_the_seed_decides(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0, 1.0]])
    text = property_1(2, 1, *unit_box(2), "(>= Y_0 0.9)", "(<= Y_0 0.95)")
    problem, replay, confirmer = opened(text, net)
    found = [audit(problem, replay, confirmer, 500, seed) for seed in (1, 1, 2)]
    points = [witness.inputs["X"].tolist() for witness in found if witness is not None]
    assert len(points) == 3 and points[0] == points[1] != points[2]


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_cases_share_the_samples(tmp_path: Path, count: int) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0]])
    boxes = " ".join(f"(and (>= X_0 {i}) (<= X_0 {i}.5))" for i in range(10))
    problem, replay, confirmer = opened(property_1(1, 1, f"(or {boxes})", "(>= Y_0 9.25)"), net)
    assert len(problem.cases) == 10
    assert (audit(problem, replay, confirmer, count, 0) is not None) is (count > 1)


def test_it_wants_one_replay(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0]])
    text = property_1(1, 1, *unit_box(1), "(>= Y_0 2)")
    problem, replay, _ = opened(text, net)
    with pytest.raises(PropertyError, match="own replay"):
        audit(problem, replay, opened(text, net)[2], 5, 0)
