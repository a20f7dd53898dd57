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

from bitcrown.check.certificates.floats.nodes import Array
from bitcrown.check.replay import unpacked

FORMAT = "bitcrown-float-certificate-1"
MAX_BYTES = 1 << 30


class Reject(Exception):
    """The certificate is malformed, or proves less than it has to."""


def need(condition: object, message: str) -> None:
    if not condition:
        raise Reject(message)


def integer(value: Any, low: int, high: int, what: str) -> int:
    """``value`` if it is an ``int`` with ``low <= value < high``."""
    need(
        type(value) is int and low <= value < high,
        f"{what} must be an integer from {low} to {high - 1}",
    )
    return int(value)


def integers(value: Any, low: int, high: int, what: str) -> list[int]:
    need(type(value) is list, f"{what} must be a list")
    return [integer(item, low, high, what) for item in value]


def field(content: Any, name: str) -> Any:
    need(type(content) is dict and name in content, f"{name!r} is missing")
    return content[name]


class Arrays:
    """The arrays of a file; each is decoded when it is first asked for."""

    def __init__(self, content: Any) -> None:
        need(type(content) is list, "'arrays' must be a list")
        self.content = content
        self.decoded: dict[int, Array] = {}

    def get(self, place: Any, shape: tuple[int, ...], low: float, high: float, what: str) -> Array:
        """Array number ``place``, which must have this shape and entries in ``[low, high]``."""
        number = integer(place, 0, len(self.content), what)
        if number not in self.decoded:
            self.decoded[number] = self._decode(self.content[number], what)
        found = self.decoded[number]
        need(found.shape == shape, f"{what} has the shape {list(found.shape)}, not {list(shape)}")
        need(
            np.isfinite(found).all() and (found >= low).all() and (found <= high).all(),
            f"{what} has bad entries",
        )
        return found

    def _decode(self, item: Any, what: str) -> Array:
        shape = tuple(integers(field(item, "shape"), 0, 1 << 32, what))
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


def encode(content: dict[str, Any]) -> bytes:
    """The file's bytes; equal contents give equal bytes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), 6, mtime=0)


def decode(data: bytes) -> dict[str, Any]:
    """Raises ``Reject`` for what is no certificate."""
    try:
        text = unpacked(data, MAX_BYTES).decode("utf-8")
        content = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_constant
        )
    except (ValueError, RecursionError) as error:
        raise Reject(f"not a certificate: {error}") from error
    need(
        type(content) is dict and content.get("format") == FORMAT,
        "the certificate has an unknown format",
    )
    found: dict[str, Any] = content
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    need(len(result) == len(pairs), "a key occurs twice")
    return result


def _constant(text: str) -> Any:
    raise Reject(f"the number {text} is no integer")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
