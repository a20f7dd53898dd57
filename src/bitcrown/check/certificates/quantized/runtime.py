"""onnxruntime itself, where the checker lets it compute: operators on known tensors, and the whole
file on drawn inputs. What it refuses is no proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.quantized.chain import NumpyArray
from bitcrown.check.replay import open_session, run_session
from bitcrown.errors import ModelError

if TYPE_CHECKING:
    from bitcrown.check.certificates.quantized.reading import Operator


@contextmanager
def refusals() -> Iterator[None]:
    """Turns ``ModelError`` into ``Reject``."""
    try:
        yield
    except ModelError as error:
        raise Reject(str(error)) from error


def computed(node: Operator, inputs: list[NumpyArray | None]) -> list[NumpyArray]:
    """The operator on known tensors, by onnxruntime itself. Raises ``Reject``."""
    names = ["" if value is None else f"x{k}" for k, value in enumerate(inputs)]
    tensors = [
        numpy_helper.from_array(np.asarray(v), n)
        for v, n in zip(inputs, names, strict=True)
        if v is not None
    ]
    outputs = [f"y{k}" for k, _ in enumerate(node.outputs)]
    one = helper.make_node(node.proto.op_type, names, outputs, domain=node.proto.domain)
    one.attribute.extend(node.proto.attribute)
    graph = helper.make_graph(
        [one], "one", [], [onnx.ValueInfoProto(name=name) for name in outputs], tensors
    )
    versions = [helper.make_opsetid("", node.opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    with refusals():
        session = open_session(model.SerializeToString(), "it")
        return [np.asarray(value) for value in run_session(session, {}, "it")]
