"""Robustness at a point: no input of a box may have another label than the point's.

A network gives an input the label of its largest output, so the label is lost where another output
reaches it: ``Y_label <= Y_other`` for some other. Outputs that are equal count as lost, as in the
published properties; where the first of equal outputs decides (``first_wins``: exact integer
networks, where ties are common), a later output has to be larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from bitcrown.spec.problem import Constraint
from bitcrown.spec.query import And, Compare, Const, NetworkDecl, Or, Query, TensorDecl, Var

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
    lower: Sequence[Fraction], upper: Sequence[Fraction], label: int, classes: int
) -> Query:
    """VNN-LIB 1.0 in memory: the box ``lower <= X <= upper``, and an ``or`` over ``wrong_labels``
    (ties are lost)."""
    tensors = (TensorDecl("X", "real", (len(lower),)),), (TensorDecl("Y", "real", (classes,)),)
    box = [Compare("<=", Const(value), Var("X", i)) for i, value in enumerate(lower)]
    box += [Compare("<=", Var("X", i), Const(value)) for i, value in enumerate(upper)]
    outputs = [
        [monomial[0] for monomial, _ in wrong.terms] for wrong in wrong_labels(label, classes)
    ]
    lost = Or(tuple(Compare("<=", Var("Y", own), Var("Y", other)) for own, other in outputs))
    return Query((1, 0), (NetworkDecl(NETWORK, *tensors),), And((*box, lost)))
