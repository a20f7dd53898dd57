"""Images on their way into a network: augmentation, crops, boxes around them, normalisation.

Boxes are clipped to [0, 1] *before* normalisation, because that is where images live:
``lower = (max(x - eps, 0) - mean) / std``. Legend: ``B`` images, ``C`` channels, ``H``/``W`` height
and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.errors import DataError, SettingsError
from bitcrown.train.certified import InputBox

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
        mean, std = _constants(self.mean, self.std, images.dtype, images.device)
        return (images - mean) / std

    def box(self, images: Tensor, eps: float | Tensor) -> InputBox:
        """Boxes ``[B, n]`` of radius ``eps`` around ``images`` in [0, 1], normalised."""
        lower, upper = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
        return InputBox(self(lower).flatten(1), self(upper).flatten(1))


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Moved to the device once: a copy from the host in every step would wait for it."""
    values = (
        torch.tensor(value, dtype=dtype, device=device).reshape(1, -1, 1, 1)
        for value in (mean, std)
    )
    return next(values), next(values)


def middle_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The middle ``[B, C, height, width]``. Raises ``DataError`` where images are smaller."""
    rows, columns = images.shape[2:]
    if rows < height or columns < width:
        raise DataError(
            f"the network takes {height}x{width} images, but the data has {rows}x{columns}"
        )
    top, left = (rows - height) // 2, (columns - width) // 2
    return images[:, :, top : top + height, left : left + width]


class Crops(NamedTuple):
    """Where each image is cut from its padded self, and whether it is mirrored: ``[B]`` each."""

    top: Tensor
    left: Tensor
    is_mirrored: Tensor

    def select(self, index: Tensor) -> Crops:
        return Crops(*(part[index] for part in self))


def drawn_crops(count: int, room: tuple[int, int], flip: bool, generator: torch.Generator) -> Crops:
    """Random crops; ``room``: rows and columns that the padded images have to spare."""
    top, left = (torch.randint(0, spare + 1, (count,), generator=generator) for spare in room)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    return Crops(top, left, mirrored)


def cropped(images: Tensor, crops: Crops, height: int, width: int, padding: int) -> Tensor:
    """``images [B, C, H, W]`` padded with zeros and cut, without asking the device."""
    padded = torch.nn.functional.pad(images, [padding] * 4) if padding else images
    count, channels, _, columns = padded.shape
    row = crops.top.unsqueeze(1) + torch.arange(height, device=images.device)
    column = crops.left.unsqueeze(1) + torch.arange(width, device=images.device)
    column = torch.where(crops.is_mirrored.unsqueeze(1), column.flip(1), column)
    index = (row.unsqueeze(2) * columns + column.unsqueeze(1)).reshape(count, 1, -1)
    taken = padded.flatten(2).gather(2, index.expand(-1, channels, -1))
    return taken.reshape(count, channels, height, width)
