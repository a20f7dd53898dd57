"""A writer of sorted string tables and bundle entries, for files that TensorFlow would never
write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitcrown.zoo.sstable import FOOTER_BYTES, MAGIC, masked_crc32c


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def block(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Entries without shared prefixes and one restart point."""
    body = b"".join(
        varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries
    )
    return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def signed(body: bytes, kind: int = 0) -> bytes:
    whole = body + bytes([kind])
    return whole + masked_crc32c(whole).to_bytes(4, "little")


def table(body: bytes, kind: int = 0) -> bytes:
    """A table with ``body`` as its only data block."""
    data = signed(body, kind)
    index = block([(b"\xff", varint(0) + varint(len(body)))])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index))
    padded = footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little")
    return data + signed(index) + padded


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field; the checksum (6) is the fixed32 of a bundle entry."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if number == 6:
        return varint(6 << 3 | 5) + value.to_bytes(4, "little")
    return varint(number << 3) + varint(value)


def entry(
    dtype: int = 1,
    shape: Sequence[int] = (2,),
    offset: int = 0,
    size: int = 8,
    crc: int = 0,
    shard: int = 0,
) -> bytes:
    dims = b"".join(field(2, field(1, extent)) for extent in shape)
    parts = {1: dtype, 2: dims, 3: shard, 4: offset, 5: size, 6: crc}
    return b"".join(field(number, value) for number, value in parts.items())


def index_of(entries: Mapping[str, bytes], shards: int = 1) -> bytes:
    header = field(1, shards) + field(2, 0)
    return table(
        block([(b"", header), *((name.encode(), value) for name, value in sorted(entries.items()))])
    )
