"""Branch and bound over ReLU signs with optimised linear bounds (beta-CROWN).

A round takes a batch of domains, chooses a neuron for each (``rules``), bounds both children by
ascent over their multipliers from the parent's values (``bounder``), and puts back what is not
excluded. Legend: ``B`` domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bitcrown.bounds.ascent import Ascent
from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import Domains, DomainStack
from bitcrown.search.neurons.guide import fastest
from bitcrown.search.neurons.rules import branching_rule

_FIRST_BATCH = 8
"""Domains of the first round; later ones have as many as the machine works off fastest."""


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


class NeuronSplit:
    """A search below ``domains``, which have no splits yet."""

    def __init__(self, bounder: DomainBounder, domains: Domains) -> None:
        self.bounder, domains = fastest(bounder, domains)
        self.rule = branching_rule(self.bounder)
        self.budget = bounder.budget
        self.stack = DomainStack()
        self.stack.push(domains)
        self.batch = _FIRST_BATCH
        self.rounds = self.domains = self.stuck = 0

    def run(self, on_round: Callable[[NeuronSplit], object | None] | None = None) -> SplitOutcome:
        """Until nothing is open, a witness is found, or time or memory is up. ``on_round`` may
        return a witness (attack steps inside the search)."""
        best_rate = 0.0
        while len(self.stack):
            if self.budget.is_expired():
                return self._outcome(False, "deadline")
            if self.stack.bytes() > self.budget.memory // 2:
                return self._outcome(False, "memory")
            batch = self.stack.pop(self.batch)
            started = time.perf_counter()
            try:
                self.stack.push(self._round(batch))
            except BudgetExpired:
                self.stack.push(batch)
                return self._outcome(False, "deadline")
            rate = len(batch) / (time.perf_counter() - started)
            best_rate = self._resize(len(batch), rate, best_rate)
            self.rounds += 1
            self.domains += 2 * len(batch)
            witness = self.bounder.trials.witness or (None if on_round is None else on_round(self))
            if witness is not None:
                return self._outcome(False, witness=witness)
        return self._outcome(self.stuck == 0, "incomplete" if self.stuck else "")

    def _outcome(
        self, proved: bool, reason: str = "", witness: object | None = None
    ) -> SplitOutcome:
        worst = min([float(chunk.value.min()) for chunk in self.stack.chunks], default=0.0)
        counts = self.rounds, self.domains, self.stuck, len(self.stack)
        return SplitOutcome(proved, *counts, worst, witness, reason)

    def _resize(self, size: int, rate: float, best: float) -> float:
        """Double the batch while that raises the rate and rounds stay short; the best rate so
        far."""
        seconds = size / rate
        if seconds > min(4.0, 0.2 * max(self.budget.remaining(), 0.1)):
            self.batch = max(1, self.batch // 2)
        elif size == self.batch and rate > 0.9 * best and seconds < 1.5:
            self.batch = self.bounder.fitting(2 * self.batch)
        return max(best, rate)

    def _round(self, batch: Domains) -> Domains:
        """The children of ``batch`` that stay open."""
        self.budget.check()
        batch, neuron = self.rule.branch(batch)
        can_split = neuron != -1
        if not can_split.all():  # neither excluded nor divisible: the search can prove no more
            self.stuck += int((~can_split).sum())
            index = can_split.nonzero().flatten()
            batch, neuron = batch.select(index), neuron[index]
            if not len(batch):
                return batch
        iterations = 10 if self.bounder.root.clipper is None else 15
        children = self.bounder.improve(batch.children(neuron), Ascent(iterations, 0.1, 0.1, 0.97))
        self.rule.learn(batch, children)
        return children
