"""Free extents of a file's input take the shape that is asked for; fixed ones stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile
from bitcrown.model.input_shape import free_extents, image_extents, with_input_shape

Extents = list[int | str]


def saved(path: Path, extents: Extents) -> NetworkFile:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, extents)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, extents)],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return NetworkFile(path)


@pytest.mark.parametrize(
    ("extents", "order", "expected"),
    [
        (["n", 3, "h", "w"], "auto", (3, 8, 9)),
        (["n", "h", "w", 3], "auto", (8, 9, 3)),
        (["n", "c", "h", "w"], "auto", (3, 8, 9)),  # either would do: channels come first
        (["n", "c", "h", "w"], "hwc", (8, 9, 3)),
        (["n", "h", "w", 3], "chw", (3, 8, 9)),
        (["n", "k"], "auto", (3, 8, 9)),
    ],
)
def test_axes_of_an_image(
    tmp_path: Path, extents: Extents, order: str, expected: tuple[int, ...]
) -> None:
    assert image_extents(saved(tmp_path / "a.onnx", extents), (3, 8, 9), order) == expected


@pytest.mark.parametrize(
    ("extents", "shape", "expected"),
    [
        (["n", 3, "h", "w"], (3, 4, 5), (1, 3, 4, 5)),
        (["n", 3, "h", "w"], (2, 3, 4, 5), (2, 3, 4, 5)),
        (["n", 3, "h", 5], (3, 4, 6), (1, 3, 4, 5)),  # what is fixed stays
        (["n", 4], (4,), (1, 4)),
        (["n"], (4,), (4,)),
    ],
)
def test_free_extents_take_the_shape(
    tmp_path: Path, extents: Extents, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    (tmp_path / "copy").mkdir()
    found = with_input_shape(saved(tmp_path / "a.onnx", extents), shape, tmp_path / "copy")
    assert found.inputs[0].shape == expected
    assert not free_extents(found)
    x = np.arange(np.prod(expected), dtype=np.float32).reshape(expected) - 3
    (y,) = found.session.run(None, {"x": x})
    assert np.array_equal(y, np.maximum(x, 0))


def test_a_fixed_file_is_itself_and_what_does_not_settle_is_refused(tmp_path: Path) -> None:
    fixed = saved(tmp_path / "a.onnx", [1, 3, 4, 4])
    assert with_input_shape(fixed, (1, 3, 9, 9), tmp_path) is fixed
    with pytest.raises(ModelError, match="free extents"):
        with_input_shape(saved(tmp_path / "b.onnx", ["n", 3, "h", "w"]), (48,), tmp_path)
