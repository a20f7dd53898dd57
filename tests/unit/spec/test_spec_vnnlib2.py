"""VNN-LIB 2.0: declarations, several networks, indices, lenient forms, errors."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.query import Compare, Const, Formula, Sum, TensorDecl, Var
from bitcrown.spec.reader import parse_query

ONE = (
    "(vnnlib-version <2.0>)\n(declare-network f (declare-input X float32 [2,3]) (declare-output "
    "Y float32 [1,1]))\n"
)
PAIR = """(vnnlib-version <2.0>)
(declare-network f (declare-input X real [2]) (declare-output Y real [2]))
(declare-network g ({relation} f) (declare-input U {dtype} [{extent}]) (declare-output V real [2]))
(assert (<= U[0] X[0]))"""


def compare(text: str) -> Formula:
    (only,) = parse_query(f"{ONE}(assert {text})").assertion.args
    return only


def test_declarations() -> None:
    query = parse_query(
        "(vnnlib-version <2.1>)(declare-network f (declare-input A real [2,3]) (declare-input B "
        "Real [])"
        '(declare-hidden H float32 [1, 4] "relu 3") (declare-output Y float32 [1,5]))(assert (<= '
        "A[0,0] 1.0))"
    )
    assert query.version == (2, 1)
    (network,) = query.networks
    assert network.inputs == (TensorDecl("A", "real", (2, 3)), TensorDecl("B", "real", ()))
    assert network.hidden == (TensorDecl("H", "float32", (1, 4), "relu 3"),)
    assert network.outputs == (TensorDecl("Y", "float32", (1, 5)),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(<= X[1,2] 0.5)", Compare("<=", Var("X", 5), Const(Fraction(1, 2)))),
        ("(>= X[1, 0] 0.5)", Compare("<=", Const(Fraction(1, 2)), Var("X", 3))),
        ("(== X [0,1] 1e-05)", Compare("==", Var("X", 1), Const(Fraction(1, 100_000)))),
        ("(!= Y[0,0] 1)", Compare("!=", Var("Y", 0), Const(Fraction(1)))),
        ("(= Y[0] +.5)", Compare("==", Var("Y", 0), Const(Fraction(1, 2)))),
        ("(Y[0,0] < X[0,0])", Compare("<", Var("Y", 0), Var("X", 0))),
        ("(> Y X[0,0])", Compare("<", Var("X", 0), Var("Y", 0))),
        (
            "(<= (- X[0,0] 0.5) 0.0)",
            Compare("<=", Sum((Var("X", 0), Const(Fraction(-1, 2)))), Const(Fraction(0))),
        ),
    ],
)
def test_elements_and_comparisons(text: str, expected: Formula) -> None:
    assert compare(text) == expected


@pytest.mark.parametrize("version", ["<2.0>", "2.0", "< 2.0 >", "<2.7>"])
def test_versions_with_and_without_brackets(version: str) -> None:
    assert parse_query(ONE.replace("<2.0>", version) + "(assert (<= X[0,0] 1))").version[0] == 2


def test_equivalences() -> None:
    for relation in ("equal-to", "isomorphic-to"):
        query = parse_query(PAIR.format(relation=relation, dtype="real", extent=2))
        assert (query.networks[1].equal_to, query.networks[1].isomorphic_to) == (
            ("f", "") if relation == "equal-to" else ("", "f")
        )
    mixed = PAIR.replace("U[0] X[0]", "X[0] 1.0")
    assert (
        parse_query(mixed.format(relation="isomorphic-to", dtype="float32", extent=2))
        .networks[1]
        .isomorphic_to
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(<= Z[0,0] 1.0)", "line 3: 'Z[0,0]' is neither a number nor a declared variable"),
        ("(<= X[0] 1.0)", "X of shape [2, 3] needs 2 indices, not 1"),
        ("(<= X 1.0)", "needs 2 indices, not 0"),
        ("(<= X[0,0,0] 1.0)", "needs 2 indices, not 3"),
        ("(<= X[2,0] 1.0)", "index 2 is out of range for X of shape [2, 3]"),
        ("(<= X[0,3] 1.0)", "index 3 is out of range"),
        ("(<= Y[1] 1.0)", "index 1 is out of range"),
        ("(<= X[0,-1] 1.0)", "an index is a list of whole numbers"),
        ("(<= X[] 1.0)", "an index is a list of whole numbers"),
        ("(<= X[0 0] 1.0)", "an index is a list of whole numbers"),
    ],
)
def test_bad_elements_are_explained(text: str, what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        compare(text)
    assert what in str(caught.value)


NET = "(vnnlib-version <2.0>)(declare-network f {})(assert (<= X[0] 1.0))"
XY = "(declare-input X real [1]) (declare-output Y real [1])"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(vnnlib-version <1.0>)", "version 1.0 is not 2.x"),
        ("(vnnlib-version two)", "names no version"),
        ("(vnnlib-version <2.0>)", "no network is declared"),
        (f"(declare-network f {XY})(assert (<= X[0] 1))", "the version is missing"),
        (ONE, "there is no assert"),
        (ONE + "(vnnlib-version <2.0>)", "has no place here"),
        (ONE + "(declare-const X_0 Real)", "has no place here"),
        (ONE + "(assert (<= Z[0] 0.5))(declare-network g)", "is neither a number nor a declared"),
        (
            PAIR.format(relation="equal-to", dtype="real", extent=2) + "(declare-network h)",
            "(declare-network h) has no place here; use one vnnlib-version, then declare-network",
        ),
        (ONE.replace("(vnnlib-version <2.0>)", "") + "(vnnlib-version <2.0>)", "has no place here"),
        (NET.format("(declare-input X real [1])"), "network f has no outputs"),
        (NET.format("(declare-output Y real [1])"), "network f has no inputs"),
        (
            NET.format("(declare-output Y real [1])(declare-input X real [1])"),
            "declare-input comes too late",
        ),
        (
            NET.format("(declare-input X real [1])(declare-output X real [1])"),
            "X is declared twice",
        ),
        (NET.format("(declare-input f-1 real [1])"), "'f-1' is no name"),
        (NET.format("(declare-input X real)"), "declares no tensor"),
        (NET.format("(declare-input X [1])"), "declares no tensor"),
        (NET.format("(declare-input X quaternion [1])"), "'quaternion' is no element type"),
        (NET.format("(declare-input X real [1 2])"), "[1 2] is no shape"),
        (NET.format("(declare-input X real [-1])"), "[-1] is no shape"),
        (NET.format("(declare-input X real [0,2])"), "the shape [0, 2] has no elements"),
        (
            NET.format("(declare-input X real [" + ",".join("1" * 40) + "])"),
            "a shape has 40 extents",
        ),
        (NET.format(XY + "(weights W)"), "(weights W) has no place in declare-network"),
        (NET.format(XY + " word"), "word has no place in declare-network"),
        (
            NET.format("(declare-input X real [1])(declare-hidden H real [1] name)"),
            "hidden tensor H has no ONNX name",
        ),
        (NET.format("(declare-input X real [1])(declare-hidden H real [1])"), "declares no tensor"),
        (NET.format(f"(equal-to f) {XY}"), "names no network declared before"),
        (
            PAIR.format(relation="equal-to h", dtype="real", extent=2),
            "names no network declared before",
        ),
        (
            PAIR.format(relation="equal-to", dtype="real", extent=3),
            "g differs from f in its shapes or types",
        ),
        (
            PAIR.format(relation="equal-to", dtype="float32", extent=2),
            "g differs from f in its shapes or types",
        ),
        (
            PAIR.format(relation="isomorphic-to", dtype="real", extent=3),
            "g differs from f in its shapes;",
        ),
        (
            PAIR.format(relation="equal-to f)(isomorphic-to", dtype="real", extent=2),
            "network g has two equivalences",
        ),
        (
            PAIR.format(relation="equal-to", dtype="real", extent=2).replace(
                "(assert",
                "(declare-network h (equal-to g) (declare-input A real [2]) (declare-output B real "
                "[2]))(assert",
            ),
            "g is itself equal to another network",
        ),
    ],
)
def test_bad_files_are_explained(text: str, what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        parse_query(text, "p.vnnlib")
    message = str(caught.value)
    assert what in message and message.startswith("p.vnnlib")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (NET.format("(declare-input X string [1])"), "type string"),
        (NET.format("(declare-input X real [99999,99999])"), "more than 67108864 elements"),
        (ONE + "(assert (<= (/ X[0,0] 2.0) 1.0))", "VNN-LIB 2.0 has no division"),
    ],
)
def test_what_is_not_supported_says_so(text: str, what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse_query(text)
    assert what in str(caught.value)
