"""Products of two matrices that both depend on the input, as one node.

The reader writes ``sum_d x_id y_jd`` as repeated operands, their products, and a sum: the only
nonlinear operator is then ``Mul``, every product with slopes of its own. Of 400 rows by 400 columns
by 64 these are millions, where operands and result have thousands. ``with_whole_products`` makes
``MatMul`` of them; what is lost is the freedom of single slopes.

*Rounding.* Let each product be off by ``gamma_(t + p) |x y|`` and an underflow ``l``, the sum of
``n`` of them by ``gamma_n`` of the absolute terms. Together that is ``gamma_(n + t + p)`` of them,
and at most ``2 n + 1`` underflows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from bitcrown.model.graph import Graph, Node, Rounding
from bitcrown.model.passes import rewritten, without_dead_nodes
from bitcrown.model.registry import op_row

_NUMBER = 8
"""Bytes of a number in double precision."""


def bytes_of_bounds(graph: Graph) -> int:
    """What the bounds of all nodes take in double precision: two ends, a magnitude and the
    runtime's rounding of each element, and for nonlinear ones two lines with a slope for each
    operand."""
    numbers = 0
    for node in graph.nodes.values():
        numbers += node.size * (3 + (node.rounding is not None))
        if node.op not in ("Input", "Constant") and not op_row(node.op).is_affine:
            slopes = sum(graph.nodes[name].size for name in node.inputs)
            numbers += 2 * (node.size + slopes)
    return numbers * _NUMBER


def fitted(graph: Graph, memory: int) -> Graph:
    """``graph``, with whole products where the bounds of single ones exceed ``memory`` (bytes)."""
    return graph if bytes_of_bounds(graph) <= memory else with_whole_products(graph)


def with_whole_products(graph: Graph) -> Graph:
    """The same function, with every sum of products of two matrices as one ``MatMul``."""
    return without_dead_nodes(rewritten(graph, _whole))


def _whole(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    if node.op != "ReduceSum" or node.attrs["keepdims"]:
        return (node,)
    product = nodes[node.inputs[0]]
    rank = len(product.shape)
    is_inner = product.op == "Mul" and tuple(node.attrs["axes"]) == (rank - 1,)
    if not is_inner or rank < 3 or readers[product.name] != 1:
        return (node,)
    repeats = [nodes[name] for name in product.inputs]
    if any(repeat.op != "Expand" or repeat.rounding is not None for repeat in repeats):
        return (node,)
    bases = [nodes[repeat.inputs[0]] for repeat in repeats]
    if [_repeated_axis(base, product) for base in bases] == [rank - 3, rank - 2]:
        bases.reverse()
    elif [_repeated_axis(base, product) for base in bases] != [rank - 2, rank - 3]:
        return (node,)
    rounding = _together(product, node)
    if rounding is None and not product.rounding is node.rounding is None:
        return (node,)
    made = []
    for base, axis in zip(bases, (rank - 2, rank - 3), strict=True):
        shape = (*base.shape[:axis], *base.shape[axis + 1 :])
        name = f"{node.name}/{'rows' if axis == rank - 2 else 'columns'}"
        made.append(Node(name, "Reshape", (base.name,), shape, {"shape": shape}, {}, node.source))
    inputs = tuple(each.name for each in made)
    whole = replace(node, op="MatMul", inputs=inputs, attrs={}, rounding=rounding)
    return (*made, whole)


def _repeated_axis(base: Node, product: Node) -> int:
    """The only axis along which ``base`` is repeated; -1 where that is not so."""
    if len(base.shape) != len(product.shape):
        return -1
    pairs = zip(base.shape, product.shape, strict=True)
    axes = [axis for axis, (own, full) in enumerate(pairs) if own != full]
    return axes[0] if len(axes) == 1 else -1


def _together(product: Node, total: Node) -> Rounding | None:
    """How the whole is rounded; None where it is not, or not as said above."""
    first, last = product.rounding, total.rounding
    if last is None or last.extra or last.absolute:
        return None
    if first is None:
        return last
    if (first.unit, first.least, first.largest) != (last.unit, last.least, last.largest):
        return None
    if first.extra or first.absolute:
        return None
    more = first.terms + math.ceil(first.ulps) + int(total.attrs["count"])
    return last._replace(terms=last.terms + more)
