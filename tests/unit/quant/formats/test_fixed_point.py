"""The .h5 reader: a hand-computed network, the widths in a file name, and one sentence for every
bad file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bitcrown.quant.formats.fixed_point import fixed_point, read_h5
from bitcrown.quant.network.graph import QuantError


def write(path: Path, layers: list[tuple[Any, Any]], prefix: str = "") -> Path:
    with h5py.File(path, "w") as file:
        names = [f"dense_{k}" for k in range(len(layers))]
        file.attrs["layer_names"] = np.array([*names, "flatten"], dtype="S")
        file.create_group("flatten").attrs["weight_names"] = np.array([], dtype=np.float64)
        for name, (kernel, bias) in zip(names, layers, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{prefix}{name}/kernel:0", f"{prefix}{name}/bias:0"]
            group[f"{prefix}{name}/kernel:0"] = np.asarray(kernel)
            group[f"{prefix}{name}/bias:0"] = np.asarray(bias)
    return path


def single(*values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_weights_are_clamped_and_rounded_halves_away_from_zero() -> None:
    values = single(-1.5, -1.0, -0.5 / 32, -1.5 / 32, 0.49 / 32, 0.5 / 32, 1.5 / 32, 0.999, 7.0)
    assert fixed_point(values, 6, 5).tolist() == [-32, -32, -1, -2, 0, 1, 2, 31, 31]


def test_two_layers_follow_the_published_arithmetic(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    layers = [
        (
            random.normal(size=(n, m)).astype(np.float32) / 2,
            random.normal(size=m).astype(np.float32),
        )
        for n, m in ((9, 6), (6, 4))
    ]
    network = read_h5(write(tmp_path / "net.h5", layers, "model/"))
    x = random.integers(0, 256, (200, 9))
    (w1, b1), (w2, b2) = ((fixed_point(w, 6, 5), fixed_point(b, 6, 4)) for w, b in layers)
    hidden = np.clip((x @ w1 + 512 * b1 + 256) >> 9, 0, 63)
    assert (network.evaluate(x) == np.clip((hidden @ w2 + 32 * b2 + 16) >> 5, -32, 31)).all()
    assert network.is_exact() and network.facts["layers"] == "9-6-4"


def test_widths_come_from_the_file_name(tmp_path: Path) -> None:
    layers = [(np.full((2, 3), 0.3, np.float32), np.zeros(3, np.float32))] * 1
    network = read_h5(write(tmp_path / "qu_mnist_in_4_qu_10.h5", layers))
    assert network.nodes[0].high.tolist() == [15, 15]  # type: ignore[union-attr]
    # 0.3 is 154 of 512; two inputs of 15: 4620 of 2^13, or 144.4 of 2^8
    assert network.evaluate(np.full((1, 2), 15)).tolist() == [[144, 144, 144]]
    assert len(network.exit.values[0]) == 1024


def bad_files() -> dict[str, tuple[Any, str]]:
    good = (np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    return {
        "infinite": ([(single([np.inf, 0]), single(0, 0))], "not finite"),
        "vector": ([(single(0, 1), single(0))], "kernel of shape"),
        "bias": ([(good[0], single(0))], "bias of"),
        "chain": (
            [good, (np.zeros((4, 2), np.float32), np.zeros(2, np.float32))],
            "takes 4 inputs, but gets 3",
        ),
        "integers": ([(np.zeros((2, 3), np.int32), good[1])], "not an array of floats"),
        "empty": ([], "no layer with a kernel"),
    }


@pytest.mark.parametrize("case", sorted(bad_files()))
def test_unusable_weights_are_named_in_one_sentence(tmp_path: Path, case: str) -> None:
    layers, message = bad_files()[case]
    with pytest.raises(QuantError, match=message) as caught:
        read_h5(write(tmp_path / "net.h5", layers))
    assert "\n" not in str(caught.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    with pytest.raises(QuantError, match="cannot be read"):
        read_h5(path)
    path.write_bytes(b"PK\x03\x04 not hdf5")
    with pytest.raises(QuantError, match="not an .h5 file"):
        read_h5(path)
    whole = write(
        tmp_path / "whole.h5", [(np.ones((20, 30), np.float32), np.ones(30, np.float32))]
    ).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(QuantError, match="cannot be read"):
        read_h5(path)
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(QuantError, match="layer_names"):
        read_h5(path)
    with pytest.raises(QuantError, match="bits"):
        read_h5(path, bits=40)


def test_links_into_other_files_are_not_followed(tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5", [(np.ones((2, 3), np.float32), np.ones(3, np.float32))])
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["dense_0"]
        file["dense_0"] = h5py.ExternalLink(str(other), "/dense_0")
    with pytest.raises(QuantError, match="missing or a link"):
        read_h5(path)
