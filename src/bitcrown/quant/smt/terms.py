"""Bit-vector formulas as plain data: a list of terms, each one naming earlier terms, and the
assertions among them.

A formula knows no solver. ``solvers`` hands its terms to one term by term, ``smtlib`` prints them
one by one, and a test can evaluate them one by one; whoever walks the list needs one rule per
operator and no recursion.

Equal terms are the same number (hash consing), so a subterm that two neurons share is built,
printed and bit-blasted once. Width 0 is the sort Bool: comparisons give Bool, ``ite`` asks Bool,
and a solver that has no Bool takes one bit. The operators are those of the SMT-LIB theory
FixedSizeBitVectors, and arithmetic is modulo 2^width as there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

BOOL = 0


class BitvectorTerm(NamedTuple):
    """``operator`` over earlier terms ``args``; ``data``: a constant's value, a slice's low bit, a
    variable's name."""

    operator: str
    width: int
    args: tuple[int, ...] = ()
    data: int | str = 0


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Element ``index`` of the network input is ``origin`` + the unsigned (or signed) value of
    variable ``term``."""

    index: int
    term: int
    origin: int
    is_signed: bool


@dataclass(frozen=True, eq=False)
class BitvectorFormula:
    """``terms`` in an order in which arguments come first; ``assertions``: Bool terms that must
    hold together.

    ``coordinates`` say which variables are network inputs; an element without one takes its value
    from ``fixed`` [N] (it is constant over the box, or nothing in the property depends on it).
    ``is_exact`` is False where a free variable stands for a neuron whose rounding is not pinned
    down: a model is then a candidate only.
    """

    terms: tuple[BitvectorTerm, ...]
    assertions: tuple[int, ...]
    coordinates: tuple[Coordinate, ...]
    fixed: tuple[int, ...]
    style: str
    is_exact: bool

    def point(self, assignment: dict[str, int]) -> list[int]:
        """The network input [N] that unsigned values of the variables, by name, stand for."""
        values = list(self.fixed)
        for coordinate in self.coordinates:
            term = self.terms[coordinate.term]
            bits = assignment[str(term.data)]
            if coordinate.is_signed and bits >> (term.width - 1):
                bits -= 1 << term.width
            values[coordinate.index] = coordinate.origin + bits
        return values


class TermBuilder:
    """Makes terms, each distinct one once. Operands are term numbers; only trivial cases are
    simplified."""

    def __init__(self) -> None:
        self.terms: list[BitvectorTerm] = []
        self._number: dict[BitvectorTerm, int] = {}

    def make(self, term: BitvectorTerm) -> int:
        number = self._number.get(term)
        if number is None:
            number = self._number[term] = len(self.terms)
            self.terms.append(term)
        return number

    def width(self, term: int) -> int:
        return self.terms[term].width

    def variable(self, name: str, width: int) -> int:
        return self.make(BitvectorTerm("variable", width, (), name))

    def constant(self, value: int, width: int) -> int:
        """``value`` modulo 2^width, so that negative numbers are their two's complement."""
        return self.make(BitvectorTerm("constant", width, (), value & ((1 << width) - 1)))

    def truth(self, value: bool) -> int:
        return self.make(BitvectorTerm("constant", BOOL, (), int(value)))

    def value(self, term: int) -> int | None:
        """The unsigned value of a constant, None of anything else."""
        operator, _, _, data = self.terms[term]
        return int(data) if operator == "constant" else None

    def _same(self, operator: str, a: int, b: int) -> int:
        if self.width(a) != self.width(b):
            raise ValueError(f"{operator} of widths {self.width(a)} and {self.width(b)}")
        return self.make(BitvectorTerm(operator, self.width(a), (a, b) if a < b else (b, a)))

    def add(self, a: int, b: int) -> int:
        if self.value(a) == 0 and self.width(a) == self.width(b):
            return b
        if self.value(b) == 0 and self.width(a) == self.width(b):
            return a
        return self._same("bvadd", a, b)

    def mul(self, a: int, b: int) -> int:
        return self._same("bvmul", a, b)

    def negate(self, a: int) -> int:
        return self.make(BitvectorTerm("bvneg", self.width(a), (a,)))

    def complement(self, a: int) -> int:
        return self.make(BitvectorTerm("bvnot", self.width(a), (a,)))

    def concat(self, high: int, low: int) -> int:
        return self.make(BitvectorTerm("concat", self.width(high) + self.width(low), (high, low)))

    def shifted(self, a: int, amount: int) -> int:
        """``a * 2^amount`` with ``amount`` more bits."""
        return a if amount == 0 else self.concat(a, self.constant(0, amount))

    def extract(self, a: int, low: int, width: int) -> int:
        """Bits ``low .. low + width - 1``."""
        return (
            a
            if low == 0 and width == self.width(a)
            else self.make(BitvectorTerm("extract", width, (a,), low))
        )

    def zero_extended(self, a: int, width: int) -> int:
        return a if width == self.width(a) else self.make(BitvectorTerm("zero_extend", width, (a,)))

    def sign_extended(self, a: int, width: int) -> int:
        return a if width == self.width(a) else self.make(BitvectorTerm("sign_extend", width, (a,)))

    def ite(self, condition: int, then: int, other: int) -> int:
        if then == other:
            return then
        known = self.value(condition)
        if known is not None:
            return then if known else other
        return self.make(BitvectorTerm("ite", self.width(then), (condition, then, other)))

    def compare(self, operator: str, a: int, b: int) -> int:
        """Bool: ``operator`` is bvult, bvule, bvslt, bvsle."""
        if self.width(a) != self.width(b):
            raise ValueError(f"{operator} of widths {self.width(a)} and {self.width(b)}")
        return self.make(BitvectorTerm(operator, BOOL, (a, b)))

    def conjunction(self, parts: Iterable[int]) -> int:
        return self._join("and", parts, False)

    def disjunction(self, parts: Iterable[int]) -> int:
        return self._join("or", parts, True)

    def _join(self, operator: str, parts: Iterable[int], absorbing: bool) -> int:
        kept: list[int] = []
        for part in dict.fromkeys(parts):
            known = self.value(part)
            if known is None:
                kept.append(part)
            elif bool(known) is absorbing:
                return self.truth(absorbing)
        if not kept:
            return self.truth(not absorbing)
        joined = kept[0]
        for part in kept[1:]:
            joined = self.make(BitvectorTerm(operator, BOOL, (joined, part)))
        return joined
