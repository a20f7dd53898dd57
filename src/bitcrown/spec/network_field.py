"""The network field of an instance: a path, or VNN-COMP 2026's list
``[('f', 'a.onnx'), ('g', 'b.onnx')]``."""

from __future__ import annotations

import ast

from bitcrown.errors import PropertyError


def parse_network(field: str) -> tuple[tuple[str, str], ...]:
    """(declared name, path) pairs of a network field; a plain path has the name ``""``.

    Raises ``PropertyError`` for text that starts like a list but is not a list of pairs of strings.
    """
    text = field.strip()
    if not text:
        raise PropertyError("the network field is empty")
    if not text.startswith("["):
        return (("", text),)
    wrong = f"the network field is not a list of ('name', 'path') pairs: {text[:100]}"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise PropertyError(wrong) from error
    if not isinstance(value, list) or not value:
        raise PropertyError(wrong)
    for pair in value:
        if not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and all(isinstance(part, str) and part for part in pair)
        ):
            raise PropertyError(wrong)
    names = [name for name, _ in value]
    if len(set(names)) != len(names):
        raise PropertyError(f"the network field names one network twice: {text[:100]}")
    return tuple((name, path) for name, path in value)
