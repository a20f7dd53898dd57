"""The decision where many inputs vary: root bounds, optimised bounds, then neurons are split.

``decide_from_root`` is the part that begins where the root's bounds are known, whoever found them:
``decide_by_neurons`` for a property, ``evaluation.proving`` for many images in one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bitcrown.bounds import claims
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.rows import Rows
from bitcrown.budget import Stopwatch
from bitcrown.model.execute import Network
from bitcrown.model.products import bytes_of_bounds
from bitcrown.search import descent
from bitcrown.search.neurons.bounder import DomainBounder, bounder_of
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import guide_network, whole_guide
from bitcrown.search.neurons.root import Root, interval_values_of, root_of, rows_of_cases
from bitcrown.search.neurons.search import SplitOutcome, TreeSearch
from bitcrown.search.neurons.step_counts import counted_root
from bitcrown.search.neurons.tightening import TightenedRace
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.objective import Objective
from bitcrown.search.ranges.bounder import RANGES
from bitcrown.search.twins import attack_networks
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

BOUNDS_SHARE = 2
"""Bounds of all nodes may take one part in this many of the memory; the passes have the rest."""
_LAYER_SHARE = 0.15
"""Share of the time left that optimising the bounds of inner layers may take."""
_LAYER_STEPS = 10
"""Steps of that ascent; five bring nearly all that twenty would."""
_STEP_COST = 0.4
"""Seconds of one such step, as a share of the plain root bounds (measured: 0.15 to 0.4)."""
_COUNT_SHARE = 0.7
"""Share of the time left for counting steps, which ends by itself where it does not pay."""
_GLANCE_SHARE = 0.05
"""Share of the time left for the attack before any bound; where ten steps take less, the glance
ends with them."""
_ROOT_SHARE = 0.9
"""Share of the time left that plain root bounds may take; what they cannot finish, only an attack
can decide."""
_ROOT_SHARE_BESIDE = 0.5
"""The same where another search can go on."""
_FIRST_EFFORT = 1 / 8
"""Part of its points that the first attack inside a search has; later ones have twice as many each,
once these fit the share of the time that attacks have."""
Rival = Callable[[float], Verdict | None]
"""Gives another search of the same problem its turns, when told how many seconds this one may last;
a verdict where that decided it."""


def decide_by_neurons(
    run: Run, proof: Network, objective: Objective, rival: Rival | None = None
) -> Verdict:
    """A glance of attack, root bounds, a longer attack, and ``decide_from_root`` for what is left.
    All cases share one box. A ``rival`` has attacked already, and goes on where this search can do
    no more."""
    guide, cases = guide_network(proof), np.arange(objective.n_cases)
    if rival is None:
        with run.phase("attack"):  # many violations are found in a fraction of what bounds cost
            glance = run.budget.capped(max(0.5, _GLANCE_SHARE * run.budget.remaining()))
            witness = descent.descend(run, guide, objective, cases, glance, 10, 2)
        if witness is not None:
            return run.sat(witness, "attack")
    most = _ROOT_SHARE if rival is None else _ROOT_SHARE_BESIDE
    share = run.budget.capped(most * run.budget.remaining())
    rows = rows_of_cases(proof, objective)
    if bytes_of_bounds(proof.graph) > run.budget.memory // BOUNDS_SHARE:
        return _decide_by_intervals(run, proof, guide, rows, objective)
    bounder = LayerBounder(proof, run.budget.memory // 8, budget=share)
    with run.phase("root bounds"), torch.no_grad():
        watch = Stopwatch()
        enclosure = bounder.run(rows.x_lower, rows.x_upper, outputs=rows.outputs())
        root = root_of(proof, guide, rows, enclosure, run.budget.memory)
        seconds = watch.seconds
    left = root.open_cases()
    run.counters["open_after_crown"] = len(left)
    if not len(left):
        return run.verdict(Status.UNSAT, "root bounds")
    run.counters["worst"] = float(root.case_value[left].min())
    if any(bool(torch.isinf(radius).any()) for radius in enclosure.scales.radii.values()):
        return run.unknown(
            Reason.NUMERICS,
            "a value may leave the range of its number type, or be lost in rounding",
        )
    open_cases = cases[left.cpu().numpy()]
    if share.is_expired():
        run.counters["root_bounds_cut_short"] = 1
        if rival is not None:
            return run.timeout()
        witness = descent.descend_to_the_end(run, attack_networks(guide), objective, open_cases)
        return run.timeout() if witness is None else run.sat(witness, "attack")
    with run.phase("attack"):
        for network in attack_networks(guide):
            longer = run.budget.capped(2.0)
            witness = descent.descend(run, network, objective, open_cases, longer, 40, 8)
            if witness is not None:
                return run.sat(witness, "attack")
    return decide_from_root(run, root, guide, objective, seconds, rival)


def _decide_by_intervals(
    run: Run, proof: Network, guide: Network, rows: Rows, objective: Objective
) -> Verdict:
    """Where the bounds of all nodes do not fit into memory: intervals, which are forgotten after
    their last reader, and attacks for the rest of the time."""
    with run.phase("root bounds"):
        value = interval_values_of(proof, rows)
    open_cases = (~claims.excluded(value).any(dim=1)).nonzero().flatten().cpu().numpy()
    run.counters.update(root_by_intervals=1, open_after_crown=len(open_cases))
    if not len(open_cases):
        return run.verdict(Status.UNSAT, "root bounds")
    run.counters["worst"] = float(value.amax(dim=1).min())
    witness = descent.descend_to_the_end(run, attack_networks(guide), objective, open_cases)
    return run.timeout() if witness is None else run.sat(witness, "attack")


def decide_from_root(
    run: Run,
    root: Root,
    guide: Network,
    objective: Objective,
    root_seconds: float,
    rival: Rival | None = None,
) -> Verdict:
    """Decide the cases that ``root`` leaves open: optimised bounds, sharper layers where
    affordable (and no ``rival`` waits for its turn), then splits.

    ``guide`` is ``guide_network`` of the root's; ``root_seconds`` is what the root bounds took,
    from which the cost of sharper layers is foreseen. Raises ``BudgetExpired``.
    """
    root = _counted(run, root, guide)
    if not len(root.open_cases()):
        return run.verdict(Status.UNSAT, "step counts")
    trials, started = Trials(run.confirm), time.process_time()
    bounder = bounder_of(root, whole_guide(root, guide), trials, run.budget, run.recorder)
    with run.phase("alpha"):
        domains = bounder.root_domains(root.open_cases(), 20)
    run.counters["open_after_alpha"] = len(domains)
    if len(domains):
        run.counters["worst"] = float(domains.value.min())
    if rival is None:  # which would wait for it
        bounder, domains = _sharpened_layers(run, bounder, domains, root_seconds)
    if isinstance(trials.witness, Witness):
        return run.sat(trials.witness, "alpha-CROWN")
    if not len(domains):
        return run.verdict(Status.UNSAT, "alpha-CROWN")
    seconds = time.process_time() - started
    return _branch_and_bound(run, bounder, domains, objective, seconds, rival)


def _counted(run: Run, root: Root, guide: Network) -> Root:
    """``root`` with rows that count steps bounded as such."""
    with run.phase("step counts"):
        share = run.budget.capped(_COUNT_SHARE * run.budget.remaining())
        counted = counted_root(root, guide, share)
    left = counted.open_cases()
    if counted is not root and len(left):
        run.counters["worst"] = float(counted.case_value[left].min())
    return counted


def _sharpened_layers(
    run: Run, bounder: DomainBounder, domains: Domains, root_seconds: float
) -> tuple[DomainBounder, Domains]:
    """Open domains after ascent over the bounds of inner layers, and their bounder;
    ``root_seconds`` is what plain root bounds took.

    """
    root, guide = bounder.root, bounder.guide.network
    share = run.budget.capped(_LAYER_SHARE * run.budget.remaining())
    steps = int(min(_LAYER_STEPS, share.remaining() / (_STEP_COST * root_seconds + 1e-3)))
    if not len(domains) or steps < 2 or not root.layout.n_alphas:
        return bounder, domains
    with run.phase("layers"):
        # (With the ascent the passes end, too: an attention network's take many times the share.)
        ascent = LayerAscent(guide, steps, share)
        layers = LayerBounder(root.proof, run.budget.memory // 8, ascent, budget=share)
        box = root.rows.x_lower, root.rows.x_upper
        enclosure = layers.run(*box, root.enclosure.bounds, root.rows.outputs())
        root = root_of(root.proof, guide, root.rows, enclosure, run.budget.memory)
        bounder = bounder_of(
            root, whole_guide(root, guide), bounder.trials, run.budget, run.recorder
        )
        domains = bounder.root_domains(root.open_cases(), 20)
    run.counters.update(layer_steps=steps, open_after_layers=len(domains))
    return bounder, domains


def _branch_and_bound(
    run: Run,
    bounder: DomainBounder,
    domains: Domains,
    objective: Objective,
    seconds: float,
    rival: Rival | None,
) -> Verdict:
    """Search below ``domains``, with attacks whenever those had less than their share of time, and
    turns of the ``rival``; ``seconds`` of computing went into optimised bounds."""
    guide = bounder.guide.network
    spent, effort = {"attack": 0.0, "next": 0.0, "start": time.monotonic()}, _FIRST_EFFORT
    networks = cycle(attack_networks(guide))

    def beside(search: TreeSearch[Any]) -> Verdict | Witness | None:
        facts = {"domains": search.domains, "open": len(search.stack), "worst": search.worst()}
        run.report("neuron split", facts)
        verdict = None if rival is None else rival(race.race.lasting())
        return attack_steps(search) if verdict is None else verdict

    def attack_steps(search: TreeSearch[Any]) -> Witness | None:
        nonlocal effort
        started = time.monotonic()
        share = descent.ATTACK_SHARE * (started - spent["start"])
        if spent["attack"] + spent["next"] > share or not len(search.stack):
            return None
        chunks = [chunk.case for chunk in search.stack.chunks]
        cases = np.unique(torch.cat(chunks).cpu().numpy())
        restarts = max(1, int(effort * max(4, 64 // len(cases))))
        budget = run.budget.capped(5.0)
        witness = descent.descend(run, next(networks), objective, cases, budget, 100, restarts)
        took = time.monotonic() - started
        effort, before = min(1.0, 2 * effort), effort
        spent["attack"] += took
        spent["next"] = took * effort / before
        return witness

    with run.phase("neuron split"):
        race = TightenedRace(bounder, domains, seconds, run.settings.without)
        outcome = race.run(beside)
    run.counters.update(race.counters)
    run.counters.update(
        domains=outcome.domains, rounds=outcome.rounds, open=outcome.open, worst=outcome.worst
    )
    run.counters.update(attack_seconds=spent["attack"], tactic=outcome.tactic)
    if isinstance(outcome.witness, Verdict):
        return outcome.witness
    if outcome.reason == "incomplete" and rival is None:
        cases = np.arange(objective.n_cases)
        witness = descent.descend_to_the_end(run, attack_networks(guide), objective, cases)
        if witness is not None:
            return run.sat(witness, "attack")
    return _verdict_of(run, outcome)


def _verdict_of(run: Run, outcome: SplitOutcome) -> Verdict:
    if isinstance(outcome.witness, Witness):
        return run.sat(outcome.witness, "neuron split")
    if outcome.proved:
        way = "range split" if outcome.tactic == RANGES.name else "neuron split"
        return run.verdict(Status.UNSAT, way)
    if outcome.reason == "memory":
        return run.unknown(Reason.MEMORY)
    if run.budget.is_expired() and outcome.reason != "incomplete":
        return run.timeout()
    return run.unknown(Reason.INCOMPLETE, f"{outcome.stuck} domains have no neuron left to split")
