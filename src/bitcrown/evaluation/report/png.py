"""Small lossless pictures for a report, written with nothing but zlib.

A PNG file (ISO/IEC 15948) is a signature and chunks ``length, kind, data, crc32(kind, data)``: the
header, the rows (each behind a byte that names its filter, 0 for none) compressed by zlib, the end.

Legend: ``C`` channels (1 grey or 3 colours), ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2


def levels(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]`` in [0, 1] as 8-bit levels ``[H, W, C]``, rounded to nearest; outside is
    clipped."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
    return np.rint(np.clip(finite, 0.0, 1.0) * 255).astype(np.uint8).transpose(1, 2, 0)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The file for ``pixels [H, W, C]``; one channel is grey, the first three of more are red,
    green, blue."""
    rows, columns, channels = pixels.shape
    kept = np.ascontiguousarray(pixels[:, :, :3] if channels >= 3 else pixels[:, :, :1])
    filtered = np.concatenate([np.zeros((rows, 1), np.uint8), kept.reshape(rows, -1)], axis=1)
    header = columns.to_bytes(4, "big") + rows.to_bytes(4, "big")
    header += bytes([8, COLOUR if channels >= 3 else GREY, 0, 0, 0])
    body = (
        _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )
    return SIGNATURE + body


def data_address(pixels: NDArray[np.uint8]) -> str:
    """``png`` as the address of an image inside a page."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
