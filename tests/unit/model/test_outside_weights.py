"""Weights in files beside the model: read by prover and replay alike, and only from there."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.model_files import unpacked_model
from bitcrown.check.replay import open_session
from bitcrown.errors import ModelError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.outside import with_outside_weights

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
OFFSET = 64


def outside(location: str, offset: int = OFFSET, length: int = WEIGHT.nbytes) -> TensorProto:
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(tensor: TensorProto, in_constant: bool) -> bytes:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if in_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3]),
    ]
    stored = [] if in_constant else [tensor]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


def written(folder: Path, content: bytes, location: str, packed: bool = False) -> Path:
    data = folder / location
    data.parent.mkdir(exist_ok=True)
    data.write_bytes(b"\xff" * OFFSET + WEIGHT.tobytes() + b"\xff")
    path = folder / ("net.onnx.gz" if packed else "net.onnx")
    path.write_bytes(gzip.compress(content) if packed else content)
    return folder / "net.onnx"


@pytest.mark.parametrize("in_constant", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("location", ["net.onnx.data", "inner/weights"])
def test_weights_beside_the_model_are_read(
    tmp_path: Path, in_constant: bool, packed: bool, location: str
) -> None:
    path = written(tmp_path, model(outside(location), in_constant), location, packed)
    file = NetworkFile(path)
    graph = read_graph(file)
    assert crosscheck(graph, file, seed=0) < 1e-6
    replayed = open_session(unpacked_model(path), path).run(
        None, {"x": np.array([[1, 2]], dtype=np.float32)}
    )
    np.testing.assert_array_equal(replayed[0], [[6, 9, 12]])
    # What a certificate calls the network must be the same on both sides.
    assert file.digest == hashlib.sha256(unpacked_model(path)).hexdigest()


def _upwards(folder: Path) -> str:
    (folder.parent / "secret").write_bytes(b"\0" * 200)
    return "../secret"


def _absolute(folder: Path) -> str:
    (folder / "secret").write_bytes(b"\0" * 200)
    return str(folder / "secret")


def _linked(folder: Path) -> str:
    (folder.parent / "secret").write_bytes(b"\0" * 200)
    (folder / "link").symlink_to(folder.parent / "secret")
    return "link"


def _behind_a_link(folder: Path) -> str:
    (folder.parent / "far").mkdir()
    (folder.parent / "far" / "secret").write_bytes(b"\0" * 200)
    (folder / "near").symlink_to(folder.parent / "far")
    return "near/secret"


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def _short(folder: Path) -> str:
    (folder / "short").write_bytes(b"\0" * (OFFSET + WEIGHT.nbytes - 1))
    return "short"


PLACES = (_upwards, _absolute, _linked, _behind_a_link, _pipe, _short, lambda folder: "missing")


@pytest.mark.parametrize("place", PLACES)
def test_nothing_else_is_opened(tmp_path: Path, place: Callable[[Path], str]) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "net.onnx"
    path.write_bytes(model(outside(place(folder)), in_constant=False))
    with pytest.raises(ModelError, match="another file"):
        read_graph(path)
    with pytest.raises(ModelError, match="another file"):
        unpacked_model(path)


@pytest.mark.parametrize("numbers", [(-1, 24), (0, -24), (1 << 70, 24), (0, 1 << 70), (0, 23)])
def test_sizes_are_checked(tmp_path: Path, numbers: tuple[int, int]) -> None:
    path = written(tmp_path, model(outside("data", *numbers), in_constant=False), "data")
    with pytest.raises(ModelError):
        read_graph(path)
    with pytest.raises(ModelError):
        open_session(unpacked_model(path), path)


def test_all_of_them_together_are_bounded(tmp_path: Path) -> None:
    content = model(outside("data"), in_constant=False)
    path = written(tmp_path, content, "data")
    assert WEIGHT.tobytes() in with_outside_weights(content, path, len(content) + WEIGHT.nbytes)
    with pytest.raises(ModelError, match="more than"):
        with_outside_weights(content, path, len(content) + WEIGHT.nbytes - 1)


def test_a_model_without_them_is_not_touched(tmp_path: Path) -> None:
    content = model(numpy_helper.from_array(WEIGHT, "location"), in_constant=False)
    assert with_outside_weights(content, tmp_path / "net.onnx", 1 << 20) == content
    assert onnx.ModelProto.FromString(content).graph.node
