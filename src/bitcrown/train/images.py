"""Images on their way into a network: augmentation, crops, boxes around them, normalisation.

Boxes are clipped to [0, 1] *before* normalisation, because that is where images live:
``lower = (max(x - eps, 0) - mean) / std``. Legend: ``B`` images, ``C`` channels, ``H``/``W`` height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.errors import DataError, SettingsError
from bitcrown.train.certified import Box

NORMALISATIONS = {
    "none": ((0.0,), (1.0,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / std`` for every channel; one value serves all channels."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise SettingsError("mean and std need one number each a channel, and std above zero")

    def __call__(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.mean).reshape(1, -1, 1, 1)
        std = images.new_tensor(self.std).reshape(1, -1, 1, 1)
        return (images - mean) / std

    def box(self, images: Tensor, eps: float) -> Box:
        """Boxes ``[B, n]`` of radius ``eps`` around ``images [B, C, H, W]`` in [0, 1], normalised."""
        lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        return Box(self(lower).flatten(1), self(upper).flatten(1))


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The middle ``[B, C, height, width]``. Raises ``DataError`` where images are smaller."""
    rows, columns = images.shape[2:]
    if rows < height or columns < width:
        raise DataError(f"the network takes {height}x{width} images, but the data has {rows}x{columns}")
    top, left = (rows - height) // 2, (columns - width) // 2
    return images[:, :, top : top + height, left : left + width]


def augmented(images: Tensor, height: int, width: int, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crops of ``images`` padded with zeros, each mirrored with probability one half if asked; on any device."""
    padded = torch.nn.functional.pad(images, [padding] * 4) if padding else images
    count, _, rows, columns = padded.shape
    if rows < height or columns < width:
        raise DataError(f"the network takes {height}x{width} images, but the data has {rows}x{columns}")
    device = images.device

    def offsets(room: int, extent: int) -> Tensor:
        start = torch.randint(0, room - extent + 1, (count, 1), generator=generator)
        return start + torch.arange(extent)

    row, column = offsets(rows, height), offsets(columns, width)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        column = torch.where(mirrored, column.flip(1), column)
    index = (row.unsqueeze(2) * columns + column.unsqueeze(1)).reshape(count, 1, -1).to(device)
    taken = padded.flatten(2).gather(2, index.expand(-1, padded.shape[1], -1))
    return taken.reshape(count, padded.shape[1], height, width)
