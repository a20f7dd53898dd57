"""Images as idx files, npz archives, contact sheets and folders of classes; see ``data`` for what a
path may be.

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitcrown.archives import read_array, read_arrays
from bitcrown.errors import DataError
from bitcrown.files import UNREADABLE, find_file, unpacking

if TYPE_CHECKING:
    from PIL.Image import Image

_Levels = tuple[np.ndarray, np.ndarray]
_MAX_BYTES = 4 << 30
_TILES_A_ROW = 100
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
_NPZ_KEYS = (("x", "y"), ("images", "labels"), ("X", "y"), ("data", "labels"))


def read_image_files(path: Path, first: int | None, train: bool) -> _Levels | None:
    """Levels ``[B, C, H, W]`` and labels ``[B]``, or None where ``path`` is of no such kind."""
    if path.is_dir():
        found = _idx_in(path, train)
        return _class_folders(path, first, train) if found is None else _idx_pair(found, first)
    if path.suffix == ".npz":
        return _npz(path, first, train)
    if "-idx3-ubyte" in path.name or "-idx4-ubyte" in path.name or ".idx3-ubyte" in path.name:
        return _idx_pair(path, first)
    if path.suffix in PICTURES:
        return _contact_sheet(path, first)
    return None


# -- idx -------------------------------------------------------------------------------------------


def _idx_in(folder: Path, train: bool) -> Path | None:
    prefix = "train" if train else "t10k"
    found = sorted(folder.glob(f"{prefix}-images-idx3-ubyte*")) + sorted(
        folder.glob(f"{prefix}-images.idx3-ubyte*")
    )
    return found[0] if found else None


def _idx_pair(path: Path, first: int | None) -> _Levels:
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    plain = name.removesuffix(".gz")
    labels = find_file(path.with_name(plain))
    if labels is None or labels == path:
        raise DataError(
            f"the labels of {path} are missing: expected {plain} (or {plain}.gz) beside it"
        )
    images = read_idx(path, first)
    if images.ndim == 3:
        images = images[:, None]
    return images, read_idx(labels, first)


def read_idx(path: Path, first: int | None = None) -> np.ndarray:
    """The ``first`` entries of an idx array: ``0 0 8 rank``, extents big-endian, bytes."""
    try:
        with unpacking(path) as stream:
            magic = stream.read(4)
            if len(magic) != 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise DataError(f"{path} is no idx file of unsigned bytes")
            extents = [int.from_bytes(stream.read(4), "big") for _ in range(magic[3])]
            if first is not None:
                extents[0] = min(extents[0], first)
            size = prod(extents)
            if size > _MAX_BYTES:
                raise DataError(f"{path} claims {size} bytes, more than can be read")
            data = stream.read(size)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        raise DataError(f"{path} ends early: {len(data)} bytes of {size}")
    return np.frombuffer(data, dtype=np.uint8).reshape(extents)


# -- npz -------------------------------------------------------------------------------------------


def _npz(path: Path, first: int | None, train: bool) -> _Levels:
    part = "train" if train else "test"
    arrays = read_arrays(path)
    for keys in (*((f"{x}_{part}", f"{y}_{part}") for x, y in _NPZ_KEYS), *_NPZ_KEYS):
        if all(key in arrays for key in keys):
            images, labels = arrays[keys[0]], arrays[keys[1]]
            if not labels.ndim or labels.size != len(labels):
                raise DataError(f"{path}: labels of shape {labels.shape} are no list of numbers")
            return _channels_first(images[:first] if images.ndim else images, path), labels.reshape(
                -1
            )[:first]
    raise DataError(
        f"{path} needs arrays x and y (or images and labels), but has {', '.join(arrays)}"
    )


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    """``[B, H, W]`` or ``[B, H, W, C]`` to ``[B, C, H, W]``; the channels are 1 or 3."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DataError(f"{path}: images of shape {images.shape} have no axis of 1 or 3 channels")


# -- pictures --------------------------------------------------------------------------------------


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)
        picture.load()
    except (
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        SyntaxError,
        ValueError,
    ) as error:
        raise DataError(f"{path} is no picture that can be read: {error}") from error
    return picture


def read_picture(path: Path) -> np.ndarray:
    """Levels ``[C, H, W]`` (uint8) of one picture. Raises ``DataError``."""
    return _pixels(_open(path))


def _pixels(picture: Image) -> np.ndarray:
    """``[C, H, W]`` uint8: grey stays grey, everything else becomes RGB."""
    if picture.mode in ("L", "1"):
        return np.asarray(picture.convert("L"))[None]
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def _contact_sheet(path: Path, first: int | None) -> _Levels | None:
    labels_file = path.with_name(path.stem + ".labels.npy")
    if not labels_file.is_file():
        return None
    labels = read_array(labels_file)
    sheet = _pixels(_open(path))
    rows = -(-labels.size // _TILES_A_ROW)
    if labels.ndim != 1 or not rows or sheet.shape[1] % rows or sheet.shape[2] % _TILES_A_ROW:
        raise DataError(f"{path} is no sheet of {labels.size} equal tiles, {_TILES_A_ROW} a row")
    channels, height, width = sheet.shape[0], sheet.shape[1] // rows, sheet.shape[2] // _TILES_A_ROW
    tiles = sheet.reshape(channels, rows, height, _TILES_A_ROW, width).transpose(1, 3, 0, 2, 4)
    tiles = tiles.reshape(-1, channels, height, width)[: len(labels)]
    return np.ascontiguousarray(tiles[:first]), labels[:first]


def _class_folders(folder: Path, first: int | None, train: bool) -> _Levels | None:
    """``CLASS/**/*.png``, sorted by class, then path."""
    folder = _part(folder, train)
    files: list[tuple[Path, int]] = []
    for number, name in class_numbers(folder):
        pictures = sorted(
            file for file in (folder / name).rglob("*") if file.suffix.lower() in PICTURES
        )
        files += [(file, number) for file in pictures]
    if not files:
        return None
    files = files[:first]
    pixels = _same_channels([_pixels(_open(file)) for file, _ in files])
    if len({picture.shape for picture in pixels}) != 1:
        raise DataError(f"the pictures in {folder} differ in size")
    return np.stack(pixels), np.array([number for _, number in files])


def _part(folder: Path, train: bool) -> Path:
    """The folder of the part that is wanted, where ``folder`` holds both."""
    part = folder / ("train" if train else "val")
    others = () if train else (folder / "test",)
    return next((place for place in (part, *others) if place.is_dir()), folder)


def named_classes(path: Path, train: bool) -> tuple[str, ...]:
    """The names behind the numbers of ``path``, where those are ranks of names of folders."""
    if not path.is_dir() or _idx_in(path, train) is not None:
        return ()
    names = [name for _, name in class_numbers(_part(path, train))]
    return () if all(name.isdigit() for name in names) else tuple(names)


def class_numbers(folder: Path) -> list[tuple[int, str]]:
    """The label of every class folder, in order: its name where that is a number, else its rank
    among the names. Raises ``DataError`` where some are numbers and some not, or two the same."""
    names = sorted(place.name for place in folder.iterdir() if place.is_dir())
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    if numbers and len(numbers) < len(names):
        odd = next(name for name in names if not (name.isascii() and name.isdigit()))
        raise DataError(
            f"the folders in {folder} are labels if their names are numbers, but {odd!r} is none; "
            "give all of them numbers, or all of them words"
        )
    if len(set(numbers)) < len(numbers):
        raise DataError(f"two folders in {folder} have the same number as their name")
    return sorted(zip(numbers, names, strict=True)) if numbers else list(enumerate(names))


def _same_channels(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Grey pictures among coloured ones are given three equal channels."""
    channels = max(picture.shape[0] for picture in pictures)
    return [
        np.repeat(picture, channels, axis=0) if len(picture) < channels else picture
        for picture in pictures
    ]
