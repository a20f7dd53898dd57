"""``If`` as the nodes of its graphs.

Of a known condition it is one of them: exporters ask about shapes like that. Of a condition that
depends on the input it is both, and a choice between what they give (``Where``), if that has one
shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode


def branches_of_if(b: Builder, node: OnnxNode) -> Iterator[OnnxNode]:
    """Every node that is yielded must have been read before the next one is asked for."""
    condition, ways = node.inputs[0], [node.attrs[key] for key in ("then_branch", "else_branch")]
    is_known = b.is_constant(condition)
    if is_known:
        ways = [ways[0 if b.constant(condition, "the condition").reshape(()) else 1]]
    for way in ways:
        yield from _read(b, node, way)
    for outer, *names in zip(node.outputs, *(way.outputs for way in ways), strict=True):
        if is_known:
            _bind(b, outer, names[0])
            continue
        shapes = [list(_shape(b, name)) for name in names]
        if shapes[0] != shapes[1]:
            raise UnsupportedError(
                f"node {node.name!r}: an If of the network input between tensors of shapes "
                f"{shapes[0]} and {shapes[1]}"
            )
        yield OnnxNode("Where", node.name, (condition, *names), (outer,), {}, node.opset)


def _read(b: Builder, node: OnnxNode, way: Any) -> Iterator[OnnxNode]:
    for name, value in way.stored.items():
        if name in b.constants or name in b.tensors:
            raise ModelError(f"a branch of node {node.name!r} has {name!r}, which others have too")
        b.constants[name] = value
    yield from way.nodes


def _shape(b: Builder, name: str) -> tuple[int, ...]:
    return b.constants[name].shape if b.is_constant(name) else b.shape(b.node_of(name))


def _bind(b: Builder, outer: str, name: str) -> None:
    """``outer`` is the tensor ``name``."""
    if b.is_constant(name):
        b.constants[outer] = b.constants[name]
    else:
        b.tensors[outer] = b.node_of(name)
        b.dtypes[outer] = b.dtypes.get(name, "float32")
    if name in b.units:
        b.units[outer] = b.units[name]
    if name in b.removed:
        b.removed[outer] = b.removed[name]
