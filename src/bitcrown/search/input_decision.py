"""The decision where few inputs vary, or boxes are many: the input is split.

Few inputs do not say that few boxes are enough: where an inner layer is wide and every box is dear,
signs of neurons may be the better thing to split. So below a single box both searches run against
each other (``decide_by_both``). The input's search begins alone, for about as long as the
other one takes before its first split, and while it may be done as soon as it has lasted. From then
on they take turns: the other one has a small part of the time, and more than the input's only
where it alone can be seen to end sooner. The first to exclude everything has proved it.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from bitcrown.model.execute import Network
from bitcrown.search import descent
from bitcrown.search.device import network_where_faster
from bitcrown.search.inputs.rules import SPLIT_RULES
from bitcrown.search.inputs.search import LARGEST_BATCH, ROUND_ENTRIES, InputOutcome, InputSplit
from bitcrown.search.neuron_decision import decide_by_neurons
from bitcrown.search.neurons.race import RIVAL_SHARE, lasting_seconds
from bitcrown.search.neurons.search import TreeShare
from bitcrown.search.objective import Objective
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_MANY_CASES = 1000
"""With more cases than this, descent on all of them at once costs more than it finds."""
_FIRST_TURN = 0.3
_ALONE = 0.5
"""Seconds of computing that the input's search has for itself at least."""
_PREPARATION = 20.0
"""First bounds of a box that the search over neurons costs before its first split, at most: 3 in
small networks were measured, 19 in a wide one, where a box has the quick bounds."""
_INPUT_SHARE = 1.0
"""The input's time at least, as a share of the neurons': whoever closes a share of its tree early
is easily thought to be done soon, and boxes close late."""
_GROWTH = 0.25
"""A turn in a race is this part of the time that the search has had."""


class InputTurns:
    """The input's search, which may pause between rounds. ``history`` says what its ``seconds`` of
    computing have closed; ``outcome`` is that of the last turn, ``is_over`` once nothing can be
    done any more."""

    def __init__(self, run: Run, proof: Network, objective: Objective) -> None:
        self.run, self.proof, self.objective = run, proof, objective
        self.cases = np.arange(objective.n_cases)
        network = proof
        if run.settings.device == "auto":
            box = objective.lower[0], objective.upper[0]
            neurons = sum(node.size for node in proof.graph.nodes.values())
            count = max(1, min(LARGEST_BATCH, ROUND_ENTRIES // neurons))
            network = network_where_faster(proof, box, count)
        rules = [rule for rule in SPLIT_RULES if rule.name not in run.settings.without]
        self.search = InputSplit(
            network, objective, self.cases, run.confirm, run.budget, rules or SPLIT_RULES
        )
        self.outcome = InputOutcome(False, 0, 0, 0, 1)
        self.seconds, self.is_over = 0.0, False
        self.history = [TreeShare(0.0, 0.0, 0.0)]
        self.restarts = max(2, 64 // len(self.cases))
        self.since = self.before = 0.0
        self.first_rounds = 0

    def begin_race(self) -> None:
        """Another search begins, which will call ``against``."""
        self.since, self.before = time.process_time(), self.seconds

    def turn(self, seconds: float) -> Verdict | None:
        """Search for ``seconds`` (at least one round); None where that decided nothing."""
        run, started = self.run, time.process_time()
        with run.phase("input split"):
            self.outcome = outcome = self.search.run(
                seconds, lambda done, left: run.report("input split", {"boxes": done, "left": left})
            )
        self.seconds += time.process_time() - started
        closed = 0.0 if self.search.roots_left else 1.0 - self.search.parts.left()
        self.history.append(TreeShare(self.seconds, closed, closed))
        self.is_over = self.search.is_over
        self.first_rounds = self.first_rounds or outcome.rounds
        run.counters.update(
            boxes_bounded=outcome.domains, rounds=outcome.rounds, boxes_left=outcome.left
        )
        if isinstance(outcome.witness, Witness):
            return run.sat(outcome.witness, "input split")
        if outcome.proved:
            return run.verdict(Status.UNSAT, "input split" if outcome.rounds > 1 else "root bounds")
        return None

    def attack(self, seconds: float) -> Verdict | None:
        """Descent on all cases for its share of a search of ``seconds``."""
        if self.run.budget.is_expired() or len(self.cases) > _MANY_CASES:
            return None
        run = self.run
        with run.phase("attack"):
            budget = run.budget.capped(2 * descent.ATTACK_SHARE * seconds)
            witness = descent.descend(
                run, self.proof, self.objective, self.cases, budget, 60, self.restarts
            )
        self.restarts = min(2 * self.restarts, 1024)
        return None if witness is None else run.sat(witness, "attack")

    def alone(self, is_first: bool = False) -> Verdict | None:
        """Search and attack in turns, each twice as long as the one before; None if that decided
        nothing in time, or nothing is left to do. ``is_first``: also where the other search has its
        chance."""
        length = _FIRST_TURN
        while not self.is_over and not self.run.budget.is_expired():
            if is_first and self.seconds >= self._lead() and self.lasting() > self.seconds:
                break
            verdict = self.turn(length) or self.attack(length)
            if verdict is not None:
                return verdict
            length *= 2
        return None

    def _lead(self) -> float:
        """Seconds of computing that this search has for itself at least."""
        first = self.history[min(1, len(self.history) - 1)].seconds / max(1, self.first_rounds)
        return max(_ALONE, _PREPARATION * first)

    def smallest_share(self) -> float:
        return self.search.parts.smallest_share()

    def lasting(self) -> float:
        """Seconds of computing that the search may still take; infinite where it is over."""
        return math.inf if self.is_over else lasting_seconds(self)

    def against(self, lasting: float) -> Verdict | None:
        """Turns beside another search, which has had all computing since ``since`` but these, and
        may last ``lasting`` seconds more: until that is to go on."""
        seconds = time.process_time() - self.since - (self.seconds - self.before)
        while not self.is_over and not self.run.budget.is_expired():
            is_behind = lasting < self.lasting()
            limit = _INPUT_SHARE * seconds if is_behind else seconds / RIVAL_SHARE
            if self.seconds >= limit:
                return None
            verdict = self.turn(max(_ALONE, self.seconds) * _GROWTH)
            if verdict is not None:
                return verdict
        return None

    def undecided(self) -> Verdict:
        """The verdict where nothing was decided."""
        if self.run.budget.is_expired():
            return self.run.timeout()
        return self.run.unknown(
            Reason.INCOMPLETE, f"{self.outcome.stuck} boxes are too small for floats to split"
        )


def decide_by_inputs(run: Run, proof: Network, objective: Objective) -> Verdict:
    """Branch and bound over the boxes, in turns with attacks."""
    inputs = InputTurns(run, proof, objective)
    return inputs.alone() or inputs.undecided()


def decide_by_both(run: Run, proof: Network, objective: Objective) -> Verdict:
    """The same for a single box, and below it the search over neurons as its rival."""
    inputs = InputTurns(run, proof, objective)
    verdict = inputs.alone(is_first=True)
    if verdict is not None or run.budget.is_expired():
        return verdict or inputs.undecided()
    inputs.begin_race()
    verdict = decide_by_neurons(run, proof, objective, inputs.against)
    if verdict.status in (Status.SAT, Status.UNSAT) or inputs.is_over:
        return verdict
    return inputs.alone() or inputs.undecided()
