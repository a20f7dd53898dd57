"""The adjoint of a strided convolution as a dense one: what belongs to one residue of the pixels is
computed together.

With stride ``s`` and padding ``p`` the adjoint is ``x_u = sum over s i + k - p = u of w_k g_i``.
For pixels ``u = s m + a`` with the same ``a`` the sum is ``sum_d w_(a + p - s d) g_(m + d)``: an
ordinary convolution of ``g``. So all ``s^2`` residues are one convolution with ``s^2`` times the
channels, whose results are then put in their places. (torch's transposed convolution takes twice as
long on a CPU: 20.7 and 10.3 against 9.8 and 5.2 us an image for the two strided convolutions of a
small residual network.)

Legend: ``B`` points, ``O`` and ``C`` channels of output and input, ``H x W`` pixels of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Axis(NamedTuple):
    """One axis: ``taps[a][t]`` is the kernel's place for residue ``a`` and ``d = low + t`` (None:
    no such place)."""

    extent: int
    groups: int
    low: int
    taps: tuple[tuple[int | None, ...], ...]

    def padding(self, outputs: int) -> tuple[int, int]:
        return -self.low, self.groups + self.low + len(self.taps[0]) - 1 - outputs


@dataclass(frozen=True)
class PhasedAdjoint:
    """``weight [s_1 s_2 C, O, t_1, t_2]``: the dense kernel."""

    weight: Tensor
    channels: int
    strides: tuple[int, int]
    axes: tuple[_Axis, _Axis]

    @classmethod
    def of(
        cls, weight: Tensor, attrs: Mapping[str, Any], extents: Sequence[int]
    ) -> PhasedAdjoint | None:
        """For ``weight [O, C, k_1, k_2]`` and inputs of ``extents``.

        None where it does not apply or pay: not strided, grouped, dilated, or a kernel that skips
        pixels.
        """
        strides = tuple(attrs["strides"])
        if (
            weight.dim() != 4
            or max(strides) == 1
            or attrs["group"] != 1
            or max(attrs["dilations"]) != 1
        ):
            return None
        if weight.shape[2] < strides[0] or weight.shape[3] < strides[1]:
            return None
        axes = [
            _axis(*each)
            for each in zip(extents, weight.shape[2:], strides, attrs["pads"], strict=True)
        ]
        (down, right), (rows, columns) = strides, axes
        taps = len(rows.taps[0]), len(columns.taps[0])
        dense = weight.new_zeros(down, right, weight.shape[1], weight.shape[0], *taps)
        for a, row in enumerate(rows.taps):
            for b, column in enumerate(columns.taps):
                for t, k in enumerate(row):
                    for v, j in enumerate(column):
                        if k is not None and j is not None:
                            dense[a, b, :, :, t, v] = weight[:, :, k, j].T
        dense = dense.flatten(0, 2).contiguous(memory_format=torch.channels_last)
        return cls(dense, weight.shape[1], (down, right), (rows, columns))

    def __call__(self, slope: Tensor) -> Tensor:
        """``[B, O, h, w]`` to ``[B, C, H, W]``."""
        (rows, columns), (down, right) = self.axes, self.strides
        (top, bottom), (left, other) = rows.padding(slope.shape[2]), columns.padding(slope.shape[3])
        if top or bottom or left or other:
            slope = F.pad(slope, (left, other, top, bottom))
        parts = F.conv2d(slope, self.weight).permute(0, 2, 3, 1)
        # (Channels stay last: copies of ``s_2 C`` numbers, where single numbers would take three
        # times as long.)
        parts = parts.reshape(*parts.shape[:3], down, right, self.channels).transpose(2, 3)
        whole = parts.reshape(
            len(slope), rows.groups * down, columns.groups * right, self.channels
        ).permute(0, 3, 1, 2)
        return whole.narrow(2, 0, rows.extent).narrow(3, 0, columns.extent)


def _axis(extent: int, kernel: int, stride: int, padding: int) -> _Axis:
    # Residue a reads tap k = a + padding - stride d, and 0 <= k < kernel for some a < stride only
    # if low <= d <= high.
    low, high = -((kernel - 1 - padding) // stride), (stride - 1 + padding) // stride
    taps = []
    for a in range(stride):
        places = [a + padding - stride * d for d in range(low, high + 1)]
        taps.append(tuple(k if 0 <= k < kernel else None for k in places))
    return _Axis(extent, -(-extent // stride), low, tuple(taps))
