"""What every checker of certificates needs: a judgement, a way to refuse, and JSON read strictly.

Integers are integers, keys are given once, and nothing is larger than it has to be. Python's
reader takes ``1.0`` for a number like any other, lets the last one of two equal keys win, knows
``NaN``, and calls ``true`` an ``int``. Each of these has let a certificate say one thing to a
careful reader and another to the checker: a float in place of a sign turns exact arithmetic into
rounded one. So documents hold objects, lists, strings and integers here, nothing else, and both a
text and a tree that somebody parsed before are held to that.

Sizes are bounded, so that work on a document is linear in its length: nesting by ``_DEEPEST``, an
integer by ``_MOST_BITS``, a string by ``_LONGEST`` where it is not an array.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple, NoReturn

_DEEPEST = 24
_MOST_BITS = 1024
_LONGEST = 4096
_MOST_DIGITS = 310
"""Every integer of ``_MOST_BITS`` bits has fewer digits than that."""


class Reject(Exception):
    """The certificate is malformed, or is not a proof; the message says where."""


class NotJson(Reject):
    """The text is no JSON document at all."""


class CertificateJudgement(NamedTuple):
    """Whether a certificate is accepted, and otherwise the first thing wrong with it."""

    accepted: bool
    message: str


def need(condition: object, message: str) -> None:
    if not condition:
        raise Reject(message)


def parsed(text: str, longest: int = _LONGEST) -> Any:
    """The tree of a JSON document of objects, lists, strings and integers. Raises ``Reject``, or
    its ``NotJson``."""
    try:
        content = json.loads(
            text,
            object_pairs_hook=_once,
            parse_float=_no_float,
            parse_int=_bounded,
            parse_constant=_no_float,
        )
    except RecursionError:
        raise Reject(f"it is nested more than {_DEEPEST} deep") from None
    except json.JSONDecodeError as problem:
        raise NotJson(str(problem)) from None
    require_strict(content, longest)
    return content


def require_strict(content: Any, longest: int = _LONGEST) -> None:
    """Raises ``Reject`` for a tree that is anything but objects, lists, strings and integers of the
    sizes above."""
    level = [content]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is list:
                below += value
            elif kind is dict:
                below += value.keys()
                below += value.values()
                need(all(type(key) is str for key in value), "a key is not a string")
            elif kind is int:
                if value.bit_length() > _MOST_BITS:
                    raise Reject(f"an integer has more than {_MOST_BITS} bits")
            elif kind is not str:
                raise Reject(f"{str(value)[:40]!r} is not an integer")
            elif len(value) > longest:
                raise Reject(f"a string has more than {longest} letters")
        if not below:
            return
        level = below
    raise Reject(f"it is nested more than {_DEEPEST} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Reject(f"the key {twice[:40]!r} is given twice")
    return found


def _no_float(text: str) -> NoReturn:
    raise Reject(f"{text[:40]!r} is not an integer")


def _bounded(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise Reject(f"an integer has more than {_MOST_BITS} bits")
    return int(text)


def field(content: Any, name: str) -> Any:
    need(type(content) is dict and name in content, f"{name!r} is missing")
    return content[name]


def integer(value: Any) -> int:
    need(type(value) is int, f"{str(value)[:40]!r} is not an integer")
    return int(value)


def integer_in(value: Any, low: int, high: int, what: str) -> int:
    """``value`` if it is an ``int`` with ``low <= value < high``."""
    fits = type(value) is int and low <= value < high
    need(fits, f"{what} must be an integer from {low} to {high - 1}")
    return int(value)


def integers_in(value: Any, low: int, high: int, what: str) -> list[int]:
    need(type(value) is list, f"{what} must be a list")
    return [integer_in(item, low, high, what) for item in value]


def integer_list(values: Any, count: int, what: str, least: int | None = None) -> list[int]:
    """``values`` if it is a list of ``count`` integers, each at least ``least``."""
    need(type(values) is list and len(values) == count, f"{what} is not a list of {count} integers")
    for value in values:
        fits = type(value) is int and (least is None or value >= least)
        need(fits, f"{what} has an entry that does not fit")
    return list(values)


def content_digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form (sorted keys, no blanks)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
