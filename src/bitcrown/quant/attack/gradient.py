"""Counterexamples by projected gradient steps on the integer lattice, many starts at a time.

Every point aims at one case and takes sign steps of falling length (Madry et al., arXiv:1706.06083)
along the slope of its worst constraint, in which a staircase counts with its mean slope. Saturated
outputs need different aims: where ``o_y`` and ``o_i`` are both at their top, ``o_i >= o_y`` is
reached by raising ``o_i`` alone, while their difference before saturation never gets there. So a
start moves all terms of the constraint, or only those that are to rise, or only those that are to
fall, or those whose outputs can still change. The cases in which a few steps from the middle come
nearest get the random starts, and coordinate moves (``coordinate``) finish the best points.
Legend: ``B`` points, ``N`` inputs, ``M`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.attack.coordinate import LatticeAttack
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.query import IntegerQuery

_ALL, _RISING, _FALLING, _MOVABLE = range(4)
_FIRST_STEPS, _STEPS, _LAST_LENGTH = 16, 40, 0.02
_CASES, _STARTS, _CLIMBS, _MOVES = 4, 6, 3, 40
"""Cases that get random starts, starts per case and aim, points that are climbed from and moves of
each."""


class GradientAttack:
    """Sign steps on the box of one query. ``accept`` judges points exactly and returns a witness
    [N] or ``None``."""

    def __init__(
        self, program: Program, query: IntegerQuery, accept: Callable[[Ints], Ints | None]
    ) -> None:
        self.program, self.query, self.accept = program, query, accept
        self.lattice = LatticeAttack(program, query, accept)

    def run(self, budget: Budget, rng: np.random.Generator) -> Ints | None:
        """A witness [N], or ``None`` when the starts or the budget are used up."""
        count = len(self.query.cases)
        middle = (self.query.low + self.query.high) // 2
        cases, aims = np.repeat(np.arange(count), 4), np.tile(np.arange(4), count)
        witness, _, scores = self.steps(
            np.repeat(middle[None], len(cases), axis=0), cases, aims, _FIRST_STEPS, budget
        )
        if witness is not None:
            return witness
        near = np.argsort(-scores.reshape(count, 4).max(axis=1))[:_CASES]
        cases, aims = np.repeat(near, 4 * _STARTS), np.tile(np.arange(4), len(near) * _STARTS)
        starts = rng.integers(self.query.low, self.query.high + 1, size=(len(cases), len(middle)))
        witness, points, scores = self.steps(starts, cases, aims, _STEPS, budget)
        return (
            witness
            if witness is not None
            else self.climb(points, cases, scores, _CLIMBS, _MOVES, budget)
        )

    def climb(
        self, points: Ints, cases: Ints, scores: Numbers, climbs: int, moves: int, budget: Budget
    ) -> Ints | None:
        """Coordinate moves from the points [B, N] of the best scores."""
        for place in np.argsort(-scores)[:climbs]:
            if budget.is_expired():
                break
            witness, _ = self.lattice.climb(
                points[place], self.query.cases[cases[place]], moves, budget
            )
            if witness is not None:
                return witness
        return None

    def steps(
        self, points: Ints, cases: Ints, aims: Ints, steps: int, budget: Budget
    ) -> tuple[Ints | None, Ints, Numbers]:
        """(witness or None, best points [B, N], their scores [B]) after so many steps from
        ``points``."""
        low, high = self.query.low, self.query.high
        radius = (high - low) / 2
        best, top = points.copy(), np.full(len(points), -np.inf)
        for step in range(steps + 1):
            values = self.program.values(points)
            scores, seeds = self.aim(values, cases, aims)
            better = scores > top
            best[better], top[better] = points[better], scores[better]
            outputs = values[self.program.output]
            hits = np.nonzero(self.query.possibly_violated(outputs, outputs))[0]
            if len(hits):
                witness = self.accept(points[hits])
                if witness is not None:
                    return witness, best, top
            if step == steps or budget.is_expired():
                break
            length = np.maximum(np.rint(radius * max(_LAST_LENGTH, 1 - step / steps)), 1).astype(
                np.int64
            )
            slope = self.lattice.pulled(values, seeds)
            points = np.clip(points - length * np.sign(slope).astype(np.int64), low, high)
        return None, best, top

    def aim(self, values: list[Ints], cases: Ints, aims: Ints) -> tuple[Numbers, Numbers]:
        """(scores [B], coefficients [B, M] of what each point is to lower)."""
        scores = np.empty(len(cases))
        seeds = np.zeros((len(cases), self.program.sizes[self.lattice.node]))
        outputs = values[self.lattice.node]
        for number in np.unique(cases):
            rows = np.nonzero(cases == number)[0]
            case = self.query.cases[number]
            own = [v[rows] for v in values]
            each = np.stack([self.lattice.scores(own, (constraint,)) for constraint in case])
            worst, scores[rows] = each.argmin(axis=0), each.min(axis=0)
            for place, constraint in enumerate(case):
                chosen = rows[worst == place]
                for index, factor in constraint.terms:
                    can = self.lattice.is_movable(outputs[chosen, index], index, factor)
                    aim = aims[chosen]
                    is_meant = (
                        (aim == _ALL)
                        | (aim == (_RISING if factor < 0 else _FALLING))
                        | ((aim == _MOVABLE) & can)
                    )
                    seeds[chosen, index] = factor * is_meant
        return scores, seeds
