"""S-expressions: text to nested lists, one top-level form at a time, never by recursion.

A list becomes a ``Form`` (a ``list`` that knows where it starts), a word becomes a ``str``. A
bracket belongs to the word before it, so ``X[0, 1]``, ``X [0,1]`` and ``float32 [1,5]`` are one
word each. ``;`` starts a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitcrown.errors import PropertyError
from bitcrown.spec.blocks import BLOCK_PATTERN, CASE, SMALL_CASES, TextBlock

MAX_DEPTH = 1000
MAX_WORDS_PER_FORM = 20_000_000
_LETTERS_PER_WORD = 8
_TOO_DEEP = f"parentheses are nested more than {MAX_DEPTH} deep", "flatten the formula"
_NOT_OPENED = "a ')' closes nothing", "remove it or add the missing '('"
_NOT_CLOSED = "a '(' is never closed", "add the missing ')' (is the file complete?)"
_CONNECTIVES = ("assert", "and", "or", "not", "=>")

_WORD = r'[^\s()\[\];"]++(?:\s*+\[[^\[\]();"]*+\])?+'
# The first alternative takes a whole list of three plain words at once: nearly all of a property
# file is ``(<= X_0 0.5)``, and one match instead of five makes reading three times faster. Every
# quantifier is possessive, so no text can make the match backtrack.
_LIST = rf"\(\s*+({_WORD})\s++({_WORD})\s++({_WORD})\s*+\)"
_ALONE = rf'{_LIST}|(\()|(\))|({_WORD})|("[^"\n]*+")|;[^\n\r]*+|(\S)'
_TOKEN = re.compile(rf"\s*+(?:{BLOCK_PATTERN}|{_ALONE})")
_TOKEN_ALONE = re.compile(rf"\s*+(?:(?!)()()()()|{_ALONE})")
"""The same without blocks, for stretches that have to be read word by word; groups keep their
numbers."""
_LAST_BLOCK, _LEAF, _OPEN, _CLOSE, _ATOM, _STRING = 4, 7, 8, 9, 10, 11


class Form(list["Form | str | TextBlock"]):
    """A parenthesised list; ``offset`` is the place of its first character, or of its first word,
    in the text."""

    __slots__ = ("offset",)
    offset: int

    def head(self) -> str:
        """The first word, or an empty string."""
        first = self[0] if self else ""
        return first if isinstance(first, str) else ""


@dataclass(frozen=True, slots=True)
class Source:
    """A text and the name that error messages give it."""

    name: str
    text: str

    def line(self, offset: int) -> int:
        """The line number of a place in the text, from 1 on."""
        return self.text.count("\n", 0, offset) + 1

    def error(self, offset: int, what: str, remedy: str) -> PropertyError:
        """A ``PropertyError`` that says where, what and what to do next; the caller raises it."""
        return PropertyError(f"{self.name}, line {self.line(offset)}: {what}; {remedy}.")


def shown(node: Form | str | TextBlock) -> str:
    """A short piece of text for messages, whatever the size of ``node``."""
    if isinstance(node, TextBlock):
        return "(...)"
    if isinstance(node, str):
        return node if len(node) <= 40 else node[:37] + "..."
    words = [shown(child) if isinstance(child, str) else "(...)" for child in node[:4]]
    if len(node) > 4:
        words.append("...")
    return "(" + " ".join(words) + ")"


class _Tokens(Iterator[re.Match[str]]):
    """The words of a text, with blocks; or those of one block, without any."""

    def __init__(self, text: str, block: TextBlock | None) -> None:
        self._text = text
        self._open = [] if block else [_TOKEN.finditer(text)]
        if block:
            self.take_apart(block)

    def take_apart(self, block: TextBlock) -> None:
        """Next come the words of ``block``."""
        self._open.append(_TOKEN_ALONE.finditer(self._text, block.start, block.stop))

    def __next__(self) -> re.Match[str]:
        while self._open:
            found = next(self._open[-1], None)
            if found is not None:
                return found
            self._open.pop()
        raise StopIteration


def _form(words: Sequence[str], offset: int) -> Form:
    form = Form(words)
    form.offset = offset
    return form


def read_forms(source: Source, block: TextBlock | None = None) -> Iterator[Form | TextBlock]:
    """Yield the top-level forms of a text, long runs of plain ones as a block; or those of one
    ``block``, word by word.

    Raises:
        PropertyError: unbalanced parentheses, a word outside any form, nesting deeper than
            ``MAX_DEPTH``, more than ``MAX_WORDS_PER_FORM`` words, a character without a place.
    """
    outer: list[Form] = []
    current: Form | None = None
    words = 0
    for match in (tokens := _Tokens(source.text, block)):
        kind = match.lastindex
        if kind is not None and kind <= _LAST_BLOCK:
            block = TextBlock(kind, match.start(kind), match.end(kind))
            if kind == SMALL_CASES and (current is None or current.head() != "or"):
                tokens.take_apart(block)
                continue
            _check_place(source, block, current)
            if current is None:
                yield block
            else:
                words += (block.stop - block.start) // _LETTERS_PER_WORD
                current.append(block)
        elif kind == _LEAF:
            leaf = _form(match.group(5, 6, 7), match.start(5))
            words += 3
            if current is None:
                yield leaf
                words = 0
            else:
                current.append(leaf)
        elif kind == _OPEN:
            opened = _form((), match.start(_OPEN))
            if current is not None:
                current.append(opened)
                outer.append(current)
            current = opened
            words += 1
            if len(outer) >= MAX_DEPTH:
                raise source.error(match.start(_OPEN), *_TOO_DEEP)
        elif kind == _CLOSE:
            if current is None:
                raise source.error(match.start(_CLOSE), *_NOT_OPENED)
            closed, current = current, outer.pop() if outer else None
            if current is None:
                yield closed
                words = 0
        elif kind in (_ATOM, _STRING):
            words += 1
            if current is None:
                raise _stray(source, match)
            current.append(match.group(kind))
        elif kind is not None:
            raise _stray(source, match)
        if words > MAX_WORDS_PER_FORM:
            what = f"one form has more than {MAX_WORDS_PER_FORM} words"
            raise source.error(match.start(), what, "split it into several asserts")
    if current is not None:
        raise source.error(current.offset, *_NOT_CLOSED)


def _check_place(source: Source, block: TextBlock, current: Form | None) -> None:
    """Raise ``PropertyError`` unless a block may stand here: a case inside a formula, anything else
    outside any form."""
    is_inside = current is not None and current.head() in _CONNECTIVES
    if is_inside if block.kind in (CASE, SMALL_CASES) else current is None:
        return
    what = f"unexpected {source.text[block.start : block.start + 16]!r}"
    raise source.error(block.start, what, "a form is not closed, or has no assert")


def _stray(source: Source, match: re.Match[str]) -> PropertyError:
    kind = match.lastindex or 0
    word = shown(match.group(kind))
    return source.error(
        match.start(kind), f"unexpected {word!r}", "expected a form such as (assert (<= X_0 0.5))"
    )
