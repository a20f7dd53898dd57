"""Makes ``samples.npz`` from the test sets of MNIST and Fashion-MNIST in their idx format:
make_samples.py FOLDER.

The images are those of the 700 published queries: MNIST 0-399, Fashion-MNIST 0-199, 200-249 and
300-349.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from samples import DATASETS, HERE, published

FILES = {"mnist": "mnist-t10k", "fashion-mnist": "fashion-t10k"}


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of a gzipped idx file after its ``header`` bytes."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def main() -> None:
    parser = argparse.ArgumentParser(description="samples.npz from idx files")
    parser.add_argument(
        "folder",
        type=Path,
        help="folder with {mnist,fashion}-t10k-{images-idx3,labels-idx1}-ubyte.gz",
    )
    folder = parser.parse_args().folder
    arrays: dict[str, Any] = {}  # (numpy's own flag shares the name space of the arrays)
    for dataset in DATASETS:
        ids = np.array([query.sample_id for query in published(dataset)], dtype=np.int32)
        stem = FILES[dataset]
        arrays[f"{dataset}_ids"] = ids
        arrays[f"{dataset}_images"] = read_idx(folder / f"{stem}-images-idx3-ubyte.gz", 16).reshape(
            -1, 784
        )[ids]
        arrays[f"{dataset}_labels"] = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 8)[ids]
    np.savez_compressed(HERE / "samples.npz", **arrays)


if __name__ == "__main__":
    main()
