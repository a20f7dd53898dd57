"""Does a point satisfy the property? Decided exactly, and once more as the competition's scorer
would compute it.

Exactly: every float is a rational number, every bound of the property an exact decimal; no
tolerance. The scorer of 2026 instead compares float32 values with Python floats in numpy, which
rounds the bound to float32 first; requiring both makes a witness that nobody can reject. Only an
input that the property pins to a number which its type cannot represent (``X_0 >= 0.1`` and
``X_0 <= 0.1`` in float32) has no exact witness at all: its bounds are then read in the scorer's way
alone (``rounded`` below names such inputs).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    Formula,
    ManyBounds,
    ManyCases,
    Or,
    Query,
    Sum,
    Term,
    Var,
)

TensorValues = Mapping[str, np.ndarray]
Rounded = Collection[str] | Collection[tuple[str, int]]
"""Inputs whose bounds are rounded: names of tensors, or ``(name, index)`` of single elements."""


def nearest_double(value: Fraction) -> float:
    """The float64 nearest to ``value``; infinite beyond its range."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def exact_value(term: Term, values: TensorValues) -> Fraction:
    """The term at ``values`` (flat arrays by tensor name); raises ``OverflowError``/``ValueError``
    for NaN or inf."""
    if isinstance(term, Const):
        return term.value
    if isinstance(term, Var):
        return _exact(values[term.tensor][term.index])
    parts = [exact_value(part, values) for part in term.args]
    if isinstance(term, Sum):
        return sum(parts, Fraction(0))
    total = Fraction(1)
    for part in parts:
        total *= part
    return total


def _exact(value: np.generic) -> Fraction:
    return (
        Fraction(int(value)) if isinstance(value, np.integer | np.bool_) else Fraction(float(value))
    )


def rounded_value(term: Term, values: TensorValues) -> np.generic | float:
    """The term in the arithmetic of the tensors' own type, constants weakly promoted (numpy 2)."""
    if isinstance(term, Const):
        return nearest_double(term.value)
    if isinstance(term, Var):
        found: np.generic = values[term.tensor][term.index]
        return found
    parts = [rounded_value(part, values) for part in term.args]
    if not parts:
        return 0.0 if isinstance(term, Sum) else 1.0
    total = parts[0]
    for part in parts[1:]:
        total = total + part if isinstance(term, Sum) else total * part  # type: ignore[operator]
    return total


def _holds(op: str, left: object, right: object) -> bool:
    if op == "<=":
        return bool(left <= right)  # type: ignore[operator]
    if op == "<":
        return bool(left < right)  # type: ignore[operator]
    return bool(left == right) if op == "==" else bool(left != right)


def atom_holds(atom: Compare, values: TensorValues, rounded: Rounded = ()) -> bool:
    """Both readings of one comparison (only the scorer's for a bound on one of the inputs
    ``rounded``)."""
    with np.errstate(all="ignore"):
        if not _holds(atom.op, rounded_value(atom.left, values), rounded_value(atom.right, values)):
            return False
    if rounded and _is_bound_on(atom, rounded):
        return True
    return _holds(atom.op, exact_value(atom.left, values), exact_value(atom.right, values))


def _is_bound_on(atom: Compare, rounded: Rounded) -> bool:
    if not _is_bound(atom):
        return False
    var = atom.left if isinstance(atom.left, Var) else atom.right
    return isinstance(var, Var) and (var.tensor in rounded or (var.tensor, var.index) in rounded)


def _is_bound(atom: Compare) -> bool:
    kinds = {type(atom.left), type(atom.right)}
    return kinds == {Var, Const}


def formula_holds(formula: Formula, values: TensorValues, rounded: Rounded = ()) -> bool:
    """Truth of a boolean tree (depth is bounded by the parser)."""
    if isinstance(formula, Compare):
        return atom_holds(formula, values, rounded)
    if isinstance(formula, ManyBounds):
        return _bounds_hold(formula, values, rounded)
    if isinstance(formula, ManyCases):
        likely = _cases_in_scorers_reading(formula, values)
        return any(formula_holds(formula.case(place), values, rounded) for place in likely)
    if isinstance(formula, And):
        return all(formula_holds(part, values, rounded) for part in formula.args)
    return any(formula_holds(part, values, rounded) for part in formula.args)


def _cases_in_scorers_reading(cases: ManyCases, values: TensorValues) -> list[int]:
    """The cases all of whose comparisons hold as the scorer reads them, as ``rounded_value`` does:
    among them are those that hold."""
    holds = np.ones(len(cases.values), dtype=bool)
    near = cases.values.nearest()
    sides = np.stack([cases.left_tensor, cases.right_tensor])
    for left, right in np.unique(sides, axis=1).T.tolist():
        places = np.flatnonzero((sides[0] == left) & (sides[1] == right))
        kind = values[cases.tensors[max(left, right)]].dtype
        with np.errstate(over="ignore"):
            own = near[places].astype(kind if np.issubdtype(kind, np.floating) else np.float64)
        low = own if left < 0 else values[cases.tensors[left]][cases.left_index[places]]
        high = own if right < 0 else values[cases.tensors[right]][cases.right_index[places]]
        holds[places] = low <= high
    found = np.logical_and.reduceat(holds, cases.first[:-1])
    return [int(place) for place in np.flatnonzero(found)]


class _Group(NamedTuple):
    """Bounds ``op`` of one kind on elements ``indices [k]`` of a tensor; ``near``: the float64
    nearest to each constant."""

    tensor: str
    op: str
    is_upper: bool
    indices: np.ndarray
    constants: Sequence[Fraction]
    near: np.ndarray


def _groups(bounds: ManyBounds) -> list[_Group]:
    found = []
    for is_upper in (False, True):
        places = np.flatnonzero(bounds.is_upper == is_upper)
        constants = bounds.values.taken(places)
        near = bounds.values.nearest()[places]
        found.append(_Group(bounds.tensor, "<=", is_upper, bounds.indices[places], constants, near))
    return found


def _bounds_hold(bounds: ManyBounds, values: TensorValues, rounded: Rounded) -> bool:
    # Of many cases, nearly all fail at their first bound.
    first = next(bounds.atoms(), None)
    if first is not None and not atom_holds(first, values, rounded):
        return False
    return all(_group_holds(group, values, rounded) for group in _groups(bounds))


def _group_holds(group: _Group, values: TensorValues, rounded: Rounded) -> bool:
    tensor, op, is_upper, indices, constants, near = group
    value = values[tensor][indices]
    with np.errstate(over="ignore"):
        own = near.astype(value.dtype) if np.issubdtype(value.dtype, np.floating) else near
    low, high = (value, own) if is_upper else (own, value)
    if not (low <= high if op == "<=" else low < high).all():
        return False
    # A float64 that differs from the nearest float64 of a number lies on the same side of the
    # number.
    wide = value.astype(np.float64)
    low, high = (wide, near) if is_upper else (near, wide)
    is_small_int = not np.issubdtype(value.dtype, np.integer) or np.abs(wide) < 2.0**53
    for i in np.nonzero(~((low < high) & is_small_int))[0].tolist():
        index = int(indices[i])
        if tensor in rounded or (tensor, index) in rounded:
            continue
        exact = _exact(value[i])
        left, right = (exact, constants[i]) if is_upper else (constants[i], exact)
        if not _holds(op, left, right):
            return False
    return True


def is_finite(values: TensorValues) -> bool:
    return all(bool(np.isfinite(value.astype(np.float64)).all()) for value in values.values())


class AssertionCheck:
    """Checks many points against one property; bounds on single elements (most of a large property)
    in numpy."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.rest: list[Formula] = []
        self.groups: list[_Group] = []
        found: dict[tuple[str, str, bool], list[tuple[int, Fraction]]] = {}
        pending = list(reversed(query.assertion.args))
        while pending:
            part = pending.pop()
            if isinstance(part, And):
                pending.extend(reversed(part.args))
            elif isinstance(part, ManyBounds):
                self.groups += _groups(part)
            elif isinstance(part, Compare) and part.op in ("<=", "<") and _is_bound(part):
                var, const = (
                    (part.left, part.right)
                    if isinstance(part.left, Var)
                    else (part.right, part.left)
                )
                assert isinstance(var, Var) and isinstance(const, Const)
                found.setdefault((var.tensor, part.op, var is part.left), []).append(
                    (var.index, const.value)
                )
            else:
                self.rest.append(part)
        for key, pairs in found.items():
            constants = [c for _, c in pairs]
            near = np.array([nearest_double(c) for c in constants])
            self.groups.append(_Group(*key, np.array([i for i, _ in pairs]), constants, near))

    def holds(self, values: TensorValues, rounded: Rounded = ()) -> bool:
        """Whether all values are finite and every assertion holds in both readings."""
        if not is_finite(values):
            return False
        return all(_group_holds(group, values, rounded) for group in self.groups) and all(
            formula_holds(part, values, rounded) for part in self.rest
        )


def first_failure(
    query: Query, values: TensorValues, rounded: Rounded = (), only: Collection[str] | None = None
) -> Formula | None:
    """The first conjunct of the assertion that does not hold, or None; ``only`` those that mention
    no other tensors."""
    for part in query.assertion.args:
        if only is not None and not mentions(part) <= set(only):
            continue
        if not formula_holds(part, values, rounded):
            return part
    return None


def mentions(formula: Formula) -> set[str]:
    """Names of the tensors that occur."""
    if isinstance(formula, Compare):
        return _tensors(formula.left) | _tensors(formula.right)
    if isinstance(formula, ManyBounds):
        return {formula.tensor}
    if isinstance(formula, ManyCases):
        return set(formula.tensors)
    return {name for part in formula.args for name in mentions(part)}


def _tensors(term: Term) -> set[str]:
    if isinstance(term, Var):
        return {term.tensor}
    return (
        set()
        if isinstance(term, Const)
        else {name for part in term.args for name in _tensors(part)}
    )


def worst_atom(formula: Formula, values: TensorValues) -> tuple[Compare, Fraction]:
    """(atom, miss) that decides a formula that fails: of an ``and`` the worst miss, of an ``or``
    the least."""
    if isinstance(formula, Compare):
        gap = exact_value(formula.left, values) - exact_value(formula.right, values)
        return formula, abs(gap) if formula.op == "==" else max(gap, Fraction(0))
    parts = formula.atoms() if isinstance(formula, ManyBounds) else formula.args
    found = [worst_atom(part, values) for part in parts if not formula_holds(part, values)]
    pick = min if isinstance(formula, Or | ManyCases) else max
    return pick(found, key=lambda pair: pair[1])


def names(query: Query) -> tuple[list[str], list[str]]:
    """Names of all given tensors and of all computed ones, in the order of ``Replay.run``."""
    inputs = [tensor.name for network in query.networks for tensor in network.given]
    outputs = [tensor.name for network in query.networks for tensor in network.computed]
    return inputs, outputs
