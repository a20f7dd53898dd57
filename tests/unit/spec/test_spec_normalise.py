"""Queries to problems: boxes, strictness, cases, ties between networks, notes and errors."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.reader import parse_query

HEADER = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0)))"
NETWORK = Path("net.onnx")


def problem(asserts: str, box: str = BOX) -> Problem:
    return problem_from_query(parse_query(HEADER + box + asserts), {"N": NETWORK})


def limits(asserts: str, box: str = BOX) -> list[tuple[list[str], list[str]]]:
    return [
        ([str(v) for v in c.lower], [str(v) for v in c.upper]) for c in problem(asserts, box).cases
    ]


def at_most(bound: str, *terms: tuple[int, str], strict: bool = False) -> Constraint:
    return Constraint(tuple(((n,), Fraction(c)) for n, c in terms), Fraction(bound), strict)


def test_one_case_with_box_and_output_constraint() -> None:
    result = problem("(assert (>= Y_0 Y_1))")
    assert (result.n_inputs, result.n_outputs, result.networks, result.notes) == (
        2,
        2,
        {"N": NETWORK},
        (),
    )
    (case,) = result.cases
    assert case.lower == (0, 0) and case.upper == (1, 1)
    assert case.constraints == (at_most("0", (2, "-1"), (3, "1")),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(assert (<= (* 2 X_0) 1))", (["0", "0"], ["1/2", "1"])),
        ("(assert (<= (- 1 X_0) 0.75))", (["1/4", "0"], ["1", "1"])),
        ("(assert (<= (+ X_0 X_0) (- 1 X_0)))", (["0", "0"], ["1/3", "1"])),
        ("(assert (= X_1 0.3))", (["0", "3/10"], ["1", "3/10"])),
        ("(assert (= 0.3 X_1))", (["0", "3/10"], ["1", "3/10"])),
        ("(assert (= (* 3 X_1) 1))", (["0", "1/3"], ["1", "1/3"])),
        ("(assert (<= X_0 5))", (["0", "0"], ["1", "1"])),
        ("(assert (= X_0 X_1)) (assert (<= X_1 0.5))", (["0", "0"], ["1/2", "1/2"])),
        (
            "(assert (<= X_0 X_1)) (assert (<= X_1 0.5)) (assert (>= X_0 0.1))",
            (["1/10", "1/10"], ["1/2", "1/2"]),
        ),
        ("(assert (>= X_0 (+ X_1 0.25)))", (["1/4", "0"], ["1", "3/4"])),
    ],
)
def test_input_bounds_in_any_linear_form_go_to_the_box(
    text: str, expected: tuple[list[str], list[str]]
) -> None:
    assert limits(text) == [expected]


def test_a_bound_that_only_a_tie_gives() -> None:
    half_open = "(assert (and (<= X_0 1) (>= X_0 0) (>= X_1 0)))"
    assert limits("(assert (<= (+ X_0 (* 2 X_1)) 4))", half_open) == [(["0", "0"], ["1", "2"])]


def test_ever_smaller_steps_come_to_an_end() -> None:
    result = limits("(assert (<= X_0 (* 0.5 X_1))) (assert (<= X_1 (* 0.5 X_0)))")
    assert result == [(["0", "0"], ["1", "1"])]


def test_strict_input_bounds_close_the_box_and_keep_a_constraint() -> None:
    (case,) = problem("(assert (< (* 2 X_0) 1))").cases
    assert case.upper[0] == Fraction(1, 2)
    assert case.constraints == (at_most("1/2", (0, "1"), strict=True),)
    (case,) = problem("(assert (> X_0 0.5))").cases
    assert case.lower[0] == Fraction(1, 2)
    assert case.constraints == (at_most("-1/2", (0, "-1"), strict=True),)


def test_a_strict_bound_that_holds_in_the_whole_box_is_dropped() -> None:
    assert problem("(assert (< X_0 2))").cases[0].constraints == ()


def test_a_strict_bound_on_a_pinned_input_is_a_contradiction() -> None:
    result = problem("(assert (= X_0 0.5)) (assert (< X_0 0.5))")
    assert result.cases == ()
    assert result.notes[0] == "case 1 contradicts itself: X_0 < 0.5 and X_0 >= 0.5 and X_0 <= 0.5"


def test_not_equal_splits_into_two_strict_cases() -> None:
    first, second = problem("(assert (!= X_0 0.5))").cases
    assert first.upper[0] == Fraction(1, 2) and first.constraints == (
        at_most("1/2", (0, "1"), strict=True),
    )
    assert second.lower[0] == Fraction(1, 2) and second.constraints == (
        at_most("-1/2", (0, "-1"), strict=True),
    )
    outputs = problem("(assert (!= Y_0 Y_1))").cases
    assert [case.constraints[0].strict for case in outputs] == [True, True]


def test_equal_expressions_become_two_constraints() -> None:
    (case,) = problem("(assert (= Y_0 (+ Y_1 1)))").cases
    assert case.constraints == (
        at_most("1", (2, "1"), (3, "-1")),
        at_most("-1", (2, "-1"), (3, "1")),
    )


def test_polynomials_are_expanded_exactly() -> None:
    (case,) = problem("(assert (<= (* (+ X_0 Y_0) (- X_0 Y_0) 0.5) (* 3 Y_0)))").cases
    (constraint,) = case.constraints
    half = Fraction(1, 2)
    assert constraint.terms == (((0, 0), half), ((2,), Fraction(-3)), ((2, 2), -half))
    assert not constraint.is_linear()


def test_a_product_that_cancels_is_linear_again() -> None:
    assert limits("(assert (<= (- (* X_0 X_1) (* X_1 X_0) X_0) -0.5))") == [
        (["1/2", "0"], ["1", "1"])
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [("(<= 0 1)", 1), ("(< 0 0)", 0), ("(!= 1 1)", 0), ("(= (* 2 3) 6)", 1), ("(<= Y_0 Y_0)", 1)],
)
def test_constant_comparisons_are_folded(text: str, count: int) -> None:
    result = problem(f"(assert {text})")
    assert len(result.cases) == count
    assert all(case.constraints == () for case in result.cases)
    assert bool(result.notes) == (count == 0)


def test_several_ors_are_conjoined() -> None:
    result = problem(
        "(assert (or (<= Y_0 0) (<= Y_0 1))) (assert (or (>= Y_1 0) (>= Y_1 1) (<= X_0 0.5)))"
    )
    assert len(result.cases) == 6
    assert result.cases[1].constraints == (at_most("0", (2, "1")), at_most("-1", (3, "-1")))
    assert result.cases[2].upper == (Fraction(1, 2), 1)
    assert result.cases[5].constraints == (at_most("1", (2, "1")),)


def test_an_or_with_one_true_alternative_still_counts() -> None:
    result = problem("(assert (or (<= 0 1) (<= Y_0 1)))")
    assert [len(case.constraints) for case in result.cases] == [0, 1]


def test_nested_ors_and_ands_keep_the_order_of_the_file() -> None:
    text = "(assert (or (or (<= Y_0 1) (and (<= Y_0 2) (or (<= Y_1 3) (<= Y_1 4)))) (<= Y_0 5)))"
    bounds = [[int(c.bound) for c in case.constraints] for case in problem(text).cases]
    assert bounds == [[1], [2, 3], [2, 4], [5]]


def test_cases_that_share_a_box_share_its_tuples() -> None:
    text = (
        "(assert (or (<= Y_0 0) (<= Y_1 0) (and (<= X_0 0.5) (<= Y_0 0)) (and (<= X_0 0.50) "
        "(<= Y_1 0))))"
    )
    first, second, third, fourth = problem(text).cases
    assert first.lower is second.lower is third.lower and first.upper is second.upper
    assert third.upper is fourth.upper and third.upper is not first.upper


def test_duplicates_and_dominated_constraints_are_removed() -> None:
    (case,) = problem(
        "(assert (<= Y_0 2)) (assert (<= Y_0 1)) (assert (< Y_0 1)) (assert (<= Y_0 1))"
    ).cases
    assert case.constraints == (at_most("1", (2, "1"), strict=True),)


def test_an_empty_box_drops_its_case_with_a_note() -> None:
    text = "(assert (or (<= Y_0 0) (<= Y_0 1) (and (>= X_1 1.5) (<= Y_0 2)) (<= Y_0 3)))"
    result = problem(text)
    assert len(result.cases) == 3
    assert result.notes == ("the box of case 3 is empty: X_1 >= 1.5 and X_1 <= 1",)


def test_an_empty_box_for_all_cases() -> None:
    result = problem("(assert (>= X_1 1.5)) (assert (or (<= Y_0 0) (<= Y_0 1)))")
    assert result.cases == ()
    assert result.notes == (
        "the input box is empty: X_1 >= 1.5 and X_1 <= 1",
        "no case is left, so there is no counterexample whatever the network computes",
    )


def test_ties_can_empty_a_box() -> None:
    result = problem(
        "(assert (<= X_0 0.2)) (assert (or (and (= X_0 X_1) (>= X_1 0.5)) (<= Y_0 0)))"
    )
    assert len(result.cases) == 1
    assert result.notes == ("the box of case 1 is empty: X_0 >= 0.5 and X_0 <= 0.2",)


def test_a_tie_inside_an_or_bounds_only_its_case() -> None:
    text = "(assert (<= X_0 0.2)) (assert (or (and (= X_0 X_1) (<= Y_0 1)) (<= Y_0 0)))"
    assert limits(text) == [(["0", "0"], ["1/5", "1/5"]), (["0", "0"], ["1/5", "1"])]


def test_contradicting_constraints_drop_their_case() -> None:
    result = problem(
        "(assert (or (and (<= Y_0 1) (>= Y_0 2)) (and (<= Y_0 1) (> Y_0 1)) (and (<= Y_0 1) (>= "
        "Y_0 1))))"
    )
    assert len(result.cases) == 1
    assert result.notes == (
        "case 1 contradicts itself: Y_0 <= 1 and Y_0 >= 2",
        "case 2 contradicts itself: Y_0 <= 1 and Y_0 > 1",
    )


def test_many_notes_are_counted_not_listed() -> None:
    dropped = " ".join("(>= X_0 2)" for _ in range(50))
    result = problem(f"(assert (or (<= Y_0 0) {dropped}))")
    assert (
        len(result.notes) == 21
        and result.notes[-1] == "30 more cases were left out for such reasons"
    )


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ("(assert (<= X_0 1))", "input X_0"),
        ("(assert (and (>= X_0 1) (<= X_1 1) (>= X_1 0)))", "input X_0"),
        ("(assert (and (>= X_0 0) (<= X_0 1)))", "input X_1"),
    ],
)
def test_unbounded_real_inputs_are_searched_but_not_covered(box: str, what: str) -> None:
    found = problem("(assert (<= Y_0 0))", box)
    assert not found.covers_all and found.notes[0].startswith(what)
    assert len(found.cases) == 2
    for case in found.cases:
        assert all(low < high for low, high in zip(case.lower, case.upper, strict=True))


def test_a_contradiction_of_unbounded_inputs_is_one() -> None:
    found = problem("(assert (and (<= Y_0 0) (>= Y_0 1)))", "(assert (<= X_0 1))")
    assert found.cases == () and found.covers_all


def test_constraints_bound_inputs_together() -> None:
    diamond = " ".join(f"(<= (+ (* {a} X_0) (* {b} X_1)) 1)" for a in (1, -1) for b in (1, -1))
    found = problem("(assert (<= Y_0 0))", f"(assert (and {diamond}))")
    (case,) = found.cases
    assert found.covers_all and len(case.constraints) == 5
    assert (case.lower, case.upper) == ((-1, -1), (1, 1))
    half = problem("(assert (<= Y_0 0))", f"(assert (and {diamond.rsplit('(<=', 1)[0]}))")
    assert not half.covers_all


def test_too_many_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitcrown.spec.normalise.MAX_CASES", 100)
    assert len(problem("(assert (or (<= Y_0 1) (<= Y_1 2)))" * 6).cases) == 64
    with pytest.raises(UnsupportedError, match="more than 100 cases; split it"):
        problem("(assert (or (<= Y_0 1) (<= Y_1 2)))" * 40)


def test_too_many_steps_without_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitcrown.spec.normalise.MAX_STEPS", 1000)
    with pytest.raises(UnsupportedError, match="split it into several"):
        problem("(assert (or (<= Y_0 1) (<= Y_1 2)))" * 40 + "(assert (or (>= X_0 2) (>= X_0 3)))")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(<= (* " + "(+ X_0 X_1 Y_0 Y_1 1) " * 40 + ") 1)", "more than 100000 monomials"),
        ("(<= (* " + "Y_0 " * 40 + ") 1)", "degree above 32"),
        ("(<= (* " + "1e2000 " * 100 + " Y_0) 1)", "tens of thousands of digits"),
    ],
)
def test_polynomials_out_of_hand(text: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        problem(f"(assert {text})")


def test_deep_formulas_and_terms_need_no_recursion() -> None:
    deep = 980
    text = "(and " * deep + "(<= " + "Y_0 1" + ")" * (deep + 1)
    (case,) = problem(f"(assert {text})").cases
    assert case.constraints == (at_most("1", (2, "1")),)
    term = "(+ 1 " * deep + "Y_0" + ")" * deep
    (case,) = problem(f"(assert (<= {term} 1))").cases
    assert case.constraints == (at_most(str(1 - deep), (2, "1")),)
    ors = "(or (<= Y_0 0) " * 400 + "(<= Y_0 1)" + ")" * 400
    assert len(problem(f"(assert {ors})").cases) == 401


PAIR = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [2]) (declare-hidden H real [1] "h") (declare-output Y real
[1,2])) (declare-network g ({relation} f) (declare-input U real [2]) (declare-output V real [1,2]))
(assert (and (<= X[0] 1.0) (>= X[0] 0.0) (== X[1] 0.5) (== X[1] U[1]) (<= X[0] U[0]) (<= U[0]
0.75)))
"""


def pair(asserts: str, relation: str = "equal-to", **files: str) -> Problem:
    query = parse_query(PAIR.format(relation=relation) + asserts)
    return problem_from_query(
        query, {name: Path(path) for name, path in (files or {"f": "a.onnx"}).items()}
    )


def test_networks_are_numbered_one_after_the_other_and_ties_bound_them() -> None:
    result = pair("(assert (< Y[0,1] V[0,1]))")
    assert (result.n_inputs, result.n_outputs) == (4, 5)
    assert result.networks == {"f": Path("a.onnx"), "g": Path("a.onnx")}
    (case,) = result.cases
    assert case.lower == (0, Fraction(1, 2), 0, Fraction(1, 2))
    assert case.upper == (Fraction(3, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1, 2))
    assert at_most("0", (5, "1"), (8, "-1"), strict=True) in case.constraints
    assert at_most("0", (0, "1"), (2, "-1")) in case.constraints


def test_a_chain_of_ties_in_the_worst_order() -> None:
    size = 300
    ties = "".join(f"(assert (== X[{i}] X[{i + 1}]))" for i in reversed(range(size - 1)))
    text = (
        f"(vnnlib-version <2.0>)(declare-network f (declare-input X real [{size}]) "
        "(declare-output Y real []))"
    )
    query = parse_query(
        text + "(assert (and (<= X[0] 1.0) (>= X[0] -1.0)))" + ties + "(assert (<= Y 0.0))"
    )
    (case,) = problem_from_query(query, {"f": NETWORK}).cases
    assert set(case.upper) == {1} and set(case.lower) == {-1}


@pytest.mark.parametrize(
    ("relation", "files", "what"),
    [
        ("isomorphic-to", {"f": "a.onnx"}, "no file is given for network g"),
        ("equal-to", {"g": "a.onnx"}, "no file is given for network f"),
        ("equal-to", {"f": "a.onnx", "h": "b.onnx"}, "network 'h' is given but not declared"),
        (
            "equal-to",
            {"f": "a.onnx", "g": "b.onnx"},
            "network g is equal-to f but has another file",
        ),
    ],
)
def test_networks_and_files_must_match(relation: str, files: dict[str, str], what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        pair("(assert (<= Y[0] V[0,1]))".replace("Y[0]", "Y[0,0]"), relation, **files)
    assert what in str(caught.value)


def test_equal_networks_may_both_be_listed() -> None:
    result = pair("(assert (<= Y[0,0] V[0,1]))", f="a.onnx", g="./a.onnx")
    assert result.networks["g"] == Path("a.onnx")


def test_a_version_1_query_takes_its_one_file_under_any_name() -> None:
    assert problem_from_query(parse_query(HEADER + BOX), {"whatever": NETWORK}).networks == {
        "N": NETWORK
    }


def test_hidden_variables_are_numbered_behind_the_outputs_of_their_network() -> None:
    (case,) = pair("(assert (<= H[0] 1.0))").cases
    assert at_most("1", (6, "1")) in case.constraints
    (case,) = pair("(assert (<= V[0,0] 1.0))").cases
    assert at_most("1", (7, "1")) in case.constraints


EQUAL = "(assert (== X[0] U[0]))"


@pytest.mark.parametrize("relation", ["equal-to", "isomorphic-to"])
def test_equal_networks_on_equal_inputs(relation: str) -> None:
    """Every pair of a strict or a gap comparison, and what is left of the others."""
    files = {"f": "a.onnx", "g": "./a.onnx"}

    def cases(text: str, ties: str = EQUAL) -> tuple[Case, ...]:
        return pair(ties + f"(assert {text})", relation, **files).cases

    assert cases("(< Y[0,1] V[0,1])") == () == cases("(<= (+ V[0,0] 0.01) Y[0,0])")
    assert cases("(!= Y[0,1] V[0,1])") == ()
    (case,) = cases("(<= Y[0,1] V[0,1])")
    assert all(monomial[0] < 4 for c in case.constraints for monomial, _ in c.terms)
    (case,) = cases("(< Y[0,1] V[0,0])")
    assert at_most("0", (4, "-1"), (5, "1"), strict=True) in case.constraints
    assert cases("(< (* Y[0,1] Y[0,1]) (* V[0,1] Y[0,1]))") == ()
    # Not all inputs are equal, or the files differ: nothing follows.
    assert len(cases("(< Y[0,1] V[0,1])", "")) == 1
    assert len(cases("(< Y[0,1] V[0,1])", "(assert (<= X[0] U[0]))")) == 1
    assert len(cases("(< Y[0,1] V[0,1])", "(assert (== (+ X[0] 0.1) U[0]))")) == 1
    pins = "(assert (and (== X[0] 0.25) (== U[0] 0.25)))"
    assert cases("(< Y[0,1] V[0,1])", pins) == ()
    files["g"] = "b.onnx"
    if relation == "isomorphic-to":
        assert len(cases("(< Y[0,1] V[0,1])")) == 1


def test_decimals_that_are_read_as_other_numbers_empty_no_box() -> None:
    """In float16, 0.06 is 0.05999 and 0.2 is 0.19995: the difference of what is read is not that of
    the decimals."""
    pins = "(assert (= X_0 0.06)) (assert (= X_1 0.2))"
    asked = problem(f"{pins} (assert (<= (- X_1 X_0) 0.13998))")
    assert [len(case.constraints) for case in asked.cases] == [1]
    assert (
        asked.cases[0].lower[:2] == asked.cases[0].upper[:2] == (Fraction("0.06"), Fraction("0.2"))
    )
    assert problem(f"{pins} (assert (<= (- X_1 X_0) 0.1))").cases == ()
