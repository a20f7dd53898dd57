"""A race that pauses where it does not come to its end, to tighten bounds below it.

Cheap cases are done before anything here costs. Once the race has computed for as long as
tightening is thought to take, and is expected to last longer than that, it pauses for as many
seconds as it has had since it last paused. There are two ways to spend them, and what each gained
for its last seconds says which is taken (both, the first time):

* *refinement* (``refinement``): all layers get tighter bounds for all cases. Where that gained
  much, the trees begin anew, under the tighter bounds: their first splits were those of another
  problem;
* *bounds per case* (``case_bounds``), the case nearest to its proof first. All cases stay in one
  race, each with its own bounds of the neurons (``[P, *]`` for each operand), which its domains
  read from then on; signs that were decided stay decided.

Beyond its time a way goes on only where it promises, at its own rate, to refute cases before the
race would (one case: in less than its part of the time that the race may last). A pause that
neither refuted cases sooner than the race would have nor began anew makes the next one rarer and
its share of the time smaller, at least a quarter; one that moved nothing, much rarer. So tightening
costs a fraction of the search where it does not pay, and nothing where a search is done soon.

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
from bitcrown.search.neurons.refinement import MOVED, Refinement
from bitcrown.search.neurons.search import SplitOutcome, TreeSearch

REFINEMENT, CASE_BOUNDS = "refinement", "bounds per case"
"""Names of the two ways, as tactics have names."""
_LEAST_SLICE = 0.5
"""Seconds of computing before the race is asked for the first time whether it will last."""
_GROWTH = 0.25
_RARER, _MUCH_RARER = 2.0, 4.0
_LEAST_SHARE = 0.25
_MEMORY_SHARE = 1 / 16
"""Part of the memory that all cases' bounds may take."""
_ANEW = 0.1
"""Share of the cases' distance to zero that refinement must have gained for trees to begin anew."""


class TightenedRace:
    """Decides ``domains``, which have no splits yet; ``seconds`` of computing went into the root's
    bounds, a guess at what tightening takes. All cases of the problem without domain must be
    excluded on the whole box. Ways and tactics named in ``without`` take no part."""

    def __init__(
        self,
        bounder: DomainBounder,
        domains: Domains,
        seconds: float,
        without: tuple[str, ...] = (),
    ) -> None:
        root, self.without = bounder.root, without
        self.refinement = Refinement(bounder, domains)
        self.refinement.can_go_on &= REFINEMENT not in without
        self.excluded = set(range(len(root.rows.C))) - set(domains.case.tolist())
        self.rest, self.share = max(seconds, _LEAST_SLICE), 1.0
        self.case_rate, self.has_paid = math.inf, False
        self.counters = {"tightened_cases": 0, "refuted_cases": 0, "tightening_seconds": 0.0}
        self.counters |= {"refined_neurons": 0, "restarts": 0}
        self._begin(bounder, domains)
        entries = 16 * len(root.rows.C) * root.layout.n_neurons
        self.can_tighten = (
            root.clipper is None
            and self.bounder.leaf_solver is None
            and bool(root.layout.n_neurons)
            and entries <= _MEMORY_SHARE * bounder.budget.memory
        )

    def _begin(self, bounder: DomainBounder, domains: Domains) -> None:
        """A new race; ``bounder`` has the whole guide, ``domains`` are unsplit."""
        self.race = Race(bounder, domains, without=self.without)
        self.bounder = self.race.bounder
        self.unsplit = {
            case: self.race.domains.select(torch.tensor([k], device=domains.case.device))
            for k, case in enumerate(domains.case.tolist())
        }
        self.attempts: dict[int, CaseBounds] = {}
        self.narrowed: set[int] = set()
        self.since = 0.0

    def run(
        self, on_round: Callable[[TreeSearch[Any]], object | None] | None = None
    ) -> SplitOutcome:
        """Until all cases are excluded, or nothing can be done any more."""
        while True:
            if self.can_tighten and self.is_tired():
                try:
                    self._pause()
                except BudgetExpired:
                    return self.race.standing()
            seconds = self.race.seconds
            share = max(_LEAST_SLICE, _GROWTH * seconds) if self.can_tighten else math.inf
            outcome = self.race.run(on_round, share)
            if outcome is not None:
                return outcome

    def is_tired(self) -> bool:
        """Whether the race has had its time and does not come to its end."""
        return self.race.seconds - self.since >= self.rest and self.race.lasting() > self.rest

    def _pause(self) -> None:
        """Tighten open cases for a share of the time that the race has run since it last
        paused."""
        race = self.race
        had, lasting = self.share * (race.seconds - self.since), race.lasting()
        self.since = race.seconds
        open_ = race.open_cases()
        # A case that was closed under bounds of its own is only known not to be violated worst.
        self.excluded |= race.cases - open_ - self.narrowed
        if self.refinement.rate == self.case_rate:  # neither was tried, or neither moves anything
            had /= 2
        has_moved, way = False, self.refinement
        if way.can_go_on and way.rate >= self.case_rate:
            has_moved = self._refine(open_, had, lasting)
            if self.race is not race:
                self.share = 1.0
                return
        if not way.can_go_on or self.case_rate >= way.rate:
            has_moved |= self._tighten(open_, had)
            if self.has_paid:
                self.share = 1.0
                return
        self.share = max(_LEAST_SHARE, self.share / 2)
        self.rest *= _RARER if has_moved else _MUCH_RARER

    def _refine(self, open_: set[int], seconds: float, lasting: float) -> bool:
        """Refine layers for the ``open_`` cases; whether that moved them. Perhaps in a new race."""
        way = self.refinement
        way.keep(open_)
        before, known = way.seconds, set(way.domains.case.tolist())
        gain = way.run(seconds, lasting)
        self.counters["tightening_seconds"] += way.seconds - before
        self.counters["refined_neurons"] = way.neurons
        left = set(way.domains.case.tolist())
        # A case may be open again because the tree that had closed it was given up: not here, and
        # perhaps closed under bounds of its own, so nothing is known of it on the whole box.
        refuted = known - left
        self.counters["refuted_cases"] += len(refuted)
        self.excluded |= refuted
        self.race.drop(refuted)
        if way.gained > _ANEW and left and left == open_ - refuted:
            way.gained = 0.0
            self.race.record(self.race.cases - open_)
            self._begin(way.bounder, way.domains)
            self.counters["restarts"] += 1
        return gain > MOVED

    def _tighten(self, open_: set[int], seconds: float) -> bool:
        """Bounds of their own for some of the ``open_`` cases; whether that moved any.
        ``self.has_paid``: the race would have needed longer for those that this refuted."""
        order = sorted(open_, key=lambda case: -float(self.unsplit[case].value))
        if CASE_BOUNDS in self.without:
            order = []
        spent, gained, saved, moved = 0.0, 0.0, 0.0, []
        for case in order:
            if spent >= seconds:
                break
            own = self.attempts.get(case) or CaseBounds(self.race.bounder, self.unsplit[case])
            self.attempts[case] = own
            if not own.can_go_on:
                continue
            before, value = own.seconds, own.value
            premises = premises_of(self.race.bounder.root.rows, case, self.excluded)
            lasting = self.race.lasting_for(case)
            if own.run(premises, seconds - spent, lasting):
                moved.append(own)
                gained += 1.0 - own.value / value if value else 1.0
            spent += own.seconds - before
            saved += 0.0 if len(own.domains) else lasting
        self.has_paid = saved > spent
        self.case_rate = gained / len(open_) / spent if spent else 0.0
        self.counters["tightening_seconds"] += spent
        if moved:
            self._adopt(moved)
        if all(case in self.attempts and not self.attempts[case].can_go_on for case in order):
            self.case_rate = -math.inf
            if not self.refinement.can_go_on:
                self.rest = math.inf
        return bool(moved)

    def _adopt(self, moved: list[CaseBounds]) -> None:
        """The race goes on with what was found, without the cases that this refuted."""
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
