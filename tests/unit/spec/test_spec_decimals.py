"""Exact decimals in every form that generators print."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bitcrown.spec.decimals import MAX_DIGITS, decimal_text, parse_decimal, short_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("-3", Fraction(-3)),
        ("+0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("-.25", Fraction(-1, 4)),
        ("7.", Fraction(7)),
        ("1e-05", Fraction(1, 100_000)),
        ("-1.5E+2", Fraction(-150)),
        ("2.5e1", Fraction(25)),
        ("0.1", Fraction(1, 10)),
        ("0001.50", Fraction(3, 2)),
        (
            "0.10000000000000000555111512312578270211815834045410156",
            Fraction("0.10000000000000000555111512312578270211815834045410156"),
        ),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert parse_decimal(text) == value


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "e5", "1e", "1e5.5", "X_0", "1_000", "0x10", "nan", "inf", "1/3", "--1", "１"],
)
def test_other_words_are_no_numbers(text: str) -> None:
    assert parse_decimal(text) is None


@pytest.mark.parametrize(
    "text", ["1e999999999", "1e-2001", "1" * (MAX_DIGITS + 1), "0." + "1" * (MAX_DIGITS + 1)]
)
def test_absurd_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at most 2000 digits"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(12), "12"),
        (Fraction(1, 100), "0.01"),
        (Fraction(-7, 5), "-1.4"),
    ],
)
def test_decimals_are_printed_exactly(value: Fraction, text: str) -> None:
    assert decimal_text(value) == text
    assert parse_decimal(text) == value


def test_a_third_has_no_decimal_form() -> None:
    with pytest.raises(ValueError, match="1/3 has no finite decimal form"):
        decimal_text(Fraction(1, 3))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(1, 4), "0.25"),
        (Fraction(1, 3), "1/3"),
        (Fraction(1, 10**40), "~1e-40"),
        (Fraction(10**400), "a number beyond 1e308"),
        (Fraction(-(10**400)), "a number beyond -1e308"),
    ],
)
def test_short_text_stays_short(value: Fraction, text: str) -> None:
    assert short_text(value) == text
