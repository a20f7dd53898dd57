"""A race that pauses where it does not come to its end, to tighten the bounds of its open cases.

Cheap cases are done before anything here costs. Once the race has computed for as long as
tightening is thought to take, and is expected to last longer than that, its open cases get bounds
of their own (``case_bounds``), the one nearest to its proof first, in as many seconds as the race
has had since it last paused. Beyond that time it goes on only where it promises, at its own rate,
to refute a case before the race would. A pause that refuted no case makes the next one rarer and
its share of the time smaller, at least a quarter; one that moved nothing, much rarer. So tightening
costs a fraction of the search where it does not pay, and nothing where a search is done soon.

All cases stay in one race, each with its own bounds of the neurons (``[P, *]`` for each operand),
which its domains read from then on; signs that were decided stay decided. A refuted case leaves.

Legend: ``P`` cases, ``N`` neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.case_bounds import CaseBounds
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import narrowed_guide
from bitcrown.search.neurons.premises import premises_of
from bitcrown.search.neurons.race import Race
from bitcrown.search.neurons.search import SplitOutcome, TreeSearch

_LEAST_SLICE = 0.5
"""Seconds of computing before the race is asked for the first time whether it will last."""
_GROWTH = 0.25
_RARER, _MUCH_RARER = 2.0, 4.0
_LEAST_SHARE = 0.25
_MEMORY_SHARE = 1 / 16
"""Part of the memory that all cases' bounds may take."""


class TightenedRace:
    """Decides ``domains``, which have no splits yet; ``seconds`` of computing went into the root's
    bounds, a guess at what tightening takes. All cases of the problem without domain must be
    excluded on the whole box."""

    def __init__(self, bounder: DomainBounder, domains: Domains, seconds: float) -> None:
        self.race = Race(bounder, domains)
        self.bounder = self.race.bounder
        root = bounder.root
        self.excluded = set(range(len(root.rows.C))) - self.race.cases
        self.unsplit = {
            case: self.race.domains.select(torch.tensor([k], device=domains.case.device))
            for k, case in enumerate(domains.case.tolist())
        }
        self.attempts: dict[int, CaseBounds] = {}
        self.narrowed: set[int] = set()
        self.since, self.rest, self.share = 0.0, max(seconds, _LEAST_SLICE), 1.0
        self.counters = {"tightened_cases": 0, "refuted_cases": 0, "tightening_seconds": 0.0}
        entries = 16 * len(root.rows.C) * root.layout.n_neurons
        self.can_tighten = (
            root.clipper is None
            and self.bounder.leaf_solver is None
            and bool(root.layout.n_neurons)
            and entries <= _MEMORY_SHARE * bounder.budget.memory
        )

    def run(
        self, on_round: Callable[[TreeSearch[Any]], object | None] | None = None
    ) -> SplitOutcome:
        """Until all cases are excluded, or nothing can be done any more."""
        race = self.race
        while True:
            if self.can_tighten and self.is_tired():
                try:
                    self._tighten()
                except BudgetExpired:
                    return race.standing()
            share = max(_LEAST_SLICE, _GROWTH * race.seconds) if self.can_tighten else math.inf
            outcome = race.run(on_round, share)
            if outcome is not None:
                return outcome

    def is_tired(self) -> bool:
        """Whether the race has had its time and does not come to its end."""
        return self.race.seconds - self.since >= self.rest and self.race.lasting() > self.rest

    def _tighten(self) -> None:
        """Tighten open cases for a share of the time that the race has run since it last
        paused."""
        race = self.race
        had, lasting = self.share * (race.seconds - self.since), race.lasting()
        self.since = race.seconds
        open_ = race.open_cases()
        # A case that was closed under bounds of its own is only known not to be violated worst.
        self.excluded |= race.cases - open_ - self.narrowed
        order = sorted(open_, key=lambda case: -float(self.unsplit[case].value))
        spent, moved = 0.0, []
        for case in order:
            if spent >= had:
                break
            own = self.attempts.get(case) or CaseBounds(race.bounder, self.unsplit[case])
            self.attempts[case] = own
            if not own.can_go_on:
                continue
            before = own.seconds
            if own.run(
                premises_of(race.bounder.root.rows, case, self.excluded), had - spent, lasting
            ):
                moved.append(own)
            spent += own.seconds - before
        self.counters["tightening_seconds"] += spent
        refuted = self._adopt(moved) if moved else set()
        if refuted:
            self.share = 1.0
            return
        self.share = max(_LEAST_SHARE, self.share / 2)
        self.rest *= _RARER if moved else _MUCH_RARER
        if all(case in self.attempts and not self.attempts[case].can_go_on for case in order):
            self.rest = math.inf

    def _adopt(self, moved: list[CaseBounds]) -> set[int]:
        """The race goes on with what was found; the cases that this refuted."""
        root, rows = self.bounder.root, len(self.bounder.root.rows.C)
        low, up = root.layout.flat_bounds(root.enclosure.bounds)
        low, up = low.expand(rows, -1).clone(), up.expand(rows, -1).clone()
        for own in moved:
            new = own.bounder.root
            low[own.case], up[own.case] = (
                end[0] for end in new.layout.flat_bounds(new.enclosure.bounds)
            )
        bounds = root.layout.with_flat_bounds(root.enclosure.bounds, low, up)
        root = replace(root, enclosure=root.enclosure._replace(bounds=bounds))
        guide = narrowed_guide(self.bounder.guide, root)
        self.bounder = replace(self.bounder, root=root, guide=guide)
        self.race.narrow(self.bounder)
        self.narrowed |= {own.case for own in moved}
        refuted = {own.case for own in moved if not len(own.domains)}
        self.race.drop(refuted)
        self.counters["refuted_cases"] += len(refuted)
        self.counters["tightened_cases"] += len(moved)
        return refuted
