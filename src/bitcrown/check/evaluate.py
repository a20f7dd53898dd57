"""Does a point satisfy the property? Decided exactly, and once more as the competition's scorer would compute it.

Exactly: every float is a rational number, every bound of the property an exact decimal; no tolerance. The scorer of
2026 instead compares float32 values with Python floats in numpy, which rounds the bound to float32 first; requiring
both makes a witness that nobody can reject.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from bitcrown.spec.query import And, Compare, Const, Formula, Or, Product, Query, Sum, Term, Var

Values = Mapping[str, np.ndarray]


def exact_value(term: Term, values: Values) -> Fraction:
    """The term at ``values`` (flat arrays by tensor name); raises ``OverflowError``/``ValueError`` for NaN or inf."""
    if isinstance(term, Const):
        return term.value
    if isinstance(term, Var):
        return Fraction(float(values[term.tensor][term.index]))
    parts = [exact_value(part, values) for part in term.args]
    if isinstance(term, Sum):
        return sum(parts, Fraction(0))
    total = Fraction(1)
    for part in parts:
        total *= part
    return total


def rounded_value(term: Term, values: Values) -> np.floating | float:
    """The term in the arithmetic of the tensors' own type, constants weakly promoted (numpy 2)."""
    if isinstance(term, Const):
        return float(term.value)
    if isinstance(term, Var):
        found: np.floating = values[term.tensor][term.index]
        return found
    parts = [rounded_value(part, values) for part in term.args]
    total = parts[0]
    for part in parts[1:]:
        total = total + part if isinstance(term, Sum) else total * part
    return total


def _holds(op: str, left: object, right: object) -> bool:
    if op == "<=":
        return bool(left <= right)  # type: ignore[operator]
    if op == "<":
        return bool(left < right)  # type: ignore[operator]
    return bool(left == right) if op == "==" else bool(left != right)


def atom_holds(atom: Compare, values: Values) -> bool:
    """Both readings of one comparison."""
    with np.errstate(all="ignore"):
        if not _holds(atom.op, rounded_value(atom.left, values), rounded_value(atom.right, values)):
            return False
    return _holds(atom.op, exact_value(atom.left, values), exact_value(atom.right, values))


def formula_holds(formula: Formula, values: Values) -> bool:
    """Truth of a boolean tree (depth is bounded by the parser)."""
    if isinstance(formula, Compare):
        return atom_holds(formula, values)
    if isinstance(formula, And):
        return all(formula_holds(part, values) for part in formula.args)
    return any(formula_holds(part, values) for part in formula.args)


def is_finite(values: Values) -> bool:
    return all(bool(np.isfinite(value.astype(np.float64)).all()) for value in values.values())


def first_failure(query: Query, values: Values) -> Formula | None:
    """The first conjunct of the assertion that does not hold, or None."""
    return next((part for part in query.assertion.args if not formula_holds(part, values)), None)


def names(query: Query) -> tuple[list[str], list[str]]:
    """Names of all input tensors and of all output tensors, in the order of ``Replay.run``."""
    inputs = [tensor.name for network in query.networks for tensor in network.inputs]
    outputs = [tensor.name for network in query.networks for tensor in network.outputs]
    return inputs, outputs


__all__ = ["Or", "Product", "atom_holds", "exact_value", "first_failure", "formula_holds", "is_finite", "names"]
