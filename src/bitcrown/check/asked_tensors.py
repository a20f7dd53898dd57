"""Tensors that a property declares and that are no outputs of its network's file: inner ones
(``declare-hidden``) and inputs that keep their stored value (``initialized``).

The model gets a copy of each as a further output. Replay and proofs then see a network with more
outputs, in the order of ``NetworkDecl.computed``; nothing else has to know of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitcrown.errors import PropertyError
from bitcrown.files import no_model
from bitcrown.spec.query import NetworkDecl


def with_asked_outputs(path: Path, declared: NetworkDecl, content: bytes) -> bytes:
    """The model ``content`` (of the file ``path``) with the tensors that ``declared`` asks for
    behind its outputs.

    Copies, so that a tensor may be asked for twice, or be an output already. Raises
    ``PropertyError`` for a tensor that is not there, ``ModelError`` for bytes that are no model.
    """
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's class moved from version to version
        raise no_model(path, content) from error
    graph = model.graph
    sources = [*_hidden(graph, path, declared), *_stored(graph, path, declared)]
    for place, source in enumerate(sources):
        name = f"{source}:asked:{place}"
        graph.node.append(onnx.NodeProto(op_type="Identity", input=[source], output=[name]))
        graph.output.append(onnx.ValueInfoProto(name=name))
    result: bytes = model.SerializeToString()
    return result


def _hidden(graph: Any, path: Path, declared: NetworkDecl) -> list[str]:
    """Names of the hidden tensors: of what a node writes or, where no node does, of a node with one
    output."""
    written = {name: name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if len(node.output) == 1 and node.name:
            written.setdefault(node.name, node.output[0])
    for tensor in declared.hidden:
        if tensor.onnx_name not in written:
            raise PropertyError(
                f"no node of {path.name} writes {tensor.onnx_name!r}, which the property declares "
                f"as the hidden tensor {tensor.name}; use a name of the model"
            )
    return [written[tensor.onnx_name] for tensor in declared.hidden]


def _stored(graph: Any, path: Path, declared: NetworkDecl) -> list[str]:
    """Names of the inputs that keep their value: the k-th declared input is the k-th of the
    file."""
    marks = [tensor.is_initialized for tensor in declared.inputs]
    if not any(marks):
        return []
    values = {tensor.name for tensor in graph.initializer}
    names = [info.name for info in graph.input]
    if marks != [name in values for name in names]:
        raise PropertyError(
            f"network {declared.name} declares {sum(marks)} of {len(marks)} inputs as initialized, "
            f"but these are not the ones of its {len(names)} inputs that {path.name} stores a "
            "value for; declare every input of the model in its order"
        )
    return [name for name, mark in zip(names, marks, strict=True) if mark]
