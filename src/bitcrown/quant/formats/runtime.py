"""onnxruntime as the definition of a file's arithmetic: CPU, one thread, graph optimisations off
unless asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitcrown.errors import ModelError
from bitcrown.model.file import first_line, runtime_session
from bitcrown.quant.network.graph import Numbers, QuantError

_OPSET = 17


def session(content: bytes, name: str, optimised: bool = False) -> Any:
    """``runtime_session``, whose errors are here those of a quantized network."""
    try:
        return runtime_session(content, name, optimised)
    except ModelError as error:
        raise QuantError(str(error)) from error


@dataclass(frozen=True, eq=False)
class Runtime:
    """``[B, N]`` input values to ``[B, M]`` values of the file's first output, one sample at a time
    as the file is written."""

    session: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def output(self) -> str:
        return str(self.session.get_outputs()[0].name)

    def __call__(self, values: Numbers) -> Numbers:
        return self.outputs(values, [self.output])[self.output]

    def outputs(self, values: Numbers, names: Sequence[str] | None = None) -> dict[str, Numbers]:
        """The outputs ``names`` of the session (all where None), each [B, M]."""
        entry = self.session.get_inputs()[0].name
        names = names or [info.name for info in self.session.get_outputs()]
        rows = [np.asarray(row, dtype=self.dtype).reshape(self.shape) for row in values]
        try:
            found = [self.session.run(names, {entry: row}) for row in rows]
        except Exception as error:  # onnxruntime's own classes live inside its extension
            raise QuantError(f"onnxruntime cannot run {self.name}: {first_line(error)}") from error
        return {
            name: np.stack([np.asarray(part[k]).reshape(-1) for part in found])
            for k, name in enumerate(names)
        }


def evaluated(
    op: str,
    inputs: Sequence[Numbers | None],
    attrs: Mapping[str, Any],
    domain: str = "",
    opset: int = _OPSET,
) -> Numbers:
    """One operator on known tensors, computed by onnxruntime."""
    return all_evaluated(op, inputs, attrs, opset, 1, domain)[0]


def all_evaluated(
    op: str,
    inputs: Sequence[Numbers | None],
    attrs: Mapping[str, Any],
    opset: int,
    count: int,
    domain: str = "",
) -> list[Numbers]:
    """Its ``count`` outputs."""
    names = ["" if value is None else f"x{k}" for k, value in enumerate(inputs)]
    tensors = [
        numpy_helper.from_array(np.asarray(v), n)
        for v, n in zip(inputs, names, strict=True)
        if v is not None
    ]
    ends = [f"y{k}" for k in range(count)]
    attrs = {
        key: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for key, value in attrs.items()
    }
    node = helper.make_node(op, names, ends, domain=domain, **attrs)
    outputs = [onnx.ValueInfoProto(name=end) for end in ends]
    graph = helper.make_graph([node], "one", [], outputs, tensors)
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    try:
        found = session(model.SerializeToString(), op).run(None, {})
        return [np.asarray(value) for value in found]
    except QuantError:
        raise
    except Exception as error:  # as above
        raise QuantError(
            f"onnxruntime cannot compute {op} of constants: {first_line(error)}"
        ) from error
