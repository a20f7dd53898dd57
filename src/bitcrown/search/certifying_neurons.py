"""The tree over signs of neurons that goes into a certificate: a small branch and bound on the checker's own bounds.

The search that decided the instance works with more (clipped boxes, zonotopes, reduced networks), none of which the
checker needs to know. So a proof is searched for again with exactly what the checker evaluates: bounds of the layers at
the root, slopes and multipliers by ascent (``certifying_slopes``), and decisions about one neuron at a time. Limits are
raised by several times the rounding error, so that a leaf that closes here closes in whatever order sums are formed.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons of a ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.float_bounds import CHUNK, Bounder, Bounds, proves, relu_line
from bitcrown.check.float_certificate import Leaves, leaf_values, row_lines
from bitcrown.check.float_format import ArrayStore
from bitcrown.check.float_layers import RowSlopes
from bitcrown.check.float_nodes import Array
from bitcrown.check.float_property import Group
from bitcrown.search.certifying_slopes import Climb, climb_leaves

FIRST, LATER = Climb(30), Climb(12)
CANDIDATES = 4


@dataclass
class Branch:
    """A node of the tree: a decision with two children, or a leaf with its place among the ``leaves`` found."""

    relu: int = -1
    neuron: int = -1
    children: tuple[Branch, ...] = ()
    leaf: tuple[int, int] = (-1, -1)


@dataclass
class NeuronTree:
    """A finished tree: its root and the closed leaves, batch by batch."""

    root: Branch = field(default_factory=Branch)
    batches: list[Leaves] = field(default_factory=list)


class NeuronSearch:
    """Branch and bound for the one case of ``group``, whose limits have a margin already."""

    def __init__(self, bounder: Bounder, group: Group, bounds: Bounds, budget: Budget) -> None:
        self.bounder, self.group, self.bounds, self.budget = bounder, group, bounds, budget
        sizes = [node.size for node in bounder.network.nodes]
        self.batch = max(1, min(128, CHUNK // max(sizes)))
        self.sizes = {relu: sizes[relu] for relu in bounder.network.relus}

    def start(self) -> Leaves:
        """The whole box, with most weight on the row that default slopes bound best."""
        none = {relu: np.zeros((1, size)) for relu, size in self.sizes.items()}
        lines = {relu: relu_line(low[:, None], up[:, None]) for relu, (low, up) in self.bounds.items()}
        rows = row_lines(self.bounder, self.group, lines)
        value = np.nan_to_num(self.bounder.least(rows, self.group.box) - self.group.limit, nan=-np.inf)
        weights = np.full(value.shape, 0.1)
        weights[0, value[0].argmax()] = 1.0
        return Leaves({}, none, dict(none), weights)

    def run(self, only_root: bool = False) -> NeuronTree | None:
        """The tree, or None where a domain has nothing left to split (or may not be split). Raises ``BudgetExpired``."""
        tree = NeuronTree()
        waiting: list[tuple[Branch, Leaves]] = [(tree.root, self.start())]
        climb = FIRST
        while waiting:
            self.budget.check()
            taken, waiting = waiting[-self.batch :], waiting[: -self.batch]
            nodes = [node for node, _ in taken]
            domains = stacked([leaves for _, leaves in taken])
            found, _, scores = climb_leaves(self.bounder, self.group, self.bounds, domains, climb)
            climb = LATER
            closed = proves(leaf_values(self.bounder, self.group, self.bounds, found))
            tree.batches.append(found.select(np.nonzero(closed)[0]))
            for rank, place in enumerate(np.nonzero(closed)[0]):
                nodes[place].leaf = (len(tree.batches) - 1, rank)
            open_ = np.nonzero(~closed)[0]
            if not len(open_):
                continue
            if only_root:
                return None
            rest = found.select(open_)
            relus, neurons = self.decisions(rest, {r: value[open_] for r, value in scores.items()})
            if (relus < 0).any():
                return None
            for i, place in enumerate(open_):
                node, relu, neuron = nodes[place], int(relus[i]), int(neurons[i])
                node.relu, node.neuron, node.children = relu, neuron, (Branch(), Branch())
                for child, sign in zip(node.children, (-1.0, 1.0), strict=True):
                    waiting.append((child, with_sign(rest.select(slice(i, i + 1)), relu, neuron, sign)))
        return tree

    def decisions(self, leaves: Leaves, scores: dict[int, Array]) -> tuple[Any, Any]:
        """ReLU and neuron ``[B]`` to decide next (-1: none): of the best few by score, the one whose children rise most."""
        relus = np.concatenate([np.full(size, relu) for relu, size in self.sizes.items()])
        neurons = np.concatenate([np.arange(size) for size in self.sizes.values()])
        flat = np.concatenate([scores[relu] for relu in self.sizes], axis=1)
        order = np.argsort(-flat, axis=1)[:, :CANDIDATES]
        count, width = order.shape
        score = np.take_along_axis(flat, order, axis=1)
        gain = np.full((count, width), -np.inf)
        for k in range(width):
            value = []
            for sign in (-1.0, 1.0):
                trial = leaves
                for relu in self.sizes:
                    mine = np.nonzero(relus[order[:, k]] == relu)[0]
                    if len(mine):
                        trial = with_signs(trial, relu, mine, neurons[order[mine, k]], sign)
                value.append(leaf_values(self.bounder, self.group, self.bounds, trial))
            low, high = np.minimum(*value), np.maximum(*value)
            gain[:, k] = np.where(score[:, k] > 0, np.minimum(low, 0.0) + 0.3 * np.minimum(high, 0.0), -np.inf)
        best = gain.argmax(axis=1)
        rows = np.arange(count)
        pick = order[rows, best]
        usable = score[rows, best] > 0
        return np.where(usable, relus[pick], -1), neurons[pick]


def stacked(parts: list[Leaves]) -> Leaves:
    fields = []
    for name in ("slopes", "signs", "betas"):
        maps = [getattr(part, name) for part in parts]
        fields.append({relu: np.concatenate([item[relu] for item in maps]) for relu in maps[0]})
    return Leaves(*fields, np.concatenate([part.weights for part in parts]))


def with_sign(leaves: Leaves, relu: int, neuron: int, sign: float) -> Leaves:
    return with_signs(leaves, relu, np.arange(len(leaves.weights)), np.full(len(leaves.weights), neuron), sign)


def with_signs(leaves: Leaves, relu: int, rows: Any, neurons: Any, sign: float) -> Leaves:
    """The leaves with one more sign in each of ``rows``."""
    signs = leaves.signs[relu].copy()
    signs[rows, neurons] = sign
    return replace(leaves, signs={**leaves.signs, relu: signs})


def neuron_part(tree: NeuronTree, root: int, case: int, store: ArrayStore) -> dict[str, Any]:
    """The part ``neurons`` of a certificate: levels of the tree and what its leaves need, in the order of the levels."""
    level: list[tuple[Branch, list[tuple[int, int]]]] = [(tree.root, [])]
    relus: list[list[int]] = []
    neurons: list[list[int]] = []
    places: list[tuple[int, int]] = []
    multipliers: list[float] = []
    while level:
        relus.append([node.relu for node, _ in level])
        neurons.append([max(node.neuron, 0) for node, _ in level])
        below = []
        for node, path in level:
            if node.children:
                below += [(child, [*path, (node.relu, node.neuron)]) for child in node.children]
                continue
            places.append(node.leaf)
            batch, row = node.leaf
            multipliers += [abs(float(tree.batches[batch].betas[relu][row, neuron])) for relu, neuron in path]
        level = below
    leaves = stacked([tree.batches[batch].select(slice(row, row + 1)) for batch, row in places])
    return {
        "kind": "neurons",
        "root": root,
        "case": case,
        "relus": relus,
        "neurons": neurons,
        "multipliers": store.put(np.array(multipliers)),
        "weights": store.put(leaves.weights),
        "slopes": slope_items(leaves.slopes, store),
    }


def slope_items(slopes: Any, store: ArrayStore) -> list[dict[str, Any]]:
    """Slopes ``[rows, N]`` by ReLU, of the neurons where any is not 0."""
    items = []
    for relu, value in slopes.items():
        columns = np.nonzero(value.any(axis=0))[0]
        items.append({"relu": relu, "columns": columns.tolist(), "values": store.put(value[:, columns])})
    return items


def root_form(group: int, given: dict[int, RowSlopes], store: ArrayStore) -> dict[str, Any]:
    """A root of the certificate: whose box it is, and the slopes for neurons of its layers."""
    layers = [
        {"relu": relu, "index": item.index.tolist(), "slopes": slope_items(item.slopes, store)}
        for relu, item in given.items()
    ]
    return {"group": group, "layers": layers}
