"""A formula to a compact OR/AND tree of bounds and constraints, ready to be multiplied out.

Everything that is a conjunction is already merged: a ``Clause`` holds all its bounds and
constraints flat, and one list of alternatives for each ``or`` inside it. Nothing is dropped but
what is constantly true or false.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.polynomial import Numbering, Polynomial, difference
from bitcrown.spec.problem import Constraint
from bitcrown.spec.query import And, Compare, Const, Formula, ManyBounds, ManyCases, Or, Var

_Bound = tuple[int, bool, Fraction]
"""An input's number, whether this is an upper bound, and the value."""


class BoundBlock(NamedTuple):
    """Many bounds: inputs' numbers ``[k]``, whether upper ``[k]``, and the values."""

    numbers: np.ndarray
    is_upper: np.ndarray
    values: ExactVector


_ONE = Fraction(1)
_MINUS_ONE = Fraction(-1)


@dataclass(slots=True)
class Clause:
    """A conjunction of ``bounds``, ``blocks`` of them and the rest. ``choices`` has one
    entry for each ``or``: its alternatives, and thousands of them as ``ManyCases``. ``is_false``:
    never satisfied."""

    bounds: list[_Bound] = field(default_factory=list)
    blocks: list[BoundBlock] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    choices: list[list[Alternative]] = field(default_factory=list)
    is_false: bool = False

    def merge(self, other: Clause) -> None:
        """Conjoin ``other`` to this clause."""
        self.bounds += other.bounds
        self.blocks += other.blocks
        self.constraints += other.constraints
        self.choices += other.choices
        self.is_false |= other.is_false

    def choose(self, alternatives: list[Alternative]) -> None:
        """Conjoin ``or(alternatives)``."""
        possible = [a for a in alternatives if isinstance(a, ManyCases) or not a.is_false]
        if not possible:
            self.is_false = True
        elif len(possible) == 1 and isinstance(possible[0], Clause):
            self.merge(possible[0])
        else:
            self.choices.append(possible)


Alternative = Clause | ManyCases


def clause_of(cases: ManyCases, place: int, numbering: Numbering) -> Clause:
    """One of many cases."""
    clause = Clause()
    for atom in cases.case(place).args:
        assert isinstance(atom, Compare)
        _compare(atom, numbering, clause)
    return clause


def compile_formula(formula: Formula, numbering: Numbering) -> Clause:
    """Turn a formula into a clause over numbered variables.

    Raises:
        UnsupportedError: a polynomial that grows out of hand.
        PropertyError: an undeclared variable.
    """
    root = Clause()
    if isinstance(formula, ManyCases):
        root.choose([formula])
        return root
    if isinstance(formula, Compare | ManyBounds):
        _conjoin(formula, numbering, root)
        return root
    # One entry per open connective: its arguments, the next one, and, for an And, the clause it
    # conjoins to, for an Or, the alternatives so far.
    stack: list[tuple[And | Or, int, Clause, list[Alternative]]] = []
    node, position, clause, alternatives = formula, 0, root, list[Alternative]()
    while True:
        descended = False
        while position < len(node.args):
            child = node.args[position]
            position += 1
            if isinstance(child, ManyCases):
                if isinstance(node, Or):
                    alternatives.append(child)
                else:
                    clause.choose([child])
                continue
            target = clause
            if isinstance(node, Or):
                target = Clause()
                alternatives.append(target)
            if isinstance(child, Compare | ManyBounds):
                _conjoin(child, numbering, target)
                continue
            stack.append((node, position, clause, alternatives))
            node, position, clause, alternatives = child, 0, target, []
            descended = True
            break
        if descended:
            continue
        if isinstance(node, Or):
            clause.choose(_flattened(alternatives))
        if not stack:
            return root
        node, position, clause, alternatives = stack.pop()


def _conjoin(formula: Compare | ManyBounds, numbering: Numbering, clause: Clause) -> None:
    if isinstance(formula, Compare):
        _compare(formula, numbering, clause)
        return
    start = numbering.number(Var(formula.tensor, 0))
    if start < numbering.n_inputs:
        block = BoundBlock(start + formula.indices, formula.is_upper, formula.values)
        clause.blocks.append(block)
        return
    for atom in formula.atoms():
        _compare(atom, numbering, clause)


def _flattened(alternatives: list[Alternative]) -> list[Alternative]:
    """``or(a, or(b, c))`` is ``or(a, b, c)``."""
    result: list[Alternative] = []
    for clause in alternatives:
        if isinstance(clause, ManyCases):
            result.append(clause)
            continue
        only_a_choice = len(clause.choices) == 1 and not (
            clause.bounds or clause.blocks or clause.constraints or clause.is_false
        )
        if only_a_choice:
            result += clause.choices[0]
        else:
            result.append(clause)
    return result


def _compare(atom: Compare, numbering: Numbering, clause: Clause) -> None:
    left, right, op = atom.left, atom.right, atom.op
    if op == "<=" or op == "==":
        # The shapes that fill large files, without the detour over polynomials.
        if type(left) is Var and type(right) is Const:
            _simple(numbering.number(left), op == "==", True, right.value, numbering, clause)
            return
        if type(right) is Var and type(left) is Const:
            _simple(numbering.number(right), op == "==", False, left.value, numbering, clause)
            return
    polynomial = difference(left, right, numbering)
    if op in ("<=", "<"):
        _at_most_zero(polynomial, op == "<", numbering, clause)
        return
    negated = {monomial: -coefficient for monomial, coefficient in polynomial.items()}
    if op == "==":
        _at_most_zero(polynomial, False, numbering, clause)
        _at_most_zero(negated, False, numbering, clause)
    else:
        below, above = Clause(), Clause()
        _at_most_zero(polynomial, True, numbering, below)
        _at_most_zero(negated, True, numbering, above)
        clause.choose([below, above])


def _simple(
    number: int, is_pin: bool, is_upper: bool, value: Fraction, numbering: Numbering, clause: Clause
) -> None:
    """Conjoin ``variable <= value``, ``variable >= value`` or, for a pin, both."""
    for upper in (True, False) if is_pin else (is_upper,):
        if number < numbering.n_inputs:
            clause.bounds.append((number, upper, value))
        elif upper:
            clause.constraints.append(Constraint((((number,), _ONE),), value))
        else:
            clause.constraints.append(Constraint((((number,), _MINUS_ONE),), -value))


def _at_most_zero(
    polynomial: Polynomial, strict: bool, numbering: Numbering, clause: Clause
) -> None:
    """Conjoin ``polynomial <= 0`` (``< 0`` if strict)."""
    terms = tuple(sorted((monomial, value) for monomial, value in polynomial.items() if monomial))
    limit = -polynomial.get((), Fraction(0))
    if not terms:
        if limit < 0 or (strict and limit == 0):
            clause.is_false = True
        return
    monomial, coefficient = terms[0]
    if len(terms) == 1 and len(monomial) == 1 and monomial[0] < numbering.n_inputs:
        clause.bounds.append((monomial[0], coefficient > 0, limit / coefficient))
        if not strict:
            return
        # The box is closed, so what makes the bound strict is kept next to it.
        terms, limit = (
            ((monomial, Fraction(1 if coefficient > 0 else -1)),),
            limit / abs(coefficient),
        )
    clause.constraints.append(Constraint(terms, limit, strict))
