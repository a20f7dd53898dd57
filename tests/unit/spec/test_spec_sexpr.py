"""The s-expression reader: shapes, line numbers, limits, errors."""

from __future__ import annotations

import pytest

from bitcrown.errors import PropertyError
from bitcrown.spec.sexpr import MAX_DEPTH, Source, read_forms, shown


def forms(text: str) -> list[list[object]]:
    return [list(form) for form in read_forms(Source("f", text))]


def test_nested_lists_and_words() -> None:
    assert forms("(a (b c) d)(e)") == [["a", ["b", "c"], "d"], ["e"]]


def test_lists_of_three_words_are_lists_like_any_other() -> None:
    assert forms("(<= X_0 1) (and (<= X_0 1)( >= X_0\n1 ))") == [
        ["<=", "X_0", "1"],
        ["and", ["<=", "X_0", "1"], [">=", "X_0", "1"]],
    ]


def test_comments_run_to_the_end_of_the_line() -> None:
    assert forms("; (ignored\n(a ; b )\n c)\r\n;end") == [["a", "c"]]
    assert forms("(a) ; (ignored\r(b) ; c\r\n(d)") == [["a"], ["b"], ["d"]]


def test_a_carriage_return_ends_a_comment_between_bounds() -> None:
    """Such a comment is part of what is read at one go."""
    text = "(assert (<= X_0 1)) ; one\r(assert (= X_0 0))\n" * 40
    assert len(forms(text)) == 80


def test_a_comment_inside_a_short_list_is_no_word() -> None:
    assert forms("(<= X_0 ; one\n 1)") == [["<=", "X_0", "1"]]


def test_brackets_belong_to_the_word_before_them() -> None:
    assert forms("(<= X[0, 1] Y [2])(t float32 [1, 5])") == [
        ["<=", "X[0, 1]", "Y [2]"],
        ["t", "float32 [1, 5]"],
    ]


def test_strings_keep_their_quotes_and_spaces() -> None:
    assert forms('(h "a (b) ; c")') == [["h", '"a (b) ; c"']]


def test_empty_list_and_empty_text() -> None:
    assert forms("()") == [[]]
    assert forms(" ; nothing\n") == []


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("(a\n(b", 2, "never closed"),
        ("(a)\n)", 2, "closes nothing"),
        ("(a)\n\nstray", 3, "unexpected 'stray'"),
        ("(a\n ])", 2, "unexpected ']'"),
        ('(a "open\n)', 1, "unexpected '\"'"),
        ("\n\n(x [1\n2)", 3, "unexpected '['"),
    ],
)
def test_errors_name_file_line_and_remedy(text: str, line: int, what: str) -> None:
    with pytest.raises(PropertyError) as caught:
        forms(text)
    message = str(caught.value)
    assert message.startswith(f"f, line {line}: ") and what in message and ";" in message


def test_nesting_is_limited_without_recursion() -> None:
    fits = MAX_DEPTH - 1
    assert len(forms("(" * fits + ")" * fits)) == 1
    with pytest.raises(PropertyError, match="nested more than 1000 deep"):
        forms("(" * 100_000)


def test_words_of_one_form_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitcrown.spec.sexpr.MAX_WORDS_PER_FORM", 10)
    assert len(forms("(a b c)" * 100)) == 100
    with pytest.raises(PropertyError, match="more than 10 words"):
        forms("(a" + " (b)" * 20 + ")")
    with pytest.raises(PropertyError, match="more than 10 words"):
        forms("(a" + " b" * 20 + ")")


def test_shown_is_short_for_any_size() -> None:
    assert shown("x" * 1000) == "x" * 37 + "..."
    (form,) = read_forms(Source("f", "(a (b) c d e f)"))
    assert shown(form) == "(a (...) c d ...)"
