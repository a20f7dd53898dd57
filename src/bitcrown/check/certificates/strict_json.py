"""JSON as a checker wants it: integers are integers, keys are given once, and nothing is larger
than it has to be.

Python's reader takes ``1.0`` for a number like any other, lets the last one of two equal keys win,
knows ``NaN``, and calls ``true`` an ``int``. Each of these has let a certificate say one thing to a
careful reader and another to the checker: a float in place of a sign turns exact arithmetic into
rounded one. So documents hold objects, lists, strings and integers here, nothing else, and both a
text and a tree that somebody parsed before are held to that.

Sizes are bounded, so that work on a document is linear in its length: nesting by ``DEEPEST``, an
integer by ``MOST_BITS``, a string by ``LONGEST``.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

DEEPEST = 24
MOST_BITS = 1024
LONGEST = 4096
MOST_DIGITS = 310
"""Every integer of ``MOST_BITS`` bits has fewer digits than that."""


class Malformed(ValueError):
    """The document is not strict JSON; the message says what is wrong with it."""


class NotJson(Malformed):
    """The text is no JSON document at all."""


def parsed(text: str) -> Any:
    """The tree of a JSON document of objects, lists, strings and integers. Raises ``Malformed``, or
    its ``NotJson``."""
    try:
        content = json.loads(
            text,
            object_pairs_hook=_once,
            parse_float=_no_float,
            parse_int=_integer,
            parse_constant=_no_float,
        )
    except RecursionError:
        raise Malformed(f"it is nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as problem:
        raise NotJson(str(problem)) from None
    require_strict(content)
    return content


def require_strict(content: Any) -> None:
    """Raises ``Malformed`` for a tree that is anything but objects, lists, strings and integers of
    the sizes above."""
    level = [content]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is list:
                below += value
            elif kind is dict:
                below += value.keys()
                below += value.values()
                if not all(type(key) is str for key in value):
                    raise Malformed("a key is not a string")
            elif kind is int:
                if value.bit_length() > MOST_BITS:
                    raise Malformed(f"an integer has more than {MOST_BITS} bits")
            elif kind is not str:
                raise Malformed(f"{str(value)[:40]!r} is not an integer")
            elif len(value) > LONGEST:
                raise Malformed(f"a string has more than {LONGEST} letters")
        if not below:
            return
        level = below
    raise Malformed(f"it is nested more than {DEEPEST} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Malformed(
            f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!r} is given twice"
        )
    return found


def _no_float(text: str) -> NoReturn:
    raise Malformed(f"{text[:40]!r} is not an integer")


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise Malformed(f"an integer has more than {MOST_BITS} bits")
    return int(text)
