"""Makes ``networks/*.onnx`` from the benchmark's weight files: make_networks.py FOLDER_OF_H5_FILES.

The integer form is exact: every output integer equals that of the fixed-point network in the
``.h5`` file (see ``bitcrown.quant.formats.fixed_point``
written, both are compared on 20,000 random inputs and on every stored image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from integer_onnx import export_onnx
from samples import DATASETS, HERE, read_samples

from bitcrown.quant.formats.fixed_point import read_h5
from bitcrown.quant.formats.onnx_file import read_onnx

RANDOM_INPUTS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description="networks/*.onnx from the .h5 files of the AAAI 2021 benchmark"
    )
    parser.add_argument(
        "folder", type=Path, help="folder with mnist_mlp.h5 and fashion-mnist_mlp.h5"
    )
    folder = parser.parse_args().folder
    target_folder = HERE / "networks"
    target_folder.mkdir(exist_ok=True)
    for dataset in DATASETS:
        network = read_h5(folder / f"{dataset}_mlp.h5")
        target = target_folder / f"{dataset}_mlp.onnx"
        onnx.save(export_onnx(network), target)
        inputs = np.random.default_rng(0).integers(0, 256, (RANDOM_INPUTS, 784))
        inputs = np.concatenate([inputs, read_samples(dataset).images])
        if (read_onnx(target).evaluate(inputs) != network.evaluate(inputs)).any():
            target.unlink()
            raise SystemExit(
                f"{target}: the integer form computes something else than the .h5 file"
            )
        print(f"{target}: {target.stat().st_size} bytes, equal on {len(inputs)} inputs")


if __name__ == "__main__":
    main()
