"""Damage for JSON documents of any kind: certificates in particular, plain or gzipped.

A document is a tree of objects, lists, numbers, strings (among them numbers written as text, such
as ``0x1.8p+3``). One mutation changes one place, and is written as the text that a reader will see,
so that it can say what a parsed tree cannot: one key twice, ``NaN``, ``1e999``, an integer of a
thousand digits, a number with a decimal point. Kinds:

* ``value``: a number becomes another one of the same type (a neighbour, its negative, a power of
  two, a number from elsewhere in the document), a flag flips, a letter of a string changes. All
  types stay right: only the meaning breaks.
* ``type``: an integer becomes a float, bool, string, null or list that a lax reader takes for the
  same number.
* ``huge``: numbers that overflow a machine word or a float, and numbers that are none.
* ``tree``: an entry dropped, doubled, swapped with its neighbour, put elsewhere; a key twice,
  missing or unknown.
* ``text``: bytes cut off, changed, inserted; nesting without end.

``mutations`` is endless and depends on the seed of its ``rng`` alone.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

KINDS = ("value", "type", "huge", "tree", "text")
GZIP = b"\x1f\x8b"
Path = tuple[int | str, ...]
Sign = Callable[[Any], dict[str, Any]]
HUGE = (
    "1e999",
    "-1e999",
    "1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 1000,
    "-" + "9" * 5000,
    "1" + "0" * 40,
    "-0",
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """``kind`` of KINDS, ``what`` in words (a place and a change), ``content``: the damaged
    document as bytes."""

    kind: str
    what: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """Text that goes into the document as it stands."""

    text: str


def mutations(
    document: bytes | Any,
    rng: random.Random,
    kinds: tuple[str, ...] = KINDS,
    sign: Sign | None = None,
) -> Iterator[Mutation]:
    """An endless stream of documents, each with one mutation of a kind in ``kinds``.

    ``document``: JSON text as bytes, gzipped JSON (then every ``content`` is gzipped, too), or the
    parsed tree. ``sign``: given the damaged tree, the entries of the top object that must fit it
    (``{"digest": ...}``); without it a digest finds most mutations before anything else looks at
    them. Raises ``ValueError`` for bytes that are no JSON.
    """
    packed = isinstance(document, bytes) and document.startswith(GZIP)
    if isinstance(document, bytes):
        document = json.loads(gzip.decompress(document) if packed else document)
    places = list(_places(document, ()))
    numbers = [value for _, value in places if type(value) in (int, float)][:10_000] or [1]
    for _ in count():
        kind = rng.choice(kinds)
        if kind == "text":
            what, content = _damaged_text(_text(document, (), None).encode(), rng)
        else:
            made = _damaged_tree(document, kind, rng, places, numbers)
            if made is None:
                continue
            path, change, new = made
            what, content = (
                f"{change} at {'/'.join(map(str, path))}",
                _signed(document, path, new, sign).encode(),
            )
        yield Mutation(kind, what, gzip.compress(content, 1, mtime=0) if packed else content)


def _places(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Every place below the root, and what is there."""
    entries: Any = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in entries:
        yield (*path, key), value
        yield from _places(value, (*path, key))


def _damaged_tree(
    tree: Any, kind: str, rng: random.Random, places: list[tuple[Path, Any]], numbers: list[Any]
) -> tuple[Path, str, Any] | None:
    """Where, what, and the value that is put there; None where the kind has nothing to change at
    the place drawn."""
    path, value = rng.choice(places)
    if kind == "value":
        new = _other_value(value, rng, numbers)
    elif kind == "type":
        new = _other_type(value, rng)
    elif kind == "huge":
        new = Raw(rng.choice(HUGE)) if type(value) in (int, float, str) else None
    else:
        return _damaged_branch(path, value, rng, places)
    if new is None or (type(new) is type(value) and new == value):
        return None
    return path, f"{_short(value)} to {_short(new)}", new


def _other_value(value: Any, rng: random.Random, numbers: list[Any]) -> Any:
    """Another value of the same type, None for objects and lists."""
    if type(value) is bool:
        return not value
    if type(value) is int:
        near = (value + rng.choice([-1, 1, 2, -7, 1000]), -value, 2 * value, 0, value // 2)
        far = (rng.choice(numbers), 2 ** rng.randrange(70), -(2 ** rng.randrange(70)), 10**18)
        return int(rng.choice(near + far))
    if type(value) is float:
        return float(
            rng.choice(
                [
                    value * (1 + 2**-40),
                    -value,
                    2 * value,
                    0.0,
                    value + 1,
                    float(rng.choice(numbers)),
                ]
            )
        )
    if type(value) is str and re.fullmatch(r"[-+]?0x[0-9a-f]\.?[0-9a-f]*p[-+]?\d+", value):
        number = float.fromhex(value)
        changed = (
            -number,
            2 * number,
            number * (1 + 2**-30),
            number * (1 - 2**-50),
            0.0,
            number + 1,
            1e300,
            5e-324,
        )
        return rng.choice(changed).hex()
    if type(value) is str and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("0123456789abcdefx-. ") + value[at + 1 :]
    return None


def _other_type(value: Any, rng: random.Random) -> Any:
    """Something that compares equal, or nearly, to a lax reader."""
    if type(value) is int:
        text = str(value)
        options = [
            Raw(text + ".0"),
            Raw(text + "e0"),
            text,
            Raw("true" if value else "false"),
            None,
            [value],
            {},
        ]
        return rng.choice(
            [*options, Raw(text + ".5"), Raw("1.0"), Raw("true"), f"0x{abs(value):x}", f" {text}"]
        )
    if type(value) is str:
        try:
            return rng.choice([Raw("0"), Raw("true"), [value], Raw(repr(float.fromhex(value)))])
        except (ValueError, OverflowError):
            return rng.choice([Raw("0"), Raw("null"), [value], {value: value}])
    if isinstance(value, list):
        return rng.choice(
            [
                {str(k): v for k, v in enumerate(value)},
                Raw("null"),
                Raw("0"),
                "".join(map(str, value)),
            ]
        )
    return rng.choice([Raw("null"), Raw("1"), [value], "false"])


def _damaged_branch(
    path: Path, value: Any, rng: random.Random, places: list[tuple[Path, Any]]
) -> tuple[Path, str, Any] | None:
    """The place itself removed, doubled or replaced by another part of the document; a key given
    twice."""
    other = rng.choice(places)[1]
    if type(path[-1]) is str:
        key = json.dumps(path[-1])
        first, second = rng.choice([(value, other), (other, value), (value, value)])
        twice = Raw(f"{json.dumps(first)},{key}:{json.dumps(second)}")
        unknown = Raw(f'{json.dumps(value)},"unknown {rng.randrange(9)}":{json.dumps(other)}')
        name, new = rng.choice(
            [("key twice", twice), ("key unknown", unknown), ("dropped", DROPPED), ("moved", other)]
        )
        return path, name, new
    doubled = Raw(f"{json.dumps(value)},{json.dumps(value)}")
    grown = Raw(f"{json.dumps(value)},{json.dumps(other)}")
    options = [
        ("dropped", DROPPED),
        ("doubled", doubled),
        ("grown", grown),
        ("replaced", other),
        ("emptied", type(value)()),
    ]
    name, new = rng.choice(options)
    return (path, name, new) if new is DROPPED or new != value else None


DROPPED = Raw("")


def _signed(tree: Any, path: Path, new: Any, sign: Sign | None) -> str:
    text = _text(tree, path, new)
    if sign is None or not isinstance(tree, dict):
        return text
    try:
        fitting = sign(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return text  # nothing can be signed that is no document any more
    return _text(
        {**tree, **{key: value for key, value in fitting.items() if (key,) != path}}, path, new
    )


def _text(tree: Any, path: Path, new: Any) -> str:
    """The tree with ``new`` at ``path``, as text."""
    if not path:
        return json.dumps(tree)
    mark = "\x00place\x00"
    changed = _replaced(tree, path, mark if isinstance(new, Raw) and new is not DROPPED else new)
    text = json.dumps(changed)
    return text.replace(json.dumps(mark), new.text, 1) if isinstance(new, Raw) else text


def _replaced(tree: Any, path: Path, new: Any) -> Any:
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    key: Any = path[0]
    if len(path) > 1:
        copy[key] = _replaced(tree[key], path[1:], new)
    elif new is DROPPED:
        del copy[key]
    else:
        copy[key] = new
    return copy


def _damaged_text(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    at = rng.randrange(len(content) + 1)
    deep = rng.choice([50, 2_000, 200_000])
    options = [
        ("cut off", content[:at]),
        ("one byte changed", content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]),
        ("text behind the end", content + rng.choice([b"{}", b"\x00", b" 1", b"\xff"])),
        ("nested lists", b"[" * deep + content + b"]" * deep),
        ("nested lists without end", content[:at] + b"[" * deep),
        ("a zero in front of a number", re.sub(rb"(?<=[\[,:] )(\d)", rb"0\1", content, count=1)),
        ("another encoding", content.decode().encode("utf-16")),
        ("a mark in front", b"\xef\xbb\xbf" + content),
        ("nothing", b""),
    ]
    return rng.choice(options)


def _short(value: Any) -> str:
    text = value.text if isinstance(value, Raw) else repr(value)
    return text if len(text) <= 30 else text[:27] + "..."
