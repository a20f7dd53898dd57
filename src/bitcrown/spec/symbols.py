"""Elements of tensors as symbols: polynomials and conditions, written with Python's operators.

``x[0, 3] <= 0.5`` is a ``Condition``, ``(y[1] - y[0] > 0) & ~(x <= 0)`` another. Every element of a
``Symbols`` is an exact polynomial over elements of declared tensors: a float is the number that it
is, digit by digit of its binary form, and ``"0.1"`` or ``"8/255"`` are exactly these fractions.

What Python would decide by itself is refused, because it would leave a part of the question out in
silence: ``and``, ``or``, ``not`` and chained comparisons ask for a truth value, which conditions do
not have; ``x <= 1 & y`` binds ``1 & y`` first; shapes that differ are not stretched over each
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, NoReturn

import numpy as np

from bitcrown.errors import PropertyError
from bitcrown.spec.element_polynomial import (
    ElementPolynomial,
    add_multiple,
    comparison_with_zero,
    polynomial_product,
    with_multiple,
)
from bitcrown.spec.query import And, Compare, Formula, Or, TensorDecl

_ONE = Fraction(1)
_MAX_POWER = 32
_NO_TRUTH = (
    "a {what} has no truth value in Python: write & for and, | for or, ~ for not, "
    "(0 <= x) & (x <= 1) for 0 <= x <= 1, and Property.all or Property.any for all and any"
)
_PARENTHESES = (
    "& | ~ join conditions, not numbers: put each comparison in parentheses, (x <= 1) & (y > 0)"
)


@dataclass(frozen=True, eq=False)
class Declared:
    """The tensors of one property, by name: whoever holds symbols can tell whose they are."""

    tensors: dict[str, TensorDecl] = field(default_factory=dict)


def exact_fraction(value: object) -> Fraction:
    """A number as the fraction that it is. Raises ``PropertyError`` for NaN, infinities, and what
    is no number (a truth value, too)."""
    if isinstance(value, bool | np.bool_):
        raise PropertyError(f"{value} is no number; comparisons of symbols are joined with & and |")
    try:
        if isinstance(value, int | float | Fraction | Decimal | str):
            return Fraction(value)
        if isinstance(value, np.integer):
            return Fraction(int(value))
        if isinstance(value, np.floating):
            return Fraction(*value.as_integer_ratio())
    except (ValueError, OverflowError, ZeroDivisionError):
        pass
    raise PropertyError(
        f"{value!r} is no finite number; give an int, float, Fraction, Decimal or a word such as "
        "'0.1' or '8/255'"
    )


@dataclass(frozen=True, eq=False, repr=False)
class Condition:
    """Something that holds or not of inputs and outputs; joined with ``&``, ``|`` and ``~``."""

    formula: Formula
    declared: Declared | None

    def __and__(self, other: object) -> Condition:
        return joined_conditions(And, [self, other])

    def __or__(self, other: object) -> Condition:
        return joined_conditions(Or, [self, other])

    def __invert__(self) -> Condition:
        return Condition(_negated(self.formula), self.declared)

    def __rand__(self, other: object) -> NoReturn:
        joined_conditions(And, [other, self])
        raise AssertionError("what is no condition has been refused")

    __ror__ = __rand__

    def __bool__(self) -> NoReturn:
        raise PropertyError(_NO_TRUTH.format(what="condition"))

    def _refuse(self, other: object) -> NoReturn:
        raise PropertyError(
            "a condition is compared with something: write a chained comparison as "
            "(0 <= x) & (x <= 1), and equivalence as (a & b) | (~a & ~b)"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __eq__ = __ne__ = _refuse
    __hash__: ClassVar[None] = None  # type: ignore[assignment]


def joined_conditions(kind: type[And] | type[Or], conditions: list[object]) -> Condition:
    """All or one of several conditions. Raises ``PropertyError`` for none or anything else."""
    parts: list[Formula] = []
    declared: Declared | None = None
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise PropertyError(
                f"a condition such as x[0] <= 0.5 is needed, not {_shown(condition)}; "
                f"{_PARENTHESES}"
            )
        declared = _same(declared, condition.declared)
        inner = condition.formula
        parts += inner.args if isinstance(inner, kind) else (inner,)
    if not parts:
        raise PropertyError("there is no condition here; give at least one")
    return Condition(parts[0] if len(parts) == 1 else kind(tuple(parts)), declared)


def _shown(value: object) -> str:
    return f"a {type(value).__name__}" + (f" ({value})" if isinstance(value, bool | float) else "")


def _same(one: Declared | None, other: Declared | None) -> Declared | None:
    if one is not None and other is not None and one is not other:
        raise PropertyError("symbols of two properties are mixed; declare all of them in one")
    return one if other is None else other


_OPPOSITE = {"<=": "<", "<": "<=", "==": "!=", "!=": "=="}


def _negated(formula: Formula) -> Formula:
    """Of comparisons, and of the ands and ors of ``joined_conditions``. (Not a <= b is b < a.)"""
    if isinstance(formula, Compare):
        sides = formula.left, formula.right
        is_order = formula.op in ("<=", "<")
        return Compare(_OPPOSITE[formula.op], *(reversed(sides) if is_order else sides))
    assert isinstance(formula, And | Or)
    other = Or if isinstance(formula, And) else And
    return other(tuple(_negated(part) for part in formula.args))


@dataclass(frozen=True, eq=False, repr=False)
class Symbols:
    """An array of polynomials, ``shape`` as declared, ``elements`` flat in C order.

    Indexed as numpy arrays are; ``+ - *`` with symbols of the same shape, with one element, with
    numbers and arrays of numbers; ``/`` by numbers, ``**`` by whole numbers. A comparison holds
    where it holds for every element. Everything else raises ``PropertyError``.
    """

    shape: tuple[int, ...]
    elements: tuple[ElementPolynomial, ...]
    declared: Declared | None = None

    __array_ufunc__: ClassVar[None] = None  # numpy arrays leave arithmetic with symbols to us
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    @classmethod
    def of_tensor(cls, tensor: TensorDecl, declared: Declared) -> Symbols:
        count = math.prod(tensor.shape)
        elements: list[ElementPolynomial] = [{((tensor.name, k),): _ONE} for k in range(count)]
        return cls(tensor.shape, tuple(elements), declared)

    @classmethod
    def of_numbers(cls, value: object) -> Symbols:
        """A number, or an array (or nested list) of numbers."""
        if isinstance(value, list | tuple) or hasattr(value, "__array__"):
            array = np.asarray(value)
            if array.dtype.kind in "SUO":
                array = np.asarray(value, dtype=object)
            flat = [exact_fraction(entry) for entry in array.ravel()]
            return cls(array.shape, tuple({(): one} if one else {} for one in flat))
        number = exact_fraction(value)
        return cls((), ({(): number} if number else {},))

    def __getitem__(self, place: Any) -> Symbols:
        try:
            found = np.arange(len(self.elements)).reshape(self.shape)[place]
        except (IndexError, TypeError, ValueError) as error:
            raise PropertyError(
                f"there is no element {place!r} of symbols of shape {list(self.shape)} ({error})"
            ) from None
        numbers = np.asarray(found)
        elements = tuple(self.elements[number] for number in numbers.ravel().tolist())
        return Symbols(numbers.shape, elements, self.declared)

    def __len__(self) -> int:
        if not self.shape:
            raise PropertyError("one element has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Symbols]:
        return (self[place] for place in range(len(self)))

    def reshape(self, *shape: int) -> Symbols:
        """The same elements in C order, in another shape; one extent may be -1."""
        try:
            found = np.empty(self.shape, dtype=bool).reshape(shape).shape
        except (TypeError, ValueError) as error:
            raise PropertyError(f"symbols of shape {list(self.shape)}: {error}") from None
        return Symbols(found, self.elements, self.declared)

    def sum(self) -> Symbols:
        """The sum of all elements."""
        total: ElementPolynomial = {}
        for element in self.elements:
            add_multiple(total, element, _ONE)
        return Symbols((), (total,), self.declared)

    def _fits(self, other: Symbols) -> bool:
        """Numbers are stretched to the shape of symbols, one element to any; nothing else is."""
        if self.shape == other.shape or () in (self.shape, other.shape):
            return True
        try:
            stretched = np.broadcast_shapes(self.shape, other.shape)
        except ValueError:
            return False
        return other.declared is None and stretched == self.shape

    def _paired(
        self, other: object
    ) -> tuple[tuple[int, ...], list[tuple[ElementPolynomial, ElementPolynomial]], Declared | None]:
        """The shape that two operands have together, and the elements that meet."""
        if isinstance(other, Condition):
            raise PropertyError(f"a condition stands where a number belongs; {_PARENTHESES}")
        right = other if isinstance(other, Symbols) else Symbols.of_numbers(other)
        if not self._fits(right):
            raise PropertyError(
                f"shapes {list(self.shape)} and {list(right.shape)} do not fit: symbols meet "
                "symbols of the same shape or one element, and are not stretched over each other"
            )
        shape = np.broadcast_shapes(self.shape, right.shape)
        left_places, right_places = (
            np.broadcast_to(np.arange(len(side.elements)).reshape(side.shape), shape).ravel()
            for side in (self, right)
        )
        pairs = [
            (self.elements[a], right.elements[b])
            for a, b in zip(left_places.tolist(), right_places.tolist(), strict=True)
        ]
        return shape, pairs, _same(self.declared, right.declared)

    def _combined(
        self,
        other: object,
        function: Callable[[ElementPolynomial, ElementPolynomial], ElementPolynomial],
    ) -> Symbols:
        shape, pairs, declared = self._paired(other)
        return Symbols(shape, tuple(function(a, b) for a, b in pairs), declared)

    def __add__(self, other: object) -> Symbols:
        return self._combined(other, lambda a, b: with_multiple(a, b, _ONE))

    def __sub__(self, other: object) -> Symbols:
        return self._combined(other, lambda a, b: with_multiple(a, b, -_ONE))

    def __rsub__(self, other: object) -> Symbols:
        return self._combined(other, lambda a, b: with_multiple(b, a, -_ONE))

    def __mul__(self, other: object) -> Symbols:
        return self._combined(other, polynomial_product)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Symbols:
        return self * -1

    def __pos__(self) -> Symbols:
        return self

    def __truediv__(self, other: object) -> Symbols:
        if isinstance(other, Symbols | Condition):
            raise PropertyError(
                "symbols are divided by numbers only: multiply both sides by what may not be 0, "
                "and say that it is positive"
            )
        divisors = Symbols.of_numbers(other)
        if not all(divisors.elements):
            raise PropertyError("a division by zero")
        inverse: list[ElementPolynomial] = [{(): 1 / one[()]} for one in divisors.elements]
        return self * Symbols(divisors.shape, tuple(inverse))

    def __rtruediv__(self, other: object) -> NoReturn:
        raise PropertyError("symbols are no divisors: multiply both sides instead")

    def __pow__(self, power: object) -> Symbols:
        if isinstance(power, bool) or not isinstance(power, int) or not 0 <= power <= _MAX_POWER:
            raise PropertyError(f"a power is a whole number from 0 to {_MAX_POWER}, not {power!r}")
        ones: list[ElementPolynomial] = [{(): _ONE} for _ in self.elements]
        result = Symbols(self.shape, tuple(ones), self.declared)
        for _ in range(power):
            result = self * result
        return result

    def _compared(self, op: str, other: object, exchanged: bool = False) -> Condition:
        _, pairs, declared = self._paired(other)
        if not pairs:
            raise PropertyError("a comparison of no elements; the shape or index leaves none")
        if declared is None:
            raise PropertyError("a comparison without any symbol")
        gaps = [
            with_multiple(b, a, -_ONE) if exchanged else with_multiple(a, b, -_ONE)
            for a, b in pairs
        ]
        atoms: list[Formula] = [comparison_with_zero(op, gap, declared.tensors) for gap in gaps]
        return Condition(atoms[0] if len(atoms) == 1 else And(tuple(atoms)), declared)

    def __le__(self, other: object) -> Condition:
        return self._compared("<=", other)

    def __lt__(self, other: object) -> Condition:
        return self._compared("<", other)

    def __ge__(self, other: object) -> Condition:
        return self._compared("<=", other, exchanged=True)

    def __gt__(self, other: object) -> Condition:
        return self._compared("<", other, exchanged=True)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self._compared("==", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        if len(self._paired(other)[1]) > 1:
            raise PropertyError(
                "x != u of several elements could mean that all or that some differ: write "
                "~(x == u) for some, Property.all of single comparisons for all"
            )
        return self._compared("!=", other)

    def __bool__(self) -> NoReturn:
        raise PropertyError(_NO_TRUTH.format(what="symbol"))

    def _no_condition(self, other: object = None) -> NoReturn:
        raise PropertyError(_PARENTHESES)

    __and__ = __rand__ = __or__ = __ror__ = __invert__ = __xor__ = __rxor__ = _no_condition
