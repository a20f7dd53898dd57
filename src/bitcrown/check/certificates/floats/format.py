"""The file of a float certificate: gzipped JSON, read strictly.

``arrays`` holds every float64 array once, as hexadecimal digits of its big-endian bytes; all other
numbers are JSON integers. Reading checks types exactly (``True`` and ``1.0`` are no integers),
refuses duplicate keys, NaN and infinities, and limits the size of what is unpacked.
``docs/certificates.md`` describes the format.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from typing import Any

import numpy as np

from bitcrown.check.certificates.documents import (
    Reject,
    field,
    integer_in,
    integers_in,
    need,
    parsed,
)
from bitcrown.check.certificates.floats.nodes import FloatArray
from bitcrown.check.model_files import unpacked

FLOAT_FORMAT = "bitcrown-float-certificate-2"
_MAX_BYTES = 1 << 30


class Arrays:
    """The arrays of a file; each is decoded when it is first asked for."""

    def __init__(self, content: Any) -> None:
        need(type(content) is list, "'arrays' must be a list")
        self.content = content
        self.decoded: dict[int, FloatArray] = {}

    def get(
        self, place: Any, shape: tuple[int, ...], low: float, high: float, what: str
    ) -> FloatArray:
        """Array number ``place``, which must have this shape and entries in ``[low, high]``."""
        number = integer_in(place, 0, len(self.content), what)
        if number not in self.decoded:
            self.decoded[number] = self._decode(self.content[number], what)
        found = self.decoded[number]
        need(found.shape == shape, f"{what} has the shape {list(found.shape)}, not {list(shape)}")
        need(
            np.isfinite(found).all() and (found >= low).all() and (found <= high).all(),
            f"{what} has bad entries",
        )
        return found

    def _decode(self, item: Any, what: str) -> FloatArray:
        shape = tuple(integers_in(field(item, "shape"), 0, 1 << 32, what))
        text = field(item, "hex")
        need(
            type(text) is str and len(text) == 16 * math.prod(shape),
            f"{what} has a wrong number of digits",
        )
        try:
            return np.frombuffer(bytes.fromhex(text), dtype=">f8").astype(np.float64).reshape(shape)
        except ValueError:
            raise Reject(f"{what} holds something else than hexadecimal digits") from None


class ArrayStore:
    """Arrays to be written; equal ones are stored once."""

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self.known: dict[tuple[tuple[int, ...], bytes], int] = {}

    def put(self, array: Any) -> int:
        data = np.ascontiguousarray(array, dtype=">f8")
        key = (data.shape, hashlib.sha256(data.tobytes()).digest())
        if key not in self.known:
            self.known[key] = len(self.content)
            self.content.append({"shape": list(data.shape), "hex": data.tobytes().hex()})
        return self.known[key]


def encoded(content: dict[str, Any]) -> bytes:
    """The file's bytes; equal contents give equal bytes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), 6, mtime=0)


def decoded(data: bytes) -> dict[str, Any]:
    """Raises ``Reject`` for what is no certificate."""
    try:
        content = parsed(unpacked(data, _MAX_BYTES).decode("utf-8"), longest=_MAX_BYTES)
    except (ValueError, Reject) as error:
        raise Reject(f"not a certificate: {error}") from error
    is_known = type(content) is dict and content.get("format") == FLOAT_FORMAT
    need(is_known, "the certificate has an unknown format")
    found: dict[str, Any] = content
    return found
