"""The normal form that the search works on: an OR over cases, each a box of inputs AND polynomial
constraints.

Variables are numbered over all networks: ``x`` is the concatenation of every declared input tensor
(network by network, declaration order, C order), ``y`` likewise of the outputs, and of hidden and
stored tensors that the property declares. A case is violated
by ``x`` iff ``x`` lies in its box and every constraint holds with ``y = f(x)``. The problem is
``unsat`` iff no case can be violated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from bitcrown.spec.query import Query

Monomial = tuple[int, ...]
"""Sorted variable numbers; ``x_i`` is ``i``, ``y_j`` is ``n_inputs + j``; ``(3, 3)`` is
``x_3 * x_3``."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """``sum(coefficient * monomial) <= bound`` (``<`` if ``strict``). The empty monomial does not
    occur."""

    terms: tuple[tuple[Monomial, Fraction], ...]
    bound: Fraction
    strict: bool = False

    def is_linear(self) -> bool:
        return all(len(monomial) == 1 for monomial, _ in self.terms)

    def is_met(self, values: Sequence[Fraction]) -> bool:
        """Whether it holds, exactly, where variable ``i`` is ``values[i]``."""
        return self.is_within(
            sum(
                (c * math.prod(values[i] for i in monomial) for monomial, c in self.terms),
                Fraction(0),
            )
        )

    def is_within(self, total: Fraction) -> bool:
        """Whether its left side may be ``total``."""
        return total < self.bound or (total == self.bound and not self.strict)


@dataclass(frozen=True, slots=True)
class Case:
    """One disjunct. ``lower``/``upper`` have one exact entry per input (tuples, or vectors where
    bounds came in blocks); cases with one box share the objects.

    ``constraints`` may be empty (then any point of the box violates) and may mention inputs,
    outputs or both.
    """

    lower: Sequence[Fraction]
    upper: Sequence[Fraction]
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True)
class Problem:
    """What to decide. ``networks`` maps each declared network name to its original file (plain or
    ``.gz``).

    ``cases`` leaves out disjuncts whose box is empty or whose input-free constraints contradict
    each other; no cases at all means the property is vacuously ``unsat`` (``notes`` then says so in
    words). ``covers_all`` is false where inputs of type ``real`` have no bounds: then the cases are
    only places to look for a counterexample, and nothing is proved by excluding them.
    """

    query: Query
    networks: Mapping[str, Path]
    n_inputs: int
    n_outputs: int
    cases: Sequence[Case]
    notes: tuple[str, ...] = ()
    covers_all: bool = True
