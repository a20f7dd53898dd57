"""The float twin of a network with staircases: what it computes if nothing is rounded.

Attacks see further in it: a gradient through many staircases, each with the slope of the line
through it, belongs to no function, while that of the twin does. A point that violates in the twin
is a candidate like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitcrown.budget import Budget
from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph, Node
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.passes import rewritten, simplified, without_roundings
from bitcrown.search import descent
from bitcrown.search.objective import objective_of
from bitcrown.verdict import Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_STAIRS = ("Round", "DynamicQuantize")
_EFFORTS = ((20, 4), (60, 12))
"""Steps and restarts of the descents that propose points, one after the other in each network."""


def attack_networks(network: Network) -> list[Network]:
    """``network``, and behind it its twin where it has staircases."""
    if not any(node.op in _STAIRS for node in network.graph.nodes.values()):
        return [network]
    return [network, Network(_twin(network.graph), network.dtype, network.device)]


def _twin(graph: Graph) -> Graph:
    with np.errstate(all="ignore"):
        return simplified(without_roundings(rewritten(graph, _unrounded)))


def _unrounded(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    return node.inputs[0] if node.op in _STAIRS else (node,)


class FloatDescents:
    """For a network of integers: descents in its reading as floats, and in the twin of that.

    ``witness``: a point of theirs that was replayed, once there is one. A box of integers is a
    little wider than the property's, so this says more than that the integers of the point violate.
    """

    def __init__(self, run: Run, file: NetworkFile) -> None:
        self.run, self.file = run, file
        self.witness: Witness | None = None

    def proposals(self, budget: Budget) -> Iterator[np.ndarray]:
        """Points ``[B, n]`` of the property's boxes, float64, the best of each descent. None where
        there is no such reading; the last ones where one of them is a witness."""
        run = self.run
        try:
            graph = read_graph(self.file)
            crosscheck(graph, self.file, run.settings.seed)
            objective = objective_of(run.problem, run.replay.dtypes())
        except (ModelError, UnsupportedError):
            return
        if graph.n_outputs != objective.C.shape[2]:
            return
        networks = attack_networks(Network(graph, torch.float32))
        cases = np.arange(objective.n_cases)
        for (steps, restarts), network in product(_EFFORTS, networks):
            if budget.is_expired():
                return
            share = budget.capped(0.5 * budget.remaining())
            points, case = descent.best_points(
                run, network, objective, cases, share, steps, restarts
            )
            for point, index in zip(points, case.tolist(), strict=True):
                self.witness = self.witness or run.confirm(point, index)
            yield points
            if self.witness is not None:
                return
