"""Slopes and multipliers for certificates: gradient ascent on the checker's own bound, in numpy.

The bound is ``min over the box of <a, x> + constant``, with ``a`` from backward substitution. Let
``x`` be the minimiser and follow the lines forward from it: each ReLU as the line that its
coefficient chose. Then, with ``z`` the operands found on the way and ``c`` the coefficient with
which a ReLU was met (all as in "Fast and Complete", Xu et al. 2021, but without automatic
differentiation),

    d bound / d alpha_j = max(c_j, 0) z_j,   d bound / d beta_j = -sign_j z_j,   d bound / d
    weight_s = row_s - limit_s.

Any slopes and multipliers are sound, so nothing here is rounded with care; the checker evaluates
what is found.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons of a ReLU, ``n`` inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.certificates.floats.bounds import (
    Bounder,
    BoxBatch,
    LineBounds,
    OperandBounds,
    ReluLine,
    relu_line,
)
from bitcrown.check.certificates.floats.layers import (
    Index,
    NeuronPass,
    RowSlopes,
    layer_bounds,
    neuron_passes,
)
from bitcrown.check.certificates.floats.nodes import FloatArray, InputNode, ReluNode
from bitcrown.check.certificates.floats.property import Group
from bitcrown.check.certificates.floats.steps import Leaves, decided, leaf_lines, weighted_value

GRID = 256.0
"""Slopes are written as multiples of ``1 / GRID``: they compress well, and hardly any bound
notices."""


ROWS_A_STEP = 3
"""What a step of an ascent costs, in passes of one row: back, and forward again."""


class NumpyAdam:
    """Kingma and Ba (2015), ascending, on one array; entries without a finite gradient stay where
    they are."""

    def __init__(self, rate: float, decay: float) -> None:
        self.rate, self.decay, self.steps = rate, decay, 0
        self.mean: FloatArray | float = 0.0
        self.square: FloatArray | float = 0.0

    def step(self, value: FloatArray, gradient: FloatArray) -> FloatArray:
        gradient = np.where(np.isfinite(gradient), gradient, 0.0)
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient * gradient
        correction = np.sqrt(1 - 0.99**self.steps) / (1 - 0.9**self.steps)
        size = self.rate * correction * self.decay ** (self.steps - 1)
        result: FloatArray = value + size * self.mean / (np.sqrt(self.square) + 1e-12)
        return result


def followed(
    bounder: Bounder,
    lines: Mapping[int, ReluLine],
    met: Mapping[int, FloatArray],
    found: LineBounds,
    box: BoxBatch,
) -> list[FloatArray]:
    """Values ``[B, S, N]`` of all nodes at the minimisers of ``found``, each ReLU as the line that
    was chosen."""
    x = np.where(found.coefficient > 0, box.lower[:, None], box.upper[:, None])
    rows = x.shape[:2]
    values: list[FloatArray] = []
    for number, node in enumerate(bounder.network.nodes):
        if isinstance(node, InputNode):
            values.append(x)
        elif isinstance(node, ReluNode):
            z = values[node.sources[0]]
            if number in met:
                line, up = lines[number], met[number] < 0
                values.append(np.where(up, line.upper * z + line.offset, line.lower * z))
            else:
                values.append(np.maximum(z, 0.0))
        else:
            flat = [values[source].reshape(rows[0] * rows[1], -1) for source in node.sources]
            values.append((node.forward(flat) + node.bias).reshape(*rows, -1))
    return values


@dataclass(frozen=True)
class Climb:
    """How to climb: ``steps``, rates, and their decay after every step."""

    steps: int
    rate_alpha: float = 0.2
    rate_beta: float = 0.1
    rate_weight: float = 0.1
    decay: float = 0.97


def on_grid(slopes: Mapping[int, FloatArray]) -> dict[int, FloatArray]:
    return {relu: np.round(value * GRID) / GRID for relu, value in slopes.items()}


def climb_leaves(
    bounder: Bounder, group: Group, bounds: OperandBounds, leaves: Leaves, climb: Climb
) -> tuple[Leaves, FloatArray, dict[int, FloatArray]]:
    """The best of what an ascent from ``leaves`` meets for each domain, its value ``[B]``, and
    scores of neurons ``[B, N]`` by ReLU (what splitting them may win). Slopes come back rounded to
    ``GRID``."""
    base = leaf_lines(decided(bounds, leaves.signs), leaves)
    ascent = _Ascent(group, base, leaves, climb)
    nodes, count = bounder.network.nodes, len(leaves.weights)
    best = np.full(count, -np.inf)
    chosen, scores = leaves, {r: np.zeros((count, nodes[r].size)) for r in base}
    for step in range(climb.steps):
        trial = ascent.leaves()
        lines = _with_slopes(base, {r: value[:, None] for r, value in trial.slopes.items()})
        met: dict[int, FloatArray] = {}
        value, found = weighted_value(bounder, group, trial.weights, lines, trial.betas, met)
        value = np.where(np.isfinite(value), value, -np.inf)
        values = followed(bounder, lines, met, found, group.box)
        operands = {r: values[nodes[r].sources[0]] for r in base}
        better = value > best
        best = np.maximum(best, value)
        chosen = _merged(chosen, trial, better)
        for r, a in met.items():
            gained = _scores(a, lines[r], operands[r])
            scores[r] = np.where(better[:, None], gained, scores[r])
        if step + 1 == climb.steps or (best > 0).all():
            break
        ascent.move(met, operands, values[0][:, 0], values[bounder.network.output][:, 0])
    return chosen, best, scores


class _Ascent:
    """Choices that follow the gradients of the module's docstring, kept where they are allowed:
    slopes in [0, 1], multipliers and weights not negative."""

    def __init__(
        self, group: Group, base: Mapping[int, ReluLine], start: Leaves, climb: Climb
    ) -> None:
        self.group, self.signs = group, start.signs
        self.slopes = {
            r: np.broadcast_to(line.lower, (len(start.weights), 1, line.upper.shape[2]))[:, 0]
            for r, line in base.items()
        }
        self.betas, self.weights = dict(start.betas), start.weights
        self.slope_adams = {r: NumpyAdam(climb.rate_alpha, climb.decay) for r in base}
        self.beta_adams = {r: NumpyAdam(climb.rate_beta, climb.decay) for r in base}
        self.weight_adam = NumpyAdam(climb.rate_weight, climb.decay)

    def leaves(self) -> Leaves:
        return Leaves(on_grid(self.slopes), self.signs, dict(self.betas), self.weights)

    def move(
        self,
        met: Mapping[int, FloatArray],
        operands: Mapping[int, FloatArray],
        x: FloatArray,
        y: FloatArray,
    ) -> None:
        """One step up: ``met`` coefficients and ``operands`` ``[B, 1, N]`` of ReLUs, and input
        ``x [B, n]`` and output ``y [B, m]`` at the minimisers."""
        for r, a in met.items():
            # d bound / d alpha_j = max(c_j, 0) z_j
            z = operands[r][:, 0]
            a = np.broadcast_to(a, (len(z), *a.shape[1:]))[:, 0]
            moved = self.slope_adams[r].step(self.slopes[r], np.maximum(a, 0.0) * z)
            self.slopes[r] = np.clip(moved, 0.0, 1.0)
        for r, sign in self.signs.items():
            if r in operands and sign.any():
                # d bound / d beta_j = -sign_j z_j
                moved = self.beta_adams[r].step(np.abs(self.betas[r]), -sign * operands[r][:, 0])
                self.betas[r] = np.maximum(moved, 0.0) * sign
        if self.weights.shape[1] > 1:
            # d bound / d weight_s = row_s - limit_s; a common factor of weights decides nothing
            excess = y @ self.group.C[0].T + x @ self.group.D[0].T - self.group.limit[0]
            weights = np.maximum(self.weight_adam.step(self.weights, excess), 0.0)
            self.weights = weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-6)


def _with_slopes(
    base: Mapping[int, ReluLine], slopes: Mapping[int, FloatArray]
) -> dict[int, ReluLine]:
    """The lines with other lower slopes ``[1 or B, 1 or S, N]`` where neurons are undecided."""
    return {
        r: ReluLine(np.where(line.offset > 0, slopes[r], line.lower), line.upper, line.offset)
        for r, line in base.items()
    }


def _merged(old: Leaves, new: Leaves, better: Any) -> Leaves:
    """Rows of ``new`` where ``better [B]``."""
    mask = better[:, None]
    slopes = {
        r: np.where(mask, value, old.slopes[r]) if r in old.slopes else value
        for r, value in new.slopes.items()
    }
    betas = {r: np.where(mask, value, old.betas[r]) for r, value in new.betas.items()}
    return Leaves(slopes, old.signs, betas, np.where(mask, new.weights, old.weights))


def _scores(a: FloatArray, line: ReluLine, z: FloatArray) -> FloatArray:
    """``[B, N]``: by how much the line misses the ReLU at the point followed, a share of the
    triangle's depth, and a trace of it for neurons that do not matter to this bound, so that any
    undecided neuron counts as one."""
    gap = np.where(a < 0, line.upper * z + line.offset, line.lower * z) - np.maximum(z, 0.0)
    found = np.abs(a * gap) + 0.1 * np.abs(np.minimum(a, 0.0)) * line.offset + 1e-9 * line.offset
    return np.where(line.offset > 0, found, 0.0)[:, 0]


def climb_layers(
    bounder: Bounder, box: BoxBatch, steps: int, budget: Budget
) -> tuple[dict[int, RowSlopes], OperandBounds]:
    """Slopes for every undecided neuron, layer by layer, and the bounds that they give. Raises
    ``BudgetExpired``."""
    given: dict[int, RowSlopes] = {}

    def climb(relu: int, index: Index, bounds: OperandBounds) -> RowSlopes:
        source = bounder.network.nodes[relu].sources[0]
        given[relu] = RowSlopes(
            index, _climb_rows(bounder, box, source, index, bounds, steps, budget)
        )
        return given[relu]

    return given, layer_bounds(bounder, box, climb)


def _climb_rows(
    bounder: Bounder,
    box: BoxBatch,
    source: int,
    index: Index,
    bounds: OperandBounds,
    steps: int,
    budget: Budget,
) -> dict[int, tuple[Index, FloatArray]]:
    """Slopes of undecided neurons ``[2 K, C]`` by ReLU for the elements ``index [K]`` of node
    ``source``."""
    base = {r: relu_line(low[:, None], up[:, None]) for r, (low, up) in bounds.items()}
    columns = {r: np.nonzero(line.offset[0, 0] > 0)[0] for r, line in base.items()}
    found = {r: np.zeros((2 * len(index), len(some))) for r, some in columns.items()}
    neurons, signs = np.repeat(index, 2), np.tile([1.0, -1.0], len(index))
    for one in neuron_passes(bounder, source, neurons, 1):
        seeds, lines = one.seeds(source, neurons, signs), one.lines(base)
        best = _climb_pass(one, seeds, lines, one.box(box), steps, budget)
        for r, some in columns.items():
            if r in one.kept:
                open_ = np.zeros(bounder.network.nodes[r].size, dtype=bool)
                open_[some] = True
                places = np.nonzero(open_[one.kept[r]])[0]
                seen = np.arange(len(open_))[one.kept[r]][places]
                to = np.ix_(one.rows, np.searchsorted(some, seen))
                found[r][to] = best[one.place[r]][:, places]
    return {r: (some, found[r]) for r, some in columns.items()}


def _climb_pass(
    one: NeuronPass,
    seeds: dict[int, FloatArray],
    base: dict[int, ReluLine],
    box: BoxBatch,
    steps: int,
    budget: Budget,
) -> dict[int, FloatArray]:
    """The best slopes ``[R, N]`` by ReLU that an ascent meets for the rows of one pass."""
    nodes, count = one.bounder.network.nodes, len(one.rows)
    slopes = {r: np.repeat(line.lower[0], count, axis=0) for r, line in base.items()}
    adams = {r: NumpyAdam(0.25, 0.95) for r in base}
    best = np.full(count, -np.inf)
    kept = on_grid(slopes)
    for _ in range(steps):
        budget.check()
        trial = on_grid(slopes)
        lines = _with_slopes(base, {r: value[None] for r, value in trial.items()})
        met: dict[int, FloatArray] = {}
        found = one.bounder.backward(seeds, lines, None, met)
        value = one.bounder.least(found, box)[0]
        better = (value > best)[:, None]
        best = np.fmax(best, value)
        kept = {r: np.where(better, trial[r], kept[r]) for r in kept}
        values = followed(one.bounder, lines, met, found, box)
        for r, a in met.items():
            z = values[nodes[r].sources[0]][0]
            slopes[r] = np.clip(adams[r].step(slopes[r], np.maximum(a[0], 0.0) * z), 0.0, 1.0)
    return kept
