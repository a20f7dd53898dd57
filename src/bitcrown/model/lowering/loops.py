"""``Loop`` as the nodes of its rounds, one after the other.

Converters write recurrent layers as loops. How often one runs must be known: its count and its
condition may depend on shapes and on the number of the round, not on values of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode

REPEATED = ("If", "Loop")
"""Operators with graphs in them, which are read node by node and not computed as constants."""
_MOST = 4096
_OPSET = 17
"""In which the nodes are written."""


def unrolled(b: Builder, node: OnnxNode) -> Iterator[OnnxNode]:
    """Inputs: the greatest number of rounds, whether to begin, and what is carried on. The body
    gets the number of the round, true and what is carried on, and gives whether to go on, what is
    carried on, and entries of the outputs that collect one each round. Every node that is yielded
    must have been read before the next one is asked for."""
    body: Any = node.attrs["body"]
    most, start, *carried = node.inputs
    rounds = int(b.constant(most, "the number of rounds").reshape(())) if most else _MOST + 1
    goes_on = not start or _is_true(b, start)
    collected: list[tuple[str, ...]] = []
    while goes_on and len(collected) < rounds:
        if len(collected) == _MOST:
            raise UnsupportedError(f"node {node.name!r}: a loop of more than {_MOST} rounds")
        prefix = f"{node.name}/{len(collected)}/"
        known = {f"{prefix}round": np.array(len(collected)), f"{prefix}goes on": np.array(True)}
        b.constants.update(known)
        given = dict(zip(body.inputs, (*known, *carried), strict=True))
        once = body.kept_apart(prefix, given)
        b.constants.update(once.stored)
        b.readers.update(once.reads())
        yield from once.nodes
        goes_on = _is_true(b, once.outputs[0])
        carried = list(once.outputs[1 : len(carried) + 1])
        collected.append(once.outputs[len(carried) + 1 :])
    for name, value in zip(node.outputs, carried, strict=False):
        yield OnnxNode("Identity", node.name, (value,), (name,), {}, _OPSET)
    for name, *entries in zip(node.outputs[len(carried) :], *collected, strict=bool(collected)):
        yield from _stacked(b, node, name, entries)


def _stacked(b: Builder, node: OnnxNode, name: str, entries: list[str]) -> Iterator[OnnxNode]:
    """``entries`` along a new first axis, as the tensor ``name``."""
    if not entries:
        raise UnsupportedError(f"node {node.name!r}: a loop without a round collects nothing")
    first = f"{name}/first"
    b.constants[first] = np.array([0])
    rows = [f"{name}/{k}" for k in range(len(entries))]
    for row, entry in zip(rows, entries, strict=True):
        yield OnnxNode("Unsqueeze", node.name, (entry, first), (row,), {}, _OPSET)
    yield OnnxNode("Concat", node.name, tuple(rows), (name,), {"axis": 0}, _OPSET)


def _is_true(b: Builder, name: str) -> bool:
    return bool(b.constant(name, "the condition of a loop").reshape(()))
