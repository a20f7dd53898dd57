"""Reading files that may be packed, and writing files that are never half written: the one place
for both.

Reading: a file is gzip if its first two bytes say so, whatever its name; and where ``x`` is
missing, ``x.gz`` stands in for it, as VNN-COMP's repositories ship their networks and properties.

Writing: a reader sees the old content or the new one, never a half, whatever is killed. The new
content goes into a file beside the target that nobody else can have made: its name is random, and
it is opened with ``O_EXCL`` and ``O_NOFOLLOW``, so a link that somebody planted in a shared folder
is neither followed nor written through. Then it is renamed over the target; if anything fails, it
is removed and the target stays as it was.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

from bitcrown.errors import BitcrownError, ModelError, ResourceError

DAMAGED_GZIP = (gzip.BadGzipFile, EOFError, zlib.error)
UNREADABLE = (OSError, *DAMAGED_GZIP)
"""What reading through ``unpacking`` raises."""
_GZIP_MAGIC = b"\x1f\x8b"
_RANDOM_BYTES = 12
_LONGEST_NAME = 100
"""Letters of the target's name that the new file's name repeats: names have at most 255 bytes."""


_NO_MODELS = (  # where the mark is, the mark, and what has it
    (0, b"\x89HDF\r\n\x1a\n", "an .h5 file; robust and evaluate take it, a property needs ONNX"),
    (4, b"TFL3", "TensorFlow Lite; convert it, for example with tf2onnx"),
    (0, b"PK\x03\x04", "a zip archive, as torch.save writes it; use torch.onnx.export"),
    (0, b"\x80\x02", "a pickle, as torch.save wrote it; use torch.onnx.export"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; fetch the file with git lfs pull"),
)


def no_model(path: object, content: bytes) -> ModelError:
    """The error that ``content`` is no ONNX model, and what it is where that is known."""
    for place, mark, what in _NO_MODELS:
        if content[place : place + len(mark)] == mark:
            return ModelError(f"{path} is not an ONNX file but {what}")
    return ModelError(f"{path} is not an ONNX file, or it is cut short")


def find_file(path: Path) -> Path | None:
    """``path``, or ``path`` + ``.gz`` beside it, or None if neither is a file."""
    try:
        return next((file for file in (path, Path(f"{path}.gz")) if file.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero in it
        return None


@contextmanager
def unpacking(path: Path) -> Iterator[BufferedIOBase]:
    """``path``, opened for reading; what its gzip stream holds, if it is one. Raises
    ``UNREADABLE``."""
    with path.open("rb") as raw:
        if raw.peek(2)[:2] != _GZIP_MAGIC:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked


def read_packed(path: Path, limit: int, what: str, error: type[BitcrownError]) -> bytes:
    """Content of ``path``, or of ``path.gz``, unpacked; raises ``error`` for more than ``limit``
    bytes.

    ``what`` names the file in the sentence of the error ("the network file"), which is also raised
    where the file cannot be read.
    """
    found = find_file(path) or path
    try:
        with unpacking(found) as file:
            # One byte more than is allowed: enough to see a small file that unpacks to something
            # enormous, before it fills the memory.
            data = file.read(limit + 1)
    except (*UNREADABLE, ValueError) as problem:  # ValueError: a path with a zero in it
        raise error(f"{what} {found} cannot be read: {problem}") from problem
    if len(data) > limit:
        raise error(f"{what} {found} is larger than {limit >> 30} GiB")
    return data


def part_beside(folder: Path, location: str, offset: int, length: int | None, limit: int) -> bytes:
    """``length`` bytes (None: all the rest) from ``offset`` of a file that another file names.

    The name is nobody's word: the file must lie in ``folder`` or below it, without ``..``, and be a
    plain one that is reached without any link. Raises ``OSError`` or ``ValueError``.
    """
    parts = location.split("/")
    if not location or "" in parts or ".." in parts or "\\" in location:
        raise ValueError("its name leaves the folder")
    flags = os.O_RDONLY | os.O_CLOEXEC
    here = os.open(folder, flags | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        # Not blocking: a pipe that nobody writes to would be waited for before it can be refused.
        found = os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
    with os.fdopen(found, "rb") as file:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no plain file")
        rest = status.st_size - offset
        size = rest if length is None else length
        if offset < 0 or not 0 <= size <= rest:
            raise ValueError(f"it has {status.st_size} bytes, not {size} from {offset} on")
        if size > limit:
            raise ValueError(f"its part has more than {limit} bytes")
        file.seek(offset)
        return file.read(size)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    import hashlib  # loads OpenSSL, for which the parent of a timed run has no use

    return hashlib.sha256(data).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new binary file that takes the place of ``path`` once the block has ended without an
    exception.

    A link is followed to the file it names; the folder is made if it is missing. Raises
    ``OSError``.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    fresh = target.with_name(f".{name}.{os.urandom(_RANDOM_BYTES).hex()}.tmp")
    descriptor = os.open(
        fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Make ``content`` (text as UTF-8) what ``path`` holds, at once; makes the folder if it is
    missing.

    A device, a pipe, or a file in a folder that takes no new files is written in place. Raises
    ``ResourceError``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():  # a device or a pipe has no place to rename to
            path.write_bytes(data)
            return
        try:
            with replacing(path) as file:
                file.write(data)
        except PermissionError:
            # The folder takes no new files, but this one may be writable all the same.
            if not path.is_file():
                raise
            write_in_place(path, data)
    except OSError as error:
        raise ResourceError(
            f"the file {path} cannot be written: {error.strerror or error}"
        ) from error


def write_in_place(path: Path, data: bytes) -> None:
    """Empty an existing file and write ``data`` to it, the first line last: half of it has no first
    line.

    Where writing fails the file is left empty. Raises ``OSError``.
    """
    head = data.find(b"\n") + 1
    descriptor = os.open(os.path.realpath(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, 0)
        # Until the last write the file begins with zeros, which no reader takes for an answer.
        for part, offset in ((data[head:], head), (data[:head], 0)):
            while part:
                done = os.pwrite(descriptor, part, offset)
                part, offset = part[done:], offset + done
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        raise
    finally:
        os.close(descriptor)


def require_appendable(path: Path) -> None:
    """Raises ``ResourceError`` where ``append_record`` would; makes the file if it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            return
    except OSError as error:
        raise _unwritable_record(path, error) from error


def _unwritable_record(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"the record {path} cannot be written: {error.strerror or error}")


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line, after closing a half line of a killed writer. Raises
    ``ResourceError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            broken = False
            if size:
                file.seek(size - 1)
                broken = file.read(1) != b"\n"
            line = json.dumps(record, default=str).encode() + b"\n"
            file.write(b"\n" + line if broken else line)
    except OSError as error:
        raise _unwritable_record(path, error) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; half lines are left out. Raises ``ResourceError`` if it
    cannot be read."""
    return list(each_record(path))


def each_record(path: Path) -> Iterator[dict[str, Any]]:
    """As ``read_records``, one at a time."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record
    except OSError as error:
        raise ResourceError(
            f"the records {path} cannot be read: {error.strerror or error}"
        ) from error
