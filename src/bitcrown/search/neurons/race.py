"""Tactics race: each searches a tree of its own, and time goes to the one that will be done first.

No rule for splitting is best everywhere, and how good one is shows only in whole subtrees: a trial
with a single split cannot tell, and bad splits at the top of a tree stay there for ever. So every
tactic has its own tree from the same root. After each slice of time a tactic is expected to need

    (1 - closed) / (share of the tree closed per second lately)

more seconds. The one that needs the fewest goes on; the others get a small part of its time, so
that nobody is judged on nothing, and one that stands still is overtaken by the next. A tree is
never thrown away while memory lasts. Where no tree has closed anything yet, the rise of the open
bounds counts instead. Time is that of computing, so a busy machine does not change who is ahead.

The first to close its tree has proved it; what the others did is lost, so that ``k`` others make
it last at most ``1 + k RIVAL_SHARE`` times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import fastest
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.rules import Tactic, suitable_tactics
from bitcrown.search.neurons.search import SplitOutcome, TreeSearch, TreeShare
from bitcrown.search.ranges.bounder import RANGES, RangeBounder, splits_ranges

_FIRST_SLICE = 0.5
"""Seconds of computing after which the first tactic is compared with others."""
RIVAL_SHARE = 0.15
"""Part of the leader's time that every rival gets, until it is far behind."""
_FAR = 4.0
_FAR_SHARE = 0.03
"""The same for rivals that would need ``_FAR`` times as long."""
_GROWTH = 0.25
"""A slice is this part of the time that the tactic has had, so that slices are few."""


class _Progress(Protocol):
    """What a search has closed by when."""

    history: list[TreeShare]

    def smallest_share(self) -> float: ...


def _half_time(search: _Progress) -> int:
    """Where in its history the later half of its time begins."""
    end = search.history[-1].seconds
    return max((k for k, point in enumerate(search.history) if point.seconds <= end / 2), default=0)


def lasting_seconds(search: _Progress) -> float:
    """Seconds until nothing is left, if what is left goes on to fall by the same factor a second.

    ``expected_seconds`` compares trees; for how long one will last it is far too hopeful, because
    the last share of a tree takes longest. Here nothing is left once it is less than one domain as
    deep as the deepest that is open.
    """
    now, then = search.history[-1], search.history[_half_time(search)]
    left, before = 1.0 - now.closed, 1.0 - then.closed
    if not left or not max(before - left, 0.0):
        return math.inf
    decay = math.log(before / left) / (now.seconds - then.seconds)
    return math.log(max(left / search.smallest_share(), math.e)) / decay


def expected_seconds(search: TreeSearch[Any], by_rise: bool) -> float:
    """Seconds that the search will still need at the rate of the later half of its time."""
    now = search.history[-1]
    share = [point.risen if by_rise else point.closed for point in search.history]
    earlier = _half_time(search)
    gained = max(share[-1] - share[earlier], 0.0)
    if not gained:
        return math.inf
    return (1.0 - share[-1]) * (now.seconds - search.history[earlier].seconds) / gained


class Race:
    """Searches below ``domains``, which have no splits yet, one for each tactic that suits;
    ``bounder`` has the guide that was chosen, ``seconds`` of computing have gone into all. Tactics
    named in ``without`` take no part, as long as one is left."""

    def __init__(
        self,
        bounder: DomainBounder,
        domains: Domains,
        tactics: list[Tactic] | None = None,
        without: tuple[str, ...] = (),
    ) -> None:
        self.recorder = bounder.recorder
        self.bounder, self.domains = fastest(bounder, domains)
        self.cases = set(domains.case.tolist())
        layout = bounder.root.layout
        is_signless = splits_ranges(layout) and not layout.n_neurons
        has_ranges = is_signless or (splits_ranges(layout) and RANGES.name not in without)
        has_ranges &= tactics is None
        if tactics is None:
            suitable = [] if is_signless else suitable_tactics(self.bounder)
            left = [tactic for tactic in suitable if tactic.name not in without]
            tactics = left if left or has_ranges else suitable
        self.searches: list[TreeSearch[Any]] = [
            TreeSearch(self._own(self.bounder), self.domains, tactic) for tactic in tactics
        ]
        if has_ranges:
            ranges = RangeBounder.of(bounder)
            self.searches.append(TreeSearch(ranges, ranges.begun(domains), RANGES))
        self.seconds = 0.0

    def _own(self, bounder: DomainBounder) -> DomainBounder:
        """With a record of its own: a certificate is about one tree."""
        return bounder if self.recorder is None else replace(bounder, recorder=Recorder())

    def run(
        self,
        on_round: Callable[[TreeSearch[Any]], object | None] | None = None,
        seconds: float = math.inf,
    ) -> SplitOutcome | None:
        """Until one search ends for all, or ``seconds`` of computing have passed (None). A search
        with domains that nothing can split leaves the race; if all do, what the last one left is
        the outcome."""
        end = self.seconds + seconds
        if not self.cases:
            return self.searches[0].outcome(True)
        while self.seconds < end:
            search = self._next()
            before = search.seconds
            outcome = search.run(min(self._slice(search), end - self.seconds), on_round)
            self.seconds += search.seconds - before
            self._bound_memory(search)
            if outcome is None:
                continue
            if outcome.reason in ("incomplete", "memory") and len(self.searches) > 1:
                self.searches.remove(search)
                continue
            if outcome.proved and self.recorder is not None and search.bounder.recorder is not None:
                self.recorder.take(search.bounder.recorder, self.cases)
            return outcome
        return None

    def expected(self) -> list[float]:
        """What each search is expected to need (see ``expected_seconds``)."""
        by_rise = all(search.history[-1].closed == 0.0 for search in self.searches)
        return [expected_seconds(search, by_rise) for search in self.searches]

    def lasting(self) -> float:
        """Seconds of computing that the race may still take (see ``lasting_seconds``)."""
        return min(lasting_seconds(search) for search in self.searches)

    def lasting_for(self, case: int) -> float:
        """The part of those seconds that is for ``case``, as it has a part of what is left."""
        search = min(self.searches, key=lasting_seconds)
        part = search.part_of(case)
        return part * lasting_seconds(search) if part else 0.0

    def open_cases(self) -> set[int]:
        """Cases that no tree has closed; with a record, that the trees have not all closed: it is
        one tree that is written down."""
        left = [search.cases() for search in self.searches]
        if self.recorder is not None:
            return set.union(*left)
        return set.intersection(*left)

    def standing(self) -> SplitOutcome:
        """How the leader stands."""
        expected = self.expected()
        return self.searches[expected.index(min(expected))].outcome(False, "deadline")

    def drop(self, cases: set[int]) -> None:
        """Leave ``cases`` to somebody else."""
        self.cases = self.cases - cases
        for search in self.searches:
            search.drop(cases)

    def record(self, closed: set[int]) -> None:
        """Keep what a certificate wants of the ``closed`` cases, before the trees are given up: all
        of them have closed these."""
        own = self.searches[0].bounder.recorder
        if self.recorder is not None and own is not None:
            self.recorder.take(own, closed)

    def narrow(self, bounder: DomainBounder) -> None:
        """All trees go on below the tighter root of ``bounder``."""
        for search in self.searches:
            search.narrow(bounder)

    def _next(self) -> TreeSearch[Any]:
        """The leader, or a rival whose next round fits its part of the leader's time. (Where rounds
        take seconds, the first ones of all rivals would last longer than many a search.)"""
        expected = self.expected()
        best = min(expected)
        leader = self.searches[expected.index(best)]
        if leader.seconds < _FIRST_SLICE:
            return leader
        for search, seconds in zip(self.searches, expected, strict=True):
            is_far = seconds > _FAR * best and search.seconds > _FIRST_SLICE
            share = (_FAR_SHARE if is_far else RIVAL_SHARE) * leader.seconds
            if search.seconds + search.next_seconds(leader.pace) < share:
                return search
        return leader

    def _slice(self, search: TreeSearch[Any]) -> float:
        return max(_FIRST_SLICE * _GROWTH, _GROWTH * search.seconds)

    def _bound_memory(self, running: TreeSearch[Any]) -> None:
        """All trees together have the memory of one: the largest of the others gives way."""
        limit = running.bounder.budget.memory // 2
        while len(self.searches) > 1 and sum(s.stack.bytes() for s in self.searches) > limit:
            others = [search for search in self.searches if search is not running]
            self.searches.remove(max(others, key=lambda search: search.stack.bytes()))
