"""The part of a network that some elements of one node depend on, as a network of its own.

A neuron behind convolutions sees a window of each plane before it. Backward substitution from it
multiplies by zeros everywhere else; on the *crop*, the network restricted to those windows, it
computes the same sums without these zeros. Nothing is approximated: each element that is kept has
all the elements that it reads, so its value, and the bound of its size, are those of the whole
network.

From the target back to the input each node is told which of its elements are wanted. It keeps
these, or a few more that are simpler to compute together (a convolution all channels of a
rectangle, a matrix all elements of a row), and wants what they read. Where a reader wants less than
a node keeps for others, a gather stands between them.

Legend: ``N`` elements of a node, ``K`` those that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.nodes import (
    CombineNode,
    ConvNode,
    DenseNode,
    FloatNetwork,
    FloatNode,
    GatherNode,
    InputNode,
    ReluNode,
)

ElementPlaces = np.ndarray[Any, np.dtype[np.int64]]
_ROWS = 16
"""Elements of one crop, at least, where there are as many: smaller products are slow."""


@dataclass(frozen=True)
class Crop:
    """``network`` has the node ``place[p]`` for node ``p`` of the whole one, with its elements
    ``kept[p]`` in their order. Its nodes read ``origin``: for each the whole network's node and the
    elements of it."""

    network: FloatNetwork
    kept: dict[int, ElementPlaces]
    place: dict[int, int]
    origin: tuple[tuple[int, ElementPlaces], ...]


def crop_behind(network: FloatNetwork, target: int, elements: ElementPlaces) -> Crop:
    """What the ``elements`` of node ``target`` depend on, and they themselves."""
    wanted: dict[int, Any] = {0: np.zeros(network.n_inputs, dtype=bool)}
    wanted[target] = np.zeros(network.nodes[target].size, dtype=bool)
    wanted[target][elements] = True
    made: dict[int, tuple[FloatNode, list[ElementPlaces]]] = {}
    kept: dict[int, ElementPlaces] = {}
    for number in range(target, 0, -1):
        if number in wanted:
            node = network.nodes[number]
            made[number], kept[number] = _restricted(node, np.flatnonzero(wanted[number]))
            for source, read in zip(node.sources, made[number][1], strict=True):
                size = network.nodes[source].size
                wanted.setdefault(source, np.zeros(size, dtype=bool))[read] = True
    kept[0] = np.flatnonzero(wanted[0])
    nodes: list[FloatNode] = [InputNode(len(kept[0]))]
    origin, place = [(0, kept[0])], {0: 0}
    for number in sorted(made):
        node, reads = made[number]
        sources = []
        for source, read in zip(node.sources, reads, strict=True):
            if np.array_equal(kept[source], read):
                sources.append(place[source])
                continue
            index = np.searchsorted(kept[source], read)
            nodes.append(GatherNode((place[source],), index, len(kept[source])))
            origin.append((source, read))
            sources.append(len(nodes) - 1)
        nodes.append(replace(node, sources=tuple(sources)))  # type: ignore[arg-type]
        origin.append((number, kept[number]))
        place[number] = len(nodes) - 1
    return Crop(FloatNetwork(tuple(nodes), place[target]), kept, place, tuple(origin))


def _restricted(
    node: FloatNode, index: ElementPlaces
) -> tuple[tuple[FloatNode, list[ElementPlaces]], ElementPlaces]:
    """A node that computes at least the elements ``index`` (rising) of ``node``, what it reads of
    each source, and which elements it computes."""
    if isinstance(node, ReluNode):
        return (replace(node, size=len(index)), [index]), index
    if isinstance(node, CombineNode):
        factors = tuple(part if part.ndim == 0 else part[index] for part in node.factors)
        found = replace(node, factors=factors, bias=node.bias[index])
        return (found, [index] * len(node.sources)), index
    if isinstance(node, GatherNode):
        taken = node.index[index]
        read = np.unique(taken[taken >= 0]) if (taken >= 0).any() else np.zeros(1, dtype=np.int64)
        places = np.where(taken >= 0, np.searchsorted(read, taken), -1)
        return (replace(node, index=places, source_size=len(read)), [read]), index
    if isinstance(node, DenseNode):
        m, k = node.weight.shape
        leads = np.unique(index // m)[:, None]
        index = (leads * m + np.arange(m)).reshape(-1)
        found_rows = replace(node, bias=node.bias[index], lead=len(leads))
        return (found_rows, [(leads * k + np.arange(k)).reshape(-1)]), index
    assert isinstance(node, ConvNode)
    return _window(node, index)


def _window(
    node: ConvNode, index: ElementPlaces
) -> tuple[tuple[FloatNode, list[ElementPlaces]], ElementPlaces]:
    """The convolution on the least rectangle of its output plane that contains ``index``, of all
    channels."""
    position = index % (node.out[0] * node.out[1])
    ends, seen, pads = [], [], []
    for axis, place in enumerate((position // node.out[1], position % node.out[1])):
        first, last = int(place.min()), int(place.max())
        stride, dilation = node.strides[axis], node.dilations[axis]
        reach = (node.weight.shape[2 + axis] - 1) * dilation
        start = first * stride - node.pads[axis]
        low = min(max(start, 0), node.plane[axis] - 1)
        high = min(max(last * stride - node.pads[axis] + reach + 1, low + 1), node.plane[axis])
        ends.append(range(first, last + 1))
        seen.append(range(low, high))
        pads.append(low - start)
    if min(pads) < 0:  # a window that sees padding alone, behind the plane
        everything = np.arange(node.size)
        channels = node.weight.shape[1] * node.groups
        return (node, [np.arange(channels * node.plane[0] * node.plane[1])]), everything
    kept = _rectangle(node.weight.shape[0], node.out, ends)
    found = replace(
        node,
        bias=node.bias[kept],
        plane=(len(seen[0]), len(seen[1])),
        out=(len(ends[0]), len(ends[1])),
        pads=(pads[0], pads[1]),
    )
    return (found, [_rectangle(node.weight.shape[1] * node.groups, node.plane, seen)]), kept


def _rectangle(channels: int, plane: tuple[int, int], ends: list[range]) -> ElementPlaces:
    """Flat places of a rectangle of every channel's plane, rising."""
    rows, columns = (np.asarray(end, dtype=np.int64) for end in ends)
    flat = rows[:, None] * plane[1] + columns
    first = np.arange(channels, dtype=np.int64) * (plane[0] * plane[1])
    return (first[:, None, None] + flat).reshape(-1)


def element_tiles(
    network: FloatNetwork, target: int, elements: ElementPlaces
) -> Iterator[ElementPlaces]:
    """Places in ``elements`` (of node ``target``), in groups that see the same windows; one group
    where there are no planes."""
    out = _plane_of(network, target)
    if out is None or len(elements) < 2 * _ROWS:
        yield np.arange(len(elements))
        return
    side = 1
    while side < max(out) and len(elements) * side * side < _ROWS * out[0] * out[1]:
        side += 1
    position = elements % (out[0] * out[1])
    tile = position // out[1] // side * out[1] + position % out[1] // side
    order = np.argsort(tile, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(tile[order])) + 1)


def _plane_of(network: FloatNetwork, target: int) -> tuple[int, int] | None:
    """Extents of the planes that an element of ``target`` stands on."""
    node = network.nodes[target]
    while isinstance(node, CombineNode | ReluNode):
        node = network.nodes[node.sources[0]]
    return node.out if isinstance(node, ConvNode) else None
