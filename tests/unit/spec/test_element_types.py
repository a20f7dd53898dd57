"""What may be compared with what in VNN-LIB 2, and formulas with ``not`` and ``=>``."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from bitcrown.errors import PropertyError
from bitcrown.spec.query import And, Compare, Const, Formula, Or, Var
from bitcrown.spec.reader import parse_query

NET = """(vnnlib-version <2.0>)
(declare-network f (declare-input X {x} [1]) (declare-input Z {z} [1])
(declare-hidden H {z} [1] "h") (declare-output Y {x} [1]))
(assert {text})"""


def formula(text: str, x: str = "float32", z: str = "float32") -> Formula:
    (only,) = parse_query(NET.format(text=text, x=x, z=z)).assertion.args
    return only


@pytest.mark.parametrize(
    ("text", "x", "z"),
    [
        ("(<= (+ X[0] Z[0]) Y[0])", "float32", "float32"),
        ("(<= (+ X[0] 42) Y[0])", "int16", "float32"),
        ("(and (<= 0 X[0]) (<= 0.5 Z[0]))", "int8", "float16"),
        ("(<= X[0] 1)", "float32", "int8"),
        ("(<= X[0] 3.4028235e38)", "float32", "int8"),
        ("(<= X[0] 1e400)", "real", "real"),
        ("(<= X[0] Z[0])", "f32", "float32"),
        ("(<= X[0] -128)", "int8", "int8"),
        ("(== X[0] 1)", "bool", "bool"),
        ("(<= 0.0 1.0)", "float32", "int8"),
    ],
)
def test_well_typed(text: str, x: str, z: str) -> None:
    assert formula(text, x, z)


@pytest.mark.parametrize(
    ("text", "x", "z", "what"),
    [
        ("(<= Y[0] 3.14)", "int32", "int32", "3.14 is no number of the type int32, which Y[0] has"),
        ("(<= X[0] (+ 3 3.0))", "int8", "int8", "3.0 is no number of the type int8"),
        ("(<= Y[0] -5)", "uint32", "uint32", "-5 is no number of the type uint32"),
        ("(<= 300 X[0])", "uint8", "uint8", "300 is no number of the type uint8"),
        ("(<= X[0] 2)", "bool", "bool", "2 is no number of the type bool"),
        ("(<= X[0] 65520.0)", "float16", "float16", "65520.0 is no number of the type float16"),
        ("(<= X[0] 1e39)", "float32", "float32", "1e39 is no number of the type float32"),
        ("(<= X[0] H[0])", "float16", "float32", "X[0] has the type float16, but H[0] has float32"),
        ("(<= X[0] Z[0])", "float16", "int32", "X[0] has the type float16, but Z[0] has int32"),
        ("(<= 0 (+ X[0] Z[0] 3))", "int8", "int16", "X[0] has the type int8, but Z[0] has int16"),
        ("(or (<= X[0] 1) (<= 0 (* 2 (- Z[0] X[0]))))", "real", "float32", "Z[0] has the type"),
    ],
)
def test_ill_typed_comparisons_are_refused_with_their_line(
    text: str, x: str, z: str, what: str
) -> None:
    with pytest.raises(PropertyError) as caught:
        formula(text, x, z)
    assert what in str(caught.value) and "line 4:" in str(caught.value)


def test_initialized_inputs() -> None:
    query = parse_query(
        "(vnnlib-version <2.1>)(declare-network f (declare-input A real [2] initialized) "
        "(declare-input X real [1]) (declare-output Y real [1]))(assert (<= A[1] X[0]))"
    )
    (network,) = query.networks
    assert [t.name for t in network.given] == ["X"]
    assert [t.name for t in network.computed] == ["Y", "A"]
    with pytest.raises(PropertyError, match="declares no tensor"):
        parse_query(
            "(vnnlib-version <2.1>)(declare-network f (declare-input X real [1]) "
            "(declare-output Y real [1] initialized))(assert (<= X[0] 1.0))"
        )


def test_equal_networks_declare_equal_hidden_tensors() -> None:
    text = """(vnnlib-version <2.1>)
(declare-network f (declare-input X real [1]) (declare-hidden H real [2] "h")
(declare-output Y real [1]))
(declare-network g ({relation} f) (declare-input U real [1]) (declare-hidden I real [3] "{name}")
(declare-output V real [1]))
(assert (<= X[0] 1.0))"""
    assert parse_query(text.format(relation="equal-to", name="other"))
    assert parse_query(text.format(relation="isomorphic-to", name="h"))
    with pytest.raises(PropertyError, match="I differs from the tensor of that name in f"):
        parse_query(text.format(relation="equal-to", name="h"))


def truth(node: Formula, x: int, z: int, y: int) -> bool:
    if isinstance(node, Compare):
        values = {"X": x, "Z": z, "Y": y}

        def side(term: object) -> Fraction:
            if isinstance(term, Const):
                return term.value
            assert isinstance(term, Var)
            return Fraction(values[term.tensor])

        left, right = side(node.left), side(node.right)
        return {"<=": left <= right, "<": left < right, "==": left == right, "!=": left != right}[
            node.op
        ]
    parts = [truth(part, x, z, y) for part in node.args]
    assert isinstance(node, And | Or)
    return all(parts) if isinstance(node, And) else any(parts)


ATOMS = {
    "(<= X[0] 1)": lambda x, z, y: x <= 1,
    "(> Z[0] X[0])": lambda x, z, y: z > x,
    "(== Y[0] Z[0])": lambda x, z, y: y == z,
    "(!= X[0] Y[0])": lambda x, z, y: x != y,
    "(< Y[0] 2)": lambda x, z, y: y < 2,
    "(>= Y[0] X[0])": lambda x, z, y: y >= x,
}


def test_not_and_implies_mean_what_they_say() -> None:
    """All pairs of atoms under all connectives, on all points of a grid."""
    for (one, a), (other, b) in itertools.permutations(ATOMS.items(), 2):
        for text, wanted in (
            (f"(not {one})", lambda p, q: not p),
            (f"(=> {one} {other})", lambda p, q: not p or q),
            (f"(not (=> {one} {other}))", lambda p, q: p and not q),
            (f"(not (and {one} (not {other})))", lambda p, q: not p or q),
            (f"(or (not (or {one} {other})) {other})", lambda p, q: not (p or q) or q),
            (f"(not (not (=> (and {one} {one}) (not {other}))))", lambda p, q: not p or not q),
            (f"(=> (=> {one} {other}) {one})", lambda p, q: not (not p or q) or p),
        ):
            read = formula(text, "int8", "int8")
            for point in itertools.product(range(3), repeat=3):
                assert truth(read, *point) == wanted(a(*point), b(*point)), text


@pytest.mark.parametrize("text", ["(not)", "(not (<= X[0] 1) (<= X[0] 2))", "(=> (<= X[0] 1))"])
def test_not_and_implies_count_their_arguments(text: str) -> None:
    with pytest.raises(PropertyError, match="arguments; it takes"):
        formula(text)
