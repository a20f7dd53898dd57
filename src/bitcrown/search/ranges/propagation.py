"""Narrower ranges of some operands, carried on to all that is computed from them.

Let each tensor have two enclosures in a domain: what the root and the splits say of it, and the
interval of its operator over the operands' enclosures here. Its values lie in both. Where they do
not meet, the domain holds no point. After the last split of a staircase its value is a number, and
what is computed from such values alone is one, too: staircases behind it close without a split.

Legend: ``B`` domains, ``*`` a node's shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds import claims, rounding
from bitcrown.bounds.interval import Bounds, node_interval
from bitcrown.model.execute import Network, elements


def propagated(
    network: Network, root: Bounds, narrowed: Bounds, count: int
) -> tuple[Bounds, Tensor]:
    """Bounds of all nodes, ``[1, *]`` where no split reaches, else ``[B, *]``; and whether each of
    the ``B = count`` domains is empty.

    ``narrowed`` holds the objects of ``root`` where nothing was split.
    """
    gamma, result = rounding.gamma(network), dict(narrowed)
    is_empty = next(iter(root.values()))[0].new_zeros(count, dtype=torch.bool)
    moved = {name for name, pair in narrowed.items() if pair is not root[name]}
    for node in network.graph.nodes.values():
        if node.name in network.graph.inputs or moved.isdisjoint((*node.inputs, node.name)):
            continue
        operands = [result[name] for name in node.inputs]
        low, up = node_interval(network, node, operands, gamma)
        mine = narrowed[node.name]
        ends = torch.maximum(low, mine[0]), torch.minimum(up, mine[1])
        flat = (elements(end.expand(count, *node.shape), 1) for end in ends)
        low, up, is_crossed = claims.crossed(*flat)
        is_empty |= is_crossed
        result[node.name] = low.reshape(count, *node.shape), up.reshape(count, *node.shape)
        moved.add(node.name)
    return result, is_empty
