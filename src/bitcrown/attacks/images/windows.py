"""Square windows at a place of its own in every image, and the random numbers that choose it.

Legend: ``R`` images, ``Q`` queries, ``J`` numbers of each, ``H x W`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attacks.images.noise import Keys, uniforms

Places = npt.NDArray[np.int64]

_START = 1 << 24
"""Queries use numbers of a stream from here on; what comes before is for the start."""
BLOCK = 64
"""Queries whose numbers are drawn together: one by one they cost as much as a small network."""
PLACES = 5
"""Numbers of a query besides the signs of the channels: two places and a coin."""


@dataclass(frozen=True)
class Draws:
    """``share [R, BLOCK, J]`` in (0, 1): the numbers of the queries from ``first [R]`` on."""

    keys: Keys
    first: Places
    share: Tensor

    @classmethod
    def of(cls, keys: Keys, first: Places, like: Tensor) -> Draws:
        """For images ``like [B, C, H, W]``."""
        count = PLACES + like.shape[1]
        share = uniforms(keys, BLOCK * count, first=_START + first * count).reshape(
            len(keys), BLOCK, count
        )
        return cls(keys, first, torch.from_numpy(share).to(like.device))

    def at(self, image: Places, query: Places) -> Tensor:
        """``[Q, J]``: of the queries ``query [Q]`` of the images ``image [Q]``."""
        row, column = (
            torch.from_numpy(index).to(self.share.device)
            for index in (image, query - self.first[image])
        )
        return self.share[row, column]

    def keep(self, index: Places) -> Draws:
        share = self.share[torch.from_numpy(index).to(self.share.device)]
        return Draws(self.keys[index], self.first[index], share)


def places(share: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """``[R, 2]``: upper left corners, all equally likely, for ``share [R, 2]`` in (0, 1)."""
    # A corner at row r fits for r in 0 .. height - side: height + 1 - side equally likely choices.
    choices = torch.tensor(
        [height + 1, width + 1], dtype=share.dtype, device=share.device
    ) - side.unsqueeze(1)
    return (share * choices).floor().long()


def edges(corner: Tensor, side: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``[R, H]``, ``[R, W]`` bool: rows and columns of squares of ``side [R]`` at ``corner``."""
    row = torch.arange(height, device=corner.device) - corner[:, :1]
    column = torch.arange(width, device=corner.device) - corner[:, 1:]
    side = side.unsqueeze(1)
    return (row >= 0) & (row < side), (column >= 0) & (column < side)
