"""The integers of the benchmark networks against numbers that TensorFlow computed
(``tensorflow_fake_quant.py``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import IntegerNetwork
from tests.oracles.tensorflow_fake_quant import COUNT, SUITE, oracle_inputs, sha256

STORED = json.loads(
    (Path(__file__).parents[1] / "data" / "quant" / "tensorflow_fake_quant.json").read_text()
)


def read(dataset: str) -> IntegerNetwork:
    return read_onnx(SUITE / "networks" / f"{dataset}_mlp.onnx")


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_every_integer_is_what_tensorflow_computed(dataset: str) -> None:
    pixels, stored = oracle_inputs(dataset), STORED[dataset]["stored and noisy"]
    assert pixels.shape == (COUNT, 784) and sha256(pixels, np.uint8) == stored["inputs"]
    network = read(dataset)
    values = network.values(pixels.astype(np.int64))
    hidden = [value for value in values[1 : network.output] if value.shape[1] == 64]
    assert sha256(hidden[-1], np.uint8) == stored["hidden"]
    assert sha256(values[network.output], np.int8) == stored["outputs"]


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_one_changed_integer_is_seen(dataset: str) -> None:
    network, pixels = read(dataset), oracle_inputs(dataset)
    outputs = network.evaluate(pixels.astype(np.int64))
    outputs[1234, 5] ^= 1
    assert sha256(outputs, np.int8) != STORED[dataset]["stored and noisy"]["outputs"]
