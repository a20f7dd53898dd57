"""Queries back to text: exact numbers, both versions, and what cannot be written."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bitcrown.spec.printer import print_query
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Var,
)
from bitcrown.spec.reader import parse_query

TEXT1 = """(declare-const X_0 Real)
(declare-const Y_0 Real)
(assert (<= X_0 0.00001))
(assert (or (= Y_0 (+ X_0 1.0)) (and (< (* -1.0 Y_0) X_0))))
"""
TEXT2 = """(vnnlib-version <2.0>)
(declare-network f
    (declare-input X real [2,3])
    (declare-hidden H real [1] "relu 3")
    (declare-output Y int8 []))
(declare-network g
    (equal-to f)
    (declare-input U real [2,3])
    (declare-output V int8 []))
(assert (== X[1,2] U[0,1]))
(assert (!= (* 2 Y) V))
(assert (<= H[0] 1.0))
"""


@pytest.mark.parametrize("text", [TEXT1, TEXT2])
def test_printed_form_is_stable(text: str) -> None:
    assert print_query(parse_query(text)) == text


def query1(*formulas: Compare | And | Or, inputs: int = 1, name: str = "X") -> Query:
    network = NetworkDecl(
        "N", (TensorDecl(name, "real", (inputs,)),), (TensorDecl("Y", "real", (1,)),)
    )
    return Query((1, 0), (network,), And(formulas))


X = Var("X", 0)
ZERO = Const(Fraction(0))


@pytest.mark.parametrize(
    ("query", "what"),
    [
        (query1(Compare("<=", X, Const(Fraction(1, 3)))), "no finite decimal form"),
        (query1(), "at least one assertion"),
        (query1(And(())), "empty and/or"),
        (query1(Or(())), "empty and/or"),
        (query1(Compare("<=", Sum(()), ZERO)), "empty sum or product"),
        (query1(Compare("<=", Product(()), ZERO)), "empty sum or product"),
        (query1(Compare(">=", X, ZERO)), "unknown comparison '>='"),
        (query1(Compare("<=", Var("X", 7), ZERO)), "index 7 is out of range"),
        (query1(Compare("<=", Var("Z", 0), ZERO)), "Z is not declared"),
        (query1(Compare("<=", X, ZERO), name="A"), "real tensors X and Y"),
        (Query((1, 0), (), And((Compare("<=", X, ZERO),))), "one network N"),
    ],
)
def test_what_cannot_be_written_is_refused(query: Query, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        print_query(query)


def test_an_onnx_name_with_a_quote_cannot_be_written() -> None:
    query = parse_query(TEXT2)
    first = query.networks[0]
    bad = NetworkDecl("f", first.inputs, first.outputs, (TensorDecl("H", "real", (1,), 'a"b'),))
    with pytest.raises(ValueError, match="cannot be written"):
        print_query(Query((2, 0), (bad,), query.assertion))
