"""Every layout of labelled images reads back what was written; a CIFAR pickle that is a program is
refused unread."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitcrown.errors import DataError
from bitcrown.evaluation.data.sets import ImageSet, centre_crop, read_images, unit_pixels


def levels(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    extents = b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return bytes([0, 0, 8, array.ndim]) + extents + array.tobytes()


def check(found: ImageSet, images: np.ndarray, labels: np.ndarray) -> None:
    assert found.images.dtype == np.float32 and found.labels.dtype == np.int64
    np.testing.assert_array_equal(
        found.images, (images.astype(np.float64) / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(found.labels, labels)


def test_pixels_are_the_nearest_float32_of_level_over_255() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(unit_pixels(every), (np.arange(256) / 255.0).astype(np.float32))


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    images, labels = levels(5, (4, 3)), np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    for name, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        (tmp_path / (name + ".gz" if packed else name)).write_bytes(
            gzip.compress(data) if packed else data
        )
    check(read_images(tmp_path, first=3), images[:3, None], labels[:3])
    file = next(tmp_path.glob("t10k-images*"))
    check(read_images(file), images[:, None], labels)


def test_idx_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(levels(5, (4, 3)))[:-1])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(DataError, match="ends early"):
        read_images(tmp_path)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (3, 4, 5)])
def test_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images, labels = levels(4, shape), np.arange(4)
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    expected = (
        images[:, None]
        if len(shape) == 2
        else images.transpose(0, 3, 1, 2)
        if shape[2] == 3
        else images
    )
    check(read_images(tmp_path / "a.npz"), expected, labels)


def test_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([object()], dtype=object), y=np.zeros(1))
    with pytest.raises(DataError):
        read_images(tmp_path / "a.npz")


def test_contact_sheet(tmp_path: Path) -> None:
    images, labels = levels(150, (3, 4, 2)), np.arange(150) % 7
    sheet = np.zeros((2 * 4, 100 * 2, 3), dtype=np.uint8)
    for k in range(150):
        row, column = divmod(k, 100)
        sheet[4 * row : 4 * row + 4, 2 * column : 2 * column + 2] = images[k].transpose(1, 2, 0)
    Image.fromarray(sheet).save(tmp_path / "sheet.png")
    np.save(tmp_path / "sheet.labels.npy", labels.astype(np.uint8))
    check(read_images(tmp_path / "sheet.png", first=120), images[:120], labels[:120])


def test_class_folders_are_read_in_sorted_order(tmp_path: Path) -> None:
    images = levels(4, (3, 6, 6))
    for name, k in (("b/x_1.png", 2), ("b/x_10.png", 3), ("a/2.png", 1), ("a/1.png", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[k].transpose(1, 2, 0)).save(tmp_path / name)
    check(read_images(tmp_path), images[[0, 1, 2, 3]], np.array([0, 0, 1, 1]))


def test_cifar_binary_and_its_fine_labels(tmp_path: Path) -> None:
    images, labels = levels(3, (3, 32, 32)), np.array([7, 99, 0], dtype=np.uint8)
    record = np.concatenate(
        [np.full((3, 1), 5, np.uint8), labels[:, None], images.reshape(3, -1)], axis=1
    )
    (tmp_path / "test.bin").write_bytes(record.tobytes())
    check(read_images(tmp_path, first=2), images[:2], labels[:2])
    (tmp_path / "test_batch.bin").write_bytes(record[:, 1:].tobytes())
    check(read_images(tmp_path / "test_batch.bin"), images, labels)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_python(tmp_path: Path, protocol: int) -> None:
    images, labels = levels(3, (3, 32, 32)), [7, 9, 0]
    batch = {
        "data": images.reshape(3, -1),
        "labels": labels,
        "filenames": ["a", "b", "c"],
        "batch_label": "x",
    }
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    check(read_images(tmp_path), images, np.array(labels))


class Program:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_program_is_not_run(tmp_path: Path, protocol: int) -> None:
    batch = {"data": Program(tmp_path / "made"), "labels": [1]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError):
        read_images(tmp_path)
    assert not (tmp_path / "made").exists()


def test_centre_crop_keeps_rows_4_to_59_of_64() -> None:
    images = np.arange(64 * 64, dtype=np.float32).reshape(1, 1, 64, 64)
    np.testing.assert_array_equal(centre_crop(images, 56), images[:, :, 4:60, 4:60])


def test_what_does_not_exist_or_fit_is_one_sentence(tmp_path: Path) -> None:
    for make in (lambda: None, lambda: (tmp_path / "x").write_text("hello")):
        make()
        with pytest.raises(DataError):
            read_images(tmp_path / "x")
    with pytest.raises(DataError, match="labels"):
        ImageSet("a", np.zeros((2, 1, 2, 2), np.float32), np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        ImageSet("a", np.full((1, 1, 2, 2), 2, np.float32), np.zeros(1, np.int64))
