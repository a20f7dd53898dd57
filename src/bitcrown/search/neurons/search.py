"""Branch and bound over ReLU signs with optimised linear bounds (beta-CROWN).

A round takes a batch of domains, chooses a neuron for each (``rules``), bounds both children by
ascent over their multipliers from the parent's values (``bounder``), and puts back what is not
excluded. Legend: ``B`` domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from bitcrown.bounds.ascent import Ascent
from bitcrown.bounds.stride import Stride
from bitcrown.budget import Budget
from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import D, DomainStack
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.root import Root
from bitcrown.search.neurons.rules import BranchingRule, Tactic
from bitcrown.search.neurons.trials import Trials

_FIRST_BATCH = 8
"""Domains of the first round; later ones have as many as the machine works off fastest."""
_LONG_ROUND = 2.0
"""Seconds of computing from where on larger batches gain nothing any more."""


@dataclass(frozen=True)
class SplitOutcome:
    """``proved``: every case is excluded. ``stuck``: domains with nothing left to split. ``open``:
    domains left, ``worst`` the least of their bounds."""

    proved: bool
    rounds: int
    domains: int
    stuck: int
    open: int
    worst: float
    witness: object | None = None
    reason: str = ""
    tactic: str = ""


class TreeShare(NamedTuple):
    """Seconds of computing so far, and what they brought: see ``closed`` and ``risen``."""

    seconds: float
    closed: float
    risen: float


class TreeBounder(Protocol[D]):
    """What a search asks of its bounder."""

    @property
    def root(self) -> Root: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def trials(self) -> Trials: ...
    @property
    def recorder(self) -> Recorder | None: ...
    def fitting(self, wanted: int) -> int: ...
    def improve(self, domains: D, ascent: Ascent) -> D: ...
    def narrowed(self, other: DomainBounder) -> Self: ...


@dataclass(frozen=True)
class Stuck:
    """Domains that are open and cannot be split: their ``case [B]`` and ``mass [B]``."""

    case: Tensor
    mass: Tensor

    def __len__(self) -> int:
        return len(self.case)

    @property
    def share(self) -> float:
        return float(self.mass.sum())

    def joined(self, case: Tensor, mass: Tensor) -> Stuck:
        return Stuck(torch.cat([self.case, case]), torch.cat([self.mass, mass]))

    def without(self, cases: list[int]) -> Stuck:
        is_kept = ~torch.isin(self.case, self.case.new_tensor(cases))
        return Stuck(self.case[is_kept], self.mass[is_kept])


class TreeSearch(Generic[D]):
    """A search below ``domains`` by one tactic. All of them have the root's share of the tree."""

    def __init__(self, bounder: TreeBounder[D], domains: D, tactic: Tactic) -> None:
        self.bounder, self.tactic = bounder, tactic
        self.rule: BranchingRule[D] = tactic.rule(bounder)
        self.stack: DomainStack[D] = DomainStack()
        self.stack.push(domains)
        self.whole = max(float(domains.mass.sum()), 1e-300)
        self.start = domains.value.clamp(max=0.0).double()
        self.batch, self.largest, self.best_rate = _FIRST_BATCH, 1 << 30, 0.0
        self.rounds = self.domains = 0
        self.stuck, self.stride = Stuck(domains.case[:0], domains.mass[:0]), Stride()
        self.seconds = self.pace = 0.0  # pace: seconds of computing a domain in the last round
        self.history = [TreeShare(0.0, 0.0, 0.0)]

    def closed(self) -> float:
        """The share of the tree that is closed for good."""
        left = sum(float(chunk.mass.sum()) for chunk in self.stack.chunks) + self.stuck.share
        return max(0.0, 1.0 - left / self.whole)

    def worst(self) -> float:
        """The least bound of an open domain; 0 where none is open."""
        return min([float(chunk.value.min()) for chunk in self.stack.chunks], default=0.0)

    def smallest_share(self) -> float:
        """The share of the deepest open domain."""
        return min([float(c.mass.min()) for c in self.stack.chunks], default=1.0) / self.whole

    def risen(self) -> float:
        """The same share, counting how far the bounds of open domains have risen towards zero."""
        left = self.stuck.share
        worst = self.start.min().clamp(max=-1e-30)
        for chunk in self.stack.chunks:
            left += float((chunk.mass * (chunk.value.double() / worst).clamp(0.0, 1.0)).sum())
        return 1.0 - left / self.whole

    def next_seconds(self, pace: float) -> float:
        """What the next round will take, at ``pace`` if there was none yet."""
        return (self.pace or pace) * min(self.batch, len(self.stack))

    def narrow(self, bounder: DomainBounder) -> None:
        """Go on with the tighter root of ``bounder``, which has the same guide: signs that were
        decided stay decided, and what has no room any more shows as empty."""
        self.bounder = self.bounder.narrowed(bounder)
        self.rule = self.tactic.rule(self.bounder)

    def cases(self) -> set[int]:
        """Cases with open or stuck domains. Others are excluded."""
        left = [chunk.case for chunk in self.stack.chunks] + [self.stuck.case]
        return {case for part in left for case in part.tolist()}

    def part_of(self, case: int) -> float:
        """The part that ``case`` has of all that is left."""
        parts = [(chunk.case, chunk.mass) for chunk in self.stack.chunks]
        parts.append((self.stuck.case, self.stuck.mass))
        left = sum(float(mass.sum()) for _, mass in parts)
        own = sum(float(mass[cases == case].sum()) for cases, mass in parts)
        return own / left if own else 0.0

    def drop(self, cases: set[int]) -> None:
        """Forget the open domains of ``cases``, which somebody else decides."""
        gone = [case for case in self.cases() if case in cases]
        if not gone:
            return
        self.whole = max(self.whole - len(gone), 1e-300)
        self.stuck = self.stuck.without(gone)
        chunks, self.stack = self.stack.chunks, DomainStack()
        for chunk in chunks:
            is_kept = ~torch.isin(chunk.case, chunk.case.new_tensor(gone))
            self.stack.push(chunk.select(is_kept.nonzero().flatten()))
        # The rate at which what is left shrinks is the same as before: history is about the rest.
        last, left, unrisen = self.history[-1], 1.0 - self.closed(), 1.0 - self.risen()
        factors = (
            left / (1.0 - last.closed) if last.closed != 1.0 else 1.0,
            unrisen / (1.0 - last.risen) if last.risen != 1.0 else 1.0,
        )
        self.history = [
            TreeShare(
                point.seconds,
                1.0 - factors[0] * (1.0 - point.closed),
                1.0 - factors[1] * (1.0 - point.risen),
            )
            for point in self.history
        ]

    def run(
        self, seconds: float, on_round: Callable[[TreeSearch[D]], object | None] | None = None
    ) -> SplitOutcome | None:
        """Go on for ``seconds`` of computing (at least a round): None if that was not the end.

        The end is when nothing is open, a witness is found, or time or memory is up. ``on_round``
        may return a witness (attack steps inside the search); its time does not count.
        """
        end = self.seconds + seconds
        while len(self.stack):
            if self.bounder.budget.is_expired():
                return self.outcome(False, "deadline")
            if self.stack.bytes() > self.bounder.budget.memory // 2:
                return self.outcome(False, "memory")
            batch = self.stack.pop(self.batch)
            started, stuck = time.process_time(), self.stuck
            try:
                self.stack.push(self._round(batch))
            except torch.OutOfMemoryError:  # nothing is lost: the same domains in smaller rounds
                self.stuck = stuck
                self.stack.push(batch)
                if len(batch) == 1:
                    return self.outcome(False, "memory")
                self.batch = self.largest = len(batch) // 2
                continue
            except BudgetExpired:
                self.stack.push(batch)
                return self.outcome(False, "deadline")
            spent = max(time.process_time() - started, 1e-6)
            self._resize(len(batch), spent)
            self.seconds += spent
            self.pace = spent / len(batch)
            self.rounds += 1
            self.domains += 2 * len(batch)
            self.history.append(TreeShare(self.seconds, self.closed(), self.risen()))
            witness = self.bounder.trials.witness or (None if on_round is None else on_round(self))
            if witness is not None:
                return self.outcome(False, witness=witness)
            if self.seconds >= end and len(self.stack):
                return None
        return self.outcome(not len(self.stuck), "incomplete" if len(self.stuck) else "")

    def outcome(
        self, proved: bool, reason: str = "", witness: object | None = None
    ) -> SplitOutcome:
        """How the search stands."""
        worst = self.worst()
        counts = self.rounds, self.domains, len(self.stuck), len(self.stack)
        return SplitOutcome(proved, *counts, worst, witness, reason, self.tactic.name)

    def _resize(self, size: int, seconds: float) -> None:
        """Double the batch while that raises the rate; a round ends in time by itself, since it
        polls the budget."""
        rate = size / seconds
        if size == self.batch and rate > 0.9 * self.best_rate and seconds < _LONG_ROUND:
            self.batch = min(self.largest, self.bounder.fitting(2 * self.batch))
        elif size == self.batch and rate < 0.5 * self.best_rate:
            self.batch = min(self.largest, max(_FIRST_BATCH, self.batch // 2))
        self.best_rate = max(self.best_rate, rate)

    def _round(self, batch: D) -> D:
        """The children of ``batch`` that stay open."""
        self.bounder.budget.check()
        batch, choice = self.rule.branch(batch)
        can_split = choice != -1
        if not can_split.all():  # neither excluded nor divisible: the search can prove no more
            self.stuck = self.stuck.joined(batch.case[~can_split], batch.mass[~can_split])
            index = can_split.nonzero().flatten()
            batch, choice = batch.select(index), choice[index]
            if not len(batch):
                return batch
        # a domain with a box of its own is also cut by what each step finds: more of them pay
        steps = self.tactic.steps
        if self.bounder.root.clipper is not None:
            steps += steps // 2
        ascent = Ascent(steps, 0.1, 0.1, 0.97, stride=self.stride)
        return self.bounder.improve(batch.children(choice), ascent)
