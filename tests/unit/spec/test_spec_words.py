"""Properties in plain words."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Constraint
from bitcrown.spec.reader import parse_query
from bitcrown.spec.words import constraint_text, property_in_words

HEADER = (
    "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const "
    "Y_1 Real)"
)
BOX = "(assert (and (<= X_0 1) (>= X_0 0) (= X_1 0.25)))"


def words(asserts: str) -> list[str]:
    return property_in_words(
        problem_from_query(parse_query(HEADER + BOX + asserts), {"N": Path("a/net.onnx")})
    ).split("\n")


@pytest.mark.parametrize(
    ("terms", "bound", "strict", "text"),
    [
        ({(0,): 1}, "0.5", False, "v0 <= 0.5"),
        ({(0,): -1}, "-3", True, "v0 > 3"),
        ({(0,): 1, (1,): -1}, "0", False, "v0 <= v1"),
        ({(0,): 2, (1,): -1}, "0.5", True, "2*v0 < v1 + 0.5"),
        ({(0, 0): 1, (1,): -200}, "-1", False, "v0*v0 <= 200*v1 - 1"),
    ],
)
def test_constraints_read_like_mathematics(
    terms: dict[tuple[int, ...], int], bound: str, strict: bool, text: str
) -> None:
    exact = tuple((monomial, Fraction(value)) for monomial, value in terms.items())
    assert (
        constraint_text(Constraint(exact, Fraction(bound), strict), lambda number: f"v{number}")
        == text
    )


def test_one_case() -> None:
    assert words("(assert (<= Y_0 Y_1))") == [
        "Network: N (net.onnx); 2 inputs, 2 outputs.",
        "A counterexample (sat) is an input inside the box for which all constraints of the one "
        "case hold.",
        "unsat means that no such input exists: the property holds for the whole box.",
        "Box: 2 inputs, 1 of them fixed to one value; widths from 1 to 1.",
        "  0 <= X_0 <= 1",
        "  X_1 = 0.25",
        "Case 1: Y_0 <= Y_1.",
    ]


def test_many_cases_and_several_boxes() -> None:
    lines = words("(assert (or (<= Y_0 1) (<= Y_0 2) (<= X_0 0.5) (<= Y_0 4) (<= Y_0 5)))")
    assert any("at least one of the 5 cases" in line for line in lines)
    assert any(line.startswith("The cases use 2 different boxes") for line in lines)
    assert "Case 3: any input of the box will do, whatever the outputs are." in lines
    assert lines[-1] == "... and 2 more cases."


def test_nothing_to_find() -> None:
    lines = words("(assert (>= X_0 2))")
    assert "There is nothing to find: the property is unsat whatever the network computes." in lines
    assert "Note: the input box is empty: X_0 >= 2 and X_0 <= 1." in lines


def test_large_boxes_are_summed_up() -> None:
    declarations = "".join(
        f"(declare-const X_{i} Real)(assert (<= X_{i} {i}.5))(assert (>= X_{i} 0))"
        for i in range(20)
    )
    query = parse_query(declarations + "(declare-const Y_0 Real)(assert (<= Y_0 0))")
    text = property_in_words(problem_from_query(query, {"N": Path("net.onnx")}))
    assert "widths from 0.5 to 19.5" in text and "all inputs lie between 0 and 19.5" in text
