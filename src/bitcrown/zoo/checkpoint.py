"""TensorFlow checkpoints of version 2 ("tensor bundles"), read without TensorFlow.

``NAME.index`` is a sorted string table. The empty key holds a ``BundleHeaderProto``, every other
key is a variable's name with a ``BundleEntryProto``: type, shape, shard, offset, size, masked
CRC-32C. The numbers themselves lie raw, row by row, in ``NAME.data-SSSSS-of-NNNNN``. Field numbers
are those of ``tensor_bundle.proto`` and ``tensor_shape.proto`` in TensorFlow.
``tf.compat.v1.train.Saver`` has written this form since TensorFlow 1.0; the single file of version
1 is recognised and refused.

Nothing in a file is trusted: sizes are held against the file's and the shape's before memory is
asked for, and a tensor whose checksum is wrong is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.zoo.sstable import index_error, masked_crc32c, read_table, read_varint

_MAX_INDEX_BYTES = 1 << 28
_MAX_RANK = 254
_MAX_SHARDS = 99_999
_DTYPES: Mapping[int, str] = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", 17: "<u2",
    19: "<f2", 22: "<u4",
    23: "<u8",
}  # fmt: skip
"""TensorFlow's ``DataType`` numbers of plain numbers, as numpy types."""


@dataclass(frozen=True)
class BundleEntry:
    """Where one variable lies; ``dtype``: TensorFlow's; ``is_sliced``: under other keys."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool


@dataclass(frozen=True)
class Checkpoint:
    """Variables by name; ``read`` fetches one from the data files beside ``prefix``."""

    prefix: Path
    shards: int
    entries: Mapping[str, BundleEntry]

    def read(self, name: str) -> NDArray[np.generic]:
        """The variable ``name``. Raises ``ModelError`` if absent, damaged or not supported."""
        if name not in self.entries:
            raise ModelError(
                f"{self.prefix.name}: the checkpoint has no variable {name!r}; is it of another "
                "network?"
            )
        entry = self.entries[name]
        if entry.is_sliced or entry.dtype not in _DTYPES:
            what = (
                "is stored in slices"
                if entry.is_sliced
                else f"has TensorFlow's type number {entry.dtype}"
            )
            raise UnsupportedError(
                f"{self.prefix.name}: the variable {name!r} {what}, which bitcrown does not read"
            )
        dtype = np.dtype(_DTYPES[entry.dtype])
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise ModelError(
                f"{self.prefix.name}: {name!r} has {entry.size} bytes, which do not fill its "
                f"shape {entry.shape}; copy the checkpoint again"
            )
        raw = self._bytes_of(name, entry)
        if masked_crc32c(raw) != entry.crc:
            raise ModelError(
                f"{self.prefix.name}: the checksum of {name!r} is wrong; copy the data file again"
            )
        return np.frombuffer(raw, dtype=dtype).reshape(entry.shape)

    def _bytes_of(self, name: str, entry: BundleEntry) -> bytes:
        file = self.prefix.with_name(
            f"{self.prefix.name}.data-{entry.shard:05d}-of-{self.shards:05d}"
        )
        try:
            with file.open("rb") as stream:
                length = stream.seek(0, 2)
                if entry.offset + entry.size > length:
                    raise ModelError(
                        f"{file.name}: {name!r} passes the end of the file; copy the file again"
                    )
                stream.seek(entry.offset)
                return stream.read(entry.size)
        except OSError as error:
            raise ModelError(
                f"{file.name}: cannot be read ({error.strerror}); it belongs beside the .index"
            ) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint ``path``: its prefix, its ``.index``, or a folder with one of them."""
    index = _index_file(path)
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ModelError(
                f"{index.name}: an index above {_MAX_INDEX_BYTES} bytes is not one; check the path"
            )
        data = index.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{index.name}: cannot be read ({error.strerror}); check the path"
        ) from error
    table = read_table(data)
    if b"" not in table:
        raise UnsupportedError(
            f"{index.name}: a table without the header of a version 2 checkpoint; save it again "
            "with tf.compat.v1.train.Saver(write_version=2)"
        )
    shards = _shard_count(table.pop(b""), index)
    entries = {}
    for key, value in table.items():
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{index.name}: the name {key!r} is not UTF-8; copy the file again"
            ) from error
        entries[name] = _entry(value, name, shards)
    return Checkpoint(index.with_suffix(""), shards, entries)


def _index_file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            raise ModelError(
                f"{path.name}: {len(found)} .index files in the folder; name the one to read"
            )
        return found[0]
    if path.suffix == ".index":
        return path
    index = path.with_name(path.name + ".index")
    if path.is_file() and not index.is_file():
        raise UnsupportedError(
            f"{path.name}: no {index.name} beside it; a single-file checkpoint of version 1 must "
            "be saved again with tf.compat.v1.train.Saver(write_version=2)"
        )
    return index


# ---- Protocol buffers on the wire


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value: whole numbers for kinds 0, 1 and 5, bytes for kind 2."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = read_varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise index_error(f"a message has a field of kind {kind}; the file is damaged")
        if at + length > len(data):
            raise index_error("a field passes the end of its message; the file is damaged")
        part = data[at : at + length]
        at += length
        yield tag >> 3, part if kind == 2 else int.from_bytes(part, "little")


def _number(value: int | bytes) -> int:
    """A whole number that must not be negative (negative ones have bit 63 set)."""
    if isinstance(value, bytes) or value >= 1 << 63:
        raise index_error("a size or count is not a whole number; the file is damaged")
    return value


def _shard_count(header: bytes, index: Path) -> int:
    fields = dict(_fields(header))
    if _number(fields.get(2, 0)):
        raise UnsupportedError(
            f"{index.name}: written on a big-endian machine, which bitcrown does not read"
        )
    shards = _number(fields.get(1, 0))
    if not 1 <= shards <= _MAX_SHARDS:
        raise ModelError(f"{index.name}: {shards} data files are not possible; the file is damaged")
    return shards


def _entry(data: bytes, name: str, shards: int) -> BundleEntry:
    fields = list(_fields(data))
    plain = {number: value for number, value in fields if number not in (2, 7)}
    shape: tuple[int, ...] = ()
    for number, value in fields:
        if number == 2:
            shape = _shape(value, name)
    shard = _number(plain.get(3, 0))
    if shard >= shards:
        raise index_error(f"{name!r} lies in data file {shard} of {shards}; the file is damaged")
    return BundleEntry(
        dtype=_number(plain.get(1, 0)),
        shape=shape,
        shard=shard,
        offset=_number(plain.get(4, 0)),
        size=_number(plain.get(5, 0)),
        crc=_number(plain.get(6, 0)),
        is_sliced=any(number == 7 for number, _ in fields),
    )


def _shape(message: int | bytes, name: str) -> tuple[int, ...]:
    if isinstance(message, int):
        raise index_error(f"the shape of {name!r} is not a message; the file is damaged")
    sizes = []
    for number, value in _fields(message):
        if number == 2 and isinstance(value, bytes):
            sizes.append(_number(dict(_fields(value)).get(1, 0)))
        elif number == 3 and value:
            raise index_error(f"{name!r} has no known shape; the file is damaged")
    if len(sizes) > _MAX_RANK:
        raise index_error(f"{name!r} has {len(sizes)} axes; the file is damaged")
    return tuple(sizes)
