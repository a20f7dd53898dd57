"""Types of tensor elements in VNN-LIB 2: which there are, their numbers, and what may be compared.

The standard's rules: all variables and numbers of one comparison have one type, nothing is
converted, and a type comes from variables only (numbers alone are let pass). A number belongs to
a type of whole numbers if it is written without a point and lies in its range; it belongs to a
float type if it rounds to a finite number there (``1`` is as good as ``1.0``). ``real`` holds all
numbers. Other words that files use (``float``, ``f32``) mean one of these types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

_FLOATS = {  # digits of the significand, largest exponent of two
    "float64": (53, 1023),
    "float32": (24, 127),
    "float16": (11, 15),
    "bfloat16": (8, 127),
}
_SMALL_FLOATS = {
    "float8e4m3fn": 448,
    "float8e4m3fnuz": 240,
    "float8e5m2": 57344,
    "float8e5m2fnuz": 57344,
    "float4e2m1": 6,
}
_SAME = {
    "float": "float32",
    "double": "float64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "bf16": "bfloat16",
}
_WHOLE = re.compile(r"[+-]?[0-9]+")


class ElementType(NamedTuple):
    """The numbers from ``lowest`` to ``largest``; None for both where there is no end. ``limit`` is
    the first size of a number that a float type rounds to infinity."""

    name: str
    is_whole: bool
    lowest: Fraction | None
    largest: Fraction | None
    limit: Fraction | None = None

    def has(self, word: str, value: Fraction) -> bool:
        """Whether the number that is written ``word`` belongs to the type."""
        if self.is_whole:
            assert self.lowest is not None and self.largest is not None
            return _WHOLE.fullmatch(word) is not None and self.lowest <= value <= self.largest
        return self.limit is None or abs(value) < self.limit


def _types() -> dict[str, ElementType]:
    found = [ElementType("real", False, None, None)]
    for name, (digits, exponent) in _FLOATS.items():
        largest = Fraction(2) ** (exponent + 1) - Fraction(2) ** (exponent + 1 - digits)
        half_step = Fraction(2) ** (exponent - digits)
        found.append(ElementType(name, False, -largest, largest, largest + half_step))
    for name, size in _SMALL_FLOATS.items():
        found.append(ElementType(name, False, Fraction(-size), Fraction(size), Fraction(2 * size)))
    for bits in (4, 8, 16, 32, 64):
        half = 1 << (bits - 1)
        found.append(ElementType(f"int{bits}", True, Fraction(-half), Fraction(half - 1)))
        found.append(ElementType(f"uint{bits}", True, Fraction(0), Fraction(2 * half - 1)))
    found.append(ElementType("bool", True, Fraction(0), Fraction(1)))
    types = {entry.name: entry for entry in found}
    return types | {word: types[name] for word, name in _SAME.items()}


ELEMENT_TYPES = _types()
"""By the word of the file, lower case."""


def type_complaint(
    words: Iterable[tuple[str, Fraction | None]], type_of: Callable[[str], str]
) -> str:
    """What is not well typed about one comparison, or nothing: an empty text.

    ``words``: what stands in it, with its value if it is a number. ``type_of`` gives the declared
    type of a variable.
    """
    numbers: list[tuple[str, Fraction]] = []
    first, found = "", None
    for word, value in words:
        if value is not None:
            numbers.append((word, value))
            continue
        other = ELEMENT_TYPES[type_of(word)]
        if found is not None and other is not found:
            return f"{first} has the type {found.name}, but {word} has {other.name}"
        first, found = word, other
    for word, value in numbers:
        if found is not None and not found.has(word, value):
            return f"{word} is no number of the type {found.name}, which {first} has"
    return ""
