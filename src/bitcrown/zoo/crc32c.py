"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, fast enough for hundreds of megabytes.

A CRC is linear over GF(2): ``crc(a || b) = Z_n(crc(a)) xor crc(b)`` for ``n = len(b)``, where
``Z_n`` appends ``n`` zero bytes (registers without the customary inversions). So the data is cut
into equal lanes that advance together, one byte of each in a numpy step, and neighbours are then
joined in pairs with ``Z_n`` as a 32x32 bit matrix.

TensorFlow stores a *masked* checksum, rotated by 15 bits plus a constant, so that checksums of
checksums are safe.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
ALL_ONES = 0xFFFFFFFF
LANE_BYTES = 1024
Words = NDArray[np.uint32]


@cache
def _byte_table() -> Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(
            table & 1, (table >> np.uint32(1)) ^ np.uint32(POLYNOMIAL), table >> np.uint32(1)
        )
    return table.astype(np.uint32)


def _apply(columns: Words, vectors: Words) -> Words:
    """The bit matrix with ``columns [32]`` times each of ``vectors [N]``."""
    result = np.zeros_like(vectors)
    for bit in range(32):
        result ^= np.where((vectors >> np.uint32(bit)) & np.uint32(1), columns[bit], np.uint32(0))
    return result


@cache
def _one_zero_byte() -> Words:
    units = np.uint32(1) << np.arange(32, dtype=np.uint32)
    shifted: Words = (units >> np.uint32(8)) ^ _byte_table()[units & np.uint32(0xFF)]
    return shifted


def _append_zeros(count: int) -> Words:
    """Columns ``[32]`` of ``Z_count``, by squaring."""
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = _one_zero_byte()
    while count:
        if count & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The CRC-32C of ``data``."""
    raw = np.frombuffer(data, dtype=np.uint8)
    lanes = len(raw) // LANE_BYTES
    register = ALL_ONES
    if lanes:
        whole = np.ascontiguousarray(raw[: lanes * LANE_BYTES].reshape(lanes, LANE_BYTES).T)
        table = _byte_table()
        state = np.zeros(lanes, dtype=np.uint32)
        for column in whole:
            state = (state >> np.uint32(8)) ^ table[(state ^ column) & np.uint32(0xFF)]
        state[0] ^= _apply(_append_zeros(LANE_BYTES), np.array([register], dtype=np.uint32))[0]
        register = _join(state)
    small = _byte_table().tolist()
    for byte in raw[lanes * LANE_BYTES :].tolist():
        register = (register >> 8) ^ small[(register ^ byte) & 0xFF]
    return register ^ ALL_ONES


def _join(state: Words) -> int:
    """One register for the lanes ``state [N]`` in order, each of ``LANE_BYTES`` bytes."""
    shift = _append_zeros(LANE_BYTES)
    while len(state) > 1:
        if len(state) % 2:
            # A leading lane of zeros with a zero register changes nothing.
            state = np.concatenate([np.zeros(1, dtype=np.uint32), state])
        state = _apply(shift, state[0::2]) ^ state[1::2]
        shift = _apply(shift, shift)
    return int(state[0])


def masked_crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The checksum of ``data`` in the form TensorFlow stores."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & ALL_ONES
