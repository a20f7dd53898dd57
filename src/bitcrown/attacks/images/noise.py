"""Random numbers that belong to an image: the same whatever else is in the batch, in which order,
on which machine.

A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
number ``j`` of a stream is a hash of the stream's key and ``j``, so nothing is drawn "after"
anything else and an interrupted attack goes on exactly where it stopped. The hash is the finaliser
of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014): two
rounds of xor-shift and multiplication on 64 bits. A key is the hash of everything that names the
stream: seed, number of the image, attack, restart.

Legend: ``B`` images, ``J`` numbers of each.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(z: Keys) -> Keys:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed


def stream_keys(seed: int, image: npt.NDArray[np.int64], *names: str | int) -> Keys:
    """``[B]``: one key an image number of ``image [B]``; ``names``: attack, restart, target."""
    keys = _mix(np.full(len(image), seed % (1 << 64), dtype=np.uint64) + _GOLDEN)
    keys = _mix((keys ^ image.astype(np.uint64)) + _GOLDEN)
    for name in names:
        word = zlib.crc32(name.encode()) if isinstance(name, str) else name
        keys = _mix((keys ^ np.uint64(word)) + _GOLDEN)
    return keys


def uniforms(
    keys: Keys, count: int, first: int | npt.NDArray[np.int64] = 0
) -> npt.NDArray[np.float64]:
    """``[B, count]``: numbers from ``first`` on of each stream, strictly between 0 and 1.

    ``first`` may be one for all or ``[B]``.
    """
    counter = (np.reshape(first, (-1, 1)) + np.arange(1, count + 1)).astype(np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + counter) >> np.uint64(12)
    result: npt.NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return result


def uniform_like(x: Tensor, keys: Keys) -> Tensor:
    """Uniform in (-1, 1), in the shape, dtype and on the device of ``x [B, C, H, W]``."""
    share = 2.0 * uniforms(keys, x[0].numel()) - 1.0
    return torch.from_numpy(share).reshape(x.shape).to(device=x.device, dtype=x.dtype)


def normal_like(x: Tensor, keys: Keys) -> Tensor:
    """Standard normal (Box & Muller 1958), in shape, dtype and device of ``x [B, C, H, W]``."""
    half = (x[0].numel() + 1) // 2
    rows = []
    for key in keys:
        # One row at a time: a vector library may round the last numbers of an array differently
        # from the first.
        share = uniforms(np.array([key]), 2 * half)[0]
        radius, angle = np.sqrt(-2.0 * np.log(share[:half])), 2.0 * np.pi * share[half:]
        rows.append(
            np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: x[0].numel()]
        )
    return torch.from_numpy(np.stack(rows)).reshape(x.shape).to(device=x.device, dtype=x.dtype)
