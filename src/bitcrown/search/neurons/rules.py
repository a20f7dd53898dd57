"""Which neuron to split: a table of rules, of which the first that suits the problem is taken.

A new rule is a class in a file of its own and a row of ``BRANCHING_RULES``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import SmartBranching
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.lookahead import LookAhead


class BranchingRule(Protocol):
    """A rule is made once for a search, with its ``bounder``."""

    def __init__(self, bounder: DomainBounder) -> None: ...

    @staticmethod
    def is_for(bounder: DomainBounder) -> bool:
        """Whether the rule suits what ``bounder`` bounds."""
        ...

    def branch(self, batch: Domains) -> tuple[Domains, Tensor]:
        """``batch``, perhaps with more signs where those were found to be forced, and the neuron
        ``[B]`` to split in each domain, -1 where none is left."""
        ...

    def learn(self, batch: Domains, children: Domains) -> None:
        """What became of the split: ``children`` are those still open."""
        ...


BRANCHING_RULES: tuple[type[BranchingRule], ...] = (LookAhead, SmartBranching)


def branching_rule(bounder: DomainBounder) -> BranchingRule:
    """The first rule of the table that is for ``bounder``; the last one is for all."""
    return next(rule for rule in BRANCHING_RULES if rule.is_for(bounder))(bounder)
