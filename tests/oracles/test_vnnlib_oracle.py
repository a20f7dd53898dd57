"""VNN-LIB 2.0 against the reference parser (the PyPI package ``vnnlib``): the same text is the same
tree.

Only its parser serves as an oracle; its ``compat.transform`` loses bounds and alternatives.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.printer import print_query
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Term,
    Var,
)
from bitcrown.spec.reader import parse_query

vnnlib = pytest.importorskip("vnnlib")

_EXCHANGED = {"GreaterEqual": "<=", "GreaterThan": "<"}
_SAME = {"LessEqual": "<=", "LessThan": "<", "Equal": "==", "NotEqual": "!="}


def their_term(node: Any) -> Term:
    kind = type(node).__name__
    if kind == "Var":
        flat = 0
        for index, extent in zip(node.indices, node.shape, strict=True):
            flat = flat * extent + index
        return Var(node.name, flat)
    if kind in ("Float", "Int", "Literal"):
        return Const(Fraction(node.lexeme))
    if kind == "Plus":
        return Sum(tuple(their_term(arg) for arg in node.args))
    if kind == "Multiply":
        return Product(tuple(their_term(arg) for arg in node.args))
    if kind == "Negate":
        return negated(their_term(node.expr))
    assert kind == "Minus", kind
    return Sum((their_term(node.head), *(negated(their_term(arg)) for arg in node.rest)))


def negated(term: Term) -> Term:
    return Const(-term.value) if isinstance(term, Const) else Product((Const(Fraction(-1)), term))


def their_formula(node: Any) -> Formula:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        args = tuple(their_formula(arg) for arg in node.args)
        return And(args) if kind == "And" else Or(args)
    left, right = their_term(node.lhs), their_term(node.rhs)
    return (
        Compare(_EXCHANGED[kind], right, left)
        if kind in _EXCHANGED
        else Compare(_SAME[kind], left, right)
    )


def their_tensors(nodes: Any, hidden: bool = False) -> tuple[TensorDecl, ...]:
    return tuple(
        TensorDecl(
            node.name,
            {"F32": "float32", "F64": "float64", "I8": "int8"}.get(
                node.dtype.name, node.dtype.name.lower()
            ),
            tuple(node.shape),
            node.onnx_name.strip('"') if hidden else "",
        )
        for node in nodes
    )


def their_query(text: str) -> Query:
    parsed = vnnlib.parse_query_string(text)
    networks = tuple(
        NetworkDecl(
            network.name,
            their_tensors(network.inputs),
            their_tensors(network.outputs),
            their_tensors(network.hidden, hidden=True),
            equal_to=network.equal_to,
            isomorphic_to=network.isometric_to,
        )
        for network in parsed.networks
    )
    return Query((2, 0), networks, And(tuple(their_formula(a.expr) for a in parsed.assertions)))


ONE = (
    "(vnnlib-version <2.0>)\n(declare-network f (declare-input X real [2,3]) (declare-output Y "
    "real [1,4]))\n"
)
TEXTS = {
    "bounds": ONE
    + "(assert (<= X[0,0] 0.5)) ; comment\n(assert (>= X[1,2] -0.25))(assert (> 1.0 X[0,1]))",
    "difference": ONE + "(assert (<= (- Y[0,0] Y[0,1] 0.5) (- X[0,0])))(assert (< (- 1.5) Y[0,2]))",
    "polynomial": ONE + "(assert (>= (* X[0,0] 200.0) (* X[0,1] X[0,1] (+ X[0,2] Y[0,3]))))",
    "tree": ONE
    + "(assert (or (and (< Y[0,0] 0.1)) (or (!= Y[0,1] 2.0) (and (== Y[0,2] X[0,0]) (> Y[0,1] "
    "0.0)))))",
    "constants": ONE + "(assert (<= 0.0 1.0))",
    "isomorphic": "(vnnlib-version <2.0>)(declare-network f (declare-input A real [2]) "
    "(declare-output B real []))"
    "(declare-network g (isomorphic-to f) (declare-input C real [2]) (declare-output D real []))"
    "(assert (== A[0] C[0])) (assert (<= B (+ D 0.05)))",
    "equal": "(vnnlib-version <2.0>)(declare-network f (declare-input A float32 [2]) "
    "(declare-output B float32 [1]))"
    "(declare-network g (equal-to f) (declare-input C float32 [2]) (declare-output D float32 [1]))"
    "(assert (and (<= A[0] C[0]) (<= C[0] 0.667245963))) (assert (< B[0] D[0]))",
    "inputs": "(vnnlib-version <2.0>)(declare-network f (declare-input A float32 [2]) "
    "(declare-input C float32 [1,1])"
    '(declare-hidden H float32 [3] "relu_3 out") (declare-output B float32 [1]))(assert (<= H[2] '
    "(* A[1] C[0,0])))",
    "integers": "(vnnlib-version <2.0>)(declare-network f (declare-input A int8 [2]) "
    "(declare-output B int8 [1]))"
    "(assert (<= A[0] 3)) (assert (>= A[0] -3)) (assert (!= (* 2 B[0]) A[1]))",
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_reference_parser_sees_the_same_query(name: str) -> None:
    assert parse_query(TEXTS[name]) == their_query(TEXTS[name])


BROKEN = {
    "undeclared": ONE + "(assert (<= Z[0,0] 0.5))",
    "rank": ONE + "(assert (<= X[0] 0.5))",
    "range": ONE + "(assert (<= X[0,3] 0.5))",
    "too many": ONE + "(assert (<= X[0,0,0] 0.5))",
    "empty and": ONE + "(assert (and))",
    "one side": ONE + "(assert (<= X[0,0]))",
    "division": ONE + "(assert (<= (/ X[0,0] 2.0) 0.5))",
    "no network": "(vnnlib-version <2.0>)(assert (<= 0.0 1.0))",
    "no version": ONE.partition("\n")[2] + "(assert (<= X[0,0] 0.5))",
    "major version": ONE.replace("2.0", "1.0") + "(assert (<= X[0,0] 0.5))",
    "no assert": ONE,
    "twice": ONE.replace("Y real", "X real") + "(assert (<= X[0,0] 0.5))",
    "shape": ONE.replace("[2,3]", "[2 3]") + "(assert (<= X[0,0] 0.5))",
    "missing base": TEXTS["equal"].replace("equal-to f", "equal-to h"),
    "other shape": TEXTS["equal"].replace("C float32 [2]", "C float32 [3]"),
    "scalar index": TEXTS["isomorphic"].replace("<= B ", "<= B[0] "),
    "hidden without name": TEXTS["inputs"].replace('"relu_3 out"', ""),
    "unclosed": ONE + "(assert (<= X[0,0] 0.5)",
}


@pytest.mark.parametrize("name", BROKEN)
def test_both_parsers_reject_broken_files(name: str) -> None:
    with pytest.raises(vnnlib.VNNLibException):
        vnnlib.parse_query_string(BROKEN[name])
    with pytest.raises((PropertyError, UnsupportedError)):
        parse_query(BROKEN[name])


ELEMENTS = [*(Var("X", k) for k in range(6)), *(Var("Y", k) for k in range(4))]
constants = st.builds(
    lambda n, k: Const(Fraction(n, 10**k)), st.integers(-(10**9), 10**9), st.integers(0, 12)
)
terms: st.SearchStrategy[Term] = st.recursive(
    st.one_of(st.sampled_from(ELEMENTS), constants),
    lambda inner: st.one_of(
        st.builds(lambda args: Sum(tuple(args)), st.lists(inner, min_size=2, max_size=3)),
        st.builds(lambda args: Product(tuple(args)), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=4,
)
formulas: st.SearchStrategy[Formula] = st.recursive(
    # A variable on the left: the reference parser types a comparison by its variables.
    st.builds(Compare, st.sampled_from(["<=", "<", "==", "!="]), st.sampled_from(ELEMENTS), terms),
    lambda inner: st.one_of(
        st.builds(lambda args: And(tuple(args)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda args: Or(tuple(args)), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(formulas, min_size=1, max_size=4))
def test_printed_queries_mean_the_same_to_the_reference_parser(asserts: list[Formula]) -> None:
    network = NetworkDecl(
        "f", (TensorDecl("X", "real", (2, 3)),), (TensorDecl("Y", "real", (1, 4)),)
    )
    query = Query((2, 0), (network,), And(tuple(asserts)))
    assert their_query(print_query(query)) == query
