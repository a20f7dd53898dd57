"""The images, the networks and the published verdicts of the AAAI 2021 benchmark, as the scripts
here use them.

A query asks whether every input within ``eps`` (L-infinity, in pixel steps of 1/256, clipped to
0..255) of a test image gets the image's label, where the label is the first index of the largest of
all 32 outputs. Legend: ``S`` samples.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bitcrown.errors import DataError, PropertyError
from bitcrown.evaluation.data.image_files import read_idx
from bitcrown.files import find_file
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import IntegerNetwork

HERE = Path(__file__).resolve().parent
DATASETS = ("mnist", "fashion-mnist")
MISCLASSIFIED, ROBUST, VULNERABLE, TIMEOUT = "misclassified", "robust", "vulnerable", "timeout"
_PREFIX = {"mnist": "mnist-t10k", "fashion-mnist": "fashion-t10k"}
VERDICTS = (MISCLASSIFIED, TIMEOUT, VULNERABLE, ROBUST)


@dataclass(frozen=True, slots=True)
class Query:
    """One row of ``published.csv``; ``published`` is one of ``VERDICTS``, or "" for a query that is
    not published."""

    dataset: str
    sample_id: int
    eps: int
    published: str = ""


def published(dataset: str) -> list[Query]:
    """The published queries of a data set, in the order of the test set."""
    with (HERE / "published.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    return [
        Query(dataset, int(row["sample_id"]), int(row["eps"]), row["published"]) for row in rows
    ]


@dataclass(frozen=True)
class Samples:
    """``ids``: [S], numbers in the test set; ``images``: [S, 784] of 0..255; ``labels``: [S]."""

    dataset: str
    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def sample(self, sample_id: int) -> tuple[np.ndarray, int]:
        """(image [784], label). Raises ``PropertyError`` for an image that is not stored here."""
        place = np.nonzero(self.ids == sample_id)[0]
        if not len(place):
            raise PropertyError(
                f"test image {sample_id} of {self.dataset} is not stored with this suite; "
                f"stored are the images of the published queries: {ranges(self.ids)}; give the "
                "folder of the whole test set with --images"
            )
        return self.images[place[0]].astype(np.int64), int(self.labels[place[0]])


def ranges(ids: np.ndarray) -> str:
    """``0-249, 300-349``."""
    runs = np.split(ids, np.nonzero(np.diff(ids) != 1)[0] + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" for run in runs)


def read_test_set(folder: Path, dataset: str) -> Samples:
    """The whole test set from the idx files in ``folder``. Raises ``DataError``."""
    prefix = _PREFIX[dataset]
    places = (folder / prefix, folder / dataset / "t10k", folder / "t10k")
    for place in places:
        images, labels = (
            find_file(place.with_name(f"{place.name}-{kind}-ubyte"))
            for kind in ("images-idx3", "labels-idx1")
        )
        if images is not None and labels is not None:
            pixels = read_idx(images)
            ids = np.arange(len(pixels))
            return Samples(dataset, ids, pixels.reshape(len(ids), -1), read_idx(labels))
    raise DataError(
        f"{folder} holds no test images of {dataset}: {prefix}-images-idx3-ubyte (or "
        f"{dataset}/t10k-images-idx3-ubyte), plain or .gz, with the labels beside it"
    )


def read_samples(dataset: str) -> Samples:
    with np.load(HERE / "samples.npz", allow_pickle=False) as file:
        return Samples(
            dataset, *(file[f"{dataset}_{name}"] for name in ("ids", "images", "labels"))
        )


@dataclass(frozen=True)
class Benchmark:
    """A data set with its network in integers."""

    dataset: str
    samples: Samples
    network: IntegerNetwork

    @classmethod
    def of(cls, dataset: str, images: Path | None = None) -> Benchmark:
        """With the images that are stored here, or all of the test set in the folder ``images``."""
        samples = read_samples(dataset) if images is None else read_test_set(images, dataset)
        return cls(dataset, samples, read_onnx(network_path(dataset)))

    @cached_property
    def program(self) -> Program:
        """What queries on one network share."""
        return Program(self.network)

    def accuracy(self) -> tuple[int, int]:
        """How many of the images are labelled right, and how many there are."""
        outputs = self.network.evaluate(self.samples.images.astype(np.int64))
        return int((outputs.argmax(axis=1) == self.samples.labels).sum()), len(outputs)

    def predicted(self, image: np.ndarray) -> int:
        """The label that the network gives to ``image`` [784]: the first index of the largest
        output."""
        return int(self.network.evaluate(image[None])[0].argmax())


def network_path(dataset: str) -> Path:
    return HERE / "networks" / f"{dataset}_mlp.onnx"
