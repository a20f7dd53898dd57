"""Exact decimals: text to ``Fraction`` and back. No number passes through a float."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 2000
"""Most digits, and largest exponent, of one number. A float64 needs less than 1100; more would only
be an attack."""

_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?")
_PLAIN = re.compile(r"-?[0-9]{1,300}(?:\.[0-9]{1,300})?")


def parse_decimal(text: str) -> Fraction | None:
    """The value of a number such as ``-0.5``, ``1e-05``, ``.5``, ``+3`` or ``7.``; ``None`` if it
    is no number.

    Raises: ValueError: it is a number, but has more than ``MAX_DIGITS`` digits or too large an
        exponent.
    """
    if _PLAIN.fullmatch(text):
        whole, _, decimals = text.partition(".")
        return (
            Fraction(int(whole + decimals), 10 ** len(decimals))
            if decimals
            else Fraction(int(whole))
        )
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, power = (
        match.group(1),
        match.group(2),
        match.group(3) or "",
        int(match.group(4) or 0),
    )
    digits = whole + decimals
    if not digits:
        return None
    if len(digits) > MAX_DIGITS or abs(power) > MAX_DIGITS:
        raise ValueError(
            f"a number may have at most {MAX_DIGITS} digits and an exponent up to {MAX_DIGITS}"
        )
    value = Fraction(int(sign + digits))
    scale = power - len(decimals)
    factor: int = 10 ** abs(scale)
    return value * factor if scale >= 0 else value / factor


def decimal_text(value: Fraction) -> str:
    """The shortest plain decimal with exactly this value: ``0.5``, ``-3``.

    Raises:
        ValueError: the value is no finite decimal (such as 1/3), or has thousands of digits.
    """
    rest, twos, fives = value.denominator, 0, 0
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    while rest % 5 == 0:
        rest //= 5
        fives += 1
    if rest != 1:
        raise ValueError(f"{value} has no finite decimal form")
    places = max(twos, fives)
    scaled = abs(value.numerator) * 2 ** (places - twos) * 5 ** (places - fives)
    digits = str(scaled).rjust(places + 1, "0")
    text = digits if places == 0 else digits[:-places] + "." + digits[-places:]
    return "-" + text if value < 0 else text


def short_text(value: Fraction) -> str:
    """A number for messages: exact if that is short, else rounded to 12 digits and marked with
    ``~``."""
    if value.denominator.bit_length() <= 100 and value.numerator.bit_length() <= 100:
        try:
            text = decimal_text(value)
        except ValueError:
            text = f"{value.numerator}/{value.denominator}"
        if len(text) <= 24:
            return text
    try:
        return f"~{float(value):.12g}"
    except OverflowError:
        return "a number beyond 1e308" if value > 0 else "a number beyond -1e308"
