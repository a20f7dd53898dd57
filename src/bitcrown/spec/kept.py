"""A large property is read once: what ``prepare`` read, ``run`` finds by the bytes of the file.

A kept file is named by a SHA-256 of the property's bytes and of the reader (every source file of
this room, and the versions of Python and numpy): it is found for exactly the text, and by exactly
the reader, that made it. It holds the digest of its own content, and is believed only where that
is right and the file is a plain one of this user's that nobody else can write to; the folder has to
be private as well. Anything else is as if nothing had been kept: the property is read anew.
Restoring makes objects of this room and arrays, and calls nothing else.

Kept is the normal form where there is one network: it does not depend on the network then. Of
several networks the query is kept, since which of them are equal is a matter of their files.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.files import write_whole
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.loading import files_by_name, problem_of
from bitcrown.spec.normalise import files_of, problem_from_query
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    ManyBounds,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Var,
)
from bitcrown.spec.reader import read_query

_LEAST_BYTES = 1 << 18
"""Of a property file, as it lies on the disk: smaller ones are read in less time than others are
looked for."""
_MOST_BYTES = 1 << 29
"""Of all kept files together; the oldest go first."""
_MAGIC = b"bitcrown property 1\n"
_SUFFIX = ".property"
_DIGEST = 32
_OWN = (
    *(And, Compare, Const, ManyBounds, NetworkDecl, Or, Product, Query, Sum, TensorDecl, Var),
    *(Case, Constraint, Problem, ExactVector, Fraction),
)
_KNOWN: dict[tuple[str, str], Any] = {(kind.__module__, kind.__name__): kind for kind in _OWN}
_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((room, "_reconstruct") for room in ("numpy._core.multiarray", "numpy.core.multiarray")),
    *((room, "_frombuffer") for room in ("numpy._core.numeric", "numpy.core.numeric")),
}


class _Writer(pickle.Pickler):
    """Fractions as two integers instead of a text to be parsed, vectors as their arrays."""

    def reducer_override(self, item: Any) -> Any:
        if type(item) is Fraction:
            return Fraction, (item.numerator, item.denominator)
        if type(item) is ExactVector:
            return ExactVector, (item.mantissa, item.exponent, item.others)
        return NotImplemented


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that a property consists of")


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
    packed = io.BytesIO()
    _Writer(packed, protocol=5).dump(kept)
    body = packed.getvalue()
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
    with suppress(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError):
        found = _Reader(io.BytesIO(body)).load()
        return found if isinstance(found, Query | Problem) else None
    return None


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
