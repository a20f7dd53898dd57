"""Bounds of the range split's domains.

A child has a narrower range for one operand, so the lines that enclose its function there are
closer. Intervals carry it on to later layers (``propagation``), which keep their bounds otherwise.
The multipliers start at the parent's (slopes are shares of what is possible, so they mean something
on any range), climb a few steps in the guide, and what they claim is evaluated in the proof
network, with rounding error. Only that excludes, and intervals that show a domain to be empty.

Legend: ``B`` domains, ``S`` rows, ``N`` operands, ``C`` candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows, bound_lines, bound_rows, row_lines
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import choose, product_of_gains
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import Guide
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.root import Root, domains_that_fit, in_dtype
from bitcrown.search.neurons.rules import Tactic
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.ranges.branching import candidates_of, mean_gaps
from bitcrown.search.ranges.domains import OperandAxis, RangeDomains
from bitcrown.search.ranges.propagation import propagated


def splits_ranges(layout: Layout) -> bool:
    """Whether some node's relaxation does not become exact by a sign."""
    return any(node.op != "Relu" for node in layout.nodes)


@dataclass(frozen=True)
class RangeBounder:
    """``root`` and ``guide`` are those of the neuron split, with all operands (no reduced guide);
    ``trials`` collect witnesses met on the way. There is no certificate of such a proof."""

    root: Root
    guide: Guide
    trials: Trials
    budget: Budget
    axis: OperandAxis
    recorder: Recorder | None = None

    @classmethod
    def of(cls, bounder: DomainBounder) -> RangeBounder:
        root = bounder.root
        axis = OperandAxis(root.layout, root.enclosure.bounds)
        return cls(root, bounder.guide, bounder.trials, bounder.budget, axis)

    def narrowed(self, other: DomainBounder) -> RangeBounder:
        """The same: bounds of single cases are the neuron split's."""
        return self

    def begun(self, domains: Domains) -> RangeDomains:
        """``domains``, which have no splits yet, with candidates."""
        return self.improve(RangeDomains.of(domains), Ascent(1))

    @property
    def network(self) -> Network:
        return self.guide.network

    def fitting(self, wanted: int) -> int:
        """Domains, at most ``wanted``, whose backward pass in the guide the memory allows."""
        return domains_that_fit(wanted, self.root.rows, self.network, self.budget.memory)

    def _multipliers(self, domains: RangeDomains) -> Multipliers:
        mix = domains.mix if self.root.rows.C.shape[1] > 1 else None
        return Multipliers(self.guide.layout, domains.alpha, mix=mix)

    def _bounds(self, domains: RangeDomains) -> tuple[Bounds, Tensor]:
        """Bounds in the domains, and ``[B]`` whether one holds no point."""
        given = self.root.enclosure.bounds
        with torch.no_grad():
            narrowed = self.axis.narrowed(given, domains)
            return propagated(self.root.proof, given, narrowed, len(domains))

    def _goal(self, domains: RangeDomains) -> Rows:
        """The one row per domain that the guide bounds."""
        rows = self.root.rows.of_cases(domains.case).to(self.network.dtype)
        mix = domains.mix.to(self.network.dtype)
        return rows.mixed(mix) if rows.C.shape[1] > 1 else rows

    def improve(self, domains: RangeDomains, ascent: Ascent) -> RangeDomains:
        """Ascend, prove what can be proved, and prepare the rest for branching. Returns the open
        domains."""
        bounds, is_empty = self._bounds(domains)
        if is_empty.any():
            return self.improve(domains.select((~is_empty).nonzero().flatten()), ascent)
        if not len(domains):
            return domains
        rows = self.root.rows.of_cases(domains.case)
        guessed = in_dtype(bounds, self.network.dtype)
        start = self._multipliers(domains)
        found, _ = ascend(self.network, rows, guessed, start, ascent, budget=self.budget)
        mix = domains.mix if found.mix is None else found.mix
        domains = replace(domains, alpha=found.alpha, mix=mix)
        with torch.no_grad():
            return self._assessed(domains, bounds, guessed)

    def _assessed(self, domains: RangeDomains, bounds: Bounds, guessed: Bounds) -> RangeDomains:
        found, goal, record = self._multipliers(domains), self._goal(domains), dict[str, Tensor]()
        backward = found.backward(self.network, guessed, record=record)
        lines = row_lines(self.network, goal, backward)
        value = bound_lines(lines, goal, 0.0)
        proved = claims.excluded(value).any(dim=1)
        if proved.any():
            hopeful = proved.nonzero().flatten()
            proved[hopeful] = self._prove(domains.select(hopeful), bounds, hopeful)
        points = claims.corner(lines.coefficient[:, 0], goal.x_lower, goal.x_upper)
        rows = self.root.rows.of_cases(domains.case).to(self.network.dtype)
        self.trials.run(self.network, rows, points)
        gaps = mean_gaps(self.network, self.guide.layout, self.axis, guessed, domains.alpha, record)
        operands, cuts = candidates_of(self.guide.layout, self.axis, bounds, *gaps)
        known = claims.known(value, -torch.inf).amax(dim=1).to(domains.value.dtype)
        domains = replace(
            domains,
            value=torch.maximum(domains.value, known),
            candidates=operands,
            points=cuts,
        )
        return domains.select((~proved).nonzero().flatten())

    def _prove(self, domains: RangeDomains, bounds: Bounds, index: Tensor) -> Tensor:
        """Whether the domains' multipliers exclude them, rigorously: ``[B]``; ``bounds`` has theirs
        at ``index``."""
        root = self.root
        rows = root.rows.of_cases(domains.case)
        bounds = {
            name: pair if len(pair[0]) == 1 else (pair[0][index], pair[1][index])
            for name, pair in bounds.items()
        }
        found = replace(self._multipliers(domains), layout=root.layout)
        value = proved_minimum(root.proof, rows, bounds, root.enclosure.scales, found)
        return claims.excluded(value).any(dim=1)

    def quick_bound(self, domains: RangeDomains) -> Tensor:
        """Values ``[B]`` with the multipliers as they are; a guess."""
        parts = []
        with torch.no_grad():
            for index in torch.split(
                torch.arange(len(domains), device=domains.case.device), self.fitting(len(domains))
            ):
                part = domains.select(index)
                known, is_empty = self._bounds(part)
                bounds = in_dtype(known, self.network.dtype)
                backward = self._multipliers(part).backward(self.network, bounds)
                goal = self._goal(part)
                value = bound_rows(self.network, goal, backward, 0.0).amax(dim=1)
                parts.append(torch.where(is_empty, 1.0, value))
        return torch.cat(parts)


class RangeBranching:
    """The candidate whose two children gain most, by bounding both."""

    def __init__(self, bounder: RangeBounder) -> None:
        self.bounder = bounder

    def branch(self, batch: RangeDomains) -> tuple[RangeDomains, Tensor]:
        """``batch``, and the candidate ``[B]`` to cut in each domain, -1 where none is left."""
        count, width = batch.candidates.shape
        column = torch.arange(width, device=batch.case.device)
        numbers = torch.where(batch.candidates != -1, column, -1)
        if not width:
            return batch, torch.full_like(batch.case, -1)
        every = torch.arange(count, device=column.device).repeat_interleave(width)
        trial = batch.select(every)
        usable = (numbers != -1).flatten()
        chosen = trial.select(usable.nonzero().flatten())
        both = (
            self.bounder.quick_bound(chosen.children(column.repeat(count)[usable]))
            if len(chosen)
            else batch.value[:0]
        )
        found = []
        for half in both.chunk(2) if len(chosen) else (both, both):
            spread = batch.value.new_full((count * width,), -torch.inf)
            spread[usable] = half.to(spread.dtype)
            found.append(spread.reshape(count, width))
        return batch, choose(numbers, batch.value, found[0], found[1], product_of_gains)


RANGES = Tactic("ranges", RangeBranching, 10, lambda bounder: True)
