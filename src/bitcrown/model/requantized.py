"""Quantizers of what is quantized already: they change nothing, and no line need be drawn around
them.

Tools write a quantizer behind every reshape, transposition and slice, with the scale of what goes
in. Let ``k`` be an integer, ``|k| <= K``, that a dequantizer makes ``x = k s`` of, perhaps moved
from place to place, and the next quantizer ``rint(x / s)``. The two roundings are off by ``p u`` of
``k s`` and ``p' u'`` of ``x / s``, so by less than ``2 (p u + p' u') K`` of an integer together.
Below one half, ``rint`` gives ``k`` again. Neither is ``k s`` lost nor does it overflow, where
``s`` and ``K s`` are ordinary numbers of the type. The saturation that follows stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitcrown.model.graph import Graph, Node
from bitcrown.model.passes import rewritten, without_dead_nodes

_MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Expand")
_ROOM = 2.0**20
"""How far above the least number of its type a scale has to be."""


def without_repeated_quantizers(graph: Graph) -> Graph:
    """The same function: ``Round`` of an integer in its own scale is that integer."""
    return without_dead_nodes(rewritten(graph, _passed))


def _passed(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    if node.op != "Round" or node.rounding is not None:
        return (node,)
    divided = nodes[node.inputs[0]]
    inverse = _factor(divided)
    if inverse is None:
        return (node,)
    moves: list[Node] = []
    source = nodes[divided.inputs[0]]
    while source.op in _MOVES and source.rounding is None:
        moves.append(source)
        source = nodes[source.inputs[0]]
    scale = _factor(source)
    if scale is None or scale <= 0.0 or inverse != 1.0 / scale:
        return (node,)
    whole = nodes[source.inputs[0]]
    largest = _largest_integer(whole, nodes)
    if largest is None or not _is_kept(source, divided, scale, largest):
        return (node,)
    made, name = [], whole.name
    for place, move in enumerate(reversed(moves)):
        is_last = place == len(moves) - 1
        made.append(replace(move, name=f"{node.name}/{place}", inputs=(name,)))
        if is_last:
            made[-1] = replace(made[-1], name=node.name)
        name = made[-1].name
    return tuple(made) if made else whole.name


def _factor(node: Node) -> float | None:
    """The one number that ``node`` multiplies by, and nothing else."""
    if node.op != "Scale" or node.params.keys() != {"scale"} or node.params["scale"].size != 1:
        return None
    return float(node.params["scale"].reshape(()))


def _largest_integer(node: Node, nodes: Mapping[str, Node]) -> float | None:
    """The largest absolute value of a node whose elements are integers; None where they are not
    known to be."""
    if node.rounding is not None or not node.inputs:
        return None
    if node.op == "Round":
        return math.inf
    inner = nodes[node.inputs[0]]
    if node.op in _MOVES:
        return _largest_integer(inner, nodes)
    if node.op == "Scale" and node.params.keys() == {"shift"}:
        steps = np.abs(node.params["shift"])
        reached = float(steps.max(initial=0.0))
    elif node.op == "Clip":
        steps = np.array([node.attrs["min"], node.attrs["max"]], dtype=np.float64)
        reached = float(np.abs(steps).max())
    else:
        return None
    largest = _largest_integer(inner, nodes)
    if largest is None or not (np.isfinite(steps).all() and (steps == np.rint(steps)).all()):
        return None
    return reached if node.op == "Clip" else largest + reached


def _is_kept(times: Node, divided: Node, scale: float, largest: float) -> bool:
    """Whether the roundings of both steps leave every integer up to ``largest`` what it is."""
    lost = 0.0
    for node in (times, divided):
        form = node.rounding
        if form is None:
            continue
        if form.terms or form.extra or form.absolute:
            return False
        if not _ROOM * form.least <= scale <= largest * scale <= form.largest / 2:
            return False
        lost += form.ulps * form.unit
    return 2 * lost * largest < 0.5
