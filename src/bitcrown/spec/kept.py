"""A large property is read once: what ``prepare`` read, ``run`` finds by the bytes of the file.

A kept file is named by a SHA-256 of the property's bytes and of the reader (every source file of
this room, and the versions of Python and numpy): it is found for exactly the text, and by exactly
the reader, that made it. It holds the digest of its own content, and is believed only where that
is right and the file is a plain one of this user's that nobody else can write to; the folder has to
be private as well. Anything else is as if nothing had been kept: the property is read anew.

The content is a JSON header with its length in front, and the bytes of arrays of numbers one after
the other, whose names, types and lengths the header has (``packed`` says what they mean).

Kept is the normal form where there is one network: it does not depend on the network then. Of
several networks the query is kept, since which of them are equal is a matter of their files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.files import write_whole
from bitcrown.spec.loading import files_by_name, problem_of
from bitcrown.spec.normalise import files_of, problem_from_query
from bitcrown.spec.packed import arrays_of_property, property_from_arrays
from bitcrown.spec.problem import Problem
from bitcrown.spec.query import Query
from bitcrown.spec.reader import read_query

_LEAST_BYTES = 1 << 18
"""Of a property file, as it lies on the disk: smaller ones are read in less time than others are
looked for."""
_MOST_BYTES = 1 << 29
"""Of all kept files together; the oldest go first."""
_MAGIC = b"bitcrown property 2\n"
_SUFFIX = ".property"
_DIGEST = 32
_TYPES = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "bool": 1}
"""Of arrays, with their bytes an entry."""
_ALIGNED = 8


def keep_property(folder: Path, path: Path) -> bool:
    """Read a property and keep it in ``folder``, if it is large; whether it is kept now.

    Raises ``BitcrownError`` for what is no property, and ``ResourceError`` where nothing can be
    written.
    """
    data = _content(path)
    place = None if data is None else _place(folder, data)
    if data is None or place is None:
        return False
    if _restored(place) is not None:
        os.utime(place)
        return True
    query = read_query(path)
    if _content(path) != data:
        return False  # written to while it was read
    kept: Query | Problem = query
    if len(query.networks) == 1:
        kept = replace(problem_from_query(query, {query.networks[0].name: Path()}), networks={})
    body = _body(kept)
    if len(body) > _MOST_BYTES:
        return False
    _make_room(folder, len(body))
    write_whole(place, _MAGIC + hashlib.sha256(body).digest() + body)
    place.chmod(0o600)
    return True


def kept_problem(
    folder: Path, onnx: str | Path | Mapping[str, str | Path], path: Path
) -> Problem | None:
    """The problem of a property that was kept, on the network in ``onnx``; None where it was not.

    Raises ``PropertyError`` or ``ModelError`` where the networks are not those that it is about.
    """
    data = _content(path)
    place = None if data is None else _place(folder, data)
    found = None if place is None else _restored(place)
    if isinstance(found, Query):
        return problem_of(found, onnx)
    if isinstance(found, Problem):
        return replace(found, networks=files_of(found.query, files_by_name(found.query, onnx)))
    return None


def _content(path: Path) -> bytes | None:
    """The bytes of a property file (packed, if it is) that is worth keeping."""
    for file in (path, Path(f"{path}.gz")):
        with suppress(OSError, ValueError):
            return file.read_bytes() if file.stat().st_size >= _LEAST_BYTES else None
    return None


def _place(folder: Path, data: bytes) -> Path | None:
    """The name under which a property is kept; None where the folder is not private."""
    try:
        facts = folder.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        return None
    name = hashlib.sha256(_reader().encode() + hashlib.sha256(data).digest()).hexdigest()
    return folder / f"{name}{_SUFFIX}"


def _reader() -> str:
    """What decides how a text is read: a digest of the sources, Python, numpy."""
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return f"{sources.hexdigest()} {sys.version} {np.__version__}"


def _restored(place: Path) -> Query | Problem | None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            is_own = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.getuid()
            if not is_own or facts.st_mode & 0o022 or facts.st_size > 2 * _MOST_BYTES:
                return None
            head, body = file.read(len(_MAGIC) + _DIGEST), file.read()
    except OSError:
        return None
    if head != _MAGIC + hashlib.sha256(body).digest():
        return None
    # The digest is right, so these are bytes that some version of this program wrote.
    with suppress(
        *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
    ):
        return _read_body(body)
    return None


def _body(kept: Query | Problem) -> bytes:
    """The content: eight bytes with the length of the header, the header, the arrays."""
    header, arrays = arrays_of_property(kept)
    rows = [[name, array.dtype.name, *array.shape] for name, array in arrays.items()]
    text = json.dumps({"content": header, "arrays": rows}).encode()
    text += b" " * (-len(text) % _ALIGNED)
    parts = [len(text).to_bytes(8, "little"), text]
    for array in arrays.values():
        data = np.ascontiguousarray(array).tobytes()
        parts += [data, bytes(-len(data) % _ALIGNED)]
    return b"".join(parts)


def _read_body(body: bytes) -> Query | Problem:
    place = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:place])
    arrays = {}
    for name, kind, *shape in header["arrays"]:
        count = math.prod(shape)
        size = count * _TYPES[kind]
        arrays[name] = np.frombuffer(body, kind, count, place).reshape(shape)
        place += size + -size % _ALIGNED
    return property_from_arrays(header["content"], arrays)


def _make_room(folder: Path, size: int) -> None:
    """Remove the oldest kept files until ``size`` more bytes fit."""
    files = []
    for file in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            facts = file.stat()
            files.append((facts.st_mtime, facts.st_size, file))
    total = size + sum(length for _, length, _ in files)
    for _, length, file in sorted(files):
        if total <= _MOST_BYTES:
            return
        with suppress(OSError):
            file.unlink()
        total -= length


def main(arguments: list[str]) -> int:
    """``python -m bitcrown.spec.kept FOLDER PROPERTY``: what ``prepare`` starts, as a process of
    its own, because reading may take more memory than there is."""
    try:
        keep_property(Path(arguments[1]), Path(arguments[2]))
    except (BitcrownError, ResourceError) as error:
        sys.stderr.write(f"bitcrown: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
