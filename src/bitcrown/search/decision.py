"""The part of the strategy that needs torch: reading, bounding, attacking, searching."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.target import Target
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.budget import Budget
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.joining import join
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.inputs.search import InputSplit
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.search import NeuronSplit
from bitcrown.search.objective import Objective, objective_of
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

SMALL_NETWORK = 2000
"""Networks with fewer tensor entries are bounded in float64 throughout: there float32 saves
nothing."""
LAYER_SHARE = 0.15
"""Share of the time left that optimising the bounds of inner layers may take."""
SMOOTH_SHARE = 0.6
"""The same share where no neuron can be split."""
SMALLEST_GAIN = 0.02
"""Share of the worst bound that a pass must win for another to follow."""
LAYER_STEPS = 10
"""Steps of that ascent; five bring nearly all that twenty would."""
STEP_COST = 0.4
"""Seconds of one such step, as a share of the plain root bounds (measured: 0.15 to 0.4)."""
ATTACK_SHARE = 0.1
GLANCE_SHARE = 0.05
"""Share of the time left for the attack before any bound; where ten steps take less, the glance
ends with them."""
ROOT_SHARE = 0.9
"""Share of the time left that plain root bounds may take; what they cannot finish, only an attack
can decide."""
MANY_CASES = 1000
"""With more cases than this, descent on all of them at once costs more than it finds."""
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
        graph = read_graph(path, run.settings.semantics)
        run.counters["crosscheck"] = crosscheck(graph, path, run.settings.seed)
        graphs[declared.name] = graph
    return next(iter(graphs.values())) if len(graphs) == 1 else join(graphs)


def decide(run: Run) -> Verdict:
    """Bounds, attack and search on an opened ``Run``."""
    with run.phase("read"):
        graph = read_problem_graph(run)
        objective = objective_of(run.problem, run.replay.dtypes())
        proof = Network(graph, torch.float64, device_of(run.settings.device))
    varied = int((objective.upper != objective.lower).any(axis=0).sum())
    run.counters.update(cases=objective.n_cases, boxes=len(objective.lower), varied_inputs=varied)
    cases = np.arange(objective.n_cases)
    if len(objective.lower) > 1 or varied <= FEW_INPUTS:
        return _split_inputs(run, proof, objective, cases)
    return _split_neurons(run, proof, objective, cases)


def _split_inputs(run: Run, proof: Network, objective: Objective, cases: np.ndarray) -> Verdict:
    search = InputSplit(proof, objective, cases, run.confirm, run.budget)
    seconds, restarts = 0.3, max(2, 64 // len(cases))
    while True:
        with run.phase("input split"):
            outcome = search.run(
                seconds, lambda done, left: run.report("input split", {"boxes": done, "left": left})
            )
        if (
            outcome.proved
            or outcome.witness is not None
            or run.budget.is_expired()
            or not outcome.left
        ):
            break
        if len(cases) <= MANY_CASES:
            with run.phase("attack"):
                budget = run.budget.capped(2 * ATTACK_SHARE * seconds)
                witness = attack(run, proof, objective, cases, budget, 60, restarts)
            if witness is not None:
                return run.sat(witness, "attack")
            restarts = min(2 * restarts, 1024)
        seconds *= 2
    run.counters.update(
        boxes_bounded=outcome.domains, rounds=outcome.rounds, boxes_left=outcome.left
    )
    if isinstance(outcome.witness, Witness):
        return run.sat(outcome.witness, "input split")
    if outcome.proved:
        return run.verdict(Status.UNSAT, "input split" if outcome.rounds > 1 else "root bounds")
    if run.budget.is_expired():
        return run.timeout()
    return run.unknown(
        Reason.INCOMPLETE, f"{outcome.stuck} boxes are too small for floats to split"
    )


def attack(
    run: Run,
    network: Network,
    objective: Objective,
    cases: np.ndarray,
    budget: Budget,
    steps: int,
    restarts: int,
) -> Witness | None:
    """Projected gradient descent on all ``cases`` at once; what violates in the network here is
    replayed."""
    run.counters["attacks"] = run.counters.get("attacks", 0) + 1
    generator = torch.Generator(device=network.device).manual_seed(
        run.settings.seed + run.counters["attacks"]
    )
    box = objective.box[cases]
    d = None if objective.D is None else network.tensor(objective.D[cases])
    target = Target(network.tensor(objective.C[cases]), d, network.tensor(objective.rhs[cases]))
    lower, upper = network.tensor(objective.lower[box]), network.tensor(objective.upper[box])
    points, case, _ = pgd(network, lower, upper, target, generator, steps, restarts, budget)
    for point, index in zip(points[:4].double().cpu().numpy(), case[:4].tolist(), strict=True):
        witness = run.confirm(point, int(cases[index]))
        if witness is not None:
            return witness
    return None


def _split_neurons(run: Run, proof: Network, objective: Objective, cases: np.ndarray) -> Verdict:
    """A glance of attack, root bounds, a longer attack, and ``search_neurons`` for what is left."""
    small = sum(node.size for node in proof.graph.nodes.values()) <= SMALL_NETWORK
    guide = proof if small else Network(proof.graph, torch.float32, proof.device)
    with run.phase(
        "attack"
    ):  # a glance only: many violations are found in a fraction of what bounds cost
        glance = run.budget.capped(max(0.5, GLANCE_SHARE * run.budget.remaining()))
        witness = attack(run, guide, objective, cases, glance, 10, 2)
    if witness is not None:
        return run.sat(witness, "attack")
    search = NeuronSplit(proof, guide, objective, cases, run.confirm, run.budget)
    search.recorder = run.recorder
    share = run.budget.capped(ROOT_SHARE * run.budget.remaining())
    bounder = LayerBounder(proof, run.budget.memory // 8, budget=share)
    with run.phase("root bounds"), torch.no_grad():
        started = time.monotonic()
        enclosure = bounder.run(search.x_lower, search.x_upper)
        left = search.root(enclosure)
        root_seconds = time.monotonic() - started
    run.counters["open_after_crown"] = len(left)
    if not len(left):
        return run.verdict(Status.UNSAT, "root bounds")
    if any(bool(torch.isinf(radius).any()) for radius in enclosure.scales.radii.values()):
        return run.unknown(
            Reason.NUMERICS,
            "a value may leave the range of its number type, or be lost in rounding",
        )
    open_cases = cases[left.cpu().numpy()]
    if share.is_expired():
        run.counters["root_bounds_cut_short"] = 1
        witness = _attack_to_the_end(run, guide, objective, open_cases)
        return run.timeout() if witness is None else run.sat(witness, "attack")
    with run.phase("attack"):
        witness = attack(run, guide, objective, open_cases, run.budget.capped(2.0), 40, 8)
    if witness is not None:
        return run.sat(witness, "attack")
    return search_neurons(run, search, left, objective, cases, root_seconds)


def _attack_to_the_end(
    run: Run, network: Network, objective: Objective, cases: np.ndarray
) -> Witness | None:
    """Descent until a witness is found or time is up: bounds can do no more."""
    with run.phase("attack"):
        while not run.budget.is_expired():
            witness = attack(run, network, objective, cases, run.budget.capped(10.0), 200, 16)
            if witness is not None:
                return witness
    return None


def search_neurons(
    run: Run,
    search: NeuronSplit,
    left: torch.Tensor,
    objective: Objective,
    cases: np.ndarray,
    root_seconds: float,
) -> Verdict:
    """Decide the cases ``left`` open by ``search.root``: alpha-CROWN, sharper layers where
    affordable, then splits.

    ``root_seconds`` is what the root bounds took, from which the cost of sharper layers is
    foreseen.
    """
    with run.phase("alpha"):
        domains = search.root_domains(left, 20)
    run.counters["open_after_alpha"] = len(domains)
    domains = _sharpened_layers(run, search, domains, root_seconds)
    if isinstance(search.witness, Witness):
        return run.sat(search.witness, "alpha-CROWN")
    if not len(domains):
        return run.verdict(Status.UNSAT, "alpha-CROWN")
    return _branch_and_bound(run, search, domains, objective, cases)


def _sharpened_layers(
    run: Run, search: NeuronSplit, domains: Domains, root_seconds: float
) -> Domains:
    """Open domains after ascent over the bounds of inner layers; ``root_seconds`` is what plain
    root bounds took.

    Where no neuron can be split, better layers are all that is left: passes with more and more
    steps then follow each other until they gain nothing.
    """
    has_splits = bool(search.layout.n_neurons)
    share = run.budget.capped(
        (LAYER_SHARE if has_splits else SMOOTH_SHARE) * run.budget.remaining()
    )
    steps = int(min(LAYER_STEPS, share.remaining() / (STEP_COST * root_seconds + 1e-3)))
    if not len(domains) or steps < 2 or not search.layout.n_alphas:
        return domains
    gain = 1.0
    with run.phase("layers"):
        while len(domains) and gain > SMALLEST_GAIN and not share.is_expired():
            worst = float(domains.value.min())
            ascent = LayerAscent(search.guide, steps, share)
            bounder = LayerBounder(search.proof, run.budget.memory // 8, ascent)
            left = search.root(bounder.run(search.x_lower, search.x_upper, search.bounds))
            domains = search.root_domains(left, 20 if has_splits else 100)
            run.counters.update(layer_steps=steps, open_after_layers=len(domains))
            if has_splits or not len(domains):
                break
            gain = 1 - float(domains.value.min()) / worst if worst else 0.0
            steps *= 2
    return domains


def _branch_and_bound(
    run: Run, search: NeuronSplit, domains: Domains, objective: Objective, cases: np.ndarray
) -> Verdict:
    spent = {"attack": 0.0, "start": time.monotonic()}

    def attack_steps(search: NeuronSplit) -> Witness | None:
        """Another attack whenever attacks have had less than their share of the time."""
        run.report("neuron split", {"domains": search.domains, "open": len(search.stack)})
        started = time.monotonic()
        if spent["attack"] > ATTACK_SHARE * (started - spent["start"]) or not len(search.stack):
            return None
        open_cases = np.unique(
            torch.cat([chunk.case for chunk in search.stack.chunks]).cpu().numpy()
        )
        budget = run.budget.capped(5.0)
        witness = attack(
            run,
            search.guide,
            objective,
            cases[open_cases],
            budget,
            100,
            max(4, 64 // len(open_cases)),
        )
        spent["attack"] += time.monotonic() - started
        return witness

    with run.phase("neuron split"):
        outcome = search.run(domains, attack_steps)
    run.counters.update(
        domains=outcome.domains, rounds=outcome.rounds, open=outcome.open, worst=outcome.worst
    )
    run.counters["attack_seconds"] = spent["attack"]
    if isinstance(outcome.witness, Witness):
        return run.sat(outcome.witness, "neuron split")
    if outcome.proved:
        return run.verdict(Status.UNSAT, "neuron split")
    if outcome.reason == "memory":
        return run.unknown(Reason.MEMORY)
    if outcome.reason == "incomplete":
        witness = _attack_to_the_end(run, search.guide, objective, cases)
        if witness is not None:
            return run.sat(witness, "attack")
    if run.budget.is_expired() and outcome.reason != "incomplete":
        return run.timeout()
    return run.unknown(Reason.INCOMPLETE, f"{outcome.stuck} domains have no neuron left to split")
