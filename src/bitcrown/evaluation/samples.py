"""One input to ask about: a picture, an array, or one image of a data set, as pixels.

A picture's pixels and a data set's lie in [0, 1]. An array of bytes is a picture's; an array of
other numbers is taken as it is, and its values may move anywhere, unless all of them lie in [0, 1]:
then they are pixels. Which of the two was taken stands in every answer.

Legend: ``C`` channels, ``H`` rows, ``W`` columns, ``n`` elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bitcrown.archives import read_array
from bitcrown.errors import DataError
from bitcrown.evaluation.boxes import UNIT
from bitcrown.evaluation.data.image_files import PICTURES, read_picture
from bitcrown.evaluation.data.sets import read_images, unit_pixels

Limits = tuple[Fraction, Fraction] | None
"""Within which values stay; None: any number."""


@dataclass(frozen=True, eq=False)
class Sample:
    """``values [C, H, W]`` float32, or ``[1, 1, n]`` of what is no image (``is_image``);
    ``label``: of a data set."""

    name: str
    values: np.ndarray
    limits: Limits
    is_image: bool
    label: int | None = None


def read_sample(word: str) -> Sample:
    """A picture, an ``.npy`` file, or ``SET:INDEX``. Raises ``DataError``."""
    path = Path(word)
    place, _, index = word.rpartition(":")
    if not path.exists() and place and index.isdigit():
        found = read_images(Path(place), first=int(index) + 1)
        if int(index) >= len(found):
            raise DataError(f"{place} holds {len(found)} images; the first one has the index 0")
        return Sample(
            f"image {index} of {found.name}",
            found.images[int(index)],
            UNIT,
            True,
            int(found.labels[int(index)]),
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"{word} {what}; give a picture, an .npy file, or SET:INDEX for one image of a data set"
        )
    if path.suffix == ".npy":
        return sample_of(read_array(path), path.name)
    if path.suffix.lower() in PICTURES:
        return Sample(path.name, unit_pixels(read_picture(path)), UNIT, True)
    if path.suffix == ".onnx":
        raise DataError(f"{word} is a network, not an image; the network comes first")
    raise DataError(f"{word} is neither a picture ({', '.join(PICTURES)}) nor an .npy file")


def sample_from(x: Any, limits: Any) -> Sample:
    """A word as ``read_sample`` takes it, an array, or a tensor, with ``limits`` in place of its
    own unless those are ``auto``. Raises ``DataError``."""
    if isinstance(x, str | Path):
        sample = read_sample(str(x))
    else:
        array = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
        sample = sample_of(array, "the input")
    if limits == "auto":
        return sample
    if limits is not None and not (
        limits[0] <= Fraction(float(sample.values.min()))
        and Fraction(float(sample.values.max())) <= limits[1]
    ):
        raise DataError(f"{sample.name} has values outside [{limits[0]}, {limits[1]}]")
    return replace(sample, limits=limits)


def sample_of(array: np.ndarray, name: str) -> Sample:
    """An array as it comes, with or without a batch axis of one. Raises ``DataError``."""
    if array.dtype.kind not in "fiub" or not array.size:
        raise DataError(f"{name} holds {array.dtype} of shape {array.shape}, which are no inputs")
    values = unit_pixels(array)
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinite values")
    is_unit = bool(values.min() >= 0 and values.max() <= 1)
    limits = UNIT if is_unit else None
    core = values[0] if values.ndim in (2, 4) and len(values) == 1 else values
    if core.ndim == 3:
        return Sample(name, _channels_first(core), limits, True)
    return Sample(name, core.reshape(1, 1, -1), limits, False)


def _channels_first(image: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` of a picture to ``[C, H, W]``; what has its channels in front stays."""
    if image.shape[0] not in (1, 3) and image.shape[2] in (1, 3):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    return image


def channels_as_wanted(values: np.ndarray, elements: int) -> np.ndarray:
    """A grey picture that was stored in colours, for a network of ``elements`` inputs that has one
    channel; and one of a single channel, for a network that takes three."""
    is_grey = len(values) == 3 and (values == values[:1]).all()
    if is_grey and values[:1].size == elements:
        return values[:1]
    is_single = len(values) == 1 and values.shape[1] > 1 and 3 * values.size == elements
    return np.repeat(values, 3, axis=0) if is_single else values
