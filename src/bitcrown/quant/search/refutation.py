"""Dual bounds on a batch: they close rows, and shrink the intervals of those that stay open.

The ascent proposes float multipliers, from those of the parents where there are any. A row is
closed when the bound, evaluated in integers, is positive: no point of its box satisfies its case.
Where it is not, the same numbers say where points may still lie: reduced costs drop arguments that
would make the bound positive by themselves, and the halfspace in which the bound is at most 0 cuts
first-layer accumulators (``halfspace_clip``). Whatever is done is a step of the proof. Legend:
``R`` rows, ``N`` elements, ``T`` constraints of a case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.bounds.case_objective import CaseObjective
from bitcrown.quant.bounds.exact import SCALE_BITS, ExactBound, exact_bound
from bitcrown.quant.bounds.halfspace_clip import HalfspaceClipper
from bitcrown.quant.bounds.intervals import Intervals, Program
from bitcrown.quant.bounds.relaxation import DualObjective, Pinned, StaircaseRelaxation
from bitcrown.quant.bounds.slope_ascent import AscentState, ascend_slopes
from bitcrown.quant.bounds.staircase_dual import Slopes, reduced_input, reduced_stairs
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.proof.tree import ProofTree
from bitcrown.quant.query import IntegerQuery
from bitcrown.quant.search.settings import SearchCounters, SearchSettings
from bitcrown.quant.search.subproblem import Subproblem, SubproblemBatch

_GOAL = 1e-6
"""A float bound has to be this much above a row's margin before its ascent may end."""
_RISING = 1.0
"""A bound is tried again before it is split if so many times what the second half of the last
ascent has gained is more than what it lacks."""
_EXCESS = 1.1
"""A margin is this much wider than the error that was seen."""


@dataclass(frozen=True, eq=False)
class Ascended:
    """What the rows of a batch have to refute, and how far the ascent got with it."""

    objective: DualObjective
    state: AscentState


class Refuter:
    """The bounds of one search. ``root_bounds``: one row, the intervals that the box implies."""

    def __init__(
        self,
        program: Program,
        query: IntegerQuery,
        proof: ProofTree,
        settings: SearchSettings,
        counters: SearchCounters,
        root_bounds: Intervals,
    ) -> None:
        self.program, self.query, self.proof = program, query, proof
        self.settings, self.counters = settings, counters
        self.objective = CaseObjective(program, query, root_bounds)
        self.clipper = HalfspaceClipper.of(program)

    def ascend(self, batch: SubproblemBatch, budget: Budget) -> Ascended:
        """Multipliers for every row, until all bounds are above their margins or steps run out."""
        domains = batch.domains
        objective, pinned = self.objective.on([domain.case for domain in domains], batch.bounds)
        relaxation = StaircaseRelaxation(self.program, batch.bounds, objective, pinned)
        slopes: Slopes | None = None
        tau: Numbers | None = None
        if any(domain.slopes is not None for domain in domains):
            tau = _inherited_tau(domains, objective)
            slopes = _inherited_slopes(domains, relaxation, pinned, tau)
        has_root = any(domain.slopes is None for domain in domains)
        steps = self.settings.root_steps if has_root else self.settings.steps
        length = self.settings.length * np.array([domain.length for domain in domains])
        goal = np.array([domain.margin for domain in domains]) + _GOAL

        def is_late(step: int) -> bool:
            return step % 8 == 7 and budget.is_expired()

        state = ascend_slopes(relaxation, slopes, tau, steps, length, is_late, goal)
        for row, domain in enumerate(domains):
            # what the second half of the steps has gained would do in as many steps again
            left = goal[row] - state.best[row]
            domain.is_misled = 0 < left < _RISING * (state.best[row] - state.halfway[row])
        return Ascended(objective, state)

    def close(self, batch: SubproblemBatch, found: Ascended) -> tuple[list[int], Numbers]:
        """Exact evaluation closes rows by ``prove`` steps; (open rows, float bounds [R])."""
        rows = np.arange(len(batch.domains))
        values = found.state.best.copy()
        promising = found.state.best > 0
        exact = np.full(len(rows), -np.inf)
        for bits in SCALE_BITS:
            part = rows[promising]
            if not len(part):
                break
            bound = self._bound(batch, found, part, bits)
            if bound.dual is None:
                break
            exact[part] = bound.dual.value / bound.scale
            for place, row in enumerate(part):
                if bound.dual.value[place] > 0:
                    promising[row] = False
                    values[row] = np.inf
                    domain = batch.domains[row]
                    self.counters.closed += 1
                    self.proof.add(domain.part, ["prove", *self._multipliers(domain, bound, place)])
        for row in rows[promising & (exact > -np.inf)]:
            # not for want of bits: the floats were too high, remember by how much
            excess = _EXCESS * float(found.state.best[row] - exact[row]) + _GOAL
            domain = batch.domains[row]
            domain.is_misled |= excess > domain.margin
            domain.margin = max(excess, domain.margin)
        return rows[values < np.inf].tolist(), values

    def tighten(self, batch: SubproblemBatch, found: Ascended, open_rows: list[int]) -> set[int]:
        """Reduced costs on the open rows, in place; the rows in which an interval shrank."""
        if not open_rows:
            return set()
        rows, bounds = np.array(open_rows, dtype=np.int64), batch.bounds
        tries = (self._bound(batch, found, rows, bits) for bits in reversed(SCALE_BITS[1:]))
        bound = next((b for b in tries if b.dual is not None), None)
        if bound is None:
            return set()
        tightened: list[list[list[int]]] = [[] for _ in rows]
        for node, low, high in self._reduced(bounds.rows(rows), bound):
            for place, row in enumerate(rows):
                old = bounds.low[node][row], bounds.high[node][row]
                tightened[place] += self.proof.changes(node, low[place], high[place], *old)
            low_all, high_all = bounds.low[node].copy(), bounds.high[node].copy()
            low_all[rows] = np.maximum(low_all[rows], low)
            high_all[rows] = np.minimum(high_all[rows], high)
            bounds.intersect(node, low_all, high_all)
        for place, row in enumerate(rows):
            if tightened[place]:
                domain = batch.domains[row]
                taken = self._multipliers(domain, bound, place)
                self.proof.add(domain.part, ["tighten", *taken, tightened[place]])
        return {int(row) for place, row in enumerate(rows) if tightened[place]}

    def _reduced(self, part: Intervals, bound: ExactBound) -> list[tuple[int, Ints, Ints]]:
        """(node, low, high), [R, N] each: what reduced costs leave of the inputs and arguments.

        Every point that satisfies the case makes the sum of all blocks at most 0, so a block
        exceeds its minimum by at most ``slack = -L``.
        """
        dual = bound.dual
        assert dual is not None
        slack = np.maximum(-dual.value, 0)
        found = [(0, *reduced_input(dual.input, part.low[0], part.high[0], slack))]
        for node, table in self.program.stairs.items():
            if node in dual.outer and table.is_exact:
                low, high = part.low[table.source], part.high[table.source]
                outer, inner = dual.outer[node], dual.inner[node]
                ends = reduced_stairs(table, outer, inner, low, high, slack)
                found.append((table.source, *ends))
        return found

    def clip(self, batch: SubproblemBatch, found: Ascended, open_rows: list[int]) -> set[int]:
        """Accumulators on the part of the box where the row's bound is not positive, in place; rows
        that shrank."""
        if self.clipper is None or not open_rows:
            return set()
        rows = np.array(open_rows, dtype=np.int64)
        bound = self._bound(batch, found, rows, SCALE_BITS[0])
        if bound.dual is None:
            return set()
        clips = self.clipper.clip(batch.bounds.rows(rows), bound.dual)
        if clips is None:
            return set()
        clips.narrow(batch.bounds, rows)
        changed = np.unique(clips.row)
        for place in changed:
            domain = batch.domains[rows[place]]
            taken = self._multipliers(domain, bound, place)
            self.proof.add(domain.part, ["clip", *taken, clips.entries(place)])
        return {int(rows[place]) for place in changed}

    def _bound(self, batch: SubproblemBatch, found: Ascended, rows: Ints, bits: int) -> ExactBound:
        return exact_bound(self.program, batch.bounds, found.objective, found.state, rows, bits)

    def _multipliers(self, domain: Subproblem, bound: ExactBound, place: int) -> list[Any]:
        """``[tau, slopes]`` of a proof step: one tau for each constraint of the domain's case."""
        constraints = len(self.query.cases[domain.case])
        taus = [int(t) for t in bound.tau[place][:constraints]]
        return [taus, self.proof.multipliers(self.program, bound.slopes, place)]


def _inherited_tau(domains: list[Subproblem], objective: DualObjective) -> Numbers:
    """[R, T] on the simplex of the used constraints: the parents', evenly spread without one."""
    used = objective.used
    even = used / np.maximum(used.sum(axis=1, keepdims=True), 1)
    parents = [
        even[[row]] if domain.tau is None or not domain.tau.any() else domain.tau
        for row, domain in enumerate(domains)
    ]
    tau = np.concatenate(parents) * used
    total = tau.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, tau / np.maximum(total, 1e-12), even))


def _inherited_slopes(
    domains: list[Subproblem],
    relaxation: StaircaseRelaxation,
    pinned: Pinned | None,
    tau: Numbers,
) -> Slopes:
    """The parents' slopes, and chords in the rows without one."""
    slopes = relaxation.chord_slopes(tau)
    for row, domain in enumerate(domains):
        if domain.slopes is not None:
            for node in slopes:
                slopes[node][row] = domain.slopes[node][0]
    if pinned is not None:
        slopes[pinned.node] = pinned.project(slopes[pinned.node])
    return slopes
