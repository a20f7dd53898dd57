"""The network that is left of a ReLU network on a box: its unstable neurons, densely connected.

A ReLU whose operand keeps its sign on the box is linear there, so whatever lies between the
unstable neurons is affine. With ``z_k`` the unstable operands of the k-th ReLU and
``r_k = max(z_k, 0)``, on the whole box

    z_k = A_k x + sum over j < k of B_kj r_j + c_k,        y = A_y x + sum over j of B_yj r_j + c_y.

``A``, ``B`` and ``c`` come from one backward pass per layer that stops at unstable neurons. Of the
thousands of neurons of a convolutional network a few hundred are unstable on a typical box, and a
pass over these dense blocks costs a fraction of one over the convolutions (nnenum and the exact
MILP encodings prune in the same way; here it serves linear bounds). The matrices are products of
weights, rounded; the network found is a guide, proofs are made on the original.

Legend: ``K`` rows, ``n`` flat inputs, ``m`` flat outputs, ``N`` neurons (operands of ReLU), ``U``
unstable ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds.crown import Backward
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Graph, Node

INPUT, AFFINE, OUTPUT = "x", "a", "y"


@dataclass(frozen=True)
class Reduced:
    """``network`` over the unstable neurons, their ``bounds`` ``[1, U_k]``, and ``neurons [U]``:
    where they stand among the ``N`` of the network it was made from. ``rough`` is ``network`` with
    the product over the inputs, the largest of all, in bfloat16: twice as fast where the machine
    has it, and good enough for a gradient."""

    network: Network
    rough: Network
    layout: Layout
    bounds: Bounds
    neurons: Tensor
    n_neurons: int

    def expand(self, flat: Tensor) -> Tensor:
        """``[..., U]`` to ``[..., N]``, zero elsewhere."""
        return flat.new_zeros(*flat.shape[:-1], self.n_neurons).index_copy_(-1, self.neurons, flat)


def reduced_network(
    network: Network, layout: Layout, bounds: Bounds, memory: int
) -> Reduced | None:
    """``network`` on the box of ``bounds`` (``[1, *]``); None where other nonlinear operators
    occur, where nothing is unstable, or where the matrices would exceed ``memory`` bytes."""
    nodes = layout.nodes
    if any(node.op != "Relu" for node in nodes) or layout.n_alphas != layout.n_neurons:
        return None
    unstable = {}
    for node in nodes:
        low, up = (part.flatten() for part in bounds[node.inputs[0]])
        unstable[node.name] = ((low < 0) & (up > 0)).nonzero().flatten()
    nodes = [node for node in nodes if len(unstable[node.name])]
    total = sum(len(unstable[node.name]) for node in nodes)
    graph = network.graph
    entries = (total + graph.n_outputs) * (graph.n_inputs + total)
    if not nodes or entries * torch.finfo(network.dtype).bits // 8 > memory:
        return None
    # A block for each layer of unstable neurons, as functions of those before; then the outputs.
    rows = _Rows(network, layout, bounds, unstable, memory)
    blocks = []
    for count, node in enumerate(nodes):
        source = graph.nodes[node.inputs[0]]
        seeds = {
            source.name: _one_hot(unstable[node.name], source.size, network).reshape(
                -1, *source.shape
            )
        }
        blocks.append(rows.of(seeds, nodes[:count]))
    outputs, start = {}, 0
    identity = torch.eye(graph.n_outputs, dtype=network.dtype, device=network.device)
    for name in graph.outputs:
        size = graph.nodes[name].size
        outputs[name] = identity[:, start : start + size].reshape(-1, *graph.nodes[name].shape)
        start += size
    blocks.append(rows.of(outputs, nodes))
    # The new network, the bounds of its neurons, and where they stand among those of the old one.
    found = Network(_dense_graph(blocks, graph), network.dtype, network.device)
    kept = {
        f"z{k}": _part(bounds[node.inputs[0]], unstable[node.name]) for k, node in enumerate(nodes)
    }
    at = torch.cat([layout.neuron_at[node.inputs[0]].start + unstable[node.name] for node in nodes])
    rough = Network(found.graph, network.dtype, network.device)
    rough.offset(rough.graph.nodes[AFFINE])  # kept from before the weights are cut
    rough.params[AFFINE]["weight"] = rough.params[AFFINE]["weight"].bfloat16()
    return Reduced(found, rough, Layout(found), kept, at, layout.n_neurons)


def _part(bounds: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
    return elements(bounds[0], 1)[:, index], elements(bounds[1], 1)[:, index]


def _one_hot(index: Tensor, size: int, network: Network) -> Tensor:
    rows = torch.zeros(len(index), size, dtype=network.dtype, device=network.device)
    return rows.scatter_(1, index.unsqueeze(1), 1.0)


@dataclass(frozen=True)
class _Block:
    """Rows as affine functions: ``direct [K, n]`` of the inputs, ``through [K, U_1 + ... + U_k]``
    of the unstable neurons before, ``offset [K]``."""

    direct: Tensor
    through: Tensor
    offset: Tensor


class _Rows:
    """Backward passes in which stable neurons are linear and unstable ones the end of the way."""

    def __init__(
        self,
        network: Network,
        layout: Layout,
        bounds: Bounds,
        unstable: dict[str, Tensor],
        memory: int,
    ) -> None:
        self.network, self.unstable = network, unstable
        self.relaxations = {}
        for node in layout.nodes:  # exact for a stable neuron; an unstable one cuts the way
            slope = (bounds[node.inputs[0]][0] >= 0).to(network.dtype).unsqueeze(1)
            zero = torch.zeros_like(slope)
            self.relaxations[node.name] = Relaxation((slope,), zero, (slope,), zero)
        widest = max(node.size for node in network.graph.nodes.values())
        self.step = max(1, memory // (torch.finfo(network.dtype).bits // 8 * 8 * widest))

    def of(self, seeds: dict[str, Tensor], earlier: list[Node]) -> _Block:
        """``seeds`` are ``[K, *shape]``; columns of ``through`` follow ``earlier``."""
        count = next(iter(seeds.values())).shape[0]
        parts = []
        for start in range(0, count, self.step):
            record: dict[str, Tensor] = {}
            backward = Backward(self.network, self.relaxations, record=record)
            lines = backward.run(
                {name: seed[start : start + self.step].unsqueeze(0) for name, seed in seeds.items()}
            )
            rows = lines.constant.shape[1]
            through = [self._reached(record, node, rows) for node in earlier]
            empty = lines.constant.new_zeros(rows, 0)
            parts.append(
                (lines.coefficient[0], torch.cat([empty, *through], dim=1), lines.constant[0])
            )
        return _Block(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _reached(self, record: dict[str, Tensor], node: Node, rows: int) -> Tensor:
        index = self.unstable[node.name]
        if node.name not in record:
            return torch.zeros(
                rows, len(index), dtype=self.network.dtype, device=self.network.device
            )
        return elements(record[node.name][0], 1)[:, index]


def _dense_graph(blocks: list[_Block], like: Graph) -> Graph:
    """All functions of the inputs are one product (``a``); the rest of each block is a product with
    what is behind."""

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.cpu().numpy()

    n = like.n_inputs
    total = sum(len(block.offset) for block in blocks)
    nodes = [Node(INPUT, "Input", (), (n,))]
    weights = {
        "weight": array(torch.cat([block.direct for block in blocks])),
        "bias": array(torch.cat([block.offset for block in blocks])),
    }
    nodes.append(Node(AFFINE, "Linear", (INPUT,), (total,), params=weights))
    start = 0
    behind: list[Node] = []
    for k, block in enumerate(blocks):
        size = len(block.offset)
        name = OUTPUT if k + 1 == len(blocks) else f"z{k}"
        part = Node(
            f"a{k}" if behind else name,
            "Slice",
            (AFFINE,),
            (size,),
            {"slices": [(start, start + size, 1)]},
        )
        nodes.append(part)
        if behind:
            nodes += _sum_of(name, k, part, block, behind)
        if name != OUTPUT:
            behind.append(Node(f"r{k}", "Relu", (name,), (size,)))
            nodes.append(behind[-1])
        start += size
    return Graph({node.name: node for node in nodes}, (INPUT,), (OUTPUT,))


def _sum_of(name: str, k: int, part: Node, block: _Block, behind: list[Node]) -> list[Node]:
    width, size = block.through.shape[1], len(block.offset)
    joined = Node(f"c{k}", "Concat", tuple(node.name for node in behind), (width,), {"axis": 0})
    product = Node(
        f"b{k}", "Linear", (joined.name,), (size,), params={"weight": block.through.cpu().numpy()}
    )
    return [joined, product, Node(name, "Add", (part.name, product.name), (size,))]
