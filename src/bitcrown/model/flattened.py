"""A model as one list of nodes, each after what it reads: what onnxruntime makes of functions that
a file defines, and of nodes in another order, before it runs them.

onnxruntime itself writes the functions in place. (onnx can do it as well, but forgets default
values of attributes, and takes functions with the name of a standard operator, which the runtime
does not.) A call that it leaves is an operator without a rule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from bitcrown.errors import ModelError


def flattened(model: Any, path: Path, write: Callable[[Path], object]) -> Any:
    """``model`` itself where there is nothing to do, or a copy. ``write`` has onnxruntime write the
    model to a file, without optimisations. Raises ``ModelError``."""
    if model.functions:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "written.onnx"
            write(written)
            model = type(model).FromString(written.read_bytes())
        del model.functions[:]
    order = _order(model.graph, path)
    if order == sorted(order):
        return model
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(model.graph.node[place] for place in order)
    return copy


def _order(graph: Any, path: Path) -> list[int]:
    """Places of the nodes, each after those whose results it reads; as they stand, if they may."""
    writers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needed = [{writers[name] for name in _reads(node) if name in writers} for node in graph.node]
    if all(max(before, default=-1) < k for k, before in enumerate(needed)):
        return list(range(len(needed)))
    try:
        return list(TopologicalSorter(dict(enumerate(needed))).static_order())
    except CycleError as error:
        raise ModelError(f"{path} has nodes that wait for each other") from error


def _reads(node: Any) -> set[str]:
    """What a node reads; of graphs inside it, what they read from outside."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {tensor.name for tensor in graph.initializer}
            own.update(name for inner in graph.node for name in inner.output)
            read = {name for inner in graph.node for name in _reads(inner)}
            names |= (read | {info.name for info in graph.output}) - own
    return names
