"""Looking for a counterexample with onnxruntime alone, while torch is not even imported.

Midpoints and corners first, then random points, then a local search around the best: each a batch of points of one
case, judged by ``margin``: the least slack over the case's constraints, not negative where all are satisfied. How many
points a batch has depends on its turn and on the sizes of the network, never on the clock: the deadline decides when
the search ends, the seed alone decides what it looks at.

Legend: ``K`` points, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.evaluate import nearest_double
from bitcrown.check.replay import Replay
from bitcrown.check.witness import Confirmer, InwardBox
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.verdict import Witness

SECONDS = 0.25
MANY_CASES = 64
SLICE = 4
LARGEST_CHUNK = 1 << 10
MAX_NUMBERS = 1 << 22
"""Most numbers in one batch of points (32 MiB)."""
CONFIRMED = 3
CLOSE = 1e-6
"""A margin above ``-CLOSE`` is worth a replay: the margins here are rounded, the replay is exact."""


class CaseRows:
    """Constraints of one case as float arrays over the variables that occur in them."""

    def __init__(self, case: Case, box: InwardBox) -> None:
        self.case, self.box = case, box
        self.lower, self.upper = box.lower, box.upper
        linear = [c for c in case.constraints if c.is_linear()]
        self.columns = sorted({monomial[0] for c in linear for monomial, _ in c.terms})
        place = {number: k for k, number in enumerate(self.columns)}
        self.matrix = np.zeros((len(linear), len(self.columns)))
        for row, constraint in zip(self.matrix, linear, strict=True):
            for monomial, coefficient in constraint.terms:
                row[place[monomial[0]]] += nearest_double(coefficient)
        self.bound = np.array([nearest_double(c.bound) for c in linear])
        self.nonlinear = [_Polynomial(c) for c in case.constraints if not c.is_linear()]

    def margin(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``[K]`` for points ``x [K, n]`` with outputs ``y [K, m]``; ``-inf`` where an output is not finite."""
        v = np.concatenate([x, y], axis=1)
        with np.errstate(all="ignore"):
            slack = [self.bound - v[:, self.columns] @ self.matrix.T] if len(self.matrix) else []
            slack += [polynomial.slack(v)[:, None] for polynomial in self.nonlinear]
        least = np.concatenate(slack, axis=1).min(axis=1) if slack else np.zeros(len(v))
        usable = np.isfinite(least) & np.isfinite(y).all(axis=1)
        return np.where(usable, least, -np.inf)


class _Polynomial:
    """A constraint with products, term by term."""

    def __init__(self, constraint: Constraint) -> None:
        self.terms = [(list(monomial), nearest_double(coefficient)) for monomial, coefficient in constraint.terms]
        self.bound = nearest_double(constraint.bound)

    def slack(self, v: np.ndarray) -> np.ndarray:
        total = np.zeros(len(v))
        for monomial, coefficient in self.terms:
            total += coefficient * v[:, monomial].prod(axis=1)
        result: np.ndarray = self.bound - total
        return result


class _Search:
    """The state that all cases share: the clock, the random numbers, and what has been prepared."""

    def __init__(self, problem: Problem, replay: Replay, confirmer: Confirmer, deadline: float, seed: int) -> None:
        self.problem, self.replay, self.confirmer, self.deadline = problem, replay, confirmer, deadline
        self.random = np.random.default_rng(seed)
        self.largest = max(1, min(LARGEST_CHUNK, MAX_NUMBERS // max(1, problem.n_inputs + problem.n_outputs)))
        self._rows: dict[int, CaseRows] = {}

    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def rows(self, p: int) -> CaseRows:
        if p not in self._rows:
            case = self.problem.cases[p]
            self._rows[p] = CaseRows(case, self.confirmer.box(case))
        return self._rows[p]

    def judge(self, rows: CaseRows, points: np.ndarray) -> tuple[np.ndarray, Witness | None]:
        """Margins of ``points [K, n]`` (of the first ones only, if time is up) and a witness if one is confirmed."""
        points = rows.box.project(points)
        size = len(points) if self.replay.takes_batches() else SLICE
        margins: list[np.ndarray] = []
        for start in range(0, len(points), size):
            part = points[start : start + size]
            margin = rows.margin(part, self.replay.run_batch(part))
            margins.append(margin)
            for k in np.argsort(-margin, kind="stable")[:CONFIRMED]:
                witness = self.confirmer.confirm(part[k], rows.case) if margin[k] >= -CLOSE else None
                if witness is not None:
                    return np.concatenate(margins), witness
            if self.is_over():
                break
        return np.concatenate(margins), None

    def batches(self, rows: CaseRows) -> Iterator[np.ndarray]:
        """First the middle and two corners, then random points and random corners in turn, ever more of them."""
        n = len(rows.lower)
        yield np.stack([(rows.lower + rows.upper) / 2, rows.lower, rows.upper])
        for turn in range(1 << 20):
            share = self.random.random((self.chunk(turn), n))
            if turn % 2:
                share = (share > 0.5).astype(np.float64)
            yield rows.lower + share * (rows.upper - rows.lower)

    def chunk(self, turn: int) -> int:
        return int(min(self.largest, SLICE << min(turn, 20)))

    def run_case(self, rows: CaseRows, rounds: int) -> Witness | None:
        """``rounds`` batches of one case."""
        best_x, best = None, -np.inf
        for turn, points in enumerate(self.batches(rows)):
            if turn >= rounds or self.is_over():
                return None
            if best_x is not None and turn and turn % 3 == 0:
                points = self.around(best_x, rows, len(points), turn)
            margin, witness = self.judge(rows, points)
            if witness is not None:
                return witness
            k = int(margin.argmax())
            if margin[k] > best:
                best, best_x = float(margin[k]), rows.box.project(points[k])
        return None

    def around(self, centre: np.ndarray, rows: CaseRows, count: int, turn: int) -> np.ndarray:
        """Points near the best one: a few coordinates redrawn, the rest jittered ever less."""
        width = rows.upper - rows.lower
        noise = self.random.normal(size=(count, len(centre))) * width * (0.3 / (1 + turn / 6))
        mask = self.random.random((count, len(centre))) < max(0.1, 2 / max(1, int((width > 0).sum())))
        redrawn = rows.lower + self.random.random((count, len(centre))) * width
        moved: np.ndarray = np.clip(np.where(mask, redrawn, centre + noise), rows.lower, rows.upper)
        return moved


def probe(
    problem: Problem, replay: Replay, confirmer: Confirmer, budget: Budget, seed: int, seconds: float = SECONDS
) -> Witness | None:
    """A confirmed witness found within ``seconds``, or None. Every case gets its middle and two corners first."""
    deadline = time.monotonic() + max(0.0, min(seconds, 0.2 * budget.remaining()))
    search = _Search(problem, replay, confirmer, deadline, seed)
    count = min(len(problem.cases), MANY_CASES)
    for rounds in (1, 4, 12) if count > 1 else (1 << 20,):
        for p in range(count):
            if search.is_over():
                return None
            witness = search.run_case(search.rows(p), rounds)
            if witness is not None:
                return witness
    return None
