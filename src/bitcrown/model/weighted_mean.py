"""A weighted mean, ``sum_i v_i p_i / sum_i p_i``, measured from a point in the middle of the values
``v``.

The quotients ``p_i / sum p`` add up to 1, but bounded one by one they do not know it: each inherits
the whole variation of the divisor, multiplied by ``v_i``. Since
``sum_i v_i p_i / P = c + (sum_i (v_i - c) p_i) / P`` for every ``c``, the mean is rewritten that
way with ``c`` the average of the values. The numerator then stays near zero where the weights are
spread, and the common factor of all ``p`` cancels in the one product that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitcrown.model.graph import Node


def centred(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    """``Linear(p * (1 / ReduceSum(p)))`` over the last axis, rewritten; a rule for
    ``passes.rewritten``."""
    if node.op != "Linear" or nodes[node.inputs[0]].op != "Mul":
        return (node,)
    for order in (1, -1):
        parts, divisor = nodes[node.inputs[0]].inputs[::order]
        reciprocal = _reciprocal_of_row_sums(nodes[divisor], nodes[parts], nodes)
        if reciprocal is None:
            continue
        weight = node.params["weight"].astype(np.float64)
        centre = weight.mean(axis=1)
        column = (*node.shape[:-1], 1)
        numerator = replace(
            node,
            name=f"{node.name}/numerator",
            inputs=(parts,),
            params={"weight": weight - centre[:, None]},
            attrs={},
        )
        one = Node(f"{node.name}/divisor", "Reshape", (reciprocal.name,), column, {"shape": column})
        wide = Node(
            f"{node.name}/divisors", "Expand", (one.name,), node.shape, {"shape": node.shape}
        )
        quotient = Node(f"{node.name}/quotient", "Mul", (numerator.name, wide.name), node.shape)
        shift = {"shift": centre + node.params.get("bias", np.zeros(()))}
        return (
            numerator,
            one,
            wide,
            quotient,
            Node(node.name, "Scale", (quotient.name,), node.shape, node.attrs, shift),
        )
    return (node,)


def _reciprocal_of_row_sums(wide: Node, parts: Node, nodes: Mapping[str, Node]) -> Node | None:
    """The Reciprocal that ``wide`` repeats along every row of ``parts``, if it is that of the row's
    sum."""
    column = (*parts.shape[:-1], 1)
    found = nodes[wide.inputs[0]] if wide.op == "Expand" else wide
    if wide.op != "Expand" or (found.shape != column and found.size != 1):
        return None
    while found.op == "Reshape":
        found = nodes[found.inputs[0]]
    total = nodes[found.inputs[0]] if found.op == "Reciprocal" else found
    while total.op == "Reshape":
        total = nodes[total.inputs[0]]
    if found.op != "Reciprocal" or total.op != "ReduceSum" or total.inputs[0] != parts.name:
        return None
    is_row_sum = tuple(total.attrs["axes"]) == (len(parts.shape) - 1,)
    return found if is_row_sum and total.size * parts.shape[-1] == parts.size else None
