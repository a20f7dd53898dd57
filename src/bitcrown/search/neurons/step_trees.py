"""Groups of steps by branch and bound: a small tree over the neurons in front of each.

A group that one pass leaves just below zero mostly needs the signs of two or three neurons. A tree
of it is a search as any other, in the window that its sum depends on: all groups of a window are
cases of one root. A tree ends where all its leaves are proved, where it has too many levels, or
where the levels so far, each taken to raise its worst leaf as far as they did on average, would not
lift that above zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitcrown.bounds.ascent import Ascent
from bitcrown.bounds.claims import is_active
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.step_groups import Part, StepGroups
from bitcrown.bounds.step_sums import StepGroup
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import UPPER, SmartBranching, product_of_gains
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import guide_network, whole_guide
from bitcrown.search.neurons.root import root_of
from bitcrown.search.neurons.trials import Trials

_ROOT_STEPS = 10
_CLIMB = Ascent(6, 0.1, 0.1, decay=0.97)
_LEVELS = 10
_TOGETHER = 64
"""Leaves that climb together, at most."""


class StepTrees:
    def __init__(self, groups: StepGroups) -> None:
        self.groups, self.budget = groups, groups.ascent.budget

    def proved(self, groups: Sequence[StepGroup]) -> list[StepGroup]:
        """Those of which not all steps are wrong anywhere. Raises ``BudgetExpired``."""
        found = []
        for numbers, window, part in self.groups.by_part(groups):
            chosen = [groups[number] for number in numbers]
            bounder = self._bounder(chosen, window, part)
            found += [chosen[case] for case in self._closed(bounder, len(chosen))]
        return found

    def _bounder(self, groups: Sequence[StepGroup], window: Tensor, part: Part) -> DomainBounder:
        C = self.groups.seed(groups, window, part).flatten(1).unsqueeze(1)
        enclosure, box = part.of_windows(window)
        rows = Rows(C, None, C.new_zeros(len(C), 1), *box)
        guide = guide_network(part.network)
        root = root_of(part.network, guide, rows, enclosure, self.budget.memory)
        root = replace(root, clipper=None)  # boxes hardly shrink by one sign
        trials = Trials(lambda x: None)  # no leaf here is about a violation
        return DomainBounder(root, whole_guide(root, guide), trials, self.budget)

    def _closed(self, bounder: DomainBounder, count: int) -> list[int]:
        """The cases that have no leaf left."""
        rule = SmartBranching(bounder, UPPER, product_of_gains)
        leaves = bounder.root_domains(bounder.root.open_cases(), _ROOT_STEPS)
        first = _worst(leaves, count)
        given_up = torch.zeros(count, dtype=torch.bool, device=first.device)
        for level in range(1, _LEVELS + 1):
            leaves = leaves.select((~given_up[leaves.case]).nonzero().flatten())
            if not len(leaves):
                break
            leaves, choice = rule.branch(leaves)
            given_up[leaves.case[choice == -1]] = True
            index = (~given_up[leaves.case]).nonzero().flatten()
            children = leaves.select(index).children(choice[index])
            step = bounder.fitting(_TOGETHER)
            every = torch.arange(len(children), device=index.device)
            parts = [
                bounder.improve(children.select(part), _CLIMB) for part in torch.split(every, step)
            ]
            leaves = Domains.stacked(parts) if parts else children
            worst = _worst(leaves, count)
            given_up |= ~is_active(worst + (worst - first) / level * (_LEVELS - level))
        given_up[leaves.case] = True
        return (~given_up).nonzero().flatten().tolist()


def _worst(leaves: Domains, count: int) -> Tensor:
    """``[P]``: the least value of an open leaf of each case, at most zero."""
    value = leaves.value.double().clamp(max=0.0)
    return value.new_zeros(count).scatter_reduce(0, leaves.case, value, "amin")
