"""Inputs of which a question leaves one value, as constants of the model.

One input of several may choose what a network is: a rate behind an ``If``, the length of a slice,
a mask of zeros and ones. Where a question fixes such an input, every node reads a constant of that
value in its place, and reading folds what follows. The input itself stays, read by nobody. Where it
has that value, both models are one function, so what is proved of one holds for the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitcrown.model.file import NetworkFile


def with_known_inputs(file: NetworkFile, values: Mapping[str, np.ndarray]) -> bytes:
    """The model of ``file`` whose nodes read the constants ``values`` in place of inputs."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(file.proto)
    names = _names_in(model.graph)
    renamed = {}
    for name, value in values.items():
        known = f"{name}/known"
        while known in names:
            known += "'"
        renamed[name] = known
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, known))
    _rename(model.graph, renamed)
    content: bytes = model.SerializeToString()
    return content


def _graphs_in(node: Any) -> list[Any]:
    return [graph for a in node.attribute for graph in ((a.g,) if a.HasField("g") else a.graphs)]


def _names_in(graph: Any) -> set[str]:
    """Names of all tensors of a graph and of the graphs in it."""
    names = {entry.name for entry in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.input, node.output, *map(_names_in, _graphs_in(node)))
    return names


def _rename(graph: Any, renamed: Mapping[str, str]) -> None:
    """What the nodes of ``graph`` read; a graph in it that has a tensor of the same name means that
    one, its outputs included."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        for inner in _graphs_in(node):
            own = {entry.name for entry in (*inner.input, *inner.initializer)}
            own.update(name for other in inner.node for name in other.output)
            outer = {name: known for name, known in renamed.items() if name not in own}
            _rename(inner, outer)
            for info in inner.output:
                info.name = outer.get(info.name, info.name)
