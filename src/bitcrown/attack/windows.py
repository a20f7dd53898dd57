"""Square windows at a place of its own in every image, and the random numbers that choose it.

Legend: ``R`` images, ``H x W`` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.attack.noise import Keys, uniforms

START = 1 << 24
"""Queries use numbers of a stream from here on; what comes before is for the start."""
BLOCK = 64
"""Queries whose numbers are drawn together: one by one they cost as much as a small network."""
PLACES = 5
"""Numbers of a query besides the signs of the channels: two places and a coin."""


def draws(keys: Keys, query: int, like: Tensor) -> Tensor:
    """``[R, BLOCK, J]`` in (0, 1) for the queries from ``query`` on, for images ``like [B, C, H, W]``."""
    count = PLACES + like.shape[1]
    share = uniforms(keys, BLOCK * count, first=START + query * count).reshape(len(keys), BLOCK, count)
    return torch.from_numpy(share).to(like.device)


def places(share: Tensor, side: int, height: int, width: int) -> Tensor:
    """``[R, 2]``: row and column of the upper left corner, all equally likely, for ``share [R, 2]`` in (0, 1)."""
    choices = torch.tensor([height - side + 1, width - side + 1], dtype=share.dtype, device=share.device)
    return (share * choices).floor().long()


def window(corner: Tensor, side: int, height: int, width: int) -> Tensor:
    """``[R, 1, H, W]`` bool: the pixels of the square of that ``side`` at ``corner [R, 2]``."""
    row = torch.arange(height, device=corner.device) - corner[:, :1]
    column = torch.arange(width, device=corner.device) - corner[:, 1:]
    in_row, in_column = (row >= 0) & (row < side), (column >= 0) & (column < side)
    return (in_row.unsqueeze(2) & in_column.unsqueeze(1)).unsqueeze(1)
