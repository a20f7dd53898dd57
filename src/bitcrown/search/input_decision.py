"""The decision where few inputs vary, or boxes are many: the input is split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitcrown.model.execute import Network
from bitcrown.search import descent
from bitcrown.search.device import network_where_faster
from bitcrown.search.inputs.rules import SPLIT_RULES
from bitcrown.search.inputs.search import LARGEST_BATCH, ROUND_ENTRIES, InputSplit
from bitcrown.search.objective import Objective
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_MANY_CASES = 1000
"""With more cases than this, descent on all of them at once costs more than it finds."""


def decide_by_inputs(run: Run, proof: Network, objective: Objective) -> Verdict:
    """Branch and bound over the box, in turns with attacks: each turn takes twice as long."""
    cases = np.arange(objective.n_cases)
    if run.settings.device == "auto":
        box = objective.lower[0], objective.upper[0]
        neurons = sum(node.size for node in proof.graph.nodes.values())
        count = max(1, min(LARGEST_BATCH, ROUND_ENTRIES // neurons))
        proof = network_where_faster(proof, box, count)
    rules = [rule for rule in SPLIT_RULES if rule.name not in run.settings.without]
    search = InputSplit(proof, objective, cases, run.confirm, run.budget, rules or SPLIT_RULES)
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
        if len(cases) <= _MANY_CASES:
            with run.phase("attack"):
                budget = run.budget.capped(2 * descent.ATTACK_SHARE * seconds)
                witness = descent.descend(run, proof, objective, cases, budget, 60, restarts)
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
