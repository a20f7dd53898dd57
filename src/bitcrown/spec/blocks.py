"""The bulk of a large property: runs of plain bounds, read as arrays and never as trees.

Nearly all of a large file is one of four things, in one spelling: declarations
``(declare-const X_0 Real)``, asserted bounds ``(assert (<= X_0 0.5))``, a case of many such bounds,
``(and (<= X_0 0.5) (>= X_0 0.25) ...)``, or many cases of few (``small_cases``). A regular
expression finds such a stretch and vouches for its every character; the numbers are then read by
numpy from the bytes, eight megabytes at a time. Anything else, shorter stretches included, goes the
long way (``sexpr``, ``formula``).
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from bitcrown.spec.exact_vector import MOST_DIGITS, ExactVector

_NAME = r"[A-Za-z][A-Za-z0-9_]*+"
_VARIABLE = rf"(?:[XY]_(?:0|[1-9][0-9]{{0,8}}) |{_NAME}\[[0-9]{{1,9}}(?:,[0-9]{{1,9}}){{0,15}}\] )"
_NUMBER = r"-?[0-9]++(?:\.[0-9]++)?(?:e[+-][0-9]{1,3})?"
_GAP = r"\s*+(?:;[^\n\r<>]*+[\n\r]\s*+)*"
"""Also comments, if nothing in them looks like a bound."""
_BOUND = rf"\([<>]= {_VARIABLE}{_NUMBER}\)"
_ATOM = (
    rf"\([<>]= {_VARIABLE}(?:{_NUMBER}|[XY]_(?:0|[1-9][0-9]{{0,8}})|"
    rf"{_NAME}\[[0-9]{{1,9}}(?:,[0-9]{{1,9}}){{0,15}}\])\)"
)
_SPACE = r"\s*+(?:;[^\n\r<>()]*+[\n\r]\s*+)*"
_LEAST = 16
_LEAST_OF_CASE = 48
_MOST = 100_000
_MOST_CASES = 4096
_MOST_OF_SMALL_CASE = 511
"""Shorter stretches are not worth it, longer ones come in pieces, for the sake of memory."""


def block_pattern(may_possess: bool) -> str:
    """The stretches, as the first four groups of whatever contains this; no text can make it
    backtrack. Up to Python 3.11.4 possessive groups forget where they began when they fail
    (CPython gh-106052); what a lookahead has found stands just as firmly, but takes memory."""
    stretches = (
        ("", rf"\(assert {_BOUND}\){_GAP}", _LEAST, "", _MOST),
        ("", rf"\(declare-const [XY]_(?:0|[1-9][0-9]{{0,8}}) Real\){_GAP}", _LEAST, "", _MOST),
        ("", _small_case(may_possess), _LEAST, "", _MOST_CASES),
        (r"\(and ", rf"{_BOUND}{_GAP}", _LEAST_OF_CASE, r"\)", None),
    )
    parts = []
    for group, (before, once, least, after, most) in enumerate(stretches, 1):
        if may_possess:
            parts.append(rf"({before}(?:{once}){{{least},{most or ''}}}+{after})")
        else:
            parts.append(rf"(?=({before}(?:{once}){{{least},{most or _MOST}}}{after}))\{group}")
    return "|".join(parts)


def _small_case(may_possess: bool) -> str:
    atoms = rf"(?:{_ATOM}{_SPACE}){{1,{_MOST_OF_SMALL_CASE}}}"
    return rf"\(and\s++{atoms}{'+' * may_possess}\){_SPACE}"


BLOCK_PATTERN = block_pattern(tuple(sys.version_info[:3]) >= (3, 11, 5))
ASSERTS, DECLARATIONS, SMALL_CASES, CASE = 1, 2, 3, 4
_WINDOW = 1 << 23
_DIGITS = np.zeros(256, dtype=bool)
_DIGITS[48:58] = True


class TextBlock(NamedTuple):
    """A stretch of the text, from ``start`` up to ``stop``; ``kind`` is one of the four."""

    kind: int
    start: int
    stop: int


class BlockBounds(NamedTuple):
    """The bounds of one stretch that are about one tensor, whose elements begin with ``prefix``
    (``X_``, ``X[``): their ``indices [k, rank]``, ``is_upper [k]``, and values. ``rest``: (start,
    stop) of the other comparisons."""

    prefix: str
    indices: np.ndarray
    is_upper: np.ndarray
    values: ExactVector
    rest: list[tuple[int, int]]


def declared_numbers(text: str, block: TextBlock) -> tuple[np.ndarray, np.ndarray]:
    """Of ``(declare-const X_3 Real)``: whether each is an X, and its number ``[k]``."""
    data = np.frombuffer(text[block.start : block.stop].encode(), dtype=np.uint8)
    names = np.flatnonzero(data == ord("_"))
    ends = first_after(np.flatnonzero(data == ord(" ")), names)
    return data[names - 1] == ord("X"), whole_numbers(data, names + 1, ends)


class BlockReader:
    """Reads stretches of one text. They have to come in the order of the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = self._stop = 0
        self._window: _Window | None = None

    def read(self, block: TextBlock) -> BlockBounds:
        """The bounds of a block of asserts, or of one case."""
        is_inside = self._start <= block.start < block.stop <= self._stop
        if not is_inside or not self._begins_alike(block):
            self._start, self._stop = block.start, block.stop
            if not is_inside and 4 * (block.stop - block.start) < _WINDOW:
                self._stop = min(len(self._text), block.start + _WINDOW)
            self._window = _window(self._text[self._start : self._stop])
        return self._found(block)

    def _begins_alike(self, block: TextBlock) -> bool:
        """Whether the window was read for the tensor that the block begins with. Where it was not,
        tensors alternate, and a block is read by itself."""
        assert self._window is not None
        place = self._place(block).start
        start = self._start + int(self._window.start[place]) + 4
        return self._text.startswith(self._window.prefix, start)

    def spans(self, block: TextBlock) -> list[tuple[int, int]]:
        """(start, stop) of every comparison of the block that was read last."""
        window = self._window
        assert window is not None
        place = self._place(block)
        ends = zip(window.start[place].tolist(), window.stop[place].tolist(), strict=True)
        return [(self._start + begin, self._start + end) for begin, end in ends]

    def _place(self, block: TextBlock) -> slice:
        assert self._window is not None
        ends = [block.start - self._start, block.stop - self._start]
        return slice(*np.searchsorted(self._window.start, ends).tolist())

    def _found(self, block: TextBlock) -> BlockBounds:
        window = self._window
        assert window is not None
        place = self._place(block)
        same = window.is_read[place]
        kept: slice | np.ndarray = place
        rest: list[tuple[int, int]] = []
        if not same.all():
            kept = place.start + np.flatnonzero(same)
            left = place.start + np.flatnonzero(~same)
            ends = zip(window.start[left].tolist(), window.stop[left].tolist(), strict=True)
            rest = [(self._start + begin, self._start + end) for begin, end in ends]
        values = ExactVector(window.mantissa[kept], window.exponent[kept])
        return BlockBounds(window.prefix, window.indices[kept], window.is_upper[kept], values, rest)


class _Window(NamedTuple):
    """All bounds in a piece of text. Those whose variable does not begin with ``prefix``, or whose
    number has too many digits, are not ``is_read``."""

    prefix: str
    start: np.ndarray
    stop: np.ndarray
    is_read: np.ndarray
    indices: np.ndarray
    is_upper: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray


def _window(text: str) -> _Window:
    """Everything in ``text`` that looks like a bound. Where no block vouches for the spelling, what
    comes out is meaningless, and nobody asks for it."""
    data = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8)
    is_operator = (data[:-1] == ord("<")) | (data[:-1] == ord(">"))
    start = np.flatnonzero(is_operator & (data[1:] == ord("="))) - 1
    spaces, closing = np.flatnonzero(data == ord(" ")), np.flatnonzero(data == ord(")"))
    number = first_after(spaces, start + 4) + 1
    stop = first_after(closing, number)
    is_whole = stop < len(data)
    start, number, stop = start[is_whole], number[is_whole], stop[is_whole]
    word = text[int(start[0]) + 4 : int(number[0]) - 1]
    prefix = word[: word.index("[") + 1] if "[" in word else word[:2]
    is_read = np.ones(len(start), dtype=bool)
    for place, letter in enumerate(prefix.encode()):
        is_read &= data[np.minimum(start + 4 + place, len(data) - 1)] == letter
    commas = np.flatnonzero(data == ord(","))
    first, last = np.searchsorted(commas, [start, number])
    rank = word.count(",") + 1
    is_read &= last - first == rank - 1
    mantissa, exponent, digits = decimals_at(data, number, stop)
    begin, end = start + 4 + len(prefix), number - 1 - prefix.endswith("[")
    indices = np.empty((len(start), rank), dtype=np.int64)
    commas = np.append(commas, np.zeros(rank, dtype=np.int64))
    for axis in range(rank):
        until = end if axis == rank - 1 else np.where(is_read, commas[first + axis], begin)
        indices[:, axis] = whole_numbers(data, begin, np.where(is_read, until, begin))
        begin = until + 1
    is_read &= digits <= MOST_DIGITS
    is_upper = data[start + 1] == ord("<")
    return _Window(prefix, start, stop + 1, is_read, indices, is_upper, mantissa, exponent)


def first_after(places: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first of ``places`` from each of ``start`` on; far beyond the end where there is none."""
    return np.append(places, 1 << 60)[np.searchsorted(places, start)]


def whole_numbers(data: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    result = np.zeros(len(start), dtype=np.int64)
    for width in range(int((stop - start).max(initial=0))):
        place = np.minimum(start + width, len(data) - 1)
        result = np.where(start + width < stop, result * 10 + (data[place] - 48), result)
    return result


def decimals_at(
    data: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mantissa, exponent and number of digits of the numbers from ``start`` up to ``stop``."""
    sign = (data[start] == ord("-")).astype(np.int64)
    points, powers = np.flatnonzero(data == ord(".")), np.flatnonzero(data == ord("e"))
    point = np.minimum(first_after(points, start), stop)
    digits = stop - start - sign - (point < stop)
    exponent = np.maximum(stop - point - 1, 0)
    is_short = (digits <= MOST_DIGITS) & (first_after(powers, start) >= stop)
    length = np.where(is_short, stop - start, 0)
    padded = np.append(data, np.zeros(MOST_DIGITS + 2, dtype=np.uint8))
    mantissa = np.zeros(len(start), dtype=np.int64)
    for width in range(int(length.max(initial=0))):
        value = padded[start + width] - np.uint8(48)
        is_digit = (value < 10) & (width < length)
        mantissa *= np.where(is_digit, 10, 1)
        mantissa += np.where(is_digit, value, 0)
    mantissa = np.where(sign == 1, -mantissa, mantissa)
    left = np.flatnonzero(~is_short)
    if len(left):
        mantissa[left], exponent[left], digits[left] = _long_decimals(data, start[left], stop[left])
    return mantissa, exponent.astype(np.int16), digits


def _long_decimals(
    data: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of numbers with an exponent, or perhaps too many digits for an int64: zeros in front
    are not counted."""
    count = len(start)
    mantissa, power = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    digits, places = np.zeros(count, dtype=np.int16), np.zeros(count, dtype=np.int16)
    has_point, has_power = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    is_below = np.zeros(count, dtype=bool)
    negative = data[np.minimum(start, len(data) - 1)] == ord("-")
    for width in range(min(int((stop - start).max(initial=0)), 2 * MOST_DIGITS)):
        place = start + width
        letter = np.where(place < stop, data[np.minimum(place, len(data) - 1)], 0)
        value = (letter - np.uint8(48)).astype(np.int64)
        is_digit = _DIGITS[letter]
        grows = is_digit & ~has_power
        mantissa = np.where(grows & (digits < MOST_DIGITS), mantissa * 10 + value, mantissa)
        digits += grows & ((mantissa != 0) | (digits > 0))
        places += grows & has_point
        if has_power.any():
            power = np.where(is_digit & has_power, power * 10 + value, power)
            is_below |= has_power & (letter == ord("-"))
        has_point |= letter == ord(".")
        has_power |= letter == ord("e")
    # What is longer than the loop is too long for an int64 as well, and what a type may be too
    # small for has its type looked at.
    exponent = places - np.where(is_below, -power, power)
    is_out = (stop - start > 2 * MOST_DIGITS) | (exponent < 0)
    digits = np.where(is_out, MOST_DIGITS + 1, digits)
    return np.where(negative, -mantissa, mantissa), exponent.astype(np.int16), digits
