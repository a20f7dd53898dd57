"""Exact decimals as floats, rounded to the side that is sound.

What is proved of a property must hold for both ways to read its numbers. Box ends are therefore
rounded outward, and further where the nearest number of the input's own type lies outside: the
network, and the competition's scorer, read the bound as that number. An input of whole numbers,
or of truth values, with a box between whose ends no whole number lies, is read as either of its
neighbours. Numbers beyond the range of float64 become its ends, or infinite, on the side where that
is sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from bitcrown.spec.exact_vector import ExactVector

_LARGEST = Fraction(np.finfo(np.float64).max)
Kind = str | type[np.generic]
"""Type of an input: numpy's, or its name."""
_BFLOAT16_BITS = 8
_BFLOAT16_MAX = (2.0 - 2.0**-7) * 2.0**127


def round_up(value: Fraction) -> float:
    """The least float64 not below ``value``: infinite above all numbers, the least number below all
    numbers."""
    if abs(value) > _LARGEST:
        return math.inf if value > 0 else -float(_LARGEST)
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def round_down(value: Fraction) -> float:
    return -round_up(-value)


def box_lower(value: Fraction, dtype: str = "float32") -> float:
    """A float64 not above ``value`` nor above the nearest number of the float type ``dtype``."""
    exact = round_down(value)
    return min(exact, _read_as(exact, dtype), _read_as(round_up(value), dtype))


def box_upper(value: Fraction, dtype: str = "float32") -> float:
    return -box_lower(-value, dtype)


def _read_as(value: float, dtype: str) -> float:
    """The nearest number of a float type (in bfloat16 the one towards ``-inf``), within its
    range."""
    if dtype == "bfloat16":
        value = max(-_BFLOAT16_MAX, min(value, _BFLOAT16_MAX))
        significand, exponent = math.frexp(value)
        return math.ldexp(
            math.floor(math.ldexp(significand, _BFLOAT16_BITS)), exponent - _BFLOAT16_BITS
        )
    largest = float(np.finfo(dtype).max)
    return float(np.clip(value, -largest, largest).astype(dtype))


def box_of(lower: Fraction, upper: Fraction, kind: Kind) -> tuple[float, float]:
    """Ends of an input of type ``kind`` in both readings; see above. What is no number type is read
    as float32."""
    dtype = kind if isinstance(kind, str) else np.dtype(kind).name
    is_number = dtype in np.sctypeDict
    if is_number and (np.issubdtype(dtype, np.integer) or dtype == "bool"):
        low, high = math.ceil(lower), math.floor(upper)
        if low > high:
            return round_down(min(lower, Fraction(high))), round_up(max(upper, Fraction(low)))
        return round_down(lower), round_up(upper)
    is_float = dtype == "bfloat16" or (is_number and np.issubdtype(dtype, np.floating))
    name = dtype if is_float else "float32"
    return box_lower(lower, name), box_upper(upper, name)


def box_ends(
    lower: Sequence[Fraction], upper: Sequence[Fraction], kinds: Sequence[Kind]
) -> tuple[np.ndarray, np.ndarray]:
    """``box_of`` of every input: two float64 arrays ``[n]``."""
    if isinstance(lower, ExactVector) and isinstance(upper, ExactVector):
        names = {kind if isinstance(kind, str) else np.dtype(kind).name for kind in set(kinds)}
        if len(names) == 1 and names <= {"float32", "float64"}:
            return _vector_ends(lower, upper, np.dtype(names.pop()))
    ends = [box_of(*interval) for interval in zip(lower, upper, kinds, strict=True)]
    pairs = np.array(ends, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _vector_ends(
    lower: ExactVector, upper: ExactVector, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    ends = []
    largest = float(np.finfo(dtype).max)
    for vector, is_upper, outward in ((lower, False, np.minimum), (upper, True, np.maximum)):
        exact = vector.rounded(is_upper)
        for reading in (exact, vector.rounded(not is_upper)):
            near = np.clip(reading, -largest, largest).astype(dtype).astype(np.float64)
            exact = outward(exact, near)
        ends.append(exact)
    return ends[0], ends[1]
