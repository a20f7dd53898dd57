"""Cases as rows: nothing that the property allows may get lost in floats."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import bitcrown
from bitcrown.errors import UnsupportedError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search import strategy
from bitcrown.search.inputs.boxes import _distinct_rows
from bitcrown.search.objective import integer_row, objective_of
from bitcrown.search.strict_rows import with_strict_rows
from bitcrown.spec import case_table
from bitcrown.spec.case_table import CaseTable, arrays_of
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Case, Constraint
from bitcrown.spec.reader import parse_query
from bitcrown.spec.rounding import box_ends, box_lower, box_upper, round_down, round_up
from bitcrown.verdict import Status
from tests.unit.model.tiny_models import model_of, saved

NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**12)


@given(NUMBERS)
def test_rounding_never_crosses(value: Fraction) -> None:
    assert Fraction(round_down(value)) <= value <= Fraction(round_up(value))
    assert round_up(value) - round_down(value) <= np.spacing(abs(round_up(value)) + 1e-300) * 2


@given(NUMBERS)
def test_boxes_cover_the_exact_and_the_float32_reading(value: Fraction) -> None:
    single = float(np.float32(float(value)))
    assert Fraction(box_lower(value)) <= value and box_lower(value) <= single
    assert Fraction(box_upper(value)) >= value and box_upper(value) >= single


def problem(assertion: str):  # type: ignore[no-untyped-def]
    text = (
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 "
        "Real)(declare-const Y_1 Real)"
    )
    text += "(assert (>= X_0 0.1))(assert (<= X_0 0.1))(assert (>= X_1 -1))(assert (<= X_1 1))"
    query = parse_query(f"{text}(assert {assertion})")
    return problem_from_query(query, {query.networks[0].name: Path("net.onnx")})


def test_rows_of_a_disjunction() -> None:
    found = objective_of(
        problem("(or (and (<= Y_0 Y_1) (>= Y_0 0.5)) (>= (* 2 Y_1) (+ X_1 0.25)))")
    )
    assert found.n_cases == 2 and found.D is not None
    y, x = np.array([0.6, 0.7]), np.array([0.1, 0.9])
    excess = found.C @ y + found.D @ x - found.rhs
    assert (excess[0] <= 0).all() and (excess[1][np.isfinite(found.rhs[1])] <= 0).all()
    outside = found.C @ np.array([0.6, 0.5]) + found.D @ x - found.rhs
    assert (outside[0] > 0).any() and (outside[1] > 0).any()


def test_decimal_coefficients_become_integers() -> None:
    found = objective_of(problem("(<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.7)"))
    assert found.C[0, 0].tolist() == [1.0, 3.0] and found.rhs[0, 0] >= 7


def test_coefficients_beyond_float64_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="exactly"):
        objective_of(problem("(<= (+ (* 0.12345678901234567890123 Y_0) Y_1) 0)"))


def drawn_cases(count: int) -> tuple[Case, ...]:
    """Nine boxes of three ends on each side, up to three rows a case: of inputs, outputs and both,
    whole and broken."""
    rng = random.Random(1)
    lowers = [tuple(Fraction(rng.randint(-9, 9), 7) for _ in range(2)) for _ in range(3)]
    uppers = [tuple(Fraction(rng.randint(15, 20), 7) for _ in range(2)) for _ in range(3)]
    forms = [
        tuple(((v,), Fraction(rng.choice((1, -1, 3, 2)), rng.choice((1, 1, 10)))) for v in chosen)
        for chosen in ((0,), (2,), (3,), (2, 3), (0, 3), (0, 1, 2, 3))
    ]
    return tuple(
        Case(
            rng.choice(lowers),
            rng.choice(uppers),
            tuple(
                Constraint(
                    rng.choice(forms), Fraction(rng.randint(-99, 99), 30), rng.random() < 0.5
                )
                for _ in range(rng.randint(0, 3))
            ),
        )
        for _ in range(count)
    )


def test_rows_are_those_of_each_case_alone_and_of_a_table() -> None:
    cases = drawn_cases(60)
    alone = replace(problem("(<= Y_0 0)"), cases=cases)
    found = objective_of(alone, ["float32", "float64"])
    assert found.D is not None and found.n_cases == 60
    for case, C, D, rhs, box in zip(*[cases, found.C, found.D, found.rhs, found.box], strict=True):
        lower, upper = box_ends(case.lower, case.upper, ["float32", "float64"])
        assert (found.lower[box] == lower).all() and (found.upper[box] == upper).all()
        expected = [integer_row(constraint) for constraint in case.constraints]
        assert rhs.tolist() == [limit for _, limit in expected] + [np.inf] * (3 - len(expected))
        for row, (terms, _) in zip(np.concatenate([D, C], axis=1), expected, strict=False):
            values = dict(terms)
            assert row.tolist() == [values.get((v,), 0.0) for v in range(4)]
        assert not C[len(expected) :].any() and not D[len(expected) :].any()
    table = objective_of(
        replace(alone, cases=CaseTable(arrays_of(cases, 2))), ["float32", "float64"]
    )
    for name, value in vars(found).items():
        assert np.array_equal(getattr(table, name), value)


def test_strict_rows_of_a_table_are_compared_one_by_one(tmp_path: Path) -> None:
    """relu(x0 - 1) is never below 0, and below 1/30 somewhere: of four cases one is out."""
    nodes = [helper.make_node("Sub", ["x", "c"], ["d"]), helper.make_node("Relu", ["d"], ["y"])]
    constants = {"c": np.array([1, 0], dtype=np.float32)}
    path = saved(model_of(nodes, {"x": [2]}, ["y"], constants), tmp_path)
    box = (Fraction(0), Fraction(0)), (Fraction(2), Fraction(2))
    below = [(0, True), (0, False), (Fraction(1, 30), True)]
    cases = [
        Case(*box, (Constraint((((2,), Fraction(1)),), Fraction(bound), strict),))
        for bound, strict in below
    ]
    cases.insert(1, Case(*box, ()))
    asked = replace(problem("(<= Y_0 0)"), cases=CaseTable(arrays_of(cases, 2)))
    proof = Network(read_graph(path), torch.float64)
    found = with_strict_rows(asked, proof, objective_of(asked))
    assert (found.rhs[:, 0] == -1.0).tolist() == [True, False, False, False]


def test_many_cases_are_decided_without_an_object_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "c"], ["y"])]
    constants = {"c": np.full(1, 50, dtype=np.float32)}
    path = saved(model_of(nodes, {"x": [1]}, ["y"], constants), tmp_path)
    boxes = "".join(
        f"(and (>= X_0 {k}.25) (<= X_0 {k}.5) (<= Y_0 {k}.{k % 7}1))" for k in range(20_000)
    )
    monkeypatch.setattr(strategy, "probe", lambda *parts: None)
    asked = tmp_path / "many.vnnlib"
    asked.write_text(f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (or {boxes}))")
    made = []

    def counted(*parts: Any) -> Case:
        made.append(None)
        return Case(*parts)

    monkeypatch.setattr(case_table, "Case", counted)
    given = bitcrown.load(path, asked)
    assert isinstance(given.cases, CaseTable) and len(given.cases) == 20_000
    assert bitcrown.verify(given).status is Status.UNSAT
    assert not made


@pytest.mark.parametrize("shape", [(40, 1, 1, 2), (1, 9, 3, 2), (12, 3, 2, 1), (7, 2, 2, 3)])
def test_different_rows_of_a_group_stand_once(shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).integers(-1, 2, shape).astype(np.float64)
    distinct, place = _distinct_rows(rows)
    for group, own, there in zip(rows, place, distinct, strict=True):
        assert (there[own] == group).all()
        count = len({tuple(row) for row in group.reshape(-1, shape[3]).tolist()})
        assert own.max() + 1 == count and not there[count:].any()
