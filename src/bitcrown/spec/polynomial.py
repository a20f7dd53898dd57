"""Terms over declared tensors to exact polynomials over numbered variables."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.element_polynomial import add_multiple
from bitcrown.spec.problem import Monomial
from bitcrown.spec.query import Const, Product, Query, Sum, TensorDecl, Term, Var

_MAX_TERMS = 100_000
_MAX_DEGREE = 32
_MAX_BITS = 1 << 17

Polynomial = dict[Monomial, Fraction]
"""Monomial to coefficient, the empty monomial being the constant. Zero coefficients are left
out."""

_ONE = Fraction(1)
_ZERO = Fraction(0)


@dataclass(frozen=True)
class Numbering:
    """Where each tensor starts: the given ones are ``0 .. n_inputs-1`` in declaration order, then
    come the computed ones, network by network."""

    n_inputs: int
    n_outputs: int
    offsets: dict[str, int]
    tensors: dict[str, TensorDecl]

    def number(self, var: Var) -> int:
        """The number of a variable.

        Raises:
            PropertyError: it was never declared (possible only for queries not made by a reader).
        """
        offset = self.offsets.get(var.tensor)
        if offset is None:
            raise PropertyError(
                f"{var.tensor} is used but not declared; declare it as an input or output."
            )
        return offset + var.index

    def tensor_of(self, number: int) -> tuple[TensorDecl, int]:
        """The tensor of a variable, and its place in there."""
        tensor, index = next(
            (t, number - o) for t, o in reversed(self.offsets.items()) if o <= number
        )
        return self.tensors[tensor], index

    def name(self, number: int, version: tuple[int, int]) -> str:
        """The variable as its file writes it: ``X_3`` in VNN-LIB 1.0, ``X[0,3]`` in 2.0."""
        tensor, index = self.tensor_of(number)
        return f"{tensor.name}_{index}" if version[0] == 1 else element_name(tensor, index)


def element_name(tensor: TensorDecl, index: int) -> str:
    """Element ``index`` (flat, C order) as VNN-LIB 2.0 writes it: ``X[0,3]``; a scalar has no
    brackets."""
    indices: list[str] = []
    for extent in reversed(tensor.shape):
        indices.append(str(index % extent))
        index //= extent
    return f"{tensor.name}[{','.join(reversed(indices))}]" if indices else tensor.name


def number_variables(query: Query) -> Numbering:
    """Number the given and the computed tensors of all networks of a query."""
    offsets: dict[str, int] = {}
    given = [tensor for network in query.networks for tensor in network.given]
    computed = [tensor for network in query.networks for tensor in network.computed]
    start = 0
    for tensor in given + computed:
        offsets[tensor.name] = start
        start += prod(tensor.shape)
    n_inputs = sum(prod(tensor.shape) for tensor in given)
    return Numbering(n_inputs, start - n_inputs, offsets, {t.name: t for t in given + computed})


def difference(left: Term, right: Term, numbering: Numbering) -> Polynomial:
    """``left - right`` as a polynomial.

    Raises: UnsupportedError: too many monomials, too high a degree, or numbers of absurd length.
        PropertyError: an undeclared variable.
    """
    result = _expand(left, numbering)
    add_multiple(result, _expand(right, numbering), -_ONE)
    return result


def _linear_sum(term: Sum, numbering: Numbering) -> Polynomial | None:
    """A sum of numbers, variables and multiples ``c * v`` of them, which is what rows of large
    files are; None for any other."""
    result: Polynomial = {}
    for part in term.args:
        factor = _ONE
        if type(part) is Product and len(part.args) == 2:
            first, second = part.args
            if type(first) is not Const:
                first, second = second, first
            if type(first) is not Const:
                return None
            factor, part = first.value, second
        if type(part) is Var:
            monomial: Monomial = (numbering.number(part),)
        elif type(part) is Const:
            monomial, factor = (), factor * part.value
        else:
            return None
        result[monomial] = result[monomial] + factor if monomial in result else factor
    if len(result) > _MAX_TERMS:
        raise _too_large(f"more than {_MAX_TERMS} monomials")
    return {monomial: value for monomial, value in result.items() if value}


def _expand(term: Term, numbering: Numbering) -> Polynomial:
    if isinstance(term, Const | Var):
        return _leaf(term, numbering)
    if isinstance(term, Sum) and (found := _linear_sum(term, numbering)) is not None:
        return found
    stack: list[tuple[Sum | Product, int, Polynomial]] = []
    node, position = term, 0
    value = _unit(node)
    while True:
        while position < len(node.args):
            child = node.args[position]
            position += 1
            if isinstance(child, Sum | Product):
                stack.append((node, position, value))
                node, position, value = child, 0, _unit(child)
            else:
                value = _accumulate(node, value, _leaf(child, numbering))
        if not stack:
            return value
        inner = value
        node, position, value = stack.pop()
        value = _accumulate(node, value, inner)


def _leaf(term: Const | Var, numbering: Numbering) -> Polynomial:
    if isinstance(term, Const):
        return {(): term.value} if term.value else {}
    return {(numbering.number(term),): _ONE}


def _unit(node: Sum | Product) -> Polynomial:
    return {} if isinstance(node, Sum) else {(): _ONE}


def _accumulate(node: Sum | Product, value: Polynomial, child: Polynomial) -> Polynomial:
    if isinstance(node, Sum):
        add_multiple(value, child, _ONE)
        if len(value) > _MAX_TERMS:
            raise _too_large(f"more than {_MAX_TERMS} monomials")
        return value
    if len(value) * len(child) > _MAX_TERMS:
        raise _too_large(f"more than {_MAX_TERMS} monomials")
    result: Polynomial = {}
    for left, factor in value.items():
        for right, coefficient in child.items():
            if len(left) + len(right) > _MAX_DEGREE:
                raise _too_large(f"a degree above {_MAX_DEGREE}")
            scaled = factor * coefficient
            if scaled.numerator.bit_length() + scaled.denominator.bit_length() > _MAX_BITS:
                raise _too_large("numbers with tens of thousands of digits")
            add_multiple(result, {tuple(sorted(left + right)): scaled}, _ONE)
    return result


def _too_large(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"a constraint of the property expands to {what}; write it in a simpler form."
    )
