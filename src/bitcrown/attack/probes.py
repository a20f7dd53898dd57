"""Looking for a counterexample with onnxruntime alone, while torch is not even imported.

Midpoints and corners first, then random points, then a local search around the best: each a batch of points of one
case, judged by ``margin``: the least slack over the case's constraints, positive where all are satisfied.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.replay import Replay
from bitcrown.check.witness import Confirmer
from bitcrown.spec.problem import Case, Problem
from bitcrown.verdict import Witness

SECONDS = 0.25
MANY_CASES = 64


class CaseRows:
    """Constraints of one case as float arrays (linear ones as a matrix, the rest evaluated term by term)."""

    def __init__(self, case: Case, n: int, m: int) -> None:
        self.lower = np.array([float(value) for value in case.lower])
        self.upper = np.array([float(value) for value in case.upper])
        linear = [c for c in case.constraints if c.is_linear()]
        self.matrix = np.zeros((len(linear), n + m))
        for row, constraint in zip(self.matrix, linear, strict=True):
            for monomial, coefficient in constraint.terms:
                row[monomial[0]] += float(coefficient)
        self.bound = np.array([float(c.bound) for c in linear])
        self.nonlinear = [c for c in case.constraints if not c.is_linear()]

    def margin(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """``[K]`` for points ``x [K, n]`` with outputs ``y [K, m]``; not negative where the case is violated."""
        v = np.concatenate([x, y], axis=1)
        slack = [self.bound - v @ self.matrix.T] if len(self.matrix) else []
        for constraint in self.nonlinear:
            total = np.zeros(len(v))
            for monomial, coefficient in constraint.terms:
                total += float(coefficient) * v[:, list(monomial)].prod(axis=1)
            slack.append((float(constraint.bound) - total)[:, None])
        if not slack:
            return np.zeros(len(v))
        least: np.ndarray = np.concatenate(slack, axis=1).min(axis=1)
        return np.where(np.isfinite(least), least, -np.inf)


class _Search:
    def __init__(self, problem: Problem, replay: Replay, confirmer: Confirmer, deadline: float, seed: int) -> None:
        self.problem, self.replay, self.confirmer, self.deadline = problem, replay, confirmer, deadline
        self.random = np.random.default_rng(seed)

    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def judge(self, case: Case, rows: CaseRows, points: np.ndarray) -> tuple[np.ndarray, Witness | None]:
        """Margins of ``points`` and a witness if one of them is confirmed."""
        points = points.astype(np.float32).astype(np.float64)
        points = np.clip(points, rows.lower, rows.upper)
        margin = rows.margin(points, self.replay.run_batch(points))
        for k in np.argsort(-margin)[:3]:
            if margin[k] < -1e-6:
                break
            witness = self.confirmer.confirm(points[k], case)
            if witness is not None:
                return margin, witness
        return margin, None

    def batches(self, rows: CaseRows, chunk: int) -> Iterator[np.ndarray]:
        """First the middle and the corners, then random points and random corners in turn."""
        n = len(rows.lower)
        middle = (rows.lower + rows.upper) / 2
        yield np.stack([middle, rows.lower, rows.upper])
        for turn in range(1 << 20):
            share = self.random.random((chunk, n))
            if turn % 2:
                share = (share > 0.5).astype(np.float64)
            yield rows.lower + share * (rows.upper - rows.lower)

    def run_case(self, case: Case, rows: CaseRows, rounds: int) -> Witness | None:
        best_x, best = None, -np.inf
        chunk = 4
        for turn, points in enumerate(self.batches(rows, 1 << 10)):
            if turn >= rounds or self.is_over():
                return None
            if turn:
                started = time.monotonic()
                points = points[:chunk]
                if best_x is not None and turn % 3 == 0:
                    points = self.around(best_x, rows, chunk, turn)
            margin, witness = self.judge(case, rows, points)
            if witness is not None:
                return witness
            if turn and time.monotonic() - started < 0.01:
                chunk = min(1 << 10, chunk * 4)
            k = int(margin.argmax())
            if margin[k] > best:
                best, best_x = float(margin[k]), points[k]
        return None

    def around(self, centre: np.ndarray, rows: CaseRows, count: int, turn: int) -> np.ndarray:
        """Points near the best one: a few coordinates redrawn, the rest jittered ever less."""
        width = rows.upper - rows.lower
        noise = self.random.normal(size=(count, len(centre))) * width * (0.3 / (1 + turn / 6))
        mask = self.random.random((count, len(centre))) < max(0.1, 2 / max(1, int((width > 0).sum())))
        redrawn = rows.lower + self.random.random((count, len(centre))) * width
        return np.clip(np.where(mask, redrawn, centre + noise), rows.lower, rows.upper)


def probe(
    problem: Problem, replay: Replay, confirmer: Confirmer, budget: Budget, seed: int, seconds: float = SECONDS
) -> Witness | None:
    """A confirmed witness found within ``seconds``, or None. Every case gets its middle and corners first."""
    deadline = time.monotonic() + max(0.0, min(seconds, 0.2 * budget.remaining()))
    search = _Search(problem, replay, confirmer, deadline, seed)
    cases = problem.cases
    rows = {p: CaseRows(cases[p], problem.n_inputs, problem.n_outputs) for p in range(min(len(cases), MANY_CASES))}
    for rounds in (1, 4, 1 << 20):
        for p, case_rows in rows.items():
            if search.is_over():
                return None
            share = 1 << 20 if len(rows) == 1 else rounds
            witness = search.run_case(cases[p], case_rows, min(rounds, share, 12 if len(rows) > 1 else rounds))
            if witness is not None:
                return witness
    return None
