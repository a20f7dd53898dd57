"""Which steps of a counting row to group, so that enough of them are right (``bounds.step_sums``).

A step alone first; then pairs of neighbours, of which the plain bound of the sum says which are
worth an ascent; then groups that grow by the neighbour of best pairs. After each size a linear
program over all claims says what the row is at least, and, by its point, which groups would raise
that: those whose steps are right by less than one in sum. Ends once the row is positive, or where
what the last sizes brought says that larger groups cannot make it so.

Nothing here is believed: the claims are proofs, and their weights are summed in fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from bitcrown.bounds.claims import excluded
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.step_groups import REACH, StepGroups
from bitcrown.bounds.step_sums import StepClaim, StepGroup, StepRow, step_of, step_rows
from bitcrown.budget import Budget, Stopwatch
from bitcrown.errors import BudgetExpired, ResourceError
from bitcrown.model.execute import Network
from bitcrown.search.linear_program import LinearProgram
from bitcrown.search.neurons.case_bounds import sweeps_left
from bitcrown.search.neurons.root import Root
from bitcrown.search.neurons.step_trees import StepTrees

_STEPS = 12
"""Steps of ascent for a group's slopes."""
_NEIGHBOURS = 24
"""Partners of a step whose pairs are looked at."""
_CHOSEN = 6
"""Groups of one size that climb, a step."""
_HOPELESS = -0.15
"""Least sums, in widths of a step, from which slopes have never brought a group above zero."""
_LARGEST = 4
"""Steps of a group at most."""
_TRIAL = 16
"""Groups by which the time of an ascent is foreseen."""
_BATCH = 64
"""Groups that are split together, at most."""
_PAYS = 0.25
"""Share of a batch that must be proved for the next one, which is further from zero."""
_ROUNDED = 1e-6
"""What the point of a linear program may be off by."""
_LOST = 1e-6
"""Share of a row's bound by which counting may begin below it: where other bounds are better, what
lies behind the steps loses more than steps do."""


def counted_root(root: Root, guide: Network, budget: Budget) -> Root:
    """``root`` with better bounds of rows that count steps, as far as ``budget`` reaches."""
    rows, value = root.rows, root.row_value.clone()
    step = step_of(root.proof.graph)
    if rows.D is not None or step is None or len(root.enclosure.bounds[step[0]][0]) > 1:
        return root
    box = rows.x_lower, rows.x_upper
    bounder = LayerBounder(root.proof, budget.memory // 8, budget=budget)
    ascent = LayerAscent(guide, _STEPS, budget)
    for case in root.open_cases().tolist():
        found = step_rows(root.proof, root.enclosure, rows.C[case], rows.rhs[case])
        for number, row in enumerate(found):
            before = float(value[case, number])
            if row.base < before - _LOST * (1.0 + abs(before)) or not row.may_suffice():
                continue
            groups = StepGroups(bounder, root.enclosure, row, box, ascent)
            count = StepCount(groups, row)
            with suppress(BudgetExpired, ResourceError):
                count.run()
            value[case, number] = max(float(value[case, number]), count.value)
    return replace(root, row_value=value)


class StepCount:
    """What is claimed of the steps of ``row``, and its bound ``value`` by that."""

    def __init__(self, groups: StepGroups, row: StepRow) -> None:
        self.groups, self.row = groups, row
        self.value = row.base
        self.members = [place for place, gain in enumerate(row.gains) if gain]
        self.claims: list[StepClaim] = []
        self.trees, self.split = StepTrees(groups), set[StepGroup]()
        self.tried: dict[StepGroup, float] = {}
        self.pairs: dict[StepGroup, float] = {}
        self.right = dict.fromkeys(self.members, 0.0)

    @property
    def is_done(self) -> bool:
        return bool(excluded(torch.tensor(self.value, dtype=torch.float64)))

    def run(self) -> None:
        """Claims of growing groups until the row is positive. Raises ``BudgetExpired``, with what
        is claimed so far kept."""
        last = 0.0
        for size in range(1, _LARGEST + 1):
            before = self.value
            if not self._climb(self._of_size(size)):
                break
            self._weigh()
            self._split(size)
            rise = self.value - before
            if self.is_done:
                break
            if size > 1 and sweeps_left(-self.value, rise, last) > _LARGEST - size:
                break
            last = rise

    def _of_size(self, size: int) -> list[StepGroup]:
        if size == 1:
            return [(member,) for member in self.members]
        return self._pairs() if size == 2 else self._grown(size)

    def _climb(self, groups: Sequence[StepGroup]) -> bool:
        """Claims of ``groups`` by ascent; False, after the first few, where all of them would take
        longer than there is time."""
        watch = Stopwatch()
        for batch in (groups[:_TRIAL], groups[_TRIAL:]):
            if not batch:
                continue
            if watch.seconds * len(groups) > _TRIAL * self.groups.ascent.budget.remaining():
                return False
            least = self.groups.least(batch, climbs=True)
            self.tried.update(zip(batch, least.tolist(), strict=True))
            proved = zip(batch, excluded(least).tolist(), strict=True)
            self.claims += [StepClaim(group) for group, is_so in proved if is_so]
        return True

    def _split(self, size: int) -> None:
        """Trees for groups of ``size`` that failed and would raise the bound, the nearest to zero
        first, while they bring something."""
        while not self.is_done:
            failed = {group for group in self.tried if len(group) == size} - self.split
            failed -= {claim.members for claim in self.claims}
            lacking = [
                group
                for group in failed
                if sum(self.right[member] for member in group) < 1 - _ROUNDED
            ]
            batch = sorted(lacking, key=lambda group: -self.tried[group])[: self._wanted()]
            if not batch:
                break
            self.split.update(batch)
            proved = self.trees.proved(batch)
            self.claims += [StepClaim(group) for group in proved]
            self._weigh()
            if len(proved) < _PAYS * len(batch):
                break

    def _wanted(self) -> int:
        """Groups of the next batch: half as many again as could suffice, within limits."""
        largest = float(max(self.row.gains))
        return int(min(_BATCH, max(_TRIAL, 1.5 * -self.value / largest)))

    def _open(self) -> list[int]:
        closed = {claim.members[0] for claim in self.claims if len(claim.members) == 1}
        return [member for member in self.members if member not in closed]

    def _pairs(self) -> list[StepGroup]:
        """Pairs of near steps, the best of each."""
        members = self._open()
        where = self.groups.where[members].numpy()
        asked: set[StepGroup] = set()
        for place, member in enumerate(members):
            apart = np.abs(where - where[place])
            near = np.flatnonzero((apart <= REACH).all(axis=1))
            order = near[np.argsort(apart[near].sum(axis=1), kind="stable")]
            for other in order[1 : _NEIGHBOURS + 1]:
                asked.add(tuple(sorted((member, members[int(other)]))))
        pairs = sorted(asked)
        if pairs:
            plain = self.groups.least(pairs, climbs=False)
            self.pairs = dict(zip(pairs, plain.tolist(), strict=True))
        return self._chosen(self.pairs)

    def _chosen(self, scores: dict[StepGroup, float]) -> list[StepGroup]:
        """Groups of high score, a few for each step."""
        taken = dict.fromkeys(self.members, 0)
        chosen = []
        for group in sorted(scores, key=lambda group: -scores[group]):
            if scores[group] < _HOPELESS:
                break
            if min(taken[member] for member in group) < _CHOSEN:
                chosen.append(group)
                for member in group:
                    taken[member] += 1
        return chosen

    def _grown(self, size: int) -> list[StepGroup]:
        """Groups of ``size`` that would raise the bound: some group that failed and a step near to
        all of it."""
        near: dict[int, set[int]] = {member: set() for member in self.members}
        for one, other in self.pairs:
            near[one].add(other)
            near[other].add(one)
        proved = {claim.members for claim in self.claims}
        scores: dict[StepGroup, float] = {}
        for group in [group for group in self.tried if len(group) == size - 1]:
            if group in proved:
                continue
            for other in set.intersection(*(near[member] for member in group)):
                grown = tuple(sorted((*group, other)))
                if grown in scores or sum(self.right[member] for member in grown) > 1 - _ROUNDED:
                    continue
                parts = [part for k in range(2, size) for part in combinations(grown, k)]
                if not proved.intersection(parts):
                    edges = [self.pairs[pair] for pair in combinations(grown, 2)]
                    scores[grown] = sum(edges) / len(edges)
        return self._chosen(scores)

    def _weigh(self) -> None:
        """``value`` and ``right`` by the linear program over all claims."""
        claims = self.claims + self.cliques()
        column = {member: place for place, member in enumerate(self.members)}
        matrix = np.zeros((len(claims) + 1, len(self.members) + 1))
        upper = np.zeros(len(claims) + 1)
        matrix[0, :-1] = [float(self.row.gains[member]) for member in self.members]
        matrix[0, -1] = -1.0
        for number, claim in enumerate(claims, start=1):
            matrix[number, [column[member] for member in claim.members]] = -1.0
            upper[number] = -claim.least
        low = np.zeros(len(self.members) + 1)
        up = np.append(np.ones(len(self.members)), np.inf)
        found = LinearProgram().least(matrix, upper, low, up)
        if found is None:
            return
        self.right = dict(zip(self.members, found.point.tolist(), strict=False))
        self.value = max(self.value, self.row.least(claims, np.abs(found.row_dual[1:]).tolist()))

    def cliques(self) -> list[StepClaim]:
        """Of steps any two of which are a group, all but one are right."""
        linked: dict[int, set[int]] = {}
        for claim in self.claims:
            if len(claim.members) == 2:
                for one, other in (claim.members, claim.members[::-1]):
                    linked.setdefault(one, set()).add(other)
        found, covered = [], set[tuple[int, int]]()
        for one in sorted(linked, key=lambda member: -len(linked[member])):
            for other in sorted(linked[one]):
                if (one, other) in covered:
                    continue
                clique, common = [one, other], linked[one] & linked[other]
                while common:
                    best = max(common, key=lambda member: (len(linked[member] & common), member))
                    clique.append(best)
                    common = common & linked[best]
                covered.update((a, b) for a in clique for b in clique)
                if len(clique) > 2:
                    found.append(StepClaim(tuple(sorted(clique)), len(clique) - 1))
        return found
