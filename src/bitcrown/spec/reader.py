"""A property file, plain or gzipped, VNN-LIB 1.0 or 2.0, to a ``Query``."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from bitcrown.errors import PropertyError
from bitcrown.files import DAMAGED_GZIP, find_file, unpacking
from bitcrown.spec.blocks import TextBlock
from bitcrown.spec.query import Query
from bitcrown.spec.sexpr import Source, read_forms
from bitcrown.spec.vnnlib1 import parse_vnnlib1
from bitcrown.spec.vnnlib2 import parse_vnnlib2

_MAX_BYTES = 2 * 1024**3
_CONTROL = frozenset(range(9))
"""Bytes that no text has, and every ONNX file at its beginning."""
_HEAD = 64


def read_query(path: Path) -> Query:
    """Read ``path`` or, if that does not exist, ``path.gz``; either may be gzipped, whatever its
    name.

    Raises:
        PropertyError: the file is missing, unreadable, too large, or not a well-formed property;
            the message names the file, the line, what is wrong and what to do.
        UnsupportedError: well formed, but outside what bitcrown can read.
    """
    found = find_file(path) or path
    try:
        if not found.exists():
            raise PropertyError(
                f"{path}: no such file, nor {path.name}.gz; check the path of the property."
            )
        if found.is_dir():
            raise PropertyError(f"{found} is a folder; name the property file in it.")
        with unpacking(found) as file:
            data = file.read(_MAX_BYTES + 1)
    except DAMAGED_GZIP as problem:
        raise PropertyError(
            f"{found}: damaged gzip data ({problem}); fetch the file again."
        ) from problem
    except OSError as problem:
        raise PropertyError(
            f"{found}: cannot be read ({problem.strerror}); check that it is a file."
        ) from None
    if len(data) > _MAX_BYTES:
        raise PropertyError(
            f"{found}: holds more than {_MAX_BYTES} bytes of text; split the property."
        )
    if _CONTROL & set(data[:_HEAD]):
        raise PropertyError(
            f"{found} is no VNN-LIB text but a binary file, as networks are; the network comes "
            "first, the property after it."
        )
    return parse_query(data.decode("utf-8-sig", errors="replace"), str(found))


def parse_query(text: str, name: str = "property") -> Query:
    """Read a property from a string; ``name`` stands for the file in messages.

    Raises:
        PropertyError: not a well-formed property of either version.
        UnsupportedError: well formed, but outside what bitcrown can read.
    """
    source = Source(name, text)
    forms = read_forms(source)
    first = next(forms, None)
    if first is None:
        raise PropertyError(
            f"{name}: the file holds no property; it is empty or has only comments."
        )
    is_version2 = not isinstance(first, TextBlock) and first.head() in (
        "vnnlib-version",
        "declare-network",
    )
    parse = parse_vnnlib2 if is_version2 else parse_vnnlib1
    return parse(source, chain((first,), forms))
