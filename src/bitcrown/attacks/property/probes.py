"""Looking for a counterexample with onnxruntime alone, while torch is not even imported.

Midpoints and two corners first, then random points and corners, the corners that a linear fit to
these suggests, and a local search around the best: each a batch of points of one box, judged for
all cases of that box by ``margin``: the least slack over a case's constraints, not negative where
all are satisfied. How many points a batch has depends on its turn and on the sizes of the network,
never on the clock: the deadline decides when the search ends, the seed alone decides what it looks
at.

Legend: ``K`` points, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.truth import nearest_double
from bitcrown.check.witness import Confirmer, InwardBox
from bitcrown.spec.case_table import arrays_of
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.verdict import Witness

_SECONDS = 0.25
_MANY_BOXES = 64
_MAX_SLOPE = 1 << 20
_SLICE = 8
_LARGEST_CHUNK = 1 << 10
_MAX_NUMBERS = 1 << 22
"""Most numbers in one batch of points (32 MiB)."""
_CONFIRMED = 3
_CLOSE = 1e-6
"""A margin above ``-_CLOSE`` is worth a replay: the margins here are rounded, the replay is
exact."""


class CaseRows:
    """Constraints of one case as float arrays over the variables that occur in them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        linear = [c for c in case.constraints if c.is_linear()]
        self.columns = sorted({monomial[0] for c in linear for monomial, _ in c.terms})
        place = {number: k for k, number in enumerate(self.columns)}
        self.matrix = np.zeros((len(linear), len(self.columns)))
        for row, constraint in zip(self.matrix, linear, strict=True):
            for monomial, coefficient in constraint.terms:
                row[place[monomial[0]]] += nearest_double(coefficient)
        self.bound = np.array([nearest_double(c.bound) for c in linear])
        self.nonlinear = [_Polynomial(c) for c in case.constraints if not c.is_linear()]

    def margin(self, v: np.ndarray) -> np.ndarray:
        """``[K]`` for points beside their outputs, ``v [K, n + m]``; NaN where undefined."""
        slack = [self.bound - v[:, self.columns] @ self.matrix.T] if len(self.matrix) else []
        slack += [polynomial.slack(v)[:, None] for polynomial in self.nonlinear]
        least: np.ndarray = np.concatenate(slack, axis=1).min(axis=1) if slack else np.zeros(len(v))
        return least


class _Polynomial:
    """A constraint with products, term by term."""

    def __init__(self, constraint: Constraint) -> None:
        self.terms = [
            (list(monomial), nearest_double(coefficient))
            for monomial, coefficient in constraint.terms
        ]
        self.bound = nearest_double(constraint.bound)

    def slack(self, v: np.ndarray) -> np.ndarray:
        total = np.zeros(len(v))
        for monomial, coefficient in self.terms:
            total += coefficient * v[:, monomial].prod(axis=1)
        result: np.ndarray = self.bound - total
        return result


class BoxRows:
    """The cases of one box: every point is judged for all of them at once."""

    def __init__(self, box: InwardBox, cases: list[CaseRows]) -> None:
        self.box, self.cases = box, cases
        self.lower, self.upper = box.lower, box.upper

    def margin(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Largest margin over the cases and the number of that case in ``cases``, each ``[K]``.

        The margin is ``-inf`` where an output is not finite.
        """
        v = np.concatenate([x, y], axis=1)
        with np.errstate(all="ignore"):
            margins = np.stack([case.margin(v) for case in self.cases], axis=1)
        margins[~(np.isfinite(margins) & np.isfinite(y).all(axis=1)[:, None])] = -np.inf
        which = margins.argmax(axis=1)
        return margins[np.arange(len(x)), which], which


class Slope:
    """How the outputs change with each input over the box, fitted to the points that come.

    For independent symmetric shares ``s`` the sum of ``(s - 1/2) (y - mean y)`` estimates the best
    linear fit, up to a factor; its sign says in which corner a linear function of the outputs is
    greatest.
    """

    def __init__(self, n: int, m: int) -> None:
        self.count = 0
        self.products, self.shares, self.outputs = np.zeros((n, m)), np.zeros(n), np.zeros(m)

    def add(self, shares: np.ndarray, y: np.ndarray) -> None:
        """Take note of ``shares [K, n]`` in [0, 1] with outputs ``y [K, m]``."""
        usable = np.isfinite(y).all(axis=1)
        centred, y = shares[usable] - 0.5, y[usable]
        self.count += len(y)
        self.products += centred.T @ y
        self.shares += centred.sum(axis=0)
        self.outputs += y.sum(axis=0)

    def corners(self, rows: BoxRows, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """For each case the corner that should be best for its worst constraint at ``x``, ``y``."""
        slope = self.products - np.outer(self.shares, self.outputs / max(1, self.count))
        n, width = len(x), rows.upper - rows.lower
        points = []
        for case in rows.cases:
            if not len(case.matrix):
                continue
            row = case.matrix[
                int((case.bound - case.matrix @ np.concatenate([x, y])[case.columns]).argmin())
            ]
            gain = np.zeros(n)
            for column, coefficient in zip(case.columns, row.tolist(), strict=True):
                if column < n:
                    gain[column] -= coefficient * width[column] * self.count / 4
                elif coefficient:
                    gain -= coefficient * slope[:, column - n]
            points.append(np.where(gain > 0, rows.upper, rows.lower))
        return np.stack(points) if points else np.empty((0, n))


class _Search:
    """What all boxes share: the clock, the random numbers, and how large a batch may be."""

    def __init__(
        self,
        problem: Problem,
        replay: RuntimeReplay,
        confirmer: Confirmer,
        deadline: float,
        seed: int,
    ) -> None:
        self.problem, self.replay = problem, replay
        self.confirmer, self.deadline = confirmer, deadline
        self.random = np.random.default_rng(seed)
        numbers = max(1, problem.n_inputs + problem.n_outputs)
        self.largest = max(1, min(_LARGEST_CHUNK, _MAX_NUMBERS // numbers))

    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    def judge(
        self, rows: BoxRows, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Witness | None]:
        """Margins and outputs of ``points [K, n]`` (if time is up, of the first), and a witness."""
        size = len(points) if self.replay.takes_batches() else _SLICE
        margins: list[np.ndarray] = []
        outputs: list[np.ndarray] = []
        witness = None
        for start in range(0, len(points), size):
            part = points[start : start + size]
            outputs.append(self.replay.run_batch(part))
            margin, which = rows.margin(part, outputs[-1])
            margins.append(margin)
            witness = self.confirm_best(rows, part, margin, which)
            if witness is not None or self.is_over():
                break
        return np.concatenate(margins), np.concatenate(outputs), witness

    def first_look(self) -> tuple[list[BoxRows], Witness | None]:
        """The middle and two corners of every box; boxes ordered by how close they come."""
        found: list[tuple[float, int, BoxRows]] = []
        boxes = self.boxes()
        while not self.is_over() and (chunk := list(islice(boxes, _SLICE))):
            ends = [
                rows.box.project(np.stack([(rows.lower + rows.upper) / 2, rows.lower, rows.upper]))
                for rows in chunk
            ]
            outputs = self.replay.run_batch(np.concatenate(ends))
            for place, (rows, x) in enumerate(zip(chunk, ends, strict=True)):
                margin, which = rows.margin(x, outputs[3 * place : 3 * place + 3])
                witness = self.confirm_best(rows, x, margin, which)
                if witness is not None:
                    return [], witness
                found.append((-float(margin.max()), len(found), rows))
        return [rows for _, _, rows in sorted(found)[:_MANY_BOXES]], None

    def boxes(self) -> Iterator[BoxRows]:
        """The cases by box, one after the other: there may be tens of thousands of boxes."""
        number, _ = arrays_of(self.problem.cases, self.problem.n_inputs).boxes()
        in_order, stop = np.argsort(number, kind="stable"), 0
        for count in np.bincount(number).tolist():
            start, stop = stop, stop + count
            cases = [self.problem.cases[place] for place in in_order[start:stop].tolist()]
            # Cases that tie different inputs to each other have boxes of their own.
            by_box: dict[int, tuple[InwardBox, list[CaseRows]]] = {}
            for case in cases:
                box = self.confirmer.box(case)
                by_box.setdefault(id(box), (box, []))[1].append(CaseRows(case))
            for box, rows in by_box.values():
                yield BoxRows(box, rows)

    def confirm_best(
        self, rows: BoxRows, x: np.ndarray, margin: np.ndarray, which: np.ndarray
    ) -> Witness | None:
        """A witness among the points ``x [K, n]`` with the largest margins."""
        for k in np.argsort(-margin, kind="stable")[:_CONFIRMED]:
            if margin[k] < -_CLOSE:
                break
            witness = self.confirmer.confirm(x[k], rows.cases[int(which[k])].case)
            if witness is not None:
                return witness
        return None

    def run_box(self, rows: BoxRows, rounds: int) -> Witness | None:
        """``rounds`` ever larger batches: points, corners, directed corners, around the best."""
        if not (np.isfinite(rows.lower).all() and np.isfinite(rows.upper).all()):
            return None  # no number of the type is in reach of the box
        n, m = self.problem.n_inputs, self.problem.n_outputs
        slope = Slope(n, m) if n * m <= _MAX_SLOPE else None
        best_x, best_y, best = None, None, -np.inf
        for turn in range(rounds):
            if self.is_over():
                return None
            count = int(min(self.largest, _SLICE << min(turn // 2, 20)))
            shares, points = None, np.empty((0, n))
            if turn % 4 == 2 and slope is not None and best_x is not None and best_y is not None:
                points = slope.corners(rows, best_x, best_y)
            if turn % 4 == 3 and best_x is not None:
                points = self.around(best_x, rows, count)
            if not len(points):
                shares = self.random.random((count, n))
                if turn % 2:
                    shares = (shares > 0.5).astype(np.float64)
                points = rows.lower + shares * (rows.upper - rows.lower)
            points = rows.box.project(points)
            margin, y, witness = self.judge(rows, points)
            if witness is not None:
                return witness
            if shares is not None and slope is not None:
                slope.add(shares[: len(y)], y)
            k = int(margin.argmax())
            if margin[k] > best:
                best, best_x, best_y = float(margin[k]), points[k], y[k]
        return None

    def around(self, centre: np.ndarray, rows: BoxRows, count: int) -> np.ndarray:
        """Points near the best: coordinates redrawn, jittered or both, on all scales at once."""
        width = rows.upper - rows.lower
        varied = max(1, int((width > 0).sum()))
        scale = 0.3 * 10.0 ** (-3.0 * self.random.random((count, 1)))
        noise = self.random.normal(size=(count, len(centre))) * width * scale
        noise[::3] = 0.0
        mask = self.random.random((count, len(centre))) < max(0.05, 1.5 / varied)
        mask[1::3] = False
        redrawn = rows.lower + self.random.random((count, len(centre))) * width
        result: np.ndarray = np.clip(
            np.where(mask, redrawn, centre + noise), rows.lower, rows.upper
        )
        return result


def probe(
    problem: Problem,
    replay: RuntimeReplay,
    confirmer: Confirmer,
    budget: Budget,
    seed: int,
    seconds: float = _SECONDS,
) -> Witness | None:
    """A confirmed witness found within ``seconds``, or None.

    Every box gets its middle and two corners first, as far as time allows; the most promising ones
    are searched.
    """
    deadline = time.monotonic() + max(0.0, min(seconds, 0.2 * budget.remaining()))
    search = _Search(problem, replay, confirmer, deadline, seed)
    order, witness = search.first_look()
    for rounds in (8, 16) if len(order) > 1 else (1 << 20,):
        for rows in order:
            if witness is not None or search.is_over():
                return witness
            witness = search.run_box(rows, rounds)
    return witness
