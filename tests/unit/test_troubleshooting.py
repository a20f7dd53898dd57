"""``docs/troubleshooting.md`` explains every sentence with which bitcrown refuses something."""

from __future__ import annotations

import re

import pytest

from bitcrown.verdict import Reason
from tests.messages import PAGE, VARIES, explains, messages, rows

FOUND = messages()
ROWS = rows()
BROAD = {"node … …", "…, line …: …", "… row …: …"}
"""Rows that may say little, since what they leave open is said in the sentence itself."""
ELSEWHERE = {
    "option … needs …, but got …",  # raised from a variable
    "the process …",
    "rejected: …",  # what the checkers say
    "there is no training option …",
    "…, nor emptied, nor removed: what it says is not the answer",
}
"""Rows about sentences that ``messages`` cannot read from the source."""


def test_every_message_has_its_row() -> None:
    assert len(FOUND) > 500
    missing = {
        text: place for text, place in FOUND.items() if not any(explains(row, text) for row in ROWS)
    }
    assert not missing, missing


def test_every_row_is_about_a_message() -> None:
    reasons = {str(reason) for reason in Reason}
    needless = [
        row
        for row in ROWS
        if row not in ELSEWHERE | reasons and not any(explains(row, text) for text in FOUND)
    ]
    assert not needless, needless


@pytest.mark.parametrize("row", sorted(ELSEWHERE))
def test_rows_from_elsewhere_have_their_words_in_the_source(row: str) -> None:
    from tests.messages import SOURCE

    words = max(row.split(VARIES), key=len).strip(" ,:")
    assert any(words in path.read_text() for path in SOURCE.rglob("*.py")), words


def test_every_reason_for_no_answer_is_explained() -> None:
    assert {str(reason) for reason in Reason if reason} <= set(ROWS)


def test_rows_are_about_something() -> None:
    """A row that would explain anything explains nothing."""
    vague = [row for row in ROWS if len(re.findall("[a-zA-Z]", row)) < 8 and row not in BROAD]
    assert not vague, vague
    assert not explains("norm … is not known", "the norm is not known")


def test_tables_are_whole() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    ragged = [line for line in lines if len(re.split(r"(?<!\\)\|", line)) != 5]
    assert not ragged, ragged


def test_every_row_says_why_and_what_to_do() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    bare = [line for line in lines if not all(cell.strip() for cell in line[1:-1].split("|"))]
    assert not bare, bare
