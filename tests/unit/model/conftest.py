"""Tiny ONNX files, written where a test asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

torch.set_num_threads(1)

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save(nodes, inputs, weights, outputs=["y"], opset=17)`` writes a model and gives its
    path."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, Sequence[int | str]],
        weights: dict[str, Any] | None = None,
        outputs: Sequence[str] = ("y",),
        opset: int = 17,
        name: str = "net.onnx",
    ) -> Path:
        graph = helper.make_graph(
            list(nodes),
            "net",
            [
                helper.make_tensor_value_info(key, TensorProto.FLOAT, shape)
                for key, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in outputs],
            [
                numpy_helper.from_array(np.asarray(value), key)
                for key, value in (weights or {}).items()
            ],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
