"""From candidates to witnesses: inward boxes, ties, strict confirmation, and the text of both
versions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.result_file import check_result
from bitcrown.check.witness import Confirmer, format_witness, inward_box, number_text, tied_inputs
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Constraint, Problem
from bitcrown.spec.reader import parse_query

TENTH = Fraction(1, 10)


def summing(path: Path, inputs: int = 2, kind: int = TensorProto.FLOAT) -> Path:
    """``y = (sum of x, -sum of x)``."""
    weight = np.stack([np.ones(inputs), -np.ones(inputs)], axis=1).astype(
        helper.tensor_dtype_to_np_dtype(kind)
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, inputs])],
        [helper.make_tensor_value_info("y", kind, [1, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def problem_1(path: Path, box: str, output: str) -> Problem:
    text = (
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 "
        "Real)(declare-const Y_1 Real)"
    )
    return problem_from_query(parse_query(f"{text}\n{box}\n{output}"), {"N": path})


def confirmer_of(problem: Problem) -> Confirmer:
    return Confirmer(problem, RuntimeReplay(problem.query, problem.networks))


UNIT = "(assert (>= X_0 0.1))(assert (<= X_0 0.7))(assert (>= X_1 -0.3))(assert (<= X_1 0.3))"


def test_bounds_are_rounded_inward_for_every_type() -> None:
    kinds = [np.float32, np.float64, np.float16, np.int32]
    lower, upper = [TENTH] * 3 + [Fraction(1, 2)], [Fraction(7, 10)] * 3 + [Fraction(7, 2)]
    low, high, is_off = inward_box(lower, upper, kinds)
    assert not is_off.any()
    for i, kind in enumerate(kinds[:3]):
        assert Fraction(low[i]) >= TENTH > Fraction(float(np.nextafter(kind(low[i]), kind(0))))
        assert (
            Fraction(high[i])
            <= Fraction(7, 10)
            < Fraction(float(np.nextafter(kind(high[i]), kind(1))))
        )
    assert (low[3], high[3]) == (1.0, 3.0)


def test_a_pinned_decimal_is_marked_and_taken_to_the_nearest() -> None:
    low, high, is_off = inward_box(
        [TENTH, Fraction(1, 2)], [TENTH, Fraction(1, 2)], [np.float32, np.float32]
    )
    assert is_off.tolist() == [True, False]
    assert low.tolist() == high.tolist() == [float(np.float32(0.1)), 0.5]


def test_bounds_beyond_the_type_stay_finite() -> None:
    huge = Fraction(10**60)
    low, high, _ = inward_box([-huge], [huge], [np.float32])
    assert np.isfinite(low).all() and np.isfinite(high).all()


def test_a_box_beyond_every_number_of_the_type(recwarn: pytest.WarningsRecorder) -> None:
    for low, high in ((10**39, 10**40), (10**400, 2 * 10**400)):
        _, _, is_off = inward_box([Fraction(low)], [Fraction(high)], [np.float32])
        assert is_off.all()
    assert not recwarn.list


def test_candidates_outside_are_moved_into_the_box(tmp_path: Path) -> None:
    problem = problem_1(summing(tmp_path / "n.onnx"), UNIT, "(assert (>= Y_0 0.9))")
    witness = confirmer_of(problem).confirm(np.array([5.0, 5.0]))
    assert witness is not None
    x = witness.inputs["X"]
    assert x.dtype == np.float32
    assert Fraction(float(x[0])) <= Fraction(7, 10) and Fraction(float(x[1])) <= Fraction(3, 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_candidates_that_are_not_finite_are_dropped(tmp_path: Path, bad: float) -> None:
    problem = problem_1(summing(tmp_path / "n.onnx"), UNIT, "(assert (>= Y_0 -9))")
    assert confirmer_of(problem).confirm(np.array([bad, 0.0])) is None


def test_a_point_that_misses_by_an_ulp_is_refused(tmp_path: Path) -> None:
    path = summing(tmp_path / "n.onnx")
    box = "(assert (>= X_0 0.0))(assert (<= X_0 0.5))(assert (>= X_1 0.0))(assert (<= X_1 0.25))"
    assert (
        confirmer_of(problem_1(path, box, "(assert (>= Y_0 0.75))")).confirm(np.array([1.0, 1.0]))
        is not None
    )
    problem = problem_1(path, box, "(assert (>= Y_0 0.7500000000000001))")
    assert confirmer_of(problem).confirm(np.array([1.0, 1.0])) is None


def test_all_assertions_count_not_only_those_of_the_case(tmp_path: Path) -> None:
    path = summing(tmp_path / "n.onnx")
    output = "(assert (or (>= Y_0 0.9) (<= Y_0 -9)))(assert (>= Y_1 -0.95))"
    confirmer = confirmer_of(problem_1(path, UNIT, output))
    assert confirmer.confirm(np.array([0.7, 0.3])) is None
    assert confirmer.confirm(np.array([0.65, 0.275])) is not None


def test_the_nearest_box_is_used_where_no_case_is_named(tmp_path: Path) -> None:
    path = summing(tmp_path / "n.onnx")
    near = "(and (>= X_0 0) (<= X_0 1) (>= Y_0 1))"
    far = "(and (>= X_0 5) (<= X_0 6) (<= Y_0 5.5))"
    box = "(assert (>= X_1 0))(assert (<= X_1 1))"
    problem = problem_1(path, box, f"(assert (or {near} {far}))")
    confirmer = confirmer_of(problem)
    for x in ([5.1, 0.1], [1.0, 0.5]):
        witness = confirmer.confirm(np.array(x))
        assert witness is not None and np.allclose(witness.inputs["X"], x)


def test_tied_inputs_are_found_and_made_equal() -> None:
    def less(i: int, j: int, bound: int = 0) -> Constraint:
        return Constraint((((i,), Fraction(1)), ((j,), Fraction(-1))), Fraction(bound))

    constraints = [
        less(0, 3),
        less(3, 0),
        less(3, 5),
        less(5, 3),
        less(1, 2),
        less(4, 2, 1),
        less(2, 4, -1),
    ]
    assert [group.tolist() for group in tied_inputs(constraints, 6)] == [[0, 3, 5]]
    assert tied_inputs([less(0, 9), less(9, 0)], 6) == []


def test_a_pair_of_networks_with_equal_inputs_is_confirmed(tmp_path: Path) -> None:
    text = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [1,2]) (declare-output Y real [1,2]))
(declare-network g (equal-to f) (declare-input Z real [1,2]) (declare-output W real [1,2]))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
(assert (and (>= Z[0,0] 0.0) (<= Z[0,0] 1.0) (== X[0,1] Z[0,1])))
(assert (< X[0,0] Z[0,0]))
(assert (<= Y[0,0] W[0,0]))"""
    problem = problem_from_query(parse_query(text), {"f": summing(tmp_path / "n.onnx")})
    witness = confirmer_of(problem).confirm(np.array([0.25, 0.3, 0.75, 0.9]))
    assert witness is not None and witness.inputs["X"][1] == witness.inputs["Z"][1]
    lines = format_witness(problem.query, witness).splitlines()
    headers = [line for line in lines if "[" in line]
    assert lines[0] == "sat" and len(lines) == 1 + 4 * 3
    assert headers == ["X real [1,2]", "Y real [1,2]", "Z real [1,2]", "W real [1,2]"]


def test_the_text_of_version_1(tmp_path: Path) -> None:
    problem = problem_1(summing(tmp_path / "n.onnx"), UNIT, "(assert (>= Y_0 0.0))")
    witness = confirmer_of(problem).confirm(np.array([0.5, 0.25]))
    assert witness is not None
    assert (
        format_witness(problem.query, witness)
        == "sat\n((X_0 0.5)\n(X_1 0.25)\n(Y_0 0.75)\n(Y_1 -0.75))\n"
    )


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.float64(0.1), np.float16(0.1), np.float32(1e-40), np.int32(-3)]
)
def test_numbers_are_written_so_that_they_come_back(value: np.generic) -> None:
    assert value.dtype.type(float(number_text(value))) == value
    assert float(number_text(value)) == float(value)  # type: ignore[arg-type]


def test_a_written_witness_passes_the_check_and_a_moved_one_does_not(tmp_path: Path) -> None:
    path = summing(tmp_path / "n.onnx")
    problem = problem_1(path, UNIT, "(assert (>= Y_0 0.9))")
    (tmp_path / "p.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const "
        "Y_1 Real)" + UNIT + "(assert (>= Y_0 0.9))"
    )
    witness = confirmer_of(problem).confirm(np.array([0.69, 0.29]))
    assert witness is not None
    text = format_witness(problem.query, witness)
    for written, accepted in (
        (text, True),
        (text.replace("(X_0 0.", "(X_0 1."), False),
        ("sat\n", False),
    ):
        (tmp_path / "r.txt").write_text(written)
        assert (
            check_result(tmp_path / "r.txt", str(path), tmp_path / "p.vnnlib").accepted is accepted
        )
