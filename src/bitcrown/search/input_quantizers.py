"""Where the quantizer at an input steps: the least number of float32 that each integer is made of.

``QuantizeLinear`` of float32 is ``clip(rint(x / s), least, most)``, zero point aside: a correctly
rounded quotient, rounded half to even, saturated. Each of the three never falls, so neither does
the whole, and an integer ``k`` is reached from one number on. That number is next to
``(k - 1/2) s``, and is found by evaluating the quantizer itself on both sides of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bitcrown.model.lowering.builder import OnnxNode

_LEAST_SCALE = 2.0**-100
"""Below, quotients of numbers that some machines flush to zero would matter."""
_TRIES = 64
_KINDS = ("int8", "uint8", "int16", "uint16")
_NAMES = ("QuantizeLinear", "com.microsoft.QuantizeLinear")


class InputQuantizer(NamedTuple):
    """``scale``, and the ends of ``q - z``."""

    scale: float
    least: int
    most: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``q - z`` of float32 numbers ``x``, in float64."""
        with np.errstate(over="ignore"):
            quotient = x.astype(np.float32) / np.float32(self.scale)
        value = np.clip(np.rint(quotient), self.least, self.most)
        return np.asarray(value, dtype=np.float64)

    def steps(self, first: float, last: float) -> np.ndarray | None:
        """The least number of every integer that begins in ``(first, last]``, float64; integers
        that no number becomes are left out. None where that cannot be told."""
        ends = self(np.array([first, last]))
        wanted = np.arange(ends[0] + 1, ends[1] + 1)
        at = ((wanted - 0.5) * self.scale).astype(np.float32)
        down, up = np.float32(-np.inf), np.float32(np.inf)
        for _ in range(_TRIES):
            before = np.nextafter(at, down)
            is_late, is_early = self(before) >= wanted, self(at) < wanted
            if not (is_late.any() or is_early.any()):
                return np.unique(at.astype(np.float64))
            at = np.where(is_late, before, np.where(is_early, np.nextafter(at, up), at))
        return None


def input_quantizer(node: OnnxNode, constants: Mapping[str, np.ndarray]) -> InputQuantizer | None:
    """That of a node with one scale and zero point, both known; None for everything else."""
    if node.op not in _NAMES or node.attrs.get("block_size", 0) or node.attrs.get("precision", 0):
        return None
    given = [constants.get(name) for name in node.inputs[1:3] if name]
    if not given or any(value is None or value.size != 1 for value in given):
        return None
    scale = given[0]
    if len(given) == 1 and node.attrs.get("output_dtype", 0):
        return None
    zero = given[1] if len(given) == 2 else np.zeros((), np.uint8)
    assert scale is not None and zero is not None
    if scale.dtype != np.float32 or zero.dtype.name not in _KINDS:
        return None
    step, info, at = float(scale.reshape(())), np.iinfo(zero.dtype), int(zero.reshape(()))
    if not _LEAST_SCALE <= step < np.inf:
        return None
    return InputQuantizer(step, int(info.min) - at, int(info.max) - at)
