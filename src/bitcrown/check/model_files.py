"""Content of a network file as it lies on the disk: plain or gzip, with weights beside it or not.

The checker's own reading; the prover has another.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

from bitcrown.check.outside import completed_model
from bitcrown.errors import ModelError, said_by

MAX_MODEL_BYTES = 2 * 1024**3
"""Largest network file after unpacking: what a protobuf message may hold."""
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 22
_OUTSIDE_KEY = b"location"


def runnable_model(path: Path) -> str | bytes:
    """What onnxruntime opens: the path of a plain file, or the bytes where it is gzip (whatever its
    name) or keeps weights in other files."""
    found = _found(path)
    try:
        with found.open("rb") as raw:
            if raw.read(2) != _GZIP_MAGIC and not _names_other_files(raw):
                return str(found)
    except OSError as error:
        raise ModelError(f"the network file {found} cannot be read: {said_by(error)}") from error
    return unpacked_model(found)


def _names_other_files(raw: BinaryIO) -> bool:
    """Whether the rest of ``raw`` has the key under which a weight says in which file it lies."""
    tail = b""
    while part := raw.read(_CHUNK):
        if _OUTSIDE_KEY in tail + part:
            return True
        tail = part[-len(_OUTSIDE_KEY) :]
    return False


def unpacked_model(path: Path) -> bytes:
    """Content of ``path`` (or ``path.gz``), unpacked, with the weights that it keeps in files
    beside it. Raises ``ModelError``."""
    found = _found(path)
    try:
        content = unpacked(found.read_bytes(), MAX_MODEL_BYTES)
        return completed_model(content, found, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(f"the network file {found} cannot be read: {said_by(error)}") from error


def _found(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if not path.exists() and packed.exists() else path


def unpacked(data: bytes, limit: int) -> bytes:
    """``data``, unpacked if it is gzip. Raises ``ValueError`` for damaged data or more than
    ``limit`` bytes."""
    if data[:2] != _GZIP_MAGIC:
        return data
    result = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            # In chunks, so that a small file that unpacks to something enormous is noticed before
            # it fills the memory.
            while part := stream.read(_CHUNK):
                result += part
                if len(result) > limit:
                    raise ValueError(f"it unpacks to more than {limit} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip data ({error})") from error
    return bytes(result)
