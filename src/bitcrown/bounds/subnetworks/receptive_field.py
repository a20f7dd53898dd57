"""Elements of a convolutional layer see a part of the image: backward passes over that part alone.

An element at row ``h``, column ``w`` depends only on a rectangle of every earlier layer, its
receptive field (Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks",
2019). So the elements of one layer are taken tile by tile, and the pass for a tile runs in a
smaller network: the same nodes, each cut to the rectangle that the tile can see, with zero padding
where a rectangle reaches over the edge. It computes the same bound from a part of the entries: of a
map of 64 x 64, a tile of 4 x 4 sees at most 12 x 12, which are 4 %, four 3 x 3 convolutions deep.

A ``View`` is that smaller network and the rectangles. Bounds, relaxations and magnitudes of the
whole network, cut to the rectangles, are those of the smaller one: every kept element is computed
from the same numbers, so all enclosures stay valid, and ``rounding``'s constant for the whole
network covers it. What is not a convolution or elementwise (a flattened layer, say) has no smaller
view; its elements are bounded in the whole network.

Legend: ``K`` elements, ``n`` flat inputs, ``*`` a node's shape. A ``Span`` is a half-open range of
rows or columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.rounding import Scales
from bitcrown.bounds.subnetworks.cut_operators import (
    Field,
    cut_operator,
    has_whole_weights,
    is_one_image,
)
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import Params

_IMAGE_RANK = 4
_CALL_COST = {"cpu": 1 << 13, "cuda": 1 << 22}
"""What one more call on a node costs, in entries that the call could have worked on meanwhile."""


@dataclass(frozen=True)
class View:
    """``graph`` is the smaller network; ``fields`` and ``origins`` say of its nodes which part of
    which node they are. Views of one ``form`` are one network for different windows.

    A node without origin was added: it pads another node with zeros, for one convolution to read.
    """

    graph: Graph
    source: str
    fields: Mapping[str, Field]
    origins: Mapping[str, str]
    form: str

    def network(self, network: Network) -> Network:
        """The smaller network with the weights (dtype, device) of ``network``."""
        params: dict[str, Params] = {}
        for name, node in self.graph.nodes.items():
            given = network.params[name] if name in network.params and node.op != "Input" else {}
            is_whole = has_whole_weights(node)
            params[name] = {
                key: value if is_whole else self._part(name, value) for key, value in given.items()
            }
        return network.on(self.graph, params)

    def cut(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of ``values`` (``[.., *]`` per node of the whole network) that belong to the
        view."""
        result = {}
        for name, node in self.graph.nodes.items():
            if name in self.origins:
                if self.origins[name] in values:
                    result[name] = self._part(name, values[self.origins[name]])
            elif node.inputs[0] in result:  # zeros around it
                result[name] = torch.nn.functional.pad(
                    result[node.inputs[0]], [*_sides(node, 3), *_sides(node, 2)]
                )
        return result

    def scales(self, given: Scales) -> Scales:
        """Those of the view's nodes; what pads or cuts another node is exact, whatever that node
        is."""
        radii = {
            name: value
            for name, value in self.cut(given.radii).items()
            if self.graph.nodes[name].rounding
        }
        return Scales(given.gamma, self.cut(given), radii)

    def _part(self, name: str, value: Tensor) -> Tensor:
        """An axis of extent 1 (or none) stands for the same value everywhere."""
        for axis, (first, end) in zip((-2, -1), self.fields[name], strict=True):
            if value.dim() >= -axis and value.shape[axis] > 1:
                value = value.narrow(axis, first, end - first)
        return value

    def relaxations(self, given: Mapping[str, Relaxation]) -> dict[str, Relaxation]:
        """Those of the view's nonlinear nodes."""

        def parts(name: str, values: Iterable[Tensor]) -> tuple[Tensor, ...]:
            return tuple(self._part(name, value) for value in values)

        result = {}
        for name in self.graph.nodes:
            if name in given:
                low, low_at, up, up_at, _ = given[name]
                result[name] = Relaxation(
                    parts(name, low),
                    self._part(name, low_at),
                    parts(name, up),
                    self._part(name, up_at),
                )
        return result

    def bounds(self, given: Bounds) -> Bounds:
        lowers, uppers = (
            self.cut({name: pair[side] for name, pair in given.items()}) for side in (0, 1)
        )
        return {name: (lower, uppers[name]) for name, lower in lowers.items()}

    def box(self, network: Network, x: Tensor) -> Tensor:
        """The entries of ``x [B, n]`` that the view sees, in the order of its inputs."""
        inputs, parts = network.split_inputs(x), []
        for name in self.graph.inputs:
            node = network.graph.nodes[name]
            whole = (
                inputs[name]
                if name in inputs
                else network.forward_node(node, [inputs[node.inputs[0]]])
            )
            parts.append(elements(self._part(name, whole), 1))
        return torch.cat(parts, dim=1)

    def indices(self, shape: tuple[int, ...], indices: Tensor) -> Tensor:
        """Flat indices ``[K]`` into the source of ``shape`` as flat indices into its part of the
        view."""
        (top, bottom), (left, right) = self.fields[self.source]
        width, size = shape[3], shape[2] * shape[3]
        channel, row, column = indices // size, indices % size // width, indices % width
        return (channel * (bottom - top) + row - top) * (right - left) + column - left


def _sides(node: Node, axis: int) -> tuple[int, int]:
    before, after = node.attrs["pads"]
    return before[axis], after[axis]


def tiles(graph: Graph, source: str, indices: Tensor) -> Iterator[tuple[View | None, Tensor]]:
    """A view and the places in ``indices [K]`` of the elements of ``source`` that it serves, until
    all are served.

    The side of the tiles is the one that makes passes cheapest; the view is None where that is the
    whole network.
    """
    side, _ = _cheapest(graph, source, indices)
    if side == 0:
        yield None, torch.arange(indices.numel(), device=indices.device)
        return
    height, width = graph.nodes[source].shape[2:]
    tile = _tile_of(indices, height, width, side)
    for number in torch.unique(tile).tolist():
        top, left = (side * k for k in divmod(number, width))
        field = (top, min(top + side, height)), (left, min(left + side, width))
        yield view_of(graph, source, field), (tile == number).nonzero().flatten()


def _tile_of(indices: Tensor, height: int, width: int, side: int) -> Tensor:
    row, column = indices % (height * width) // width, indices % width
    return row // side * width + column // side


def entries_of_row(graph: Graph, source: str, indices: Tensor) -> int:
    """How many entries a backward pass touches for one of the elements ``indices [K]`` of
    ``source``."""
    return _cheapest(graph, source, indices)[1]


def _cheapest(graph: Graph, source: str, indices: Tensor) -> tuple[int, int]:
    """Side of the tiles, 0 for the whole network, and the entries that a row then has in all
    nodes."""
    best, best_size = 0, sum(graph.nodes[name].size for name in _ancestors(graph, source))
    height, width = (
        graph.nodes[source].shape[2:] if len(graph.nodes[source].shape) == _IMAGE_RANK else (0, 0)
    )
    whole = _wanted(graph, source, ((0, height), (0, width)))
    call = _CALL_COST[indices.device.type] * len(whole or ())
    best_cost, side = len(indices) * best_size + call, 1
    while whole is not None and side < max(height, width):
        top, left = height // 2 // side * side, width // 2 // side * side
        middle = (top, min(top + side, height)), (left, min(left + side, width))
        wanted = _wanted(graph, source, middle)
        if wanted is None:  # it would read nothing but padding
            break
        size = sum(graph.nodes[name].shape[1] * _area(field) for name, field in wanted.items())
        cost = (
            len(indices) * size + len(torch.unique(_tile_of(indices, height, width, side))) * call
        )
        if cost < best_cost:
            best, best_size, best_cost = side, size, cost
        side *= 2
    return best, best_size


def _ancestors(graph: Graph, source: str) -> set[str]:
    found = {source}
    for node in reversed(list(graph.nodes.values())):
        if node.name in found:
            found.update(node.inputs)
    return found


def _area(field: Field) -> int:
    (top, bottom), (left, right) = field
    return (bottom - top) * (right - left)


def _is_input(graph: Graph, node: Node) -> bool:
    """An input of another shape, or a part of one, is as good as an input."""
    is_part = node.op in ("Reshape", "Slice") and node.inputs[0] in graph.inputs
    return node.name in graph.inputs or is_part


def _wanted(graph: Graph, source: str, field: Field) -> dict[str, Field] | None:
    """Smallest rectangle of every node that ``field`` of ``source`` depends on; None where that is
    not defined."""
    wanted = {source: field}
    for node in reversed(list(graph.nodes.values())):
        if node.name not in wanted:
            continue
        if not is_one_image(node):
            return None
        if _is_input(graph, node):
            continue
        cut = cut_operator(graph, node, wanted[node.name])
        if cut is None:
            return None
        for name, seen in zip(node.inputs, cut.reads, strict=True):
            if seen is None:
                continue
            rows, columns = (
                (min(a[0], b[0]), max(a[1], b[1]))
                for a, b in zip(wanted.get(name, seen), seen, strict=True)
            )
            wanted[name] = rows, columns
    return wanted


def _has_placed_weights(node: Node) -> bool:
    """Whether its weights are images, of which each window has another part."""
    shapes = [np.shape(value) for value in node.params.values()]
    return not has_whole_weights(node) and any(max((1, *shape[-2:])) > 1 for shape in shapes)


def view_of(graph: Graph, source: str, field: Field) -> View | None:
    """The view of the rectangle ``field`` of ``source``; None where it depends on more than
    rectangles of images."""
    wanted = _wanted(graph, source, field)
    return None if wanted is None else _Builder(graph, wanted).view(source)


class _Builder:
    def __init__(self, graph: Graph, wanted: Mapping[str, Field]) -> None:
        self.graph, self.wanted = graph, wanted
        self.nodes: dict[str, Node] = {}
        self.fields: dict[str, Field] = {}
        self.origins: dict[str, str] = {}
        self.form: list[object] = []

    def view(self, source: str) -> View:
        inputs = []
        self.form = [source]
        for node in self.graph.nodes.values():
            if node.name not in self.wanted:
                continue
            field = self.wanted[node.name]
            if _is_input(self.graph, node):
                inputs.append(node.name)
                self._add(replace(node, op="Input", inputs=()), field, node.name)
                self.form.append(self.nodes[node.name].shape)
                continue
            cut = cut_operator(self.graph, node, field)
            assert cut is not None
            operands = tuple(
                self._padded(self._sliced(name, seen, node), cut.zeros, node)
                for name, seen in zip(node.inputs, cut.reads, strict=True)
                if seen is not None
            )
            node = replace(node, inputs=operands, attrs={**node.attrs, **cut.attrs})
            self._add(node, field, node.name)
            self.form += [self.nodes[node.name].shape, operands, cut.attrs, cut.zeros]
            if _has_placed_weights(node):
                self.form.append(field)
        graph = Graph(self.nodes, tuple(inputs), (source,))
        return View(graph, source, self.fields, self.origins, repr(self.form))

    def _add(self, node: Node, field: Field, origin: str | None) -> None:
        shape = (*node.shape[:2], *(end - first for first, end in field))
        self.nodes[node.name] = replace(node, shape=shape)
        self.fields[node.name] = field
        if origin is not None:
            self.origins[node.name] = origin

    def _sliced(self, name: str, seen: Field, consumer: Node) -> str:
        """``seen`` of node ``name``, of which another consumer may want more."""
        wanted = self.wanted[name]
        if wanted == seen:
            return name
        spans = [
            (first - at[0], end - at[0], 1) for (first, end), at in zip(seen, wanted, strict=True)
        ]
        part = self._unused(f"{consumer.name} of {name} {spans}")
        shape = self.nodes[name].shape
        attrs = {"slices": [(0, shape[0], 1), (0, shape[1], 1), *spans]}
        self._add(Node(part, "Slice", (name,), shape, attrs), seen, name)
        return part

    def _padded(self, name: str, zeros: Field, consumer: Node) -> str:
        """Node ``name`` with ``zeros`` around it."""
        (top, bottom), (left, right) = zeros
        if not any((top, bottom, left, right)):
            return name
        part = self._unused(f"{consumer.name} around {name}")
        node = self.nodes[name]
        tall, broad = node.shape[2:]
        attrs = {"pads": ([0, 0, top, left], [0, 0, bottom, right]), "value": 0.0}
        field = (0, top + tall + bottom), (0, left + broad + right)
        self._add(Node(part, "Pad", (name,), node.shape, attrs), field, None)
        return part

    def _unused(self, name: str) -> str:
        """``name``, or one like it that no node of the network has."""
        while name in self.graph.nodes:
            name += "'"
        return name
