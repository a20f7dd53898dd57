"""Small quantized ONNX files for tests, written with onnx.helper only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


class Writer:
    """Collects nodes and constants; every method returns a tensor name."""

    def __init__(
        self, shape: Sequence[int], kind: int = TensorProto.FLOAT, opset: int = 17
    ) -> None:
        self.input = helper.make_tensor_value_info("x", kind, list(shape))
        self.opset = opset
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=out, domain=domain, **attrs)
        )
        return out

    def quantized(self, name: str, scale: Any, zero: Any, dtype: Any, **attrs: Any) -> str:
        """QuantizeLinear, then DequantizeLinear."""
        parameters = self.constant(scale), self.constant(zero, dtype)
        q = self.add("QuantizeLinear", name, *parameters, **attrs)
        return self.add("DequantizeLinear", q, *parameters, **attrs)

    def weight(
        self, ints: Any, scale: Any, zero: Any = 0, dtype: Any = np.int8, **attrs: Any
    ) -> str:
        """DequantizeLinear of a constant."""
        zeros = np.broadcast_to(zero, np.shape(scale))
        return self.add(
            "DequantizeLinear",
            self.constant(ints, dtype),
            self.constant(scale),
            self.constant(zeros, dtype),
            **attrs,
        )

    def model(self, output: str) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [self.input],
            [onnx.ValueInfoProto(name=output)],
            initializer=self.tensors,
        )
        domains = sorted({node.domain for node in self.nodes if node.domain})
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(domain, 1) for domain in domains),
        ]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, folder: Path, output: str) -> Path:
        path = folder / "model.onnx"
        onnx.save(self.model(output), path)
        return path


def run(path: Path, values: np.ndarray) -> np.ndarray:
    """[B, M] by onnxruntime, optimisations off, one sample at a time."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in entry.shape]
    rows = [
        session.run(None, {entry.name: value.reshape(shape)})[0].reshape(-1) for value in values
    ]
    return np.stack(rows)
