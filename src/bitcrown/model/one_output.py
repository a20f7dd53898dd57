"""A model with one of its tensors as its only output: what a question is about, and no more.

scikit-learn's exporter writes a label and a list of dictionaries, of which no property about
numbers can speak; the tensor that becomes the dictionaries is a question like any other. Nodes that
the tensor does not depend on are left out.
"""

from __future__ import annotations

from typing import Any

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile


def with_one_output(file: NetworkFile, name: str) -> bytes:
    """The model whose output is the tensor ``name``; where that is a ``ZipMap``, what it holds.

    Raises ``ModelError`` for a name that no node writes.
    """
    import onnx

    model = onnx.ModelProto.FromString(file.content)
    writers = {written: node for node in model.graph.node for written in node.output if written}
    if name in writers and writers[name].op_type == "ZipMap":
        name = writers[name].input[0]
    if name not in writers:
        outputs = ", ".join(info.name for info in model.graph.output)
        raise ModelError(
            f"{file.path}: no node writes a tensor {name!r}; the file's outputs are {outputs}"
        )
    kept, waiting = set(), [name]
    while waiting:
        node = writers.get(waiting.pop())
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            waiting += [*node.input, *_read_inside(node)]
    nodes = [node for node in model.graph.node if id(node) in kept]
    known = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    output = known.get(name, onnx.ValueInfoProto(name=name))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    result = onnx.ValueInfoProto.FromString(output.SerializeToString())
    del model.graph.output[:]
    model.graph.output.append(result)
    content: bytes = model.SerializeToString()
    return content


def _read_inside(node: Any) -> list[str]:
    """Tensors that the graphs inside a node read, perhaps from around it."""
    return [
        name
        for attribute in node.attribute
        for graph in (attribute.g, *attribute.graphs)
        for inner in graph.node
        for name in (*inner.input, *_read_inside(inner))
    ]
