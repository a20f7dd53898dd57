"""Branch and bound over integer values: rounds on batches of open subproblems.

One round: interval rules; ascent of the multipliers from the parent's, and exact evaluation, which
closes a subproblem or shrinks its intervals (``refutation``); candidates from the averaged
minimisers; a split (``branching``). Every split is on integers (``a <= k | a >= k + 1``), so the
search ends. Legend: ``R`` rows, ``N`` elements, ``T`` constraints of a case, ``M`` outputs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.attack.coordinate import LatticeAttack
from bitcrown.quant.bounds.exact import rows_at_a_time
from bitcrown.quant.bounds.intervals import Intervals, Program, box_points
from bitcrown.quant.bounds.slope_ascent import AscentState
from bitcrown.quant.bounds.staircase_dual import Slopes
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.proof.tree import ProofTree
from bitcrown.quant.query import ConstraintCase, IntegerQuery
from bitcrown.quant.search.branching import Split, choose_splits, holds_between, saturation_split
from bitcrown.quant.search.refutation import Refuter
from bitcrown.quant.search.settings import SearchCounters, SearchSettings
from bitcrown.quant.search.subproblem import Subproblem, SubproblemBatch

RootMultipliers = dict[int, tuple[Slopes, Numbers]]
"""Slopes and tau [1, T] by case."""
_AGAIN, _LEAST_LENGTH = 0.2, 0.25
"""How long the steps of an ascent are that goes on from where the last one ended, as a part of
that one's, and at least where something has been split."""
_CLIMBING_SHARE = 0.15
"""Of the time since the search began that climbs from candidates may take."""


class Search:
    """State of one decision. ``run`` returns a witness [N], or ``None`` when every subproblem is
    closed. ``root``: one row of intervals; they may be tightened until ``roots`` is called."""

    def __init__(
        self,
        program: Program,
        query: IntegerQuery,
        root: Intervals,
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
        self.reachable = query.reachable()
        self.attack = LatticeAttack(program, self.reachable, try_points)
        self.root = root
        self.multipliers: RootMultipliers = {}
        self.refuter = Refuter(program, query, proof, settings, self.counters, root)

    def roots(self, known: RootMultipliers) -> list[Subproblem]:
        """One subproblem per case; ``known``: multipliers to start from, by case."""
        domains = []
        for case in range(len(self.query.cases)):
            start = known.get(case, (None, None))
            domain = Subproblem(self.root.rows([0]), case, self.proof.new_part(), 0, *start)
            domain.length = _LEAST_LENGTH if case in known else 1.0
            domains.append(domain)
        return domains

    def _remember(self, batch: SubproblemBatch, state: AscentState) -> None:
        """The multipliers of rows at depth 0, for another search of the same query."""
        for row, domain in enumerate(batch.domains):
            if domain.depth == 0:
                slopes = {n: s[row : row + 1].copy() for n, s in state.slopes.items()}
                self.multipliers[domain.case] = slopes, state.tau[row : row + 1].copy()

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
        self, domains: list[Subproblem], budget: Budget
    ) -> tuple[Ints | None, list[Subproblem]]:
        """(witness or None, what is left open of ``domains``, the most promising last)."""
        batch = self._propagated(SubproblemBatch.of(domains))
        batch, kinks = self._split_saturation(batch)
        batch = self._without_twins(batch)
        witness, batch = self._enumerate(batch)
        if witness is not None or not batch.domains:
            return witness, kinks
        found = self.refuter.ascend(batch, budget)
        self._remember(batch, found.state)
        open_rows, values = self.refuter.close(batch, found)
        shrunk = self.refuter.tighten(batch, found, open_rows)
        shrunk |= self.refuter.clip(batch, found, open_rows)
        open_rows = self._without_empty(batch, open_rows)
        if not open_rows:
            return None, kinks
        state = found.state
        witness = self._candidates(batch, state, open_rows, budget)
        if witness is not None:
            return witness, []
        children: list[Subproblem] = []
        splits = choose_splits(self.program, batch.bounds, state, open_rows)
        for row, split in zip(open_rows, splits, strict=True):
            domain, bounds = batch.domains[row], batch.bounds.rows([row])
            domain.slopes = {n: s[row : row + 1] for n, s in state.slopes.items()}
            domain.tau, domain.value = state.tau[row : row + 1], float(values[row])
            if split is None or domain.is_misled:
                # worth another round as it is, unless it is one point that arithmetic leaves open
                domain.bounds = bounds
                (children if domain.is_misled or row in shrunk else self.stuck).append(domain)
                domain.is_misled = False
                domain.length = max(_AGAIN * domain.length, _AGAIN * _LEAST_LENGTH)
                continue
            children.extend(self._split(domain, bounds, split))
        children.sort(key=lambda domain: -domain.value)
        return None, kinks + children

    def _case(self, domain: Subproblem) -> ConstraintCase:
        return self.query.cases[domain.case]

    def _close(self, domain: Subproblem, how: str) -> None:
        self.counters.closed += 1
        self.proof.add(domain.part, [how])

    def _propagated(self, batch: SubproblemBatch) -> SubproblemBatch:
        """Interval rules on every row; rows with an empty interval are closed."""
        self.program.propagate(batch.bounds, [self._case(domain) for domain in batch.domains])
        for domain in batch.domains:
            self.proof.add(domain.part, ["propagate"])
        return batch.kept(self._without_empty(batch, list(range(len(batch.domains)))))

    def _without_empty(self, batch: SubproblemBatch, rows: list[int]) -> list[int]:
        """``rows`` but for those with an empty interval, which are closed."""
        empty = batch.bounds.is_empty()
        for row in rows:
            if empty[row]:
                self._close(batch.domains[row], "empty")
        return [row for row in rows if not empty[row]]

    def _split_saturation(self, batch: SubproblemBatch) -> tuple[SubproblemBatch, list[Subproblem]]:
        """Rows whose constraint meets a saturated output at its bad end are split there before any
        ascent."""
        keep, children = [], []
        for row, domain in enumerate(batch.domains):
            split = saturation_split(self.program, batch.bounds, row, self._case(domain))
            if split is None:
                keep.append(row)
            else:
                children.extend(self._split(domain, batch.bounds.rows([row]), split))
        return batch.kept(keep), children

    def _without_twins(self, batch: SubproblemBatch) -> SubproblemBatch:
        """Where the intervals imply the whole case, the case does not matter: equal states are
        refuted once."""
        bounds, node, keep = batch.bounds, self.program.output, []
        for row, domain in enumerate(batch.domains):
            case, ends = self._case(domain), (bounds.low[node][row], bounds.high[node][row])
            if all(holds_between(constraint, *ends) for constraint in case):
                state = b"".join(a[row].tobytes() for a in (*bounds.low, *bounds.high))
                here = domain.part, self.proof.place(domain.part)
                twin, start = self.implied.setdefault(hashlib.sha256(state).digest(), here)
                if twin != domain.part:
                    self.proof.add_twin(domain.part, twin, start, len(case))
                    self.counters.closed += 1
                    continue
            keep.append(row)
        return batch.kept(keep)

    def _split(self, domain: Subproblem, bounds: Intervals, split: Split) -> list[Subproblem]:
        """Both halves; their union has every integer point of ``bounds``."""
        depth, children = domain.depth + 1, []
        self.counters.splits += 1
        self.counters.max_depth = max(self.counters.max_depth, depth)
        for is_upper in (False, True):
            half = bounds.rows([0])
            if is_upper:
                half.low[split.node][0, split.element] = split.value + 1
            else:
                half.high[split.node][0, split.element] = split.value
            half.dirty.add(split.node)
            start = domain.slopes, domain.tau, domain.value, domain.margin
            child = Subproblem(half, domain.case, self.proof.new_part(), depth, *start)
            child.length = max(0.5 * domain.length, _LEAST_LENGTH)
            children.append(child)
        low, high = (child.part for child in children)
        self.proof.add(domain.part, ["split", split.node, split.element, split.value, low, high])
        return children

    def _enumerate(self, batch: SubproblemBatch) -> tuple[Ints | None, SubproblemBatch]:
        """Rows with few inputs left are closed by trying them all."""
        bounds, keep = batch.bounds, []
        spans = (bounds.high[0] - bounds.low[0] + 1).astype(np.float64)
        # the product of the spans, in logarithms so that it cannot overflow; a little more allowed
        count = np.exp(np.minimum(np.log(spans).sum(axis=1), 40.0))
        for row, domain in enumerate(batch.domains):
            if count[row] > 1.001 * self.settings.enumerate_points:
                keep.append(row)
                continue
            points = box_points(bounds.low[0][row], bounds.high[0][row])
            witness = self.try_points(points)
            if witness is not None:
                return witness, batch.kept([])
            if self.is_exact or not self._may_violate(points):
                self.counters.enumerated += 1
                self._close(domain, "enumerate")
            elif len(points) > 1:
                keep.append(row)
            else:
                self.stuck.append(domain)
        return None, batch.kept(keep)

    def _may_violate(self, points: Ints) -> bool:
        """Whether some order of summation may make one of ``points`` [B, N] a counterexample."""
        found, output = self.program.images(points), self.program.output
        return bool(self.query.possibly_violated(found.low[output], found.high[output]).any())

    def _candidates(
        self, batch: SubproblemBatch, state: AscentState, rows: list[int], budget: Budget
    ) -> Ints | None:
        """Averaged inputs of the open rows, rounded, and climbs from the best of them; a witness
        [N] or ``None``."""
        points = np.rint(state.mean_input[rows]).astype(np.int64)
        points = np.clip(points, self.reachable.low, self.reachable.high)
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
        cases = [self._case(batch.domains[row]) for row in rows]
        scores = np.array(
            [self.attack.scores([v[[k]] for v in values], case)[0] for k, case in enumerate(cases)]
        )
        for place in np.argsort(-scores)[: self.settings.climbs]:
            witness, _ = self.attack.climb(points[place], cases[place], self.settings.moves, budget)
            if witness is not None:
                break
        self.attack_seconds += time.monotonic() - begin
        return witness
