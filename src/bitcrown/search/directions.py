"""Rows that compare one network at two inputs, said of its derivatives.

Where a case asks for ``C (f(x) - f(x')) + D (x - x') < 0`` of one network at two inputs (it falls
where an input rises, it changes by more than ``K (x - x')``), the left side is 0 where the inputs
meet, and no bound of it excludes a box that touches ``x = x'``. But it is the integral of
``C J(p) d + D d`` over the segment from ``x'`` to ``x``, with ``d = x - x'``
(``model.directional``). So a violation has a ``p`` on its segment with

    C J(p) d + D d  <=  rhs                 where rhs < 0, and
    C J(p) e + D e  <   0    for an ``e`` that is plus or minus a unit vector

where ``rhs = 0``: for a fixed ``p`` the left side is linear in ``d``, which is a sum of such ``e``
with factors above 0. (Where all factors are 0 the inputs are one, and 0 < 0 is false. Where a
segment runs along a kink, parts may take different slopes there; but what they exclude holds on
segments beside it, which do not, and so, by continuity, on it up to 0.) These are rows of a network
with the inputs ``p`` and ``d``: a search over ``p`` alone, in fewer dimensions than the pairs have,
whose loss does not grow where the pairs come close.

``p`` is in the hull of both boxes, which is all of the segment that is used; a case has one such
row and what it says of ``x - x'`` alone, since other constraints hold at the ends of the segment
and not on it. So this proves less than the case says, and a ``p`` that satisfies the rows decides
nothing: the pair around it is tried as a candidate, and if that is none the search ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitcrown.model.directional import directional_derivatives
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.joining import are_equal, part_of
from bitcrown.search.coupling import FEW_INPUTS, order_of, pinned_pairs
from bitcrown.search.inputs.search import InputSplit
from bitcrown.search.objective import Objective, has_row, integer_row
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.rounding import Kind, box_ends
from bitcrown.verdict import Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_MOST = 4096
"""Boxes of directions."""
_SHARE, _WIDE_SHARE = 0.75, 0.25
"""Of the time left, where nothing else can prove a case, and where the pairs may be bounded."""
_CANDIDATES = 4
"""Pairs around a point that are replayed, and boxes in which they are looked for."""
_FIRST_TURN = 0.3
_LENGTHS = 2.0 ** -np.arange(0.0, 12.0, 1.5)
"""Of the pairs around a point that are tried, as shares of the longest one."""


@dataclass(frozen=True)
class Directions:
    """``graph (p, d) -> J(p) d`` and its ``objective``; ``cases`` of the problem have no violation
    where it has none. ``places [2, n]``: which flat inputs of the problem are ``x`` and ``x'``.
    ``is_only_way``: for some case, because its pairs may meet."""

    graph: Graph
    objective: Objective
    cases: np.ndarray
    places: np.ndarray
    is_only_way: bool


class _Row(NamedTuple):
    """``C (f(x) - f(x')) + D (x - x') <= rhs`` (or ``<``) of one network's outputs and inputs."""

    C: np.ndarray
    D: np.ndarray
    rhs: float
    fails: bool
    """Whether it asks for outputs, and equal inputs do not satisfy it."""


class _Part(NamedTuple):
    """Rows of one box ``lower``/``upper [2 n]`` of ``(p, d)``."""

    rows: list[_Row]
    lower: np.ndarray
    upper: np.ndarray


def by_directions(problem: Problem, graph: Graph, kinds: Iterable[Kind]) -> Directions | None:
    """What derivatives may say of cases of ``problem`` about its joined networks ``graph``; None
    where that is nothing."""
    names = [network.name for network in problem.query.networks]
    for second in names[1:]:
        one = part_of(graph, names[0])
        if not are_equal(one, part_of(graph, second)):
            continue
        pair = _Pair(problem, graph, list(kinds), (names[0], second))
        parts = {p: list(pair.parts(case)) for p, case in enumerate(problem.cases)}
        count = sum(map(len, parts.values()))
        made = directional_derivatives(one) if count and count <= _MOST else None
        if made is not None:
            every = [part for found in parts.values() for part in found]
            cases = np.array([p for p, found in parts.items() if found])
            touches = any(part.rows[0].rhs == 0 for part in every)
            return Directions(made, _objective(every), cases, pair.places, touches)
    return None


class _Pair:
    """One network at two of the problem's inputs: their numbers, and those of both outputs, are
    ``places [2, n]`` and ``values [2, m]``."""

    def __init__(
        self, problem: Problem, graph: Graph, kinds: list[Kind], names: tuple[str, str]
    ) -> None:
        self.n, self.kinds = problem.n_inputs, kinds
        self.places = np.array([_numbers(graph, graph.inputs, name) for name in names])
        self.values = np.array([_numbers(graph, graph.outputs, name) for name in names]) + self.n

    def parts(self, case: Case) -> list[_Part]:
        """What a case asks of ``p`` and ``d``; nothing where it has no such row."""
        ends = box_ends(case.lower, case.upper, self.kinds)
        (low, other_low), (up, other_up) = (end[self.places] for end in ends)
        hull = np.minimum(low, other_low), np.maximum(up, other_up)
        is_below, is_above = self._orders(case)
        start = np.where(is_above, 0.0, np.nextafter(low - other_up, -np.inf))
        end = np.where(is_below, 0.0, np.nextafter(up - other_low, np.inf))
        if not (np.isfinite(hull).all() and (start <= end).all()):
            return []
        rows = [self._row(constraint, is_below & is_above) for constraint in case.constraints]
        asked = next((row for row in rows if row is not None and row.fails), None)
        if asked is None:
            return []
        if np.sign(asked.rhs) == -1:
            others = [row for row in rows if row is not None and not row.C.any()]
            box = (np.concatenate(pair) for pair in zip(hull, (start, end), strict=True))
            return [_Part([asked, *others], *box)]
        units = np.concatenate([np.diag(np.sign(end)), np.diag(np.sign(start))])
        asked = asked._replace(rhs=0.0)
        return [
            _Part([asked], *(np.concatenate((side, unit)) for side in hull))
            for unit in units[units.any(axis=1)]
        ]

    def _orders(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """``[n]``: whether the case says ``x <= x'``, and ``x' <= x``."""
        first, second = self.places.tolist()
        pairs = list(zip(first, second, strict=True))
        known = order_of(case, self.n) | pinned_pairs(case, pairs)
        is_below = np.array([(i, j) in known for i, j in pairs], dtype=bool)
        return is_below, np.array([(j, i) in known for i, j in pairs], dtype=bool)

    def _row(self, constraint: Constraint, is_same: np.ndarray) -> _Row | None:
        """A constraint on differences alone; those of equal inputs are 0."""
        if not constraint.is_linear() or not has_row(constraint.terms):
            return None
        terms, rhs = integer_row(constraint)
        given = {monomial[0]: value for monomial, value in terms}
        both = [
            np.array([[given.pop(number, 0.0) for number in side] for side in numbers.tolist()])
            for numbers in (self.values, self.places)
        ]
        if given or any((own != -other).any() for own, other in both):
            return None
        fails = bool(both[0].any()) and not constraint.is_within(Fraction(0))
        return _Row(both[0][0], np.where(is_same, 0.0, both[1][0]), rhs, fails)


def _numbers(graph: Graph, names: Sequence[str], network: str) -> np.ndarray:
    """Of ``names`` those of ``network``: the numbers of their elements among all of them."""
    sizes = [graph.nodes[name].size for name in names]
    own = [name.startswith(f"{network}:") for name in names]
    return np.flatnonzero(np.repeat(own, sizes))


def _objective(parts: Sequence[_Part]) -> Objective:
    depth = max(len(part.rows) for part in parts)
    n, m = len(parts[0].lower) // 2, len(parts[0].rows[0].C)
    C, D = np.zeros((len(parts), depth, m)), np.zeros((len(parts), depth, 2 * n))
    rhs = np.full((len(parts), depth), np.inf)
    for p, part in enumerate(parts):
        for s, row in enumerate(part.rows):
            C[p, s], D[p, s, n:], rhs[p, s] = row.C, row.D, row.rhs
    ends = np.array([np.concatenate([part.lower, part.upper]) for part in parts])
    boxes, box = np.unique(ends, axis=0, return_inverse=True)
    lower, upper = boxes[:, : 2 * n], boxes[:, 2 * n :]
    return Objective(C, D if D.any() else None, rhs, lower, upper, box.reshape(-1))


class DirectionTurns:
    """The search over ``p``. ``is_refuted``: a ``p`` satisfies the rows, and the pairs around it
    do not violate the property."""

    def __init__(
        self, run: Run, directions: Directions, network: Network, objective: Objective
    ) -> None:
        self.run, self.directions = run, directions
        self.network, self.objective = network, objective
        self.is_refuted, self.is_proved = False, False
        given = directions.objective
        self.search = InputSplit(
            Network(directions.graph, network.dtype, network.device),
            given,
            np.arange(given.n_cases),
            self.tried,
            run.budget,
        )

    def turn(self, seconds: float) -> Witness | None:
        """At least one round, or as many as ``seconds`` of computing allow, until it is over, or
        is not foreseen to be where pairs may be bounded, too; a witness, if it found one."""
        run, share, length = self.run, self.run.budget.capped(seconds), _FIRST_TURN
        is_patient, done = self.directions.is_only_way, 0.0
        with run.phase("directions"):
            while not (self.is_refuted or self.is_proved):
                outcome = self.search.run(min(length, share.remaining()))
                if isinstance(outcome.witness, Witness):
                    return outcome.witness
                self.is_proved, length = outcome.proved, 2 * length
                self.is_refuted |= not (outcome.proved or outcome.left - outcome.stuck)
                run.counters.update(directions_bounded=outcome.domains)
                run.counters.update(directions_left=outcome.left)
                done += length / 2
                closed = 0.0 if self.search.roots_left else 1.0 - self.search.parts.left()
                if share.is_expired() or not (is_patient or closed * seconds > done):
                    break
        return None

    def tried(self, point: np.ndarray) -> Witness | None:
        """The pair around ``p`` along ``d`` that violates, of several lengths."""
        for candidate, case in self._violating(*np.split(point, 2)):
            witness = self.run.confirm(candidate, case)
            if witness is not None:
                return witness
        self.is_refuted = True
        return None

    def _violating(self, p: np.ndarray, d: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Pairs around ``p`` along ``d`` that violate a case in float64, the longest first."""
        lower, upper = self.objective.lower, self.objective.upper
        first, second = self.directions.places
        hull = (
            np.minimum(lower[:, first], lower[:, second]),
            np.maximum(upper[:, first], upper[:, second]),
        )
        boxes = np.flatnonzero(((hull[0] <= p) & (p <= hull[1])).all(axis=1))[:_CANDIDATES]
        found: list[tuple[np.ndarray, int]] = []
        for box in boxes.tolist():
            moved = d != 0
            longest = ((hull[1] - hull[0])[box, moved] / np.abs(d[moved])).max(initial=0.0)
            steps = np.concatenate([[1.0], longest * _LENGTHS])[:, None] * d / 2
            x = np.tile((lower[box] + upper[box]) / 2, (len(steps), 1))
            x[:, first], x[:, second] = p + steps, p - steps
            x = np.clip(x, lower[box], upper[box])
            cases = np.flatnonzero(self.objective.box == box)
            is_violated = self._satisfied(x, cases)
            found += [(x[k], int(cases[q])) for k, q in zip(*is_violated.nonzero(), strict=True)]
        return found[:_CANDIDATES]

    def _satisfied(self, x: np.ndarray, cases: np.ndarray) -> np.ndarray:
        """``[P, Q]``: whether all rows of ``cases [Q]`` hold at ``x [P, n]``."""
        given = self.objective
        values = self.network(self.network.tensor(x)).cpu().numpy()
        total = np.einsum("pm,qsm->pqs", values, given.C[cases])
        if given.D is not None:
            total += np.einsum("pn,qsn->pqs", x, given.D[cases])
        found: np.ndarray = (total <= given.rhs[cases]).all(axis=2)
        return found


def decide_by_directions(
    run: Run, directions: Directions, network: Network, objective: Objective
) -> tuple[Verdict | None, np.ndarray]:
    """A verdict, or None and the numbers of the cases that have no violation; ``network`` and
    ``objective`` are those of the pairs."""
    turns = DirectionTurns(run, directions, network, objective)
    share = _SHARE if directions.is_only_way else _WIDE_SHARE
    ends = directions.objective.lower, directions.objective.upper
    is_few = int((ends[0] != ends[1]).any(axis=0).sum()) <= FEW_INPUTS
    witness = turns.turn(share * run.budget.remaining() if is_few else 0.0)
    decided = directions.cases[: len(directions.cases) * turns.is_proved]
    if witness is not None:
        return run.sat(witness, "directions"), decided
    is_over = len(decided) == objective.n_cases
    return (run.verdict(Status.UNSAT, "directions") if is_over else None), decided
