"""Bounds of inner neurons by branch and bound: a small tree for each end of each neuron's range.

What a pass from a neuron loses, it loses at unstable neurons before it. A tree over the signs of
those ends in leaves of which every one is bounded by itself, and the least bound of a neuron's
leaves bounds the neuron. So this is the search of ``search`` on the network up to one layer, except
that it asks "how low?" and not "below zero?": it splits the leaves that are near the worst of their
tree.

A leaf in which a quantity is positive is of no further interest: such a neuron has one sign, and
more than that no relaxation can use.

Legend: ``K`` neurons, ``Q = 2 K`` quantities (each neuron, then minus each), ``B`` leaves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bitcrown.bounds import claims, rounding
from bitcrown.bounds.ascent import Ascent
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.bounds.rows import Rows
from bitcrown.model.execute import Network
from bitcrown.model.passes import without_dead_nodes
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import BOTH, SmartBranching, product_of_gains
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import guide_network, whole_guide
from bitcrown.search.neurons.root import Root, root_of
from bitcrown.search.neurons.trials import Trials

_ROOT_STEPS = 10
_CLIMB = Ascent(6, 0.1, 0.1, decay=0.97)
_NEAR = 0.7
"""Leaves are split whose bound is at least this share of their tree's worst."""
_TOGETHER = 256
"""Leaves that climb together, at most: more of them leave the caches."""


def quantities(root: Root, name: str, neurons: Tensor) -> Rows:
    """Rows ``[2 K, 1, m]`` of the ``neurons [K]`` of the operand ``name``, and of their negatives,
    over the outputs of the network up to there."""
    size = root.proof.graph.nodes[name].size
    unit = torch.zeros(len(neurons), size, dtype=torch.float64, device=neurons.device)
    unit.scatter_(1, neurons.unsqueeze(1), 1.0)
    C = torch.cat([unit, -unit]).unsqueeze(1)
    return Rows(C, None, C.new_zeros(len(C), 1), root.rows.x_lower, root.rows.x_upper)


class SmallTrees:
    """Trees for the ``neurons [K]`` (unstable ones) of the operand ``name`` of ``bounder``'s root,
    whose bounds are global (``[1, *]``)."""

    def __init__(self, bounder: DomainBounder, name: str, neurons: Tensor) -> None:
        root, budget = bounder.root, bounder.budget
        graph = without_dead_nodes(replace(root.proof.graph, outputs=(name,)))
        proof = Network(graph, root.proof.dtype, root.proof.device)
        whole, guide = root.enclosure, guide_network(proof)
        scales = rounding.Scales(
            whole.scales.gamma,
            {node: whole.scales[node] for node in graph.nodes},
            {node: r for node, r in whole.scales.radii.items() if node in graph.nodes},
        )
        bounds = {node: whole.bounds[node] for node in graph.nodes}
        lines = {node: r for node, r in whole.relaxations.items() if node in graph.nodes}
        enclosure = Enclosure(bounds, scales, lines)
        own = root_of(proof, guide, quantities(root, name, neurons), enclosure, budget.memory)
        own = replace(own, clipper=None)  # boxes hardly shrink by one sign
        trials = Trials(lambda x: None)  # no leaf here is about a violation
        self.bounder = DomainBounder(own, whole_guide(own, guide), trials, budget)
        self.rule = SmartBranching(self.bounder, BOTH, product_of_gains)
        self.count = 2 * len(neurons)
        self.leaves = self.bounder.root_domains(own.open_cases(), _ROOT_STEPS)

    def worst(self) -> Tensor:
        """``[Q]``: the least value of an open leaf, at most zero."""
        value = self.leaves.value.double().clamp(max=0.0)
        return value.new_zeros(self.count).scatter_reduce(0, self.leaves.case, value, "amin")

    def grow(self, rounds: int) -> None:
        """Split leaves up to ``rounds`` times. Raises ``BudgetExpired``."""
        for _ in range(rounds):
            is_full = self.leaves.bytes() > self.bounder.budget.memory // 8
            if is_full or not len(self.leaves) or not self._grown():
                return

    def _grown(self) -> bool:
        """Split the worst leaves of the trees that gain most; False if there is nothing to
        split."""
        case = self.leaves.case
        depth, deepest = -self.leaves.value.double(), -self.worst()
        chosen = depth >= _NEAR * deepest[case]
        batch, choice = self.rule.branch(self.leaves.select(chosen.nonzero().flatten()))
        can_split = choice != -1
        parts = [
            self.leaves.select((~chosen).nonzero().flatten()),
            batch.select((~can_split).nonzero().flatten()),
        ]
        index = can_split.nonzero().flatten()
        children = batch.select(index).children(choice[index])
        step = self.bounder.fitting(_TOGETHER)
        for part in torch.split(torch.arange(len(children), device=case.device), step):
            parts.append(self.bounder.improve(children.select(part), _CLIMB))
        self.leaves = Domains.stacked(parts)
        return bool(can_split.any())

    def proved(self) -> tuple[Tensor, Tensor]:
        """Bounds ``low``, ``up`` ``[K]`` of the neurons, rigorous: the least over all leaves, and
        zero for what is closed."""
        least = torch.zeros(self.count, dtype=torch.float64, device=self.leaves.case.device)
        step = self.bounder.fitting(_TOGETHER)
        for part in torch.split(torch.arange(len(self.leaves), device=least.device), step):
            leaves = self.leaves.select(part)
            value = claims.known(self.bounder.proved_value(leaves), -torch.inf)[:, 0]
            least = least.scatter_reduce(0, leaves.case, value, "amin")
        low, up = least.reshape(2, -1)
        return low, -up
