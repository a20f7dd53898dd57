"""``STFT`` with a known window, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import run_graph

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.onnx_reader import read_graph


def saved(path: Path, shape: list[int], constants: dict[str, np.ndarray], onesided: int) -> Path:
    names = [name if name in constants else "" for name in ("step", "window", "length")]
    node = helper.make_node("STFT", ["x", *names], ["y"], onesided=onesided)
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", shape), ("y", None))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(("size", "step"), [(4, 2), (5, 3), (8, 8)])
@pytest.mark.parametrize("given", ["window", "length", "both"])
def test_as_onnxruntime_has_it(
    given: str, size: int, step: int, onesided: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(size)
    known = {"step": np.array(step)}
    if given != "length":
        known["window"] = random.uniform(0.1, 1, size).astype(np.float32)
    if given != "window":
        known["length"] = np.array(size)
    path = saved(tmp_path / "s.onnx", [2, 11, 1], known, onesided)
    x = random.normal(size=(2, 11, 1)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    (found,) = run_graph(read_graph(path), {"x": x})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "size", "error", "sentence"),
    [([1, 8, 2], 4, UnsupportedError, "signal"), ([1, 8, 1], 9, ModelError, "frames")],
)
def test_what_has_no_rule(
    shape: list[int], size: int, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    known = {"step": np.array(2), "window": np.ones(size, np.float32)}
    with pytest.raises(error, match=sentence):
        read_graph(saved(tmp_path / "s.onnx", shape, known, 0))


def test_its_rounding_is_not_known(tmp_path: Path) -> None:
    known = {"step": np.array(2), "window": np.ones(4, np.float32)}
    path = saved(tmp_path / "s.onnx", [1, 8, 1], known, 1)
    with pytest.raises(UnsupportedError, match="STFT"):
        read_graph(path, "runtime")
