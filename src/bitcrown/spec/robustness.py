"""Robustness at a point: no input of a box may have another label than the point's.

A network gives an input the label of its largest output, so the label is lost where another output
reaches it: ``Y_label <= Y_other`` for some other. Outputs that are equal count as lost, as in the
published properties; where the first of equal outputs decides (``first_wins``: exact integer
networks, where ties are common), a later output has to be larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from bitcrown.spec.decimals import decimal_text
from bitcrown.spec.problem import Constraint
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    NetworkDecl,
    Or,
    Query,
    TensorDecl,
    Term,
    Var,
)

NETWORK = "N"
"""The network's name in a ``other_label_query``."""


def wrong_labels(
    label: int, classes: int, first_wins: bool = False, first_output: int = 0
) -> list[Constraint]:
    """``Y_label - Y_other <= 0`` for each other label, in order; one of them holds iff the label is
    lost. Output ``k`` is variable ``first_output + k``."""
    one = Fraction(1)
    return [
        Constraint(
            (((first_output + label,), one), ((first_output + other,), -one)),
            Fraction(0),
            strict=first_wins and other > label,
        )
        for other in range(classes)
        if other != label
    ]


def other_label_query(
    lower: Sequence[Fraction],
    upper: Sequence[Fraction],
    label: int,
    classes: int,
    first_wins: bool = False,
    target: int | None = None,
) -> Query:
    """A query in memory: the box ``lower <= X <= upper``, and an ``or`` over ``wrong_labels``, or
    the one of ``target`` alone. Written out it is VNN-LIB 1.0, which has no ``<``; where the first
    of equal outputs wins it is 2.0."""
    tensors = (TensorDecl("X", "real", (len(lower),)),), (TensorDecl("Y", "real", (classes,)),)
    box = [Compare("<=", Const(value), Var("X", i)) for i, value in enumerate(lower)]
    box += [Compare("<=", Var("X", i), Const(value)) for i, value in enumerate(upper)]
    lost = Or(
        tuple(
            Compare("<" if wrong.strict else "<=", Var("Y", label), Var("Y", wrong.terms[1][0][0]))
            for wrong in wrong_labels(label, classes, first_wins)
            if target is None or wrong.terms[1][0][0] == target
        )
    )
    version = (2, 0) if first_wins else (1, 0)
    return Query(version, (NetworkDecl(NETWORK, *tensors),), And((*box, lost)))


def vnnlib_text(query: Query, comment: str) -> str:
    """The file of an ``other_label_query`` whose ends are finite decimals. ``ValueError``
    otherwise."""
    (inputs,), (outputs,) = query.networks[0].inputs, query.networks[0].outputs
    lines = [f"; {line}" for line in comment.splitlines()]
    is_old = query.version == (1, 0)
    if is_old:
        for tensor in (inputs, outputs):
            lines += [f"(declare-const {tensor.name}_{i} Real)" for i in range(tensor.shape[0])]
    else:
        lines += ["(vnnlib-version <2.0>)", f"(declare-network {NETWORK}"]
        lines.append(f"    (declare-input X {inputs.dtype} [{inputs.shape[0]}])")
        lines.append(f"    (declare-output Y {outputs.dtype} [{outputs.shape[0]}]))")

    def shown(term: Term) -> str:
        if isinstance(term, Var):
            return f"{term.tensor}_{term.index}" if is_old else f"{term.tensor}[{term.index}]"
        assert isinstance(term, Const)
        return decimal_text(term.value)

    def atom(compare: Formula) -> str:
        assert isinstance(compare, Compare)
        return f"({compare.op} {shown(compare.left)} {shown(compare.right)})"

    for formula in query.assertion.args:
        if isinstance(formula, Or):
            cases = " ".join(f"(and {atom(case)})" for case in formula.args)
            lines.append(f"(assert (or {cases}))")
        else:
            lines.append(f"(assert {atom(formula)})")
    return "\n".join(lines) + "\n"


def decimal_ends(
    lower: Sequence[Fraction], upper: Sequence[Fraction], places: int = 15
) -> tuple[list[Fraction], list[Fraction]]:
    """The box with ends of at most ``places`` decimals, moved outward where they have more."""
    unit = 10**places
    return (
        [Fraction(math.floor(value * unit), unit) for value in lower],
        [Fraction(math.ceil(value * unit), unit) for value in upper],
    )
