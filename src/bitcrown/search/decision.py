"""The decision of float networks: they are read and checked, then one of two searches runs.

Many boxes: the input is split (``input_decision``). One box: neurons are (``neuron_decision``), and
where few inputs vary the input as well, in turns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitcrown.bounds.interval import interval_bounds
from bitcrown.errors import UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph
from bitcrown.model.joining import join
from bitcrown.model.monomials import with_monomials
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.passes import without_dead_nodes
from bitcrown.model.products import fitted
from bitcrown.search.coupling import FEW_INPUTS, by_differences, cheaper, coupled
from bitcrown.search.device import budget_on, device_of
from bitcrown.search.directions import by_directions, decide_by_directions
from bitcrown.search.input_decision import decide_by_both, decide_by_inputs
from bitcrown.search.neuron_decision import BOUNDS_SHARE, decide_by_neurons
from bitcrown.search.objective import Objective, monomials_of, objective_of
from bitcrown.search.strict_rows import with_strict_rows
from bitcrown.verdict import Reason, Verdict

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_DECIDES = {"Sign", "Truncate", "Larger", "Round", "DynamicQuantize"}
"""Operators that comparisons, casts, searches for the largest entry and quantizers are read as."""


def read_problem_graph(run: Run) -> Graph:
    """The networks of the query as one graph, each checked against onnxruntime."""
    of_file: dict[NetworkFile, Graph] = {}
    for file in dict.fromkeys(run.files.values()):
        graph = read_graph(file, run.settings.semantics)
        of_file[file] = fitted(graph, run.budget.memory // BOUNDS_SHARE)
        run.counters["crosscheck"] = crosscheck(of_file[file], file, run.settings.seed)
    asked, graphs = run.replay.asked_outputs(), {}
    for name, file in run.files.items():
        graph = of_file[file]
        chosen = [graph.outputs[i] for i in asked.get(name, range(len(graph.outputs)))]
        graphs[name] = without_dead_nodes(replace(graph, outputs=tuple(chosen)))
    run.files.clear()
    return join(graphs)


def require_no_overflow(network: Network, objective: Objective) -> None:
    """Raises ``UnsupportedError`` where, as the runtime computes, what overflows may decide.

    Of infinities the runtime makes NaN, which compares like no number, and over which the largest
    entry is found: bounds, which hold of *some* number there, say nothing of what is decided.
    """
    nodes = network.graph.nodes
    behind = {name for node in nodes.values() if node.op in _DECIDES for name in node.inputs}
    for node in reversed(list(nodes.values())):
        if node.name in behind:
            behind.update(node.inputs)
    hull = (
        network.tensor(objective.lower.min(axis=0)[None]),
        network.tensor(objective.upper.max(axis=0)[None]),
    )
    with torch.no_grad():
        bounds = interval_bounds(network, *hull) if behind else {}
    for name in sorted(behind & bounds.keys()):
        if not all(bool(torch.isfinite(end).all()) for end in bounds[name]):
            raise UnsupportedError(
                f"node {nodes[name].source!r} may overflow as onnxruntime computes, and a later "
                "node decides by its value"
            )


def decide_in_floats(run: Run) -> Verdict:
    """Bounds, attack and search on an opened ``Run``."""
    with run.phase("read"):
        graph = read_problem_graph(run)
        monomials = monomials_of(run.problem)
        objective = objective_of(run.problem, run.replay.dtypes(), monomials)
        device = device_of(run.settings.device)
        run.budget = budget_on(run.budget, device)
        directions = by_directions(run.problem, graph, run.replay.dtypes())
        graph = with_monomials(graph, monomials)
    decided = np.array([], dtype=int)
    if directions is not None:
        pairs = Network(graph, torch.float64, device)
        verdict, decided = decide_by_directions(run, directions, pairs, objective)
        if verdict is not None:
            return verdict
    with run.phase("read"):
        graph, objective = coupled(run.problem, graph, objective)
        proof = Network(graph, torch.float64, device)
        if run.settings.semantics == "runtime":
            require_no_overflow(proof, objective)
        objective = with_strict_rows(run.problem, proof, objective).without(decided)
    pair = by_differences(run.problem, graph)
    if pair is not None:
        with run.phase("pairs"):
            proof = cheaper(graph, pair, proof, objective, run.budget)
        run.counters["pairs"] = "differences" if proof.graph is pair else "apart"
    varied = int((objective.upper != objective.lower).any(axis=0).sum())
    run.counters.update(cases=objective.n_cases, boxes=len(objective.lower), varied_inputs=varied)
    try:
        if len(objective.lower) > 1:
            return decide_by_inputs(run, proof, objective)
        decide = decide_by_both if varied <= FEW_INPUTS else decide_by_neurons
        return decide(run, proof, objective)
    except torch.OutOfMemoryError as error:
        return run.unknown(Reason.MEMORY, str(error).partition("\n")[0])
