"""VNN-LIB 1.0, construct by construct and error by error."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.query import And, Compare, Const, Formula, Or, Product, Sum, TensorDecl, Var
from bitcrown.spec.reader import parse_query

HEADER = (
    "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 "
    "Real)\n(declare-const Y_1 Real)\n"
)
X0, X1, Y0, Y1 = Var("X", 0), Var("X", 1), Var("Y", 0), Var("Y", 1)


def num(text: str) -> Const:
    return Const(Fraction(text))


def formula(text: str) -> Formula:
    (only,) = parse_query(f"{HEADER}(assert {text})").assertion.args
    return only


def test_declarations_become_one_network_with_flat_tensors() -> None:
    query = parse_query(HEADER + "(assert (<= X_0 1))")
    assert query.version == (1, 0)
    (network,) = query.networks
    assert network.name == "N"
    assert network.inputs == (TensorDecl("X", "real", (2,)),)
    assert network.outputs == (TensorDecl("Y", "real", (2,)),)


def test_declarations_may_come_in_any_order_and_after_asserts() -> None:
    declarations = (
        "(declare-const X_1 Real)(declare-fun X_0 () Real)(assert (<= X_1 "
        "1))(declare-const Y_0 Real)"
    )
    query = parse_query("(set-logic QF_LRA)" + declarations + "(assert (<= Y_0 1))(check-sat)")
    assert query.networks[0].inputs[0].shape == (2,)
    assert len(query.assertion.args) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(<= X_0 0.5)", Compare("<=", X0, num("0.5"))),
        ("(>= X_0 0.5)", Compare("<=", num("0.5"), X0)),
        ("(< Y_0 Y_1)", Compare("<", Y0, Y1)),
        ("(> Y_0 Y_1)", Compare("<", Y1, Y0)),
        ("(= X_0 1e-05)", Compare("==", X0, num("0.00001"))),
        ("(== X_0 .5)", Compare("==", X0, num("0.5"))),
        ("(!= X_0 +1)", Compare("!=", X0, num("1"))),
        ("(X_0 <= -3)", Compare("<=", X0, num("-3"))),
        ("(<= 0.5 X_0)", Compare("<=", num("0.5"), X0)),
        ("(<= (+ X_0 X_1 1) Y_0)", Compare("<=", Sum((X0, X1, num("1"))), Y0)),
        (
            "(<= (- X_0 X_1 1) 0)",
            Compare("<=", Sum((X0, Product((num("-1"), X1)), num("-1"))), num("0")),
        ),
        ("(<= (- X_0) (- 2))", Compare("<=", Product((num("-1"), X0)), num("-2"))),
        ("(<= (* 2 X_0) 1)", Compare("<=", Product((num("2"), X0)), num("1"))),
        ("(<= (* X_0 Y_0 Y_0) 1)", Compare("<=", Product((X0, Y0, Y0)), num("1"))),
        ("(<= X_0 (/ 1 3))", Compare("<=", X0, Const(Fraction(1, 3)))),
        ("(<= (/ Y_0 4) 1)", Compare("<=", Product((num("0.25"), Y0)), num("1"))),
        ("(and (<= X_0 1))", And((Compare("<=", X0, num("1")),))),
        (
            "(or (and (<= X_0 1) (or (< Y_0 0) (< Y_1 0))) (<= Y_0 Y_1))",
            Or(
                (
                    And(
                        (
                            Compare("<=", X0, num("1")),
                            Or((Compare("<", Y0, num("0")), Compare("<", Y1, num("0")))),
                        )
                    ),
                    Compare("<=", Y0, Y1),
                )
            ),
        ),
    ],
)
def test_formulas(text: str, expected: Formula) -> None:
    assert formula(text) == expected


def test_equal_words_share_objects() -> None:
    first = formula("(and (<= X_0 0.25) (<= X_1 0.25))")
    assert isinstance(first, And)
    left, right = first.args
    assert isinstance(left, Compare) and isinstance(right, Compare) and left.right is right.right


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(<= X_7 1)", "line 5: 'X_7' is neither a number nor a declared variable"),
        ("(<= X_00 1)", "'X_00' is neither a number nor a declared variable"),
        ("(<= X_0)", "(<= X_0) has 1 sides"),
        ("(<= 0 X_0 1)", "(<= 0 X_0 1) has 3 sides"),
        ("(and)", "(and) has no arguments"),
        ("(or (and))", "(and) has no arguments"),
        ("(<= (+) 1)", "(+) has no arguments"),
        ("(<= (f X_0) 1)", "(f X_0) is not a number"),
        ("(<= (<= X_0 1) 1)", "(<= X_0 1) is not a number"),
        ("(approx X_0 1)", "(approx X_0 1) is not a comparison"),
        ("true", "'true' stands where a comparison belongs"),
        ("(and X_0)", "'X_0' stands where a comparison belongs"),
        ("()", "() is not a comparison"),
        ("(<= X_0 1e99999)", "'1e99999': a number may have at most 2000 digits"),
        ("(<= X_0 1) (<= X_1 1)", "assert has 2 formulas"),
        ("", "assert has 0 formulas"),
    ],
)
def test_bad_formulas_are_explained(text: str, what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        formula(text)
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["(xor (<= X_0 1) (<= Y_0 1))", "(<= (ite X_0 1 2) 1)"])
def test_known_but_unsupported_words(text: str) -> None:
    with pytest.raises(UnsupportedError, match="line 5: .* is not supported"):
        formula(text)


@pytest.mark.parametrize("text", ["(<= (/ 1 X_0) 1)", "(<= (/ X_0 0) 1)", "(<= (/ X_0) 1)"])
def test_only_division_by_a_constant(text: str) -> None:
    with pytest.raises(UnsupportedError, match="cannot divide"):
        formula(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(declare-const X_0 Real)(declare-const X_0 Real)", "X_0 is declared twice"),
        ("(declare-const Z_0 Real)", "the name 'Z_0' is neither X_k nor Y_k"),
        ("(declare-const X_01 Real)", "'X_01' is neither"),
        ("(declare-const X_0 Int)", "declares no real variable"),
        ("(declare-const X_0)", "declares no real variable"),
        ("(declare-fun X_0 (Real) Real)", "declares no real variable"),
        ("(push 1)", "(push 1) is no VNN-LIB 1.0 command"),
        ("((a))", "is no VNN-LIB 1.0 command"),
        ("(declare-const X_0 Real)(declare-const Y_0 Real)", "there is no assert"),
        ("(declare-const X_0 Real)(assert (<= X_0 1))", "no output is declared"),
        ("(declare-const Y_0 Real)(assert (<= Y_0 1))", "no input is declared"),
        (
            "(declare-const X_0 Real)(declare-const X_2 Real)(declare-const Y_0 Real)(assert (<= "
            "Y_0 1))",
            "X_1 is not declared",
        ),
    ],
)
def test_bad_files_are_explained(text: str, what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        parse_query(text, "p.vnnlib")
    message = str(caught.value)
    assert what in message and message.startswith("p.vnnlib")
