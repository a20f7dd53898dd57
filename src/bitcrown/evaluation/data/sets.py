"""Labelled images from the files people have: one reader, many layouts, nothing is downloaded.

Pixels are numbers in [0, 1]: an 8-bit level ``k`` becomes the float32 nearest to ``k / 255``, as
every training framework has it, so that a property written for an image is the same property
everywhere. What a path may be:

* an idx file of images (``.gz`` or not) with its labels beside it, or a folder that holds both;
* an ``.npz`` with images and labels (``x``/``y``, ``images``/``labels``, ``x_test``/``y_test``,
  ...);
* CIFAR-10 or CIFAR-100: the folder or a single file, binary or Python version (which is parsed,
  never unpickled);
* a contact sheet: one lossless image of equal tiles, 100 a row, with ``NAME.labels.npy`` beside it;
* a folder with one folder of images a class, files in sorted order. A folder's name is the label
  where all of them are numbers; otherwise labels are ranks of names, and ``ImageSet.classes`` says
  which.

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitcrown.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """``images [B, C, H, W]`` float32 in [0, 1], ``labels [B]`` int64, or ``DataError``.

    ``classes``: names of the labels 0, 1, ..., where the data have names in place of numbers.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise DataError(
                f"{self.name}: images must be float32 [B, C, H, W], not {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name} has {len(self.images)} images, but labels of shape "
                f"{self.labels.shape}"
            )
        if not self.images.size:
            raise DataError(f"{self.name} holds no images")
        if not (self.images.min() >= 0 and self.images.max() <= 1):
            raise DataError(f"{self.name}: pixels must lie in [0, 1] (or be 8-bit levels)")
        if self.labels.min() < 0:
            raise DataError(f"{self.name}: labels must not be negative")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, rows, columns = self.images.shape[1:]
        return channels, rows, columns

    def select(self, index: np.ndarray) -> ImageSet:
        return ImageSet(self.name, self.images[index], self.labels[index], self.classes)


def unit_pixels(levels: np.ndarray) -> np.ndarray:
    """8-bit levels ``k`` as the float32 nearest to ``k / 255``; floats are only converted."""
    if levels.dtype == np.uint8:
        return levels.astype(np.float32) / np.float32(255)
    return levels.astype(np.float32)


def _class_numbers(labels: np.ndarray, path: Path) -> np.ndarray:
    """int64, or ``DataError`` where a label is no whole number."""
    if labels.dtype.kind not in "fiub":
        raise DataError(f"{path}: labels of type {labels.dtype} are no class numbers")
    with np.errstate(invalid="ignore"):
        numbers = labels.astype(np.int64)
    if (numbers != labels).any():
        raise DataError(f"{path}: a label is no whole number")
    return numbers


def centre_crop(images: np.ndarray, size: int) -> np.ndarray:
    """The middle ``size x size`` of ``[B, C, H, W]``; an odd margin is larger behind."""
    rows, columns = images.shape[2:]
    if not 0 < size <= min(rows, columns):
        raise DataError(f"images of {rows}x{columns} pixels cannot be cropped to {size}x{size}")
    top, left = (rows - size) // 2, (columns - size) // 2
    return images[:, :, top : top + size, left : left + size]


def read_images(path: Path, *, first: int | None = None, train: bool = False) -> ImageSet:
    """Images and labels of ``path``, at most the ``first`` ones.

    ``train`` chooses the training part where a folder holds both parts. Raises ``DataError`` for
    what cannot be read.
    """
    from bitcrown.evaluation.data.cifar_files import read_cifar
    from bitcrown.evaluation.data.image_files import named_classes, read_image_files

    path = Path(path)
    if first is not None and first < 1:
        raise DataError(f"the number of images must be at least 1, but got {first}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give a file or folder of labelled images")
    for read in (read_cifar, read_image_files):
        found = read(path, first, train)
        if found is not None:
            levels, labels = found
            if levels.dtype.kind not in "fiub":
                raise DataError(f"{path}: images of type {levels.dtype} are no pixels")
            return ImageSet(
                path.name.partition(".")[0],
                unit_pixels(levels),
                _class_numbers(labels, path),
                named_classes(path, train) if read is read_image_files else (),
            )
    raise DataError(
        f"{path} is no data set that can be read: an idx file or folder, an .npz, a CIFAR folder "
        "or file, a contact sheet with its .labels.npy, or a folder with one folder of images a "
        "class"
    )
