"""Whole networks of the zoo against TensorFlow: built there, saved by its Saver, loaded here, the
same logits.

TensorFlow is no dependency: these tests run where ``BITCROWN_TENSORFLOW_PYTHON`` names a Python
that has it (its import alone takes seconds, so they are marked slow). The default tests read a
small file that TensorFlow once wrote.
"""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from bitcrown.zoo.checkpoint import open_checkpoint
from bitcrown.zoo.networks import PLANS, ZooNetwork, ZooPlan, ZooStage
from bitcrown.zoo.weights import load_weights

TENSORFLOW = os.environ.get("BITCROWN_TENSORFLOW_PYTHON", "")
SCRIPT = Path(__file__).with_name("write_tf1_checkpoint.py")
NETWORKS = {**PLANS, "tiny": ZooPlan((ZooStage(2, ("",)), ZooStage(4, ("_0",), plain=True)))}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not TENSORFLOW, reason="BITCROWN_TENSORFLOW_PYTHON names no Python with TensorFlow"
    ),
]


def by_tensorflow(name: str, folder: Path, *options: str) -> None:
    command = [TENSORFLOW, str(SCRIPT), name, str(folder), *options]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    for variable in ("PYTHONPATH", "PYTHONHOME"):
        quiet.pop(variable, None)
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_logits_are_tensorflows(name: str, tmp_path: Path) -> None:
    by_tensorflow(
        name, tmp_path, "--images", "3", "--size", "16" if name == "tiny" else "32", "--seed", "11"
    )
    network = ZooNetwork(NETWORKS[name]).eval()
    assert load_weights(network, tmp_path / name) == ()
    kept = {
        key: torch.from_numpy(value)
        for key, value in np.load(tmp_path / f"{name}.logits.npz").items()
    }
    x = kept["images"].permute(0, 3, 1, 2).contiguous()
    plain = network.with_plan(quantized=False)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), kept["plain_float32"], rtol=1e-4, atol=1e-4)
        for model, kind in ((plain, "plain_float64"), (network, "quantized_float64")):
            found = copy.deepcopy(model).double()(x.double())
            torch.testing.assert_close(found, kept[kind], rtol=1e-9, atol=1e-9)
        # In float32 rounding moves whole steps of the staircase: TensorFlow itself is this far from
        # its float64.
        own = (kept["quantized_float32"] - kept["quantized_float64"]).abs().max().item()
        mine = (network(x) - kept["quantized_float64"]).abs().max().item()
    assert mine <= 10 * own + 1e-4


def test_every_variable_is_read_bit_for_bit(tmp_path: Path) -> None:
    by_tensorflow("small", tmp_path)
    names = (
        "import sys, numpy, tensorflow as tf; r = tf.train.load_checkpoint(sys.argv[1]); "
        "numpy.savez(sys.argv[2], "
    )
    names += "**{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})"
    command = [TENSORFLOW, "-c", names, str(tmp_path / "small"), str(tmp_path / "theirs.npz")]
    subprocess.run(command, capture_output=True, check=True)
    theirs = np.load(tmp_path / "theirs.npz")
    checkpoint = open_checkpoint(tmp_path / "small")
    assert sorted(theirs.files) == sorted(checkpoint.entries)
    for name in theirs.files:
        assert np.array_equal(checkpoint.read(name), theirs[name])
