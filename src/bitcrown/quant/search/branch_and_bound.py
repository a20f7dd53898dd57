"""Branch and bound over integer values: rounds on batches of open subproblems.

One round: interval rules; ascent of the multipliers from the parent's; exact evaluation, which
closes a subproblem or, by reduced costs and by the halfspace that its bound leaves
(``halfspace_clip``), shrinks its intervals; candidates from the averaged minimisers; a split
(``integer_branching``). Every split is on integers (``a <= k | a >= k + 1``), so the search ends.
Legend: ``R`` rows, ``N`` elements, ``T`` constraints of a case, ``M`` outputs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.attack.coordinate import LatticeAttack
from bitcrown.quant.bounds.case_objective import CaseObjective
from bitcrown.quant.bounds.exact import SCALE_BITS, exact_bound, integer_scale, rows_at_a_time
from bitcrown.quant.bounds.halfspace_clip import HalfspaceClipper
from bitcrown.quant.bounds.intervals import Intervals, Program, box_points
from bitcrown.quant.bounds.slope_ascent import (
    AscentState,
    DualObjective,
    Pinned,
    StaircaseRelaxation,
    ascend_slopes,
)
from bitcrown.quant.bounds.staircase_dual import Slopes, reduced_input, reduced_stairs
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.proof.tree import ProofTree, Subproblem, stacked
from bitcrown.quant.query import IntegerQuery
from bitcrown.quant.search.branching import Split, choose_splits, holds_between, saturation_split

_CLIMBING_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """``root_steps``/``steps``: ascent steps per round at depth 0 / below; ``batch``: rows per
    round at most."""

    root_steps: int = 160
    steps: int = 60
    length: float = 1.0
    batch: int = 64
    enumerate_points: int = 4096
    climbs: int = 3
    moves: int = 12


@dataclass(eq=False)
class SearchCounters:
    rounds: int = 0
    closed: int = 0
    splits: int = 0
    enumerated: int = 0
    candidates: int = 0
    max_depth: int = 0
    open: int = 0
    extra: dict[str, int] = field(default_factory=dict)


class Search:
    """State of one decision. ``run`` returns a witness [N], or ``None`` when every subproblem is
    closed."""

    def __init__(
        self,
        program: Program,
        query: IntegerQuery,
        proof: ProofTree,
        try_points: Callable[[Ints], Ints | None],
        settings: SearchSettings,
    ) -> None:
        self.program, self.query, self.proof = program, query, proof
        self.try_points, self.settings = try_points, settings
        self.is_exact = query.network.is_exact()
        self.batch = min(settings.batch, rows_at_a_time(program))
        self.counters = SearchCounters()
        self.stuck: list[Subproblem] = []
        self.started, self.attack_seconds = time.monotonic(), 0.0
        self.implied: dict[bytes, tuple[int, int]] = {}
        self.attack = LatticeAttack(program, query, try_points)
        self.clipper = HalfspaceClipper.of(program)
        self.objective = CaseObjective(program, query)

    def roots(self, bounds: Intervals) -> list[Subproblem]:
        """One subproblem per case, all on the intervals of ``bounds`` (one row)."""
        self.objective.root_bounds = bounds.rows([0])
        return [
            Subproblem(bounds.rows([0]), case, self.proof.new_part(), 0)
            for case in range(len(self.query.cases))
        ]

    def run(
        self, domains: list[Subproblem], budget: Budget, rounds: int | None = None
    ) -> tuple[Ints | None, list[Subproblem]]:
        """(witness or None, subproblems still open when the budget or the number of rounds
        ended)."""
        stack = domains
        while stack:
            if budget.is_expired() or self.counters.rounds == rounds:
                return None, stack
            take = min(len(stack), self.batch)
            batch, stack = stack[len(stack) - take :], stack[: len(stack) - take]
            self.counters.rounds += 1
            witness, children = self._round(batch, budget)
            if witness is not None:
                return witness, []
            stack.extend(children)
            self.counters.open = len(stack)
        return None, []

    def _round(
        self, batch: list[Subproblem], budget: Budget
    ) -> tuple[Ints | None, list[Subproblem]]:
        batch, bounds = self._propagated(batch, stacked(batch))
        batch, bounds, kinks = self._split_saturation(batch, bounds)
        batch, bounds = self._without_twins(batch, bounds)
        witness, batch, bounds = self._enumerate(batch, bounds)
        if witness is not None or not batch:
            return witness, kinks
        objective, pinned = self.objective.on([domain.case for domain in batch], bounds)
        state = self._ascend(batch, bounds, objective, pinned, budget)
        open_rows, values = self._judge(batch, bounds, objective, state)
        shrunk = self._tighten(batch, bounds, objective, state, open_rows)
        shrunk |= self._clip(batch, bounds, objective, state, open_rows)
        open_rows = self._without_empty(batch, bounds, open_rows)
        if not open_rows:
            return None, kinks
        witness = self._candidates(batch, state, open_rows, budget)
        if witness is not None:
            return witness, []
        children: list[Subproblem] = []
        splits = choose_splits(self.program, bounds, state, open_rows)
        for row, split in zip(open_rows, splits, strict=True):
            domain = batch[row]
            domain.slopes = {n: s[row : row + 1] for n, s in state.slopes.items()}
            domain.tau, domain.value = state.tau[row : row + 1], float(values[row])
            if split is None or domain.is_misled:
                domain.bounds = bounds.rows([row])
                (children if domain.is_misled or row in shrunk else self.stuck).append(domain)
                domain.is_misled = False
                continue
            children.extend(self._split(domain, bounds.rows([row]), split))
        children.sort(key=lambda domain: -domain.value)
        return None, kinks + children

    def _propagated(
        self, batch: list[Subproblem], bounds: Intervals
    ) -> tuple[list[Subproblem], Intervals]:
        """Interval rules on every row; rows with an empty interval are closed."""
        self.program.propagate(bounds, [self.query.cases[domain.case] for domain in batch])
        empty = bounds.is_empty()
        for row, domain in enumerate(batch):
            self.proof.add(domain.part, ["propagate"])
            if empty[row]:
                self.proof.add(domain.part, ["empty"])
                self.counters.closed += 1
        kept = np.nonzero(~empty)[0]
        return [batch[row] for row in kept], bounds if len(kept) == len(empty) else bounds.rows(
            kept
        )

    def _split_saturation(
        self, batch: list[Subproblem], bounds: Intervals
    ) -> tuple[list[Subproblem], Intervals, list[Subproblem]]:
        """Rows whose constraint meets a saturated output at its bad end are split there before any
        ascent."""
        keep, children = [], []
        for row, domain in enumerate(batch):
            split = saturation_split(self.program, bounds, row, self.query.cases[domain.case])
            if split is None:
                keep.append(row)
            else:
                children.extend(self._split(domain, bounds.rows([row]), split))
        return (
            [batch[row] for row in keep],
            bounds if len(keep) == len(batch) else bounds.rows(keep),
            children,
        )

    def _without_twins(
        self, batch: list[Subproblem], bounds: Intervals
    ) -> tuple[list[Subproblem], Intervals]:
        """Where the intervals imply the whole case, the case does not matter: equal states are
        refuted once."""
        node, keep = self.program.output, []
        for row, domain in enumerate(batch):
            low, high = bounds.low[node][row], bounds.high[node][row]
            if all(
                holds_between(constraint, low, high) for constraint in self.query.cases[domain.case]
            ):
                state = b"".join(a[row].tobytes() for a in (*bounds.low, *bounds.high))
                key = hashlib.sha256(state).digest()
                twin, start = self.implied.setdefault(
                    key, (domain.part, self.proof.place(domain.part))
                )
                if twin != domain.part:
                    self.proof.add_twin(
                        domain.part, twin, start, len(self.query.cases[domain.case])
                    )
                    self.counters.closed += 1
                    continue
            keep.append(row)
        return [batch[row] for row in keep], bounds if len(keep) == len(batch) else bounds.rows(
            keep
        )

    def _split(self, domain: Subproblem, bounds: Intervals, split: Split) -> list[Subproblem]:
        self.counters.splits += 1
        self.counters.max_depth = max(self.counters.max_depth, domain.depth + 1)
        children = []
        for is_upper in (False, True):
            child = bounds.rows([0])
            if is_upper:
                child.low[split.node][0, split.element] = split.value + 1
            else:
                child.high[split.node][0, split.element] = split.value
            child.dirty.add(split.node)
            part = self.proof.new_part()
            depth = domain.depth + 1
            children.append(
                Subproblem(
                    child,
                    domain.case,
                    part,
                    depth,
                    domain.slopes,
                    domain.tau,
                    domain.value,
                    domain.margin,
                )
            )
        low, high = (child.part for child in children)
        self.proof.add(domain.part, ["split", split.node, split.element, split.value, low, high])
        return children

    def _enumerate(
        self, batch: list[Subproblem], bounds: Intervals
    ) -> tuple[Ints | None, list[Subproblem], Intervals]:
        """Rows with few inputs left are closed by trying them all."""
        spans = (bounds.high[0] - bounds.low[0] + 1).astype(np.float64)
        count = np.exp(np.minimum(np.log(spans).sum(axis=1), 40.0))
        keep = []
        for row, domain in enumerate(batch):
            if count[row] > 1.001 * self.settings.enumerate_points:
                keep.append(row)
                continue
            points = box_points(bounds.low[0][row], bounds.high[0][row])
            witness = self.try_points(points)
            if witness is not None:
                return witness, [], bounds
            if not self.is_exact:
                output = self.program.output
                found = self.program.images(points)
                if self.query.possibly_violated(found.low[output], found.high[output]).any():
                    if len(points) > 1:
                        keep.append(row)
                    else:
                        self.stuck.append(domain)
                    continue
            self.counters.enumerated += 1
            self.counters.closed += 1
            self.proof.add(domain.part, ["enumerate"])
        return (
            None,
            [batch[row] for row in keep],
            bounds if len(keep) == len(batch) else bounds.rows(keep),
        )

    def _ascend(
        self,
        batch: list[Subproblem],
        bounds: Intervals,
        objective: DualObjective,
        pinned: Pinned | None,
        budget: Budget,
    ) -> AscentState:
        relaxation = StaircaseRelaxation(self.program, bounds, objective, pinned)
        root = any(domain.slopes is None for domain in batch)
        slopes: Slopes | None = None
        tau = None
        if not all(domain.slopes is None for domain in batch):
            even = objective.used / np.maximum(objective.used.sum(axis=1, keepdims=True), 1)
            tau = np.concatenate(
                [
                    even[[r]] if d.tau is None or not d.tau.any() else d.tau
                    for r, d in enumerate(batch)
                ]
            )
            tau = tau * objective.used
            total = tau.sum(axis=1, keepdims=True)
            tau = np.where(total > 0, tau / np.maximum(total, 1e-12), even)
            slopes = relaxation.chord_slopes(tau)
            for row, domain in enumerate(batch):
                if domain.slopes is not None:
                    for node in slopes:
                        slopes[node][row] = domain.slopes[node][0]
            if pinned is not None:
                slopes[pinned.node] = pinned.project(slopes[pinned.node])
        settings = self.settings
        steps = settings.root_steps if root else settings.steps

        goal = np.array([domain.margin for domain in batch]) + 1e-6

        def stop(state: AscentState, step: int) -> bool:
            return bool((state.best > goal).all()) or (step % 8 == 7 and budget.is_expired())

        return ascend_slopes(
            relaxation, slopes, tau, steps, settings.length if root else settings.length * 0.5, stop
        )

    def _judge(
        self,
        batch: list[Subproblem],
        bounds: Intervals,
        objective: DualObjective,
        state: AscentState,
    ) -> tuple[list[int], Numbers]:
        """Exact evaluation: closes rows by ``prove`` steps; (open rows, float bounds [R])."""
        rows = np.arange(len(batch))
        values = state.best.copy()
        promising = state.best > 0
        for bits in SCALE_BITS:
            part = rows[promising]
            if not len(part):
                break
            dual, tau, slopes = exact_bound(self.program, bounds, objective, state, part, bits)
            if dual is None:
                break
            scale = integer_scale(state, part, bits)
            for place, row in enumerate(part):
                if dual.value[place] > 0:
                    self.counters.closed += 1
                    promising[row] = False
                    values[row] = np.inf
                    self.proof.add(
                        batch[row].part,
                        [
                            "prove",
                            self._taus(batch[row], tau[place]),
                            self.proof.multipliers(slopes, place),
                        ],
                    )
                elif bits == SCALE_BITS[-1]:
                    excess = 1.1 * float(state.best[row] - dual.value[place] / scale[place]) + 1e-6
                    batch[row].is_misled = excess > batch[row].margin
                    batch[row].margin = max(excess, batch[row].margin)
        return rows[values < np.inf].tolist(), values

    def _taus(self, domain: Subproblem, tau: Ints) -> list[int]:
        """One multiplier per constraint of the domain's case."""
        return [int(t) for t in tau[: len(self.query.cases[domain.case])]]

    def _without_empty(
        self, batch: list[Subproblem], bounds: Intervals, rows: list[int]
    ) -> list[int]:
        empty = bounds.is_empty()
        for row in rows:
            if empty[row]:
                self.counters.closed += 1
                self.proof.add(batch[row].part, ["empty"])
        return [row for row in rows if not empty[row]]

    def _tighten(
        self,
        batch: list[Subproblem],
        bounds: Intervals,
        objective: DualObjective,
        state: AscentState,
        open_rows: list[int],
    ) -> set[int]:
        """Reduced costs on the open rows, in place; the rows in which an interval shrank."""
        rows = np.array(open_rows, dtype=np.int64)
        if not open_rows:
            return set()
        dual, tau, slopes = exact_bound(
            self.program, bounds, objective, state, rows, SCALE_BITS[-1]
        )
        if dual is None:
            return set()
        part = bounds.rows(rows)
        slack = np.maximum(-dual.value, 0)
        tightened: list[list[list[int]]] = [[] for _ in rows]
        jobs = [(0, *reduced_input(dual.input, part.low[0], part.high[0], slack))]
        for node, table in self.program.stairs.items():
            if node in dual.outer and table.is_exact:
                low, high = part.low[table.source], part.high[table.source]
                jobs.append(
                    (
                        table.source,
                        *reduced_stairs(
                            table, dual.outer[node], dual.inner[node], low, high, slack
                        ),
                    )
                )
        for node, low, high in jobs:
            for place, row in enumerate(rows):
                tightened[place].extend(
                    self.proof.changes(
                        node, low[place], high[place], bounds.low[node][row], bounds.high[node][row]
                    )
                )
            low_all, high_all = bounds.low[node].copy(), bounds.high[node].copy()
            low_all[rows], high_all[rows] = (
                np.maximum(low_all[rows], low),
                np.minimum(high_all[rows], high),
            )
            bounds.intersect(node, low_all, high_all)
        for place, row in enumerate(rows):
            if tightened[place]:
                self.proof.add(
                    batch[row].part,
                    [
                        "tighten",
                        self._taus(batch[row], tau[place]),
                        self.proof.multipliers(slopes, place),
                        tightened[place],
                    ],
                )
        return {int(row) for place, row in enumerate(rows) if tightened[place]}

    def _clip(
        self,
        batch: list[Subproblem],
        bounds: Intervals,
        objective: DualObjective,
        state: AscentState,
        open_rows: list[int],
    ) -> set[int]:
        """Accumulators on the part of the box where the row's bound is not positive, in place; rows
        that shrank."""
        rows = np.array(open_rows, dtype=np.int64)
        if self.clipper is None or not open_rows:
            return set()
        dual, tau, slopes = exact_bound(self.program, bounds, objective, state, rows, SCALE_BITS[0])
        clips = None if dual is None else self.clipper.clip(bounds.rows(rows), dual)
        if clips is None:
            return set()
        clips.narrow(bounds, rows)
        changed = np.unique(clips.row)
        for place in changed:
            domain, taken = batch[rows[place]], self._taus(batch[rows[place]], tau[place])
            step = ["clip", taken, self.proof.multipliers(slopes, place), clips.entries(place)]
            self.proof.add(domain.part, step)
        return {int(rows[place]) for place in changed}

    def _candidates(
        self, batch: list[Subproblem], state: AscentState, rows: list[int], budget: Budget
    ) -> Ints | None:
        """Averaged inputs of the open rows, rounded, and climbs from the best of them; a witness
        [N] or ``None``."""
        points = np.rint(state.mean_input[rows]).astype(np.int64)
        points = np.clip(points, self.query.low, self.query.high)
        self.counters.candidates += len(points)
        witness = self.try_points(points)
        if witness is not None:
            return witness
        begin = time.monotonic()
        allowed = _CLIMBING_SHARE * (begin - self.started) - self.attack_seconds
        if allowed < 0:
            return None
        budget = budget.capped(allowed)
        values = self.program.values(points)
        cases = [self.query.cases[batch[row].case] for row in rows]
        scores = np.array(
            [self.attack.scores([v[[k]] for v in values], case)[0] for k, case in enumerate(cases)]
        )
        for place in np.argsort(-scores)[: self.settings.climbs]:
            witness, _ = self.attack.climb(points[place], cases[place], self.settings.moves, budget)
            if witness is not None:
                break
        self.attack_seconds += time.monotonic() - begin
        return witness
