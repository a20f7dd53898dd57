"""What TensorFlow computes for the AAAI 2021 networks: run by hand, with TensorFlow installed; it
is no dependency.

tensorflow_fake_quant.py FOLDER [IDX_FOLDER] > tests/data/quant/tensorflow_fake_quant.json

FOLDER holds the ``.h5`` files of the publication. The networks are run as their authors trained and
evaluated them: a float32 network in which inputs, weights, biases and activations pass
``fake_quant_with_min_max_args``, whose ranges are those of the fixed-point format (int6 weights in
units of 1/32, int6 biases and uint6 activations in units of 1/16, uint8 pixels in units of 1/256).
All sums fit into the 24 bits of a float32, so the order of summation does not matter.

Printed are SHA-256 sums of the integers behind the hidden activations (uint8) and outputs (int8) on
2,000 inputs: the images stored with the suite and noisy copies of them (``oracle_inputs``), and,
with IDX_FOLDER, the first 2,000 images of each test set.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 2000
SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "qnn_robustness"
FILES = {"mnist": "mnist", "fashion-mnist": "fashion"}


def oracle_inputs(dataset: str) -> np.ndarray:
    """[2000, 784] uint8: the stored images, then copies with noise of every size."""
    with np.load(SUITE / "samples.npz", allow_pickle=False) as file:
        images = file[f"{dataset}_images"].astype(np.int64)
    rng = np.random.default_rng(2021)
    copies = images[rng.integers(len(images), size=COUNT - len(images))]
    reach = rng.integers(1, 256, size=(len(copies), 1))
    noisy = copies + np.floor((2 * rng.random(copies.shape) - 1) * reach).astype(np.int64)
    return np.concatenate([images, np.clip(noisy, 0, 255)]).astype(np.uint8)


def sha256(integers: np.ndarray, dtype: type) -> str:
    """Of the integers as ``dtype``, in C order."""
    packed = integers.astype(dtype)
    assert (packed == integers).all()
    return hashlib.sha256(np.ascontiguousarray(packed).tobytes()).hexdigest()


def layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(kernel, bias) of every dense layer, in the order of the file's ``layer_names``."""
    import h5py

    found = []
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        for layer in root.attrs["layer_names"]:
            names = [
                name.decode() if isinstance(name, bytes) else name
                for name in root[layer].attrs["weight_names"]
            ]
            if names:
                kernel, bias = sorted(names, key=lambda name: "bias" in name)
                found.append((root[layer][kernel][()], root[layer][bias][()]))
    return found


def forward(
    weights: list[tuple[np.ndarray, np.ndarray]], pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(hidden [B, 64], outputs [B, 32]) as integers of unit 1/16."""
    import tensorflow as tf

    def fake_quant(x: Any, low: float, high: float, bits: int) -> Any:
        return tf.quantization.fake_quant_with_min_max_args(x, min=low, max=high, num_bits=bits)

    x = fake_quant(tf.constant(pixels.astype(np.float32) / 256), 0.0, 1 - 1 / 256, 8)
    values = []
    for number, (kernel, bias) in enumerate(weights):
        w = fake_quant(tf.constant(kernel), -1.0, 1 - 1 / 32, 6)
        b = fake_quant(tf.constant(bias), -2.0, 2 - 1 / 16, 6)
        is_last = number == len(weights) - 1
        sums = tf.matmul(x, w) + b
        x = (
            fake_quant(sums, -2.0, 2 - 1 / 16, 6)
            if is_last
            else fake_quant(tf.nn.relu(sums), 0.0, 4 - 1 / 16, 6)
        )
        values.append(x.numpy() * 16)
    hidden, outputs = values
    return hidden, outputs


def main() -> None:
    import tensorflow as tf

    folder, idx = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    found: dict[str, Any] = {"tensorflow": tf.__version__, "count": COUNT}
    for dataset, stem in FILES.items():
        inputs = {"stored and noisy": oracle_inputs(dataset)}
        if idx is not None:
            content = gzip.decompress((idx / f"{stem}-t10k-images-idx3-ubyte.gz").read_bytes())
            inputs["test set"] = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)[
                :COUNT
            ]
        weights = layers(folder / f"{dataset}_mlp.h5")
        for name, pixels in inputs.items():
            hidden, outputs = forward(weights, pixels)
            sums = {"inputs": sha256(pixels, np.uint8), "hidden": sha256(hidden, np.uint8)}
            found.setdefault(dataset, {})[name] = {**sums, "outputs": sha256(outputs, np.int8)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
