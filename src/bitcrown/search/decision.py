"""The part of the strategy that needs torch: reading, bounding, attacking, searching."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bitcrown.attack.pgd import Target, pgd
from bitcrown.bounds.crown import LayerBounder
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.product import join
from bitcrown.search.input_split import InputSplit
from bitcrown.search.neuron_split import NeuronSplit
from bitcrown.search.objective import Objective, objective_of
from bitcrown.budget import Budget
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

FEW_INPUTS = 16
"""Up to this many varying inputs a box is split rather than the neurons."""


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def read_problem_graph(run: Run) -> Graph:
    """The networks of the query as one graph, each checked against onnxruntime."""
    graphs: dict[str, Graph] = {}
    for declared in run.problem.query.networks:
        if declared.equal_to:
            graphs[declared.name] = graphs[declared.equal_to]
            continue
        path = run.problem.networks[declared.name]
        graph = read_graph(path)
        run.counters["crosscheck"] = crosscheck(graph, path, run.settings.seed)
        graphs[declared.name] = graph
    return next(iter(graphs.values())) if len(graphs) == 1 else join(graphs)


def decide(run: Run) -> Verdict:
    """Bounds, attack and search on an opened ``Run``."""
    with run.phase("read"):
        graph = read_problem_graph(run)
        objective = objective_of(run.problem)
        proof = Network(graph, torch.float64, device_of(run.settings.device))
    varied = int((objective.upper > objective.lower).any(axis=0).sum())
    run.counters.update(cases=objective.n_cases, boxes=len(objective.lower), varied_inputs=varied)
    cases = np.arange(objective.n_cases)
    if len(objective.lower) > 1 or varied <= FEW_INPUTS:
        return _split_inputs(run, proof, objective, cases)
    return _split_neurons(run, proof, objective, cases)


def _split_inputs(run: Run, proof: Network, objective: Objective, cases: np.ndarray) -> Verdict:
    with run.phase("input split"):
        search = InputSplit(proof, objective, cases, run.confirm, run.budget)
        outcome = search.run(lambda done, left: run.report("input split", {"boxes": done, "left": left}))
    run.counters.update(boxes_bounded=outcome.domains, rounds=outcome.rounds, boxes_left=outcome.left)
    if isinstance(outcome.witness, Witness):
        return run.sat(outcome.witness, "input split")
    if outcome.proved:
        return run.verdict(Status.UNSAT, "input split" if outcome.rounds > 1 else "root bounds")
    if run.budget.is_expired():
        return run.timeout()
    return run.unknown(Reason.INCOMPLETE, f"{outcome.stuck} boxes are too small for floats to split")


def attack(
    run: Run, network: Network, objective: Objective, cases: np.ndarray, budget: Budget, steps: int, restarts: int
) -> Witness | None:
    """Projected gradient descent on all ``cases`` at once; what violates in the network here is replayed."""
    run.counters["attacks"] = run.counters.get("attacks", 0) + 1
    generator = torch.Generator(device=network.device).manual_seed(run.settings.seed + run.counters["attacks"])
    box = objective.box[cases]
    d = None if objective.D is None else network.tensor(objective.D[cases])
    target = Target(network.tensor(objective.C[cases]), d, network.tensor(objective.rhs[cases]))
    lower, upper = network.tensor(objective.lower[box]), network.tensor(objective.upper[box])
    points, case = pgd(network, lower, upper, target, generator, steps, restarts, budget)
    for point, index in zip(points[:4].double().cpu().numpy(), case[:4].tolist(), strict=True):
        witness = run.confirm(point, int(cases[index]))
        if witness is not None:
            return witness
    return None


def _split_neurons(run: Run, proof: Network, objective: Objective, cases: np.ndarray) -> Verdict:
    guide = Network(proof.graph, torch.float32, proof.device)
    search = NeuronSplit(proof, guide, objective, cases, run.confirm, run.budget)
    with run.phase("root bounds"), torch.no_grad():
        enclosure = LayerBounder(proof, run.budget.memory // 4).run(search.x_lower, search.x_upper)
        left = search.root(enclosure)
    run.counters["open_after_crown"] = len(left)
    if not len(left):
        return run.verdict(Status.UNSAT, "root bounds")
    with run.phase("attack"):
        witness = attack(run, guide, objective, cases[left.cpu().numpy()], run.budget.capped(3.0), 40, 8)
    if witness is not None:
        return run.sat(witness, "attack")
    with run.phase("alpha"):
        domains = search.root_domains(left, 20)
    run.counters["open_after_alpha"] = len(domains)
    if not len(domains):
        return run.verdict(Status.UNSAT, "alpha-CROWN")
    with run.phase("neuron split"):
        outcome = search.run(domains)
    run.counters.update(domains=outcome.domains, rounds=outcome.rounds, open=outcome.open, worst=outcome.worst)
    if isinstance(outcome.witness, Witness):
        return run.sat(outcome.witness, "neuron split")
    if outcome.proved:
        return run.verdict(Status.UNSAT, "neuron split")
    if outcome.reason == "memory":
        return run.unknown(Reason.MEMORY)
    if run.budget.is_expired():
        return run.timeout()
    return run.unknown(Reason.INCOMPLETE, f"{outcome.stuck} domains have no neuron left to split")
