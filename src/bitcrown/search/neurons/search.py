"""Branch and bound over ReLU signs with optimised linear bounds (beta-CROWN).

A round takes a batch of domains, chooses a neuron for each (``branching``), bounds both children by
gradient ascent over alpha and beta from the parent's values (``domain_bounds``), and puts back what
is not excluded. Legend: ``B`` domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bitcrown.bounds.alpha_beta import Ascent
from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounds import DomainBounds
from bitcrown.search.neurons.branching import ScoreChoice, choose
from bitcrown.search.neurons.domains import Domains, DomainStack, Outcome, concatenate
from bitcrown.search.neurons.lookahead import look_ahead


class NeuronSplit(DomainBounds):
    """The search; see ``DomainBounds`` for the arguments."""

    def run(
        self, domains: Domains, on_round: Callable[[NeuronSplit], object | None] | None = None
    ) -> Outcome:
        """Search below ``domains``. ``on_round`` may return a witness (attack steps inside the
        search)."""
        self.rounds = self.domains = self.stuck = 0
        self.batch = 8
        self.choice, self.score = ScoreChoice(), 0
        self.stack = DomainStack()
        self.stack.push(self.shrunk(domains))
        rate = 0.0
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
            rate = self._resize(len(batch), len(batch) / (time.perf_counter() - started), rate)
            self.rounds += 1
            self.domains += 2 * len(batch)
            witness = self.witness or (None if on_round is None else on_round(self))
            if witness is not None:
                return self._outcome(False, witness=witness)
        return self._outcome(self.stuck == 0, "incomplete" if self.stuck else "")

    def _outcome(self, proved: bool, reason: str = "", witness: object | None = None) -> Outcome:
        worst = min([float(chunk.value.min()) for chunk in self.stack.chunks], default=0.0)
        return Outcome(
            proved, self.rounds, self.domains, self.stuck, len(self.stack), worst, witness, reason
        )

    def _resize(self, size: int, rate: float, best: float) -> float:
        seconds = size / rate
        if seconds > min(4.0, 0.2 * max(self.budget.remaining(), 0.1)):
            self.batch = max(1, self.batch // 2)
        elif size == self.batch and rate > 0.9 * best and seconds < 1.5:
            self.batch = self.fitting(2 * self.batch, self.model)
        return max(best, rate)

    def _round(self, batch: Domains) -> Domains:
        self.budget.check()
        self.score = self.choice.pick()
        neuron = self._branch(batch)
        can_split = neuron != -1
        if not can_split.all():
            self.stuck += int((~can_split).sum())
            index = can_split.nonzero().flatten()
            batch, neuron = batch.select(index), neuron[index]
            if not len(batch):
                return batch
        iterations = 10 if self.clipper is None else 15
        children = self.improve(self._children(batch, neuron), Ascent(iterations, 0.1, 0.1, 0.97))
        self.choice.learn(self.score, batch.value, children.value)
        return children

    def _children(self, batch: Domains, neuron: Tensor) -> Domains:
        both = concatenate([batch, batch])
        sign = torch.ones(len(both), dtype=torch.int8, device=neuron.device)
        sign[: len(batch)] = -1
        both.split = both.split.scatter(1, neuron.repeat(2).unsqueeze(1), sign.unsqueeze(1))
        both.alpha, both.beta = both.alpha.clone(), both.beta.clone()
        return both

    def _branch(self, batch: Domains) -> Tensor:
        """The neuron to split for each domain ``[B]``, -1 if none is left."""
        if self.clipper is not None and self.clipper.active is not None and self.clip_rounds > 1:
            neuron, batch.split = look_ahead(self.clipper, batch, *self.neuron_bounds(batch))
            return neuron
        candidates = self.choice.of(batch.candidates, self.score)
        if not (candidates[:, 1] != -1).any():
            return candidates[:, 0]
        count, width = candidates.shape
        value = []
        whole = self.bounds_of(batch, self.guide.dtype)
        for sign in (-1, 1):
            trial = batch.select(
                torch.arange(count, device=candidates.device).repeat_interleave(width)
            )
            neuron = candidates.flatten().clamp(min=0)
            trial.split = trial.split.scatter(1, neuron.unsqueeze(1), sign)
            value.append(self.quick_bound(trial, whole, width).reshape(count, width))
        return choose(candidates, batch.value, value[0], value[1])
