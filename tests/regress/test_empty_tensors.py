"""Tensors without entries, on which the search ended with a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from bitcrown.api import load
from bitcrown.check.certificates.floats.checker import subject_of
from bitcrown.errors import BitcrownError
from tests.regress.test_false_readings import is_proved, reached, saved

NONE = helper.make_node("Slice", ["r", "zero", "zero", "one"], ["e"])
NETWORKS = {
    "a constant": [helper.make_node("Concat", ["r", "c"], ["y"], axis=1)],
    "an activation": [
        NONE,
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Concat", ["f", "r"], ["y"], axis=1),
    ],
    "a product": [
        NONE,
        helper.make_node("MatMul", ["e", "w"], ["z"]),
        helper.make_node("Add", ["r", "z"], ["y"]),
    ],
    "a softmax": [
        NONE,
        helper.make_node("Softmax", ["e"], ["f"], axis=1),
        helper.make_node("Concat", ["f", "r"], ["y"], axis=1),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tensor_without_entries_is_a_constant(name: str, tmp_path: Path) -> None:
    constants: dict[str, np.ndarray] = {"zero": np.array([0]), "one": np.array([1])}
    constants |= {"c": np.zeros((1, 0), np.float32), "w": np.zeros((0, 4), np.float32)}
    nodes: list[onnx.NodeProto] = [helper.make_node("Relu", ["x"], ["r"]), *NETWORKS[name]]
    net = saved(tmp_path / "n.onnx", nodes, "float32", constants)
    assert (reached(net, 0.5, "float32") == 0.5).all()
    assert is_proved(net, 0, 1, 4, "(assert (>= Y_0 1.1))")
    assert not is_proved(net, 0, 1, 4, "(assert (>= Y_0 0.9))")
    with pytest.raises(BitcrownError, match="certificates"):
        subject_of(load(net, net.with_suffix(".vnnlib")))
