"""Sorted string tables: the file of keys and values in which TensorFlow keeps the index of a
checkpoint.

The format is LevelDB's (its document ``table_format.md``). The last 48 bytes point at an index
block, whose values point at data blocks. In a block each key repeats only what it does not share
with its predecessor::

    entry   := shared:varint  unshared:varint  length:varint  key[unshared]  value[length] block
    := entry*  restart:uint32*  restarts:uint32      followed by  type:byte  masked_crc32c:uint32
    footer  := metaindex:handle  index:handle  padding       handle := offset:varint  size:varint
    8 bytes of magic

The checksum is CRC-32C, *masked* (rotated by 15 bits, plus a constant), so that checksums of
checksums are safe.

Files come from anywhere: every length is held against what is left before anything is taken, and
every block's checksum is verified.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitcrown.errors import ModelError, ResourceError, UnsupportedError

FOOTER_BYTES = 48
_TRAILER_BYTES = 5
MAGIC = 0xDB4775248B80FB57
_MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """The checksum as TensorFlow stores it. Raises ``ResourceError`` without the library."""
    try:
        import google_crc32c
    except ImportError as error:
        raise ResourceError(
            "reading a TensorFlow checkpoint needs google-crc32c; install it with: pip install "
            "'bitcrown[zoo]'"
        ) from error
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def index_error(what: str) -> ModelError:
    return ModelError(f"checkpoint index: {what}")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at ``at`` and its end. Raises ``ModelError`` past 10 bytes."""
    value = 0
    for position in range(at, min(at + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << (7 * (position - at))
        if byte < 0x80:
            return value, position + 1
    raise index_error(f"the number at byte {at} has no end; the file is damaged, copy it again")


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Every key with its value, in order. Raises ``ModelError`` for damaged ``data``."""
    if len(data) < FOOTER_BYTES or int.from_bytes(data[-8:], "little") != MAGIC:
        raise index_error(
            "the file does not end as a sorted string table; give the .index file of a checkpoint"
        )
    footer = data[-FOOTER_BYTES:]
    at = 0
    handle = []
    for _ in range(4):
        value, at = read_varint(footer, at)
        handle.append(value)
    found: dict[bytes, bytes] = {}
    for _, pointer in _entries(_block(data, handle[2], handle[3])):
        offset, at = read_varint(pointer, 0)
        size, _ = read_varint(pointer, at)
        for key, value_bytes in _entries(_block(data, offset, size)):
            if key in found:
                raise index_error(
                    f"the key {key!r} occurs twice; the file is damaged, copy it again"
                )
            found[key] = value_bytes
    return found


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise index_error(
            f"a block of {size} bytes at {offset} passes the end of the file; copy the file again"
        )
    if int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little") != masked_crc32c(
        data[offset : end + 1]
    ):
        raise index_error(
            f"the checksum of the block at byte {offset} is wrong; copy the file again"
        )
    if data[end]:
        raise UnsupportedError(
            f"checkpoint index: the block at byte {offset} is compressed (kind {data[end]}), "
            "which TensorFlow's checkpoints of version 2 are not; save the checkpoint again with "
            "tf.compat.v1.train.Saver"
        )
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if len(block) < 4 or end < 0:
        raise index_error("a block is shorter than its restart points; copy the file again")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key) or at + unshared + length > end:
            raise index_error("an entry passes the end of its block; copy the file again")
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length
