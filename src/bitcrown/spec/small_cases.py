"""Text to ``ManyCases``: a run of cases ``(and (<= X_0 0.5) (>= Y_1 Y_0) ...)`` read as arrays.

The pattern that found the run (``blocks``) vouches for its every character, so the places of
``(a``, ``<``, ``>``, spaces and ``)`` say what is what: a case begins at ``(a``, a comparison has
its operator at ``<`` or ``>``, its first word up to the next space and its second up to the next
``)``.
What the arrays cannot hold (a type with limits, a name that is not declared, a number that is
none) is no business of this module: None, and the run is read word by word.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from bitcrown.spec.blocks import TextBlock, decimals_at, first_after, whole_numbers
from bitcrown.spec.decimals import parse_decimal
from bitcrown.spec.exact_vector import MOST_DIGITS, ExactVector
from bitcrown.spec.query import ManyCases

_MOST_TENSORS = 64

Elements = Callable[[str, np.ndarray], tuple[str, np.ndarray] | None]
"""``elements(prefix, indices [k, rank])``: see ``FormulaReader``."""


def small_cases(text: str, block: TextBlock, elements: Elements) -> ManyCases | None:
    """The cases of a block, or None where they have to be read one by one."""
    data = np.frombuffer(text[block.start : block.stop].encode("latin-1", "replace"), np.uint8)
    openings = np.flatnonzero((data[:-1] == ord("(")) & (data[1:] == ord("a")))
    is_operator = ((data == ord("<")) | (data == ord(">"))) & (np.roll(data, -1) == ord("="))
    operators = np.flatnonzero(is_operator)
    spaces, closings = np.flatnonzero(data == ord(" ")), np.flatnonzero(data == ord(")"))
    begin = operators + 3
    middle = first_after(spaces, begin)
    end = first_after(closings, middle)
    # Words of both sides in one row: the first ones, then the second ones.
    start, stop = np.concatenate([begin, middle + 1]), np.concatenate([middle, end])
    letter = data[start]
    is_number = (letter == ord("-")) | ((letter >= ord("0")) & (letter <= ord("9")))
    found = _elements(data, start, stop, ~is_number, elements)
    values = _numbers(data, start, stop, np.flatnonzero(is_number), len(operators))
    if found is None or values is None:
        return None
    tensors, tensor, index = found
    count = len(operators)
    first, second = (tensor[:count], index[:count]), (tensor[count:], index[count:])
    is_upper = data[operators] == ord("<")
    left = [np.where(is_upper, a, b) for a, b in zip(first, second, strict=True)]
    right = [np.where(is_upper, b, a) for a, b in zip(first, second, strict=True)]
    bounds = np.append(np.searchsorted(operators, openings), count)
    return ManyCases(tensors, bounds, left[0], left[1], right[0], right[1], values)


def _elements(
    data: np.ndarray, start: np.ndarray, stop: np.ndarray, is_word: np.ndarray, elements: Elements
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray] | None:
    """The tensors, and of each word which one it is (-1 for numbers) and the flat index."""
    tensor, index = np.full(len(start), -1, dtype=np.int8), np.zeros(len(start), dtype=np.int64)
    names: list[str] = []
    left = np.flatnonzero(is_word)
    while len(left):
        if len(names) == _MOST_TENSORS:
            return None
        word = data[start[left[0]] : stop[left[0]]].tobytes().decode("latin-1")
        prefix = word[: word.index("[") + 1] if "[" in word else word[:2]
        is_own = stop[left] - start[left] > len(prefix)
        for place, letter in enumerate(prefix.encode("latin-1")):
            is_own &= data[np.minimum(start[left] + place, len(data) - 1)] == letter
        own, left = left[is_own], left[~is_own]
        indices = _indices(data, start[own] + len(prefix), stop[own] - prefix.endswith("["))
        known = None if indices is None else elements(prefix, indices)
        if known is None:
            return None
        tensor[own], index[own] = len(names), known[1]
        names.append(known[0])
    return tuple(names), tensor, index


def _indices(data: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """``1,2`` from each ``begin`` up to ``end`` as rows ``[k, rank]``; None if ranks differ."""
    commas = np.flatnonzero(data == ord(","))
    first, last = np.searchsorted(commas, begin), np.searchsorted(commas, end)
    rank = int((last - first).max(initial=0)) + 1
    if not (last - first == rank - 1).all():
        return None
    indices = np.empty((len(begin), rank), dtype=np.int64)
    for axis in range(rank):
        until = end if axis == rank - 1 else commas[first + axis]
        indices[:, axis] = whole_numbers(data, begin, until)
        begin = until + 1
    return indices


def _numbers(
    data: np.ndarray, start: np.ndarray, stop: np.ndarray, places: np.ndarray, count: int
) -> ExactVector | None:
    """The number of each comparison ``[count]``, zero where both sides are words."""
    mantissa, exponent = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int16)
    others: dict[int, Fraction] = {}
    if len(places):
        own = places - count  # only second words are numbers
        mantissa[own], exponent[own], digits = decimals_at(data, start[places], stop[places])
        for place in places[digits > MOST_DIGITS].tolist():
            try:
                value = parse_decimal(data[start[place] : stop[place]].tobytes().decode())
            except ValueError:
                return None
            if value is None:
                return None
            mantissa[place - count], exponent[place - count] = 0, 0
            others[place - count] = value
    return ExactVector(mantissa, exponent, others)
