"""The tree over signs of neurons that goes into a certificate: a branch and bound on the checker's
own bounds.

The search that decided the instance works with more (clipped boxes, zonotopes, reduced networks),
none of which the checker needs to know. So a proof is put together again from exactly what the
checker evaluates: bounds of the layers at the root, slopes and multipliers, and decisions about one
neuron at a time. What the search recorded serves as hints: its decisions are followed as long as
there are any, and its parameters tried first. A domain that they do not close is improved by ascent
(``slopes``) or by a linear program (``programs``) and divided further.

Limits are raised by several times the rounding error, so that a leaf that closes here closes in
whatever order sums are formed. Legend: ``B`` domains, ``S`` rows, ``N`` neurons of a ReLU, ``H``
hints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from bitcrown.budget import Budget
from bitcrown.certificates.programs import MAX_VARIABLES, Programs
from bitcrown.certificates.slopes import GRID, ROWS_A_STEP, Climb, climb_leaves, on_grid
from bitcrown.check.certificates.floats.bounds import (
    PASS_ENTRIES,
    Bounder,
    OperandBounds,
    proves,
    relu_line,
)
from bitcrown.check.certificates.floats.format import ArrayStore
from bitcrown.check.certificates.floats.layers import RowSlopes
from bitcrown.check.certificates.floats.nodes import FloatArray
from bitcrown.check.certificates.floats.property import Group
from bitcrown.check.certificates.floats.steps import Leaves, case_bounds, leaf_values
from bitcrown.search.neurons.recorder import Hints

_FIRST, _LATER = Climb(30), Climb(12)
_CANDIDATES = 4
Path = tuple[tuple[int, int, float], ...]


@dataclass
class Branch:
    """A node of the tree: a decision with two children, or a leaf with its place among the closed
    batches."""

    path: Path = ()
    relu: int = -1
    neuron: int = -1
    children: tuple[Branch, ...] = ()
    leaf: tuple[int, int] = (-1, -1)

    def divide(self, relu: int, neuron: int) -> None:
        self.relu, self.neuron = relu, neuron
        self.children = tuple(Branch((*self.path, (relu, neuron, sign))) for sign in (-1.0, 1.0))


class Closed(NamedTuple):
    """Leaves in few bytes: slopes in units of ``1 / GRID`` of open neurons, multipliers along each
    path, weights."""

    slopes: dict[int, np.ndarray[Any, Any]]
    multipliers: list[list[float]]
    weights: FloatArray


@dataclass
class NeuronTree:
    root: Branch = field(default_factory=Branch)
    batches: list[Closed] = field(default_factory=list)


class NeuronSearch:
    """Branch and bound for the one case of ``group``, whose limits have a margin already."""

    def __init__(
        self, bounder: Bounder, group: Group, bounds: OperandBounds, budget: Budget
    ) -> None:
        self.bounder, self.group, self.bounds, self.budget = bounder, group, bounds, budget
        self.spent = 0
        """Passes of one row through the network, about."""
        sizes = [node.size for node in bounder.network.nodes]
        self.batch = max(1, min(128, PASS_ENTRIES // max(sizes)))
        self.sizes = {relu: sizes[relu] for relu in bounder.network.relus}
        self.open = {
            r: np.nonzero((low[0] < 0) & (up[0] > 0))[0] for r, (low, up) in bounds.items()
        }
        undecided = sum(len(index) for index in self.open.values())
        is_small = bounder.network.n_inputs + undecided <= MAX_VARIABLES
        self.programs = Programs(bounder, group, bounds) if is_small else None
        self.uses_programs = is_small and group.limit.shape[1] > 1
        self.columns = [
            (relu, int(neuron)) for relu, index in self.open.items() for neuron in index
        ]

    def start(self) -> Leaves:
        """The whole box, with most weight on the row that default slopes bound best."""
        none = {relu: np.zeros((1, size)) for relu, size in self.sizes.items()}
        lines = {
            relu: relu_line(low[:, None], up[:, None]) for relu, (low, up) in self.bounds.items()
        }
        rows = case_bounds(self.bounder, self.group, lines)
        value = np.nan_to_num(
            self.bounder.least(rows, self.group.box) - self.group.limit, nan=-np.inf
        )
        weights = np.full(value.shape, 0.1)
        weights[0, value[0].argmax()] = 1.0
        slopes = {relu: line.lower[:, 0] for relu, line in lines.items()}
        return Leaves(slopes, none, dict(none), weights)

    def run(
        self, hints: Hints | None = None, only_root: bool = False, most: float = math.inf
    ) -> NeuronTree | None:
        """The tree; None where a domain has nothing left to split or may not be split, or after
        ``most`` passes of one row. Raises ``BudgetExpired``."""
        tree, start = NeuronTree(), self.start()
        waiting: list[tuple[Branch, Leaves | int]] = [(tree.root, start)]
        if hints is not None and len(hints):
            waiting = self.followed(tree.root, hints, start)
        climb = _FIRST
        while waiting:
            self.budget.check()
            if self.spent > most:
                return None
            taken, waiting = waiting[-self.batch :], waiting[: -self.batch]
            nodes = [node for node, _ in taken]
            domains = joined_leaves([self.domain(node, given, hints) for node, given in taken])
            left = self.close(tree, nodes, domains)
            if not len(left):
                continue
            nodes = [nodes[place] for place in left]
            found, scores = self.choices(domains.select(left), climb)
            self.spent += len(taken) + len(left) * (ROWS_A_STEP * climb.steps + 2 * _CANDIDATES)
            climb = _LATER
            open_ = self.close(tree, nodes, found)
            if not len(open_):
                continue
            rest = found.select(open_)
            relus, neurons = self.decisions(rest, {r: value[open_] for r, value in scores.items()})
            stuck = np.nonzero(relus < 0)[0]
            if only_root or (
                len(stuck)
                and not self.solved(tree, [nodes[open_[i]] for i in stuck], rest.select(stuck))
            ):
                return None
            for i, place in enumerate(open_):
                if relus[i] < 0:
                    continue
                nodes[place].divide(int(relus[i]), int(neurons[i]))
                waiting += [
                    (child, rest.select(slice(i, i + 1))) for child in nodes[place].children
                ]
        return tree

    def close(self, tree: NeuronTree, nodes: list[Branch], domains: Leaves) -> Any:
        """Record the domains that are closed; places of the others."""
        done = proves(leaf_values(self.bounder, self.group, self.bounds, domains))
        index = np.nonzero(done)[0]
        multipliers = []
        for rank, place in enumerate(index):
            nodes[place].leaf = (len(tree.batches), rank)
            path = nodes[place].path
            multipliers.append(
                [abs(float(domains.betas[relu][place, neuron])) for relu, neuron, _ in path]
            )
        slopes = {
            r: (domains.slopes[r][index][:, c] * GRID).astype(np.uint16)
            for r, c in self.open.items()
        }
        tree.batches.append(Closed(slopes, multipliers, domains.weights[index]))
        return np.nonzero(~done)[0]

    # -- hints -------------------------------------------------------------------------------------

    def followed(
        self, root: Branch, hints: Hints, start: Leaves
    ) -> list[tuple[Branch, Leaves | int]]:
        """The tree that the hints describe, grown below ``root``: its ends, each with a hint or
        without any."""
        ends: list[tuple[Branch, Leaves | int]] = []
        place = {pair: k for k, pair in enumerate(self.columns)}
        pending = [(root, np.arange(len(hints)))]
        while pending:
            self.budget.check()
            node, rows = pending.pop()
            used = {place[relu, neuron] for relu, neuron, _ in node.path}
            column = hints.next_column(rows, used) if len(rows) else -1
            if column < 0:
                ends.append((node, int(rows[0]) if len(rows) else start))
                continue
            node.divide(*self.columns[column])
            for child, sign in zip(node.children, (-1, 1), strict=True):
                pending.append((child, rows[hints.split[rows, column] != -sign]))
        return ends[::-1]

    def domain(self, node: Branch, given: Leaves | int, hints: Hints | None) -> Leaves:
        """The domain of ``node`` with the parameters of a hint or of its parent."""
        signs = {relu: np.zeros((1, size)) for relu, size in self.sizes.items()}
        for relu, neuron, sign in node.path:
            signs[relu][0, neuron] = sign
        if isinstance(given, Leaves):
            return replace(given, signs=signs)
        assert hints is not None
        slopes, betas = (
            {r: np.zeros((1, size)) for r, size in self.sizes.items()} for _ in range(2)
        )
        start = 0
        for r, index in self.open.items():
            where = slice(start, start + len(index))
            slopes[r][0, index] = np.clip(
                np.nan_to_num(hints.alpha[given, where].astype(np.float64)), 0.0, 1.0
            )
            beta = np.maximum(np.nan_to_num(hints.beta[given, where].astype(np.float64)), 0.0)
            betas[r][0, index] = beta * signs[r][0, index]
            start += len(index)
        weights = np.zeros((1, self.group.limit.shape[1]))
        mix = np.maximum(np.nan_to_num(hints.mix[given].astype(np.float64)), 0.0)[
            : weights.shape[1]
        ]
        weights[0, : len(mix)] = mix if len(mix) > 1 else 1.0
        return Leaves(on_grid(slopes), signs, betas, weights)

    # -- without hints -----------------------------------------------------------------------------

    def choices(self, domains: Leaves, climb: Climb) -> tuple[Leaves, dict[int, FloatArray]]:
        """Slopes and multipliers, and the score of every neuron ``[B, N]`` by ReLU."""
        if not self.uses_programs:
            found, _, scores = climb_leaves(self.bounder, self.group, self.bounds, domains, climb)
            return found, scores
        assert self.programs is not None
        parts, gaps = [], []
        for i in range(len(domains.weights)):
            self.budget.check()
            part = domains.select(slice(i, i + 1))
            solution = self.programs.solve(part)
            if solution is None:
                part, _, score = climb_leaves(self.bounder, self.group, self.bounds, part, climb)
            else:
                part, score = solution
            parts.append(part)
            gaps.append(score)
        return joined_leaves(parts), {
            r: np.concatenate([gap[r] for gap in gaps]) for r in self.sizes
        }

    def solved(self, tree: NeuronTree, nodes: list[Branch], domains: Leaves) -> bool:
        """Whether linear programs close the domains, in which no neuron is left to decide."""
        for i, node in enumerate(nodes):
            part = domains.select(slice(i, i + 1))
            solution = None if self.programs is None else self.programs.solve(part)
            if solution is None or len(self.close(tree, [node], solution.leaves)):
                return False
        return True

    def decisions(self, leaves: Leaves, scores: dict[int, FloatArray]) -> tuple[Any, Any]:
        """ReLU and neuron ``[B]`` to decide next (-1: none): of the best few that whose children
        rise most."""
        if not self.sizes:
            return np.full(len(leaves.weights), -1), np.zeros(len(leaves.weights), dtype=np.int64)
        relus = np.concatenate([np.full(size, relu) for relu, size in self.sizes.items()])
        neurons = np.concatenate([np.arange(size) for size in self.sizes.values()])
        flat = np.concatenate([scores[relu] for relu in self.sizes], axis=1)
        order = np.argsort(-flat, axis=1)[:, : 1 if self.uses_programs else _CANDIDATES]
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
            gain[:, k] = np.where(
                score[:, k] > 0, np.minimum(low, 0.0) + 0.3 * np.minimum(high, 0.0), -np.inf
            )
        rows = np.arange(count)
        best = gain.argmax(axis=1)
        pick = order[rows, best]
        return np.where(score[rows, best] > 0, relus[pick], -1), neurons[pick]


def joined_leaves(parts: list[Leaves]) -> Leaves:
    fields = []
    for name in ("slopes", "signs", "betas"):
        maps = [getattr(part, name) for part in parts]
        fields.append({relu: np.concatenate([item[relu] for item in maps]) for relu in maps[0]})
    slopes, signs, betas = fields
    return Leaves(slopes, signs, betas, np.concatenate([part.weights for part in parts]))


def with_signs(leaves: Leaves, relu: int, rows: Any, neurons: Any, sign: float) -> Leaves:
    """The leaves with one more sign in each of ``rows``."""
    signs = leaves.signs[relu].copy()
    signs[rows, neurons] = sign
    return replace(leaves, signs={**leaves.signs, relu: signs})


def neuron_part(
    search: NeuronSearch, tree: NeuronTree, root: int, case: int, store: ArrayStore
) -> dict[str, Any]:
    """The part ``neurons`` of a certificate: the levels of the tree, and what its leaves need in
    the same order."""
    level = [tree.root]
    relus: list[list[int]] = []
    neurons: list[list[int]] = []
    places: list[tuple[int, int]] = []
    while level:
        relus.append([node.relu for node in level])
        neurons.append([max(node.neuron, 0) for node in level])
        places += [node.leaf for node in level if not node.children]
        level = [child for node in level for child in node.children]
    multipliers = [value for batch, row in places for value in tree.batches[batch].multipliers[row]]
    weights = np.array([tree.batches[batch].weights[row] for batch, row in places])
    slopes = {}
    for relu, index in search.open.items():
        slopes[relu] = (
            index,
            np.array([tree.batches[batch].slopes[relu][row] for batch, row in places]) / GRID,
        )
    return {
        "kind": "neurons",
        "root": root,
        "case": case,
        "relus": relus,
        "neurons": neurons,
        "multipliers": store.put(np.array(multipliers)),
        "weights": store.put(weights),
        "slopes": slope_items(slopes, store),
    }


def slope_items(
    slopes: Mapping[int, tuple[Any, FloatArray]], store: ArrayStore
) -> list[dict[str, Any]]:
    """Slopes ``[rows, C]`` by ReLU, of the neurons where any is not 0."""
    items = []
    for relu, (columns, values) in slopes.items():
        used = values.any(axis=0)
        items.append(
            {"relu": relu, "columns": columns[used].tolist(), "values": store.put(values[:, used])}
        )
    return items


def root_form(group: int, given: dict[int, RowSlopes], store: ArrayStore) -> dict[str, Any]:
    """A root of the certificate: whose box it is, and the slopes for neurons of its layers."""
    layers = [
        {"relu": relu, "index": item.neurons.tolist(), "slopes": slope_items(item.slopes, store)}
        for relu, item in given.items()
    ]
    return {"group": group, "layers": layers}
