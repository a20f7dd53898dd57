"""Exact polynomials over elements of tensors, and their comparison with zero as a formula.

Beside ``polynomial``, whose variables are numbered over a finished query: here nothing is finished,
and an element is a name and a place.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

from bitcrown.errors import PropertyError
from bitcrown.spec.element_types import ELEMENT_TYPES
from bitcrown.spec.query import Compare, Const, Product, Sum, TensorDecl, Term, Var

Element = tuple[str, int]
"""Tensor and flat index."""
ElementPolynomial = dict[tuple[Element, ...], Fraction]
"""Sorted elements to coefficient, the empty monomial being the constant; no zeros."""

M = TypeVar("M", bound=Hashable)
_ZERO, _ONE = Fraction(0), Fraction(1)
_MAX_MONOMIALS = 100_000


def add_multiple(target: dict[M, Fraction], other: Mapping[M, Fraction], factor: Fraction) -> None:
    """Add ``factor * other`` to ``target`` in place, dropping monomials that cancel."""
    for monomial, coefficient in other.items():
        total = target.get(monomial, _ZERO) + factor * coefficient
        if total:
            target[monomial] = total
        else:
            target.pop(monomial, None)


def with_multiple(
    left: ElementPolynomial, right: ElementPolynomial, factor: Fraction
) -> ElementPolynomial:
    """``left + factor * right``."""
    result = dict(left)
    add_multiple(result, right, factor)
    return result


def polynomial_product(left: ElementPolynomial, right: ElementPolynomial) -> ElementPolynomial:
    """``PropertyError`` beyond a size that nobody means."""
    if len(left) * len(right) > _MAX_MONOMIALS:
        raise PropertyError(f"a product of more than {_MAX_MONOMIALS} monomials")
    result: ElementPolynomial = {}
    for one, factor in left.items():
        for other, coefficient in right.items():
            add_multiple(result, {tuple(sorted(one + other)): factor * coefficient}, _ONE)
    return result


def comparison_with_zero(
    op: str, polynomial: ElementPolynomial, declared: Mapping[str, TensorDecl]
) -> Compare:
    """``polynomial op 0`` with every number a finite decimal (a whole one for tensors of whole
    numbers): both sides are multiplied by what that takes, a positive number."""
    terms = [(monomial, value) for monomial, value in polynomial.items() if monomial]
    constant = polynomial.get((), _ZERO)
    names = {tensor for monomial, _ in terms for tensor, _ in monomial}
    is_whole = any(ELEMENT_TYPES[declared[name].dtype].is_whole for name in names)
    scale = _ONE
    if len(terms) == 1:  # 2 x <= 1 is the plain bound x <= 0.5, which any reader understands
        scale = 1 / abs(terms[0][1])
    values = [value * scale for _, value in terms] + [constant * scale]
    scale *= math.lcm(*(_missing(value.denominator, is_whole) for value in values))
    left = [_term(monomial, value * scale) for monomial, value in terms if value > 0]
    right = [_term(monomial, -value * scale) for monomial, value in terms if value < 0]
    constant *= scale
    if constant > 0 if left and right else constant and not left:
        left.append(Const(constant))
    elif constant:
        right.append(Const(-constant))
    return Compare(op, _sum(left), _sum(right))


def _missing(denominator: int, is_whole: bool) -> int:
    """The part of a denominator that stands in the way of a finite decimal, or of a whole
    number."""
    if not is_whole:
        for prime in (2, 5):
            while denominator % prime == 0:
                denominator //= prime
    return denominator


def _term(monomial: tuple[Element, ...], coefficient: Fraction) -> Term:
    factors = tuple(Var(*element) for element in monomial)
    if coefficient != 1:
        return Product((Const(coefficient), *factors))
    return factors[0] if len(factors) == 1 else Product(factors)


def _sum(terms: list[Term]) -> Term:
    if not terms:
        return Const(_ZERO)
    return terms[0] if len(terms) == 1 else Sum(tuple(terms))
