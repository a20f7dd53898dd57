"""Which elements of a network any of the bounded rows depends on.

A row that reads one output of an object detector sees a few pixels of the layers before; bounds of
all others are never used. Dependence is followed backward through the pattern of the weights: an
element is wanted where a wanted one has a product with it that is not zero.

Legend: ``m`` flat outputs, ``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitcrown.bounds.claims import is_unstable
from bitcrown.bounds.crown import output_seeds
from bitcrown.bounds.interval import Bounds
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import DIFFERENCE, SLOPE

COPIES = ("Reshape", "Transpose", "Slice", "Gather", "Expand")
"""Operators of one operand whose every element is one of the operand's."""
_ENTRY_BY_ENTRY = ("Reshape", "Transpose", "Slice", "Scale")
"""Affine operators of one operand that read no entry of it twice."""
_MONOTONE = (
    *("Exp", "Log", "Reciprocal", "Sigmoid", "Softplus", "Sqrt", "Tanh", "Erf", "Atan"),
    *("Relu", "Sign", "Truncate", "Floor", "Ceil", "Round"),
)


def is_input_by_entries(graph: Graph, name: str) -> bool:
    """Whether ``name`` is an input, moved and scaled entry by entry: then its entries depend on no
    common one, and the interval of one affine map of them is exact."""
    node = graph.nodes[name]
    while node.op in _ENTRY_BY_ENTRY:
        node = graph.nodes[node.inputs[0]]
    return node.name in graph.inputs


def has_exact_interval(graph: Graph, name: str) -> bool:
    """Whether no row of ``name`` can beat its interval: it is copied from an input, or an affine
    map of one operand that is an input by entries."""
    node = graph.nodes[name]
    if len(node.inputs) == 1 and node.op in ("Linear", "Conv"):
        return is_input_by_entries(graph, node.inputs[0])
    while node.op in COPIES or node.op == "Scale":
        node = graph.nodes[node.inputs[0]]
    return node.name in graph.inputs


def wanted_elements(network: Network, outputs: Tensor) -> dict[str, Tensor]:
    """For every node that outputs in ``outputs [m]`` (booleans) depend on, which of its elements
    they do: ``[1, *]``, booleans."""
    seeds = output_seeds(network, outputs.to(network.dtype).reshape(1, 1, -1))
    pending = {name: seed[0] for name, seed in seeds.items()}
    result: dict[str, Tensor] = {}
    for node in reversed(list(network.graph.nodes.values())):
        if node.name not in pending:
            continue
        result[node.name] = ~(pending.pop(node.name) == 0)  # NaN, from infinite weights, is wanted
        if node.name in network.graph.inputs:
            continue
        for name, part in zip(node.inputs, _read(network, node, result[node.name]), strict=True):
            pending[name] = pending[name] + part if name in pending else part
    return result


def _read(network: Network, node: Node, wanted: Tensor) -> list[Tensor]:
    """What ``wanted [1, *]`` elements of ``node`` read of each operand: not zero there."""
    row, shapes = network.rows[node.name], [network.graph.nodes[name].shape for name in node.inputs]
    here = wanted.to(network.dtype)
    if not row.is_affine:
        is_alike = row.is_local and all(shape == node.shape for shape in shapes)
        return [here if is_alike else here.new_ones(1, *shape) for shape in shapes]
    if not node.inputs:
        return []
    assert row.absolute is not None
    points = [here.new_zeros(1, *shape).requires_grad_() for shape in shapes]
    with torch.enable_grad():
        value = row.absolute(node, network.params[node.name], points).expand(1, *node.shape)
    grads = torch.autograd.grad(value, points, here, allow_unused=True)
    return [
        here.new_zeros(1, *shape) if grad is None else grad
        for grad, shape in zip(grads, shapes, strict=True)
    ]


def asks_for_all(node: Node) -> bool:
    """Whether a nonlinear ``node`` asks for rows of all elements of its operands (a ReLU and a
    ``Sign`` ask for those of unstable ones alone)."""
    return node.op not in ("Relu", "Sign") and not node.op.endswith((DIFFERENCE, SLOPE))


def is_image_of(
    graph: Graph, source: str, fine: set[str], bounds: Mapping[str, tuple[Tensor, Tensor]]
) -> bool:
    """Whether each element of ``source`` rises or falls with a single element of a node in
    ``fine``, whose elements have all been bounded by rows, or are known.

    No row of ``source`` then beats its interval. Say it rises with ``y`` in ``[l, u]``: a line
    below with slope ``m >= 0`` gives at most ``m l + k <= f(l)``, because what a row finds for
    ``y`` was met with ``[l, u]``; one with ``m < 0`` at most ``m u + k <= m l + k``. A sum with
    numbers that are known moves the interval.
    """
    node = graph.nodes[source]
    while node.name not in fine:
        moving = node.inputs[:1]
        if node.op in ("Add", "Sub"):
            moving = tuple(name for name in node.inputs if not _is_known(bounds, name))
        elif node.op not in (*COPIES, "Scale", *_MONOTONE):
            return False
        if len(moving) != 1:
            return False
        node = graph.nodes[moving[0]]
    return True


def _is_known(bounds: Mapping[str, tuple[Tensor, Tensor]], name: str) -> bool:
    """Whether ``name`` has one value on the box."""
    return name in bounds and bool((bounds[name][0] == bounds[name][1]).all())


def operands_to_bound(
    graph: Graph,
    node: Node,
    tight: set[str],
    fine: set[str],
    bounds: Mapping[str, tuple[Tensor, Tensor]],
) -> list[str]:
    """Operands of a nonlinear ``node`` that rows are worth for: not those in ``tight``, which have
    had theirs, nor images of those in ``fine`` (``asks_for_all``). Both sets grow.

    A ``Sign`` itself is fine where its operand has had the rows that it asks for: its elements are
    images of elements with rows, or known."""
    found = []
    for source in node.inputs:
        if source not in tight and not is_image_of(graph, source, fine, bounds):
            found.append(source)
            fine.update(fine_by(node, source))
        tight.add(source)
    return found


def fine_by(node: Node, source: str) -> list[str]:
    """What has rows for all elements that vary once ``node`` has had those of ``source``."""
    if node.op == "Sign":
        return [node.name]
    return [source] if asks_for_all(node) else []


def undecided(node: Node, source: str, bounds: Bounds) -> Tensor:
    """``[B, *]``: elements of ``source`` whose bounds matter to a nonlinear ``node`` that reads
    it."""
    low, up = bounds[source]
    if node.op == "Relu":
        return is_unstable(low, up)
    if node.op == "Sign":
        return ~((low > 0) | (up < 0) | (low == up))
    if node.op == "Mul":  # with a number it is linear, whatever the other operand's range
        first, second = (bounds[name][0] != bounds[name][1] for name in node.inputs)
        if first.shape[1:] != second.shape[1:]:
            return low != up
        is_loose = (low != up) & ~torch.isfinite(up - low)  # no line holds an infinite factor
        return (first & second) | is_loose
    if node.op == f"Relu{SLOPE}":  # linear in the direction where the sign is known
        is_loose = is_unstable(*bounds[node.inputs[0]])
        return is_loose if source == node.inputs[0] else is_loose & (low != up)
    if not node.op.endswith(DIFFERENCE):
        return low != up
    if source not in node.inputs[:3]:  # values, there to be subtracted
        return torch.zeros_like(low, dtype=torch.bool)
    if not node.op.startswith("Relu"):
        return low != up
    if source != node.inputs[2]:
        return is_unstable(low, up)
    one, other = (is_unstable(*bounds[name]) for name in node.inputs[:2])
    return (one | other) & (low != up)  # of two decided neurons the difference is linear
