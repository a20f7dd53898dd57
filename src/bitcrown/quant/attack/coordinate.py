"""Counterexamples on the integer lattice: coordinate moves from points that the bounds propose.

The score of a point for a case is how far its worst constraint is from holding, measured on the
accumulators behind the output staircase (clipped to the range in which they matter), where a gain
of a fraction of an output step still shows. A move sets one input to an end of its interval. Moves
are ranked by the gradient of the score, in which every staircase counts with its mean slope over a
window around the current argument; the best ranked ones are evaluated exactly, and the best of
those is taken. Legend: ``B`` points, ``N`` inputs, ``M`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.bounds.intervals import Program, StairTable
from bitcrown.quant.bounds.staircase_dual import gather_windows, scatter_windows
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.query import ConstraintCase, IntegerQuery

_RANKED_MOVES = 784
_WINDOW_LEVELS = 3
_LEAK = 1e-4
"""Slope of the score beyond saturation: less than any step, enough to show the way back."""


class LatticeAttack:
    """Moves on the box of one query. ``accept`` judges points exactly and returns a witness [N] or
    ``None``."""

    def __init__(
        self, program: Program, query: IntegerQuery, accept: Callable[[Ints], Ints | None]
    ) -> None:
        self.program, self.query, self.accept = program, query, accept
        self.node = program.output
        self.least: Ints | None = None
        table = program.stairs.get(program.output)
        if table is not None and table.late.shape[1]:
            self.node = table.source
            rows = table.late[table.channel]
            self.least, self.most = rows[:, 0] - 1, rows[:, -1]
            self.step = np.maximum((rows[:, -1] - rows[:, 0]) / max(rows.shape[1] - 1, 1), 1.0)

    def scores(self, values: list[Ints], case: ConstraintCase) -> Numbers:
        """[B]: smallest ``bound - sum c v`` over the constraints, in output steps; larger is nearer
        to a witness."""
        outputs = values[self.node].astype(np.float64)
        if self.least is not None:
            table = self.program.stairs[self.program.output]
            inside = np.clip(outputs, self.least, self.most)
            outputs = (inside + _LEAK * (outputs - inside) - self.least) / self.step + table.base
        worst = np.full(len(outputs), np.inf)
        for constraint in case:
            index = [i for i, _ in constraint.terms]
            factors = np.array([c for _, c in constraint.terms], dtype=np.float64)
            worst = np.minimum(worst, constraint.bound - outputs[:, index] @ factors)
        return worst

    def gradient(self, values: list[Ints], case: ConstraintCase) -> Numbers:
        """[N]: slope of the worst constraint's left side at one point (row 0 of ``values``),
        staircases smoothed."""
        scores = [float(self.scores(values, (constraint,))[0]) for constraint in case]
        constraint = case[int(np.argmin(scores))]
        seed = np.zeros((1, self.program.sizes[self.node]))
        for index, factor in constraint.terms:
            seed[0, index] = factor
        return np.asarray(self.pulled([v[:1] for v in values], seed)[0])

    def pulled(self, values: list[Ints], seeds: Numbers) -> Numbers:
        """[B, N]: slopes of ``seeds`` [B, M] times the scored accumulators at the points,
        staircases smoothed."""
        coefficients: dict[int, Numbers] = {self.node: seeds}
        for number in reversed(range(1, self.node + 1)):
            outer = coefficients.pop(number, None)
            if outer is None:
                continue
            if number in self.program.affine:
                step = self.program.affine[number]
                pulled = list(zip(step.sources, step.adjoint(outer), strict=True))
            elif number in self.program.stairs:
                table = self.program.stairs[number]
                pulled = [(table.source, outer * _mean_slope(table, values[table.source]))]
            else:
                source, index_ = self.program.pools[number]
                window = np.where(index_ >= 0, gather_windows(values[source], index_), -np.inf)
                is_top = window == window.max(axis=2, keepdims=True)
                spread = outer[..., None] * is_top / is_top.sum(axis=2, keepdims=True)
                pulled = [(source, scatter_windows(spread, index_, self.program.sizes[source]))]
            for source, part in pulled:
                coefficients[source] = coefficients.get(source, 0.0) + part
        return np.asarray(coefficients.get(0, np.zeros((len(seeds), self.program.sizes[0]))))

    def is_movable(self, accumulator: Ints, index: int, factor: int) -> Numbers:
        """[B]: whether output ``index`` can still change towards ``factor * o`` smaller from these
        accumulators."""
        if self.least is None:
            return np.ones(len(accumulator), dtype=bool)
        return np.asarray(
            accumulator > self.least[index] if factor > 0 else accumulator < self.most[index]
        )

    def climb(
        self, point: Ints, case: ConstraintCase, moves: int, budget: Budget
    ) -> tuple[Ints | None, float]:
        """Up to ``moves`` improving moves from ``point`` [N]; (witness or ``None``, score
        reached)."""
        low, high = self.query.low, self.query.high
        point = point.copy()
        values = self.program.values(point[None])
        score = float(self.scores(values, case)[0])
        for _ in range(moves):
            if budget.is_expired():
                break
            # to lower the worst constraint, an input goes to its lower end where the slope is
            # positive
            slope = self.gradient(values, case)
            target = np.where(slope > 0, low, high)
            gain = np.abs(slope) * np.abs(target - point)
            ranked = np.argsort(-gain)[:_RANKED_MOVES]
            ranked = ranked[gain[ranked] > 0]
            if not len(ranked):
                break
            # trials: each ranked input to its end; by one step where that is less; the best 4, 12,
            # 36 together
            wide = ranked[np.abs(target - point)[ranked] > 1]
            trial = np.repeat(point[None], len(ranked) + len(wide) + 3, axis=0)
            trial[np.arange(len(ranked)), ranked] = target[ranked]
            near = np.arange(len(ranked), len(ranked) + len(wide))
            trial[near, wide] += np.sign(target - point)[wide]
            for extra, count in enumerate((4, 12, 36)):
                trial[len(ranked) + len(wide) + extra, ranked[:count]] = target[ranked[:count]]
            found = self.program.values(trial)
            reached = self.scores(found, case)
            best = int(reached.argmax())
            witness = self.accept(trial[[best]])
            if witness is not None:
                return witness, float(reached[best])
            if reached[best] <= score:
                break
            point, score = trial[best], float(reached[best])
            values = [v[best : best + 1] for v in found]
        return None, score


def _mean_slope(table: StairTable, argument: Ints) -> Numbers:
    """Mean slope [1, N] over ``_WINDOW_LEVELS`` mean level widths to either side of the
    argument."""
    rows = table.late[table.channel]
    steps = rows.shape[1]
    if steps < 2:
        return np.full(argument.shape, 1e-3)
    width = np.maximum((rows[:, -1] - rows[:, 0]) // (steps - 1), 1) * _WINDOW_LEVELS
    rise = table.level(table.late, argument + width) - table.level(table.late, argument - width)
    return np.asarray((rise + 1e-3) / (2 * width))
