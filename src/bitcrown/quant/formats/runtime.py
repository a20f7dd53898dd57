"""onnxruntime as the definition of a file's arithmetic: CPU, one thread, graph optimisations off
unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitcrown.quant.network.graph import Numbers, QuantError

_OPSET = 17


def session(content: bytes, name: str, optimised: bool = False) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        raise QuantError(f"onnxruntime cannot load {name}: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True, eq=False)
class Runtime:
    """``[B, N]`` input values to ``[B, M]`` output values of a file, one sample at a time as the
    file is written."""

    session: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, values: Numbers) -> Numbers:
        return self.outputs(values)[0]

    def outputs(self, values: Numbers) -> list[Numbers]:
        """Every output of the session, each [B, M]."""
        entry = self.session.get_inputs()[0].name
        rows = [np.asarray(row, dtype=self.dtype).reshape(self.shape) for row in values]
        try:
            found = [self.session.run(None, {entry: row}) for row in rows]
        except Exception as error:  # as above
            raise QuantError(
                f"onnxruntime cannot run {self.name}: {str(error).splitlines()[0]}"
            ) from error
        return [
            np.stack([np.asarray(part[k]).reshape(-1) for part in found])
            for k in range(len(found[0]))
        ]


def evaluated(
    op: str,
    inputs: Sequence[Numbers | None],
    attrs: Mapping[str, Any],
    domain: str = "",
    opset: int = _OPSET,
) -> Numbers:
    """One operator on known tensors, computed by onnxruntime."""
    names = ["" if value is None else f"x{k}" for k, value in enumerate(inputs)]
    tensors = [
        numpy_helper.from_array(np.asarray(v), n)
        for v, n in zip(inputs, names, strict=True)
        if v is not None
    ]
    node = helper.make_node(op, names, ["y"], domain=domain, **attrs)
    graph = helper.make_graph([node], "one", [], [onnx.ValueInfoProto(name="y")], tensors)
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    try:
        return np.asarray(session(model.SerializeToString(), op).run(None, {})[0])
    except QuantError:
        raise
    except Exception as error:  # as above
        raise QuantError(
            f"onnxruntime cannot compute {op} of constants: {str(error).splitlines()[0]}"
        ) from error
