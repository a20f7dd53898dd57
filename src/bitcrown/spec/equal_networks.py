"""Networks of one file on equal inputs compute equal outputs: said once, exactly, before any bound.

Bounds never see that ``Y_f < Y_g`` is impossible where both sides are the same number: they are at
best 0, and ``<`` is treated as ``<=`` there. So where the constraints of a case tie every given
input of one network to that of another of the same file (``X_g[i] <= X_f[i]`` and the reverse), or
pin both to one number, the variables of the second are replaced by those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path

from bitcrown.spec.box import Box, is_tie
from bitcrown.spec.polynomial import Numbering
from bitcrown.spec.problem import Constraint, Monomial
from bitcrown.spec.query import NetworkDecl, Query, TensorDecl


@dataclass(frozen=True)
class Twins:
    """``pairs``: numbers of the given inputs of the one and the other network; ``same``: variables
    of the other network to those of the one, for as long as all pairs are equal."""

    pairs: tuple[tuple[int, int], ...]
    same: Mapping[int, int]


def twin_networks(query: Query, files: Mapping[str, Path], numbering: Numbering) -> list[Twins]:
    """Every network with the first one before it that has its file and its types of inputs."""
    found: list[Twins] = []
    for place, other in enumerate(query.networks):
        for one in query.networks[:place]:
            if files[one.name].resolve() == files[other.name].resolve() and _types(one) == _types(
                other
            ):
                found.append(_twins(one, other, numbering))
                break
    return found


def _types(network: NetworkDecl) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(t.dtype, t.shape, t.is_initialized) for t in network.inputs]


def _twins(one: NetworkDecl, other: NetworkDecl, numbering: Numbering) -> Twins:
    def numbers(tensor: TensorDecl) -> range:
        start = numbering.offsets[tensor.name]
        return range(start, start + prod(tensor.shape))

    pairs = [
        pair
        for a, b in zip(one.given, other.given, strict=True)
        for pair in zip(numbers(a), numbers(b), strict=True)
    ]
    same = {b: a for a, b in pairs}
    hidden = {tensor.onnx_name: tensor for tensor in one.hidden}
    tensors = [*zip(one.outputs, other.outputs, strict=False)]
    tensors += [(hidden[t.onnx_name], t) for t in other.hidden if t.onnx_name in hidden]
    for first, second in tensors:
        if prod(first.shape) == prod(second.shape):
            same |= zip(numbers(second), numbers(first), strict=True)
    return Twins(tuple(pairs), same)


def with_equal_outputs(
    constraints: list[Constraint], twins: list[Twins], box: Box, n_inputs: int
) -> list[Constraint] | None:
    """The constraints of a case, said of one network where two are equal; None if one of them is
    then false. Ties of inputs stay as they are: candidates are moved onto them."""
    ties = [constraint for constraint in constraints if is_tie(constraint, n_inputs)]
    below = {
        (tie.terms[0][0][0], tie.terms[1][0][0])[:: 1 if tie.terms[0][1] > 0 else -1]
        for tie in ties
        if tie.bound == 0 and len(tie.terms) == 2 and tie.terms[0][1] == -tie.terms[1][1]
    }
    same: dict[int, int] = {}
    for pair in twins:
        if all(_is_equal(a, b, below, box) for a, b in pair.pairs):
            same |= pair.same
    if not same:
        return constraints
    kept = []
    for constraint in constraints:
        found = constraint if is_tie(constraint, n_inputs) else _renamed(constraint, same)
        if found.terms:
            kept.append(found)
        elif not found.is_met(()):
            return None
    return kept


def _is_equal(a: int, b: int, below: set[tuple[int, ...]], box: Box) -> bool:
    ends = {box.end(number, is_upper) for number in (a, b) for is_upper in (False, True)}
    return {(a, b), (b, a)} <= below or (len(ends) == 1 and None not in ends)


def _renamed(constraint: Constraint, same: Mapping[int, int]) -> Constraint:
    total: dict[Monomial, Fraction] = {}
    for monomial, coefficient in constraint.terms:
        new = tuple(sorted(same.get(number, number) for number in monomial))
        total[new] = total.get(new, Fraction(0)) + coefficient
    terms = tuple(sorted((monomial, value) for monomial, value in total.items() if value))
    return Constraint(terms, constraint.bound, constraint.strict)


def known_order(constraint: Constraint, n_inputs: int) -> tuple[int, int] | None:
    """``(i, j)`` where a constraint says of two inputs that ``x_i <= x_j``, or more."""
    if constraint.bound > 0 or len(constraint.terms) != 2:
        return None
    (one, a), (other, b) = constraint.terms
    if len(one) != 1 or len(other) != 1 or max(one[0], other[0]) >= n_inputs or a != -b:
        return None
    return (one[0], other[0]) if a > 0 else (other[0], one[0])
