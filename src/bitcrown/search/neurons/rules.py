"""How to search: a table of tactics, each a rule for the neuron to split and the effort of a bound.

All tactics that suit a problem race against each other (``race``). A new rule is a class in a file
of its own and a row of ``TACTICS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import (
    BOTH,
    UPPER,
    Gain,
    SmartBranching,
    largest_gain,
    product_of_gains,
)
from bitcrown.search.neurons.domains import D
from bitcrown.search.neurons.lookahead import LookAhead, looks_ahead
from bitcrown.search.neurons.slack import TightestLines


class BranchingRule(Protocol[D]):
    """A rule is made once for a search, with its bounder."""

    def branch(self, batch: D) -> tuple[D, Tensor]:
        """``batch``, perhaps with more signs where those were found to be forced, and what to split
        in each domain ``[B]`` (a neuron, or one of the domain's candidates), -1 where nothing is
        left."""
        ...


@dataclass(frozen=True)
class Tactic:
    """``steps`` of ascent for every child; ``suits(bounder)`` says where the rule works at all."""

    name: str
    rule: Callable[[Any], BranchingRule[Any]]
    steps: int
    suits: Callable[[DomainBounder], bool]


def _has_candidates(bounder: DomainBounder) -> bool:
    """Linear programs choose the neuron by themselves: one candidate a domain, nothing to judge."""
    return bounder.leaf_solver is None


def _smart(score: int, gain: Gain) -> Callable[[DomainBounder], BranchingRule[Any]]:
    return partial(SmartBranching, score=score, gain=gain)


TACTICS = (
    Tactic("tightest lines", TightestLines, 10, looks_ahead),
    Tactic("look-ahead", LookAhead, 10, looks_ahead),
    Tactic("upper, product", _smart(UPPER, product_of_gains), 10, lambda bounder: True),
    Tactic("both, product", _smart(BOTH, product_of_gains), 10, _has_candidates),
    Tactic("upper, largest, quick", _smart(UPPER, largest_gain), 5, _has_candidates),
    Tactic("both, largest, quick", _smart(BOTH, largest_gain), 5, _has_candidates),
)


def suitable_tactics(bounder: DomainBounder) -> list[Tactic]:
    """In the order of the table; never empty."""
    return [tactic for tactic in TACTICS if tactic.suits(bounder)]
