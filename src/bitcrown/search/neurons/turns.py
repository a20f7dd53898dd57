"""Searches of one problem take turns: one for all cases, and one for each case with bounds of its
own.

A search for all cases together begins. Once it has computed for as long as tightening is thought to
take, and is expected to need longer than that, its open cases get bounds of their own
(``case_bounds``), the one nearest to its proof first, in as many seconds as the search has had. A
case whose bound that moves goes on in a race of its own, from its own root; the others stay where
they are. A race of a case that does not come to its end pauses in the same way for tightening the
case further, and goes on in the same trees. Where tightening moved nothing, it waits four times as
long before it tries again. Tightening goes on beyond that time only where it promises, at its own
rate, to refute the case before the search will. So it costs little more than searching, and nothing
where a search is done soon.

All that is left to do has to be done, so searches take turns: the one that has had the least goes
next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.case_bounds import CaseBounds
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.premises import premises_of
from bitcrown.search.neurons.race import Race
from bitcrown.search.neurons.search import NeuronSplit, SplitOutcome

_LEAST_SLICE = 0.5
_GROWTH = 0.25
"""A turn takes this part of what the race has had."""
_PATIENCE = 4.0


class _Turn:
    """A race; what it has open beyond ``own`` bounds is all cases. It may tighten when it has
    computed for ``rest`` seconds from ``since`` on."""

    def __init__(self, race: Race, rest: float, own: CaseBounds | None = None) -> None:
        self.race, self.rest, self.own = race, rest, own
        self.since = 0.0

    def is_tired(self) -> bool:
        """Whether it has had its time and does not come to its end."""
        had = self.race.seconds - self.since
        return had >= self.rest and self.race.lasting() > self.rest


class Turns:
    """Decides ``domains``, which have no splits yet; ``seconds`` of computing went into the root's
    bounds, a guess at what tightening takes. All other cases are excluded on the whole box."""

    def __init__(self, bounder: DomainBounder, domains: Domains, seconds: float) -> None:
        self.recorder = bounder.recorder
        first = Race(bounder, domains)
        self.rows = bounder.root.rows
        self.excluded = set(range(len(self.rows.C))) - first.cases
        self.unsplit = {
            case: first.domains.select(torch.tensor([k]))
            for k, case in enumerate(first.domains.case.tolist())
        }
        self.attempts: dict[int, CaseBounds] = {}
        self.turns = [_Turn(first, max(seconds, _LEAST_SLICE))]
        self.ended: list[SplitOutcome] = []
        self.counters = {"tightened_cases": 0, "refuted_cases": 0, "tightening_seconds": 0.0}
        layout = first.bounder.guide.layout
        self.can_tighten = (
            bounder.root.clipper is None
            and layout.n_neurons > 0
            and first.bounder.leaf_solver is None
        )

    def _tighten(self, turn: _Turn) -> None:
        """Bounds of their own for the open cases of ``turn``, as long as it has searched."""
        race, had = turn.race, turn.race.seconds - turn.since
        turn.since = race.seconds
        self.excluded |= race.cases - race.open_cases() if turn.own is None else set()
        order = sorted(race.open_cases(), key=lambda case: -float(self.unsplit[case].value))
        left, lasting, moved = had, race.lasting(), []
        for case in order:
            own = self.attempts.get(case) or CaseBounds(race.bounder, self.unsplit[case])
            self.attempts[case] = own
            before = own.seconds
            if left > 0 and own.run(premises_of(self.rows, case, self.excluded), left, lasting):
                moved.append(own)
            left -= own.seconds - before
        self.counters["tightening_seconds"] += had - left
        if not moved:
            can_go_on = any(self.attempts[case].can_go_on for case in order)
            turn.rest = _PATIENCE * had if can_go_on else math.inf
        elif turn.own is None:
            self._move_out(turn, moved)
        elif len(turn.own.domains):
            race.narrow(turn.own.bounder)
        else:
            self._end(turn, 1)

    def _move_out(self, turn: _Turn, moved: list[CaseBounds]) -> None:
        """Races of their own for the cases that moved."""
        race = turn.race
        closed = set() if self.recorder is not None else race.cases - race.open_cases()
        race.drop({own.case for own in moved} | closed)
        if not race.cases:
            self._end(turn, 0)
        for own in moved:
            self.counters["tightened_cases"] += 1
            if len(own.domains):
                alone = Race(own.bounder, own.domains, is_chosen=True)
                self.turns.append(_Turn(alone, max(own.seconds, _LEAST_SLICE), own))
            else:
                self.counters["refuted_cases"] += 1

    def _end(self, turn: _Turn, refuted: int) -> None:
        """Everything of ``turn`` is excluded, or somebody else's."""
        self.counters["refuted_cases"] += refuted
        self.turns.remove(turn)
        self.ended.append(replace(turn.race.standing(), proved=True, open=0, stuck=0, worst=0.0))

    def _is_out_of_memory(self) -> bool:
        """All races together have the memory of one; rivals of leaders give way first."""
        limit = self.turns[0].race.bounder.budget.memory // 2 if self.turns else 0
        for turn in self.turns:
            if sum(turn.race.bytes() for turn in self.turns) <= limit:
                return False
            turn.race.keep_leader()
        return sum(turn.race.bytes() for turn in self.turns) > limit

    def _outcome(self, last: SplitOutcome | None) -> SplitOutcome:
        """All races together; ``last`` is what ended them before their time."""
        parts = [*self.ended, *(turn.race.standing() for turn in self.turns)]
        failed = [part for part in parts if not part.proved]
        return SplitOutcome(
            not failed and last is None,
            sum(part.rounds for part in parts),
            sum(part.domains for part in parts),
            sum(part.stuck for part in parts),
            sum(part.open for part in parts),
            min([part.worst for part in parts], default=0.0),
            None if last is None else last.witness,
            last.reason if last is not None else failed[0].reason if failed else "",
            max(parts, key=lambda part: part.domains).tactic if parts else "",
        )

    def run(self, on_round: Callable[[NeuronSplit], object | None] | None = None) -> SplitOutcome:
        """Until all cases are excluded, or nothing can be done any more."""
        while self.turns:
            turn = min(self.turns, key=lambda turn: turn.race.seconds)
            if self.can_tighten and turn.is_tired():
                try:
                    self._tighten(turn)
                except BudgetExpired:
                    return self._outcome(turn.race.standing())
                witness = turn.race.bounder.trials.witness
                if witness is not None:
                    return self._outcome(SplitOutcome(False, 0, 0, 0, 0, 0.0, witness))
                continue
            alone = len(self.turns) == 1 and not self.can_tighten
            share = max(_LEAST_SLICE, _GROWTH * turn.race.seconds)
            outcome = turn.race.run(on_round, math.inf if alone else share)
            if outcome is None:
                if self._is_out_of_memory():
                    return self._outcome(replace(turn.race.standing(), reason="memory"))
                continue
            if not outcome.proved:
                return self._outcome(outcome)
            if turn.own is None:
                self.excluded |= turn.race.cases
            self.turns.remove(turn)
            self.ended.append(outcome)
        return self._outcome(None)
