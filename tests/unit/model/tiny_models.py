"""Tiny ONNX models made on the spot, and the comparison of what is read from them with
onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph

Array = np.ndarray[Any, Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 13,
) -> onnx.ModelProto:
    """A model with float inputs of the given shapes and outputs of any shape."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in (constants or {}).items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "tiny.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run_onnxruntime(path: Path, feed: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feed))]


def run_graph(graph: Graph, feed: Mapping[str, Array]) -> list[Array]:
    """Outputs in float64; the point is run in a batch of two with another one, which must not
    disturb it."""
    flat = np.concatenate([feed[name].reshape(-1) for name in graph.inputs]).astype(np.float64)
    batch = torch.from_numpy(np.stack([flat[::-1].copy(), flat]))
    with torch.no_grad():
        values = Network(graph, torch.float64).activations(batch)
    return [values[name][1].numpy() for name in graph.outputs]


def random_feed(
    graph: Graph, low: float = -2.0, high: float = 2.0, seed: int = 0
) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.uniform(low, high, graph.nodes[name].shape).astype(np.float32)
        for name in graph.inputs
    }
