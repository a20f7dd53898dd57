"""How much rounding may cost a backward pass, for all passes over a box and its parts at once.

A pass loses ``gamma sum_p <|a_p|, scale_p>`` (``rounding``). Where slopes are at most 1, the
coefficients ``|a_p|`` are at most those of a pass through ``|W|``, so the sum over all passes is
one forward pass: ``T = scale + |W| T`` at an affine node, and at a nonlinear one the largest ``T``
of what a line reads, with twice its scales for ``|slope z| + |intercept|``:

    ReLU, Positive       T = 2 scale(z) + T(z)
    difference of ReLUs  T = 2 (scales) + max(max(T(z), T(w)) + T(d), T(y) + T(v)),

whose lines have slopes of at most 1 on one of ``z`` and ``w`` and on ``d``, or on ``y`` and ``v``,
or lie between such (``relaxations.difference``). An input counts with its magnitude, and the
constants are among the same terms once more, which doubles the sum; ``1e-6`` covers the rounding of
coefficients and of ``T`` itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node
from bitcrown.model.registry import DIFFERENCE

_RULES = ("Relu", "Positive", f"Relu{DIFFERENCE}")


def pass_losses(network: Network, scales: rounding.Scales, small: float) -> dict[str, Tensor]:
    """What rounding may cost a pass that begins with one entry of a node, ``[1, *]``, on every box
    that ``scales`` hold for; only for nodes where that is below the share ``small`` of the largest
    magnitude, and only where all slopes on the way are at most 1."""
    total: dict[str, Tensor] = {}
    if scales.radii:
        return {}
    for node in network.graph.nodes.values():
        if node.name in network.graph.inputs:
            total[node.name] = scales[node.name]
            continue
        if any(name not in total for name in node.inputs):
            continue
        sources = [total[name] for name in node.inputs]
        row = network.rows[node.name]
        if row.is_affine:
            assert row.absolute is not None
            passed = row.absolute(node, network.params[node.name], sources) if sources else 0.0
            total[node.name] = scales[node.name] + passed
        elif node.op in _RULES:
            total[node.name] = _behind_lines(node, sources, [scales[name] for name in node.inputs])
    gamma = scales.gamma
    tiny = rounding.underflow(gamma, network.dtype)
    losses = {
        name: (2 * gamma * size + scales.lost + tiny) * (1 + 1e-6) for name, size in total.items()
    }
    return {
        name: loss
        for name, loss in losses.items()
        if loss.numel() and bool((loss <= small * scales[name].amax()).all())
    }


def _behind_lines(node: Node, totals: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    if len(sizes) == 1:
        return 2 * sizes[0] + totals[0]
    z, w, d, y, v = totals
    by_lines = torch.maximum(torch.maximum(z, w) + d, y + v)
    return 2 * (sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]) + by_lines
