"""Branch and bound over ReLU signs with optimised linear bounds (beta-CROWN).

A domain is a case plus a sign for some neurons. A round takes a batch of domains, chooses a neuron for each
(``branching``), bounds both children by gradient ascent over alpha and beta from the parent's values (``optimise``),
and puts back what is not excluded. The ascent runs in ``guide`` (float32 where that pays); what it claims is then
evaluated in ``proof`` (float64 with rounding error), and only that excludes a domain.

Bounds of the layers are those of the root with the signs imposed. Legend: ``B`` domains, ``S`` rows, ``N`` neurons.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitcrown.bounds.crown import Enclosure, LayerBounder
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.optimise import Ascent, Layout, Parameters, Rows, ascend, bound_rows, proved_minimum
from bitcrown.budget import Budget
from bitcrown.errors import BudgetExpired
from bitcrown.model.execute import Network
from bitcrown.search.branching import best_candidates, choose, triangle_scores
from bitcrown.search.domains import Domains, DomainStack, concatenate
from bitcrown.search.objective import Objective

CANDIDATES = 4


@dataclass
class Outcome:
    """``proved``: every case excluded. ``stuck``: domains with nothing left to split. ``open`` what is left."""

    proved: bool
    rounds: int
    domains: int
    stuck: int
    open: int
    worst: float
    witness: object | None = None
    reason: str = ""


class NeuronSplit:
    """``confirm(x [n]) -> witness or None`` replays a candidate; all cases must share one box."""

    def __init__(
        self,
        proof: Network,
        guide: Network,
        objective: Objective,
        cases: np.ndarray,
        confirm: Callable[[np.ndarray], object | None],
        budget: Budget,
    ) -> None:
        self.proof, self.guide, self.confirm, self.budget = proof, guide, confirm, budget
        self.layout = Layout(proof)
        self.case_ids = torch.as_tensor(cases, device=proof.device)
        self.C = proof.tensor(objective.C[cases])
        self.rhs = proof.tensor(objective.rhs[cases])
        self.D = None if objective.D is None else proof.tensor(objective.D[cases])
        box = int(objective.box[cases[0]])
        self.x_lower = proof.tensor(objective.lower[box : box + 1])
        self.x_upper = proof.tensor(objective.upper[box : box + 1])
        self.rounds = self.domains = self.stuck = self.rejected = 0
        self.batch = 8
        self.worst = -np.inf
        self.stack = DomainStack()

    # -- rows and bounds -----------------------------------------------------------------------------------------

    def rows_of(self, case: Tensor) -> Rows:
        d = None if self.D is None else self.D[case]
        count = len(case)
        return Rows(self.C[case], d, self.rhs[case], self.x_lower.expand(count, -1), self.x_upper.expand(count, -1))

    def root(self, enclosure: Enclosure | None = None) -> Tensor:
        """Bound all cases without splits; returns the indices (into ``cases``) still open. Layers are bounded once."""
        if enclosure is None:
            with torch.no_grad():
                enclosure = LayerBounder(self.proof, self.budget.memory // 4).run(self.x_lower, self.x_upper)
        self.enclosure = enclosure
        self.bounds: Bounds = enclosure.bounds
        self.guide_bounds: Bounds = {
            name: (low.to(self.guide.dtype), up.to(self.guide.dtype)) for name, (low, up) in self.bounds.items()
        }
        self.start_alpha = self.layout.default_alpha(self.guide_bounds)
        count = len(self.C)
        value = []
        step = self.fitting(1 << 30, self.proof)
        for begin in range(0, count, step):
            case = torch.arange(begin, min(count, begin + step), device=self.proof.device)
            alpha = self.start_alpha[:, None, :].expand(1, 1, -1)
            parameters = Parameters(self.layout, alpha, None, None)
            value.append(proved_minimum(self.proof, self.rows_of(case), self.bounds, enclosure.scales, parameters))
        self.root_value = torch.cat(value).amax(dim=1)
        return (self.root_value <= 0).nonzero().flatten()

    def fitting(self, wanted: int, network: Network) -> int:
        """Domains whose backward pass stays within a third of the memory budget."""
        item = torch.finfo(network.dtype).bits // 8
        per_domain = self.C.shape[1] * sum(node.size for node in network.graph.nodes.values()) * item * 4
        return max(1, min(wanted, self.budget.memory // 3 // max(1, per_domain)))

    def root_domains(self, case: Tensor, iterations: int) -> Domains:
        """Domains without splits for the open cases, alpha optimised; proved ones are left out."""
        parts = []
        step = self.fitting(len(case), self.guide)
        for begin in range(0, len(case), step):
            part = case[begin : begin + step]
            count, rows = len(part), self.C.shape[1]
            shape = (count, self.layout.n_neurons)
            fresh = Domains(
                part,
                self.start_alpha[:, None, :].expand(count, rows, -1).clone(),
                torch.zeros(shape, dtype=self.guide.dtype, device=self.guide.device),
                torch.zeros(shape, dtype=torch.int8, device=self.guide.device),
                self.root_value[part].to(self.guide.dtype),
                torch.full((count, CANDIDATES), -1, device=self.guide.device),
            )
            parts.append(self.improve(fresh, Ascent(iterations, rate_alpha=0.25, rate_beta=0.05)))
        return concatenate(parts)

    def improve(self, domains: Domains, ascent: Ascent) -> Domains:
        """Ascend, prove what can be proved, and prepare the rest for branching. Returns the open domains."""
        rows = self.rows_of(domains.case)
        parameters = Parameters(self.layout, domains.alpha, domains.beta, domains.split)
        parameters, guess = ascend(self.guide, rows, self.guide_bounds, parameters, ascent)
        domains.alpha = parameters.alpha
        domains.beta = domains.beta if parameters.beta is None else parameters.beta
        hopeful = (guess.amax(dim=1) > 0).nonzero().flatten()
        proved = torch.zeros(len(domains), dtype=torch.bool, device=domains.case.device)
        if len(hopeful):
            proved[hopeful] = self.prove(domains.select(hopeful)) > 0
        domains.value = torch.maximum(domains.value, guess.amax(dim=1).to(domains.value.dtype))
        return self.prepare(domains.select((~proved).nonzero().flatten()))

    def prove(self, domains: Domains) -> Tensor:
        """Rigorous bounds ``[B]`` with the domains' parameters."""
        parameters = Parameters(self.layout, domains.alpha, domains.beta, domains.split)
        rows = self.rows_of(domains.case)
        return proved_minimum(self.proof, rows, self.bounds, self.enclosure.scales, parameters).amax(dim=1)

    def prepare(self, domains: Domains) -> Domains:
        """Branching candidates of open domains, and a look at the minimisers of their bounds."""
        if not len(domains):
            return domains
        record: dict[str, Tensor] = {}
        with torch.no_grad():
            parameters = Parameters(self.layout, domains.alpha, domains.beta, domains.split)
            bounds = self.layout.split_bounds(self.guide_bounds, domains.split)
            backward = parameters.backward(self.guide, bounds, record=record)
            rows = self.rows_of(domains.case).to(self.guide.dtype)
            weights = torch.isfinite(rows.rhs).to(self.guide.dtype)
            bound_rows(self.guide, rows, backward, 0.0)
            scores = triangle_scores(self.layout, bounds, record, domains.split, weights)
            domains.candidates = best_candidates(scores, CANDIDATES)
        return domains

    # -- search --------------------------------------------------------------------------------------------------

    def run(self, domains: Domains, on_round: Callable[[NeuronSplit], object | None] | None = None) -> Outcome:
        """Search below ``domains``. ``on_round`` may return a witness (attack steps inside the search)."""
        self.stack.push(domains)
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
            witness = None if on_round is None else on_round(self)
            if witness is not None:
                return self._outcome(False, witness=witness)
        return self._outcome(self.stuck == 0, "incomplete" if self.stuck else "")

    def _outcome(self, proved: bool, reason: str = "", witness: object | None = None) -> Outcome:
        worst = min([float(chunk.value.min()) for chunk in self.stack.chunks], default=0.0)
        return Outcome(proved, self.rounds, self.domains, self.stuck, len(self.stack), worst, witness, reason)

    def _resize(self, size: int, rate: float, best: float) -> float:
        seconds = size / rate
        if seconds > min(4.0, 0.2 * max(self.budget.remaining(), 0.1)):
            self.batch = max(1, self.batch // 2)
        elif size == self.batch and rate > 0.9 * best and seconds < 1.5:
            self.batch = self.fitting(2 * self.batch, self.guide)
        return max(best, rate)

    def _round(self, batch: Domains) -> Domains:
        self.budget.check()
        neuron = self._branch(batch)
        can_split = neuron >= 0
        if not can_split.all():
            self.stuck += int((~can_split).sum())
            index = can_split.nonzero().flatten()
            batch, neuron = batch.select(index), neuron[index]
            if not len(batch):
                return batch
        return self.improve(self._children(batch, neuron), Ascent(self.iterations(), 0.1, 0.1, 0.97))

    def iterations(self) -> int:
        return 10

    def _children(self, batch: Domains, neuron: Tensor) -> Domains:
        both = concatenate([batch, batch])
        sign = torch.ones(len(both), dtype=torch.int8, device=neuron.device)
        sign[: len(batch)] = -1
        both.split = both.split.scatter(1, neuron.repeat(2).unsqueeze(1), sign.unsqueeze(1))
        both.alpha, both.beta = both.alpha.clone(), both.beta.clone()
        return both

    def _branch(self, batch: Domains) -> Tensor:
        """The neuron to split for each domain ``[B]``, -1 if none is left."""
        first = batch.candidates[:, 0]
        if batch.candidates.shape[1] == 1 or not (batch.candidates[:, 1] >= 0).any():
            return first
        count, width = batch.candidates.shape
        value = []
        for sign in (-1, 1):
            index = torch.arange(count, device=first.device).repeat_interleave(width)
            trial = batch.select(index)
            neuron = batch.candidates.flatten().clamp(min=0)
            trial.split = trial.split.scatter(1, neuron.unsqueeze(1), sign)
            value.append(self._quick_bound(trial).reshape(count, width))
        return choose(batch.candidates, value[0], value[1])

    def _quick_bound(self, domains: Domains) -> Tensor:
        """Bounds ``[B]`` in the guide network with the parameters as they are."""
        parts = []
        step = self.fitting(len(domains), self.guide)
        with torch.no_grad():
            for begin in range(0, len(domains), step):
                part = domains.select(torch.arange(begin, min(len(domains), begin + step), device=domains.case.device))
                parameters = Parameters(self.layout, part.alpha, part.beta, part.split)
                bounds = self.layout.split_bounds(self.guide_bounds, part.split)
                rows = self.rows_of(part.case).to(self.guide.dtype)
                value = bound_rows(self.guide, rows, parameters.backward(self.guide, bounds), 0.0)
                parts.append(value.amax(dim=1))
        return torch.cat(parts)
