"""Attack steps inside a decision: descent on many cases at once, and replay of what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitcrown.attacks.property.pattern import pattern_search
from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.search.objective import Objective
from bitcrown.search.scores import by_scores
from bitcrown.verdict import Witness

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

ATTACK_SHARE = 0.1
"""Share of the time of a search that attacks inside it may take."""
_REPLAYS = 4
"""Points of one descent that are replayed."""


def descend(
    run: Run,
    network: Network,
    objective: Objective,
    cases: np.ndarray,
    budget: Budget,
    steps: int,
    restarts: int,
) -> Witness | None:
    """Projected gradient descent on all ``cases`` at once; what violates in ``network`` is
    replayed. Every call draws other points."""
    network, objective = by_scores(network, objective)
    points, case = best_points(run, network, objective, cases, budget, steps, restarts)
    for point, index in zip(points, case.tolist(), strict=True):
        witness = run.confirm(point, index)
        if witness is not None:
            return witness
    if not len(points):
        return None
    lower, upper, target = target_of(network, objective, case[:1])
    looked_at = (steps + 1) * restarts * len(cases)
    start = torch.from_numpy(points[0]).to(lower.device, lower.dtype)
    refined = pattern_search(network, start, lower[0], upper[0], target, budget, looked_at)
    if torch.equal(refined, start):
        return None
    return run.confirm(refined.double().cpu().numpy(), int(case[0]))


def best_points(
    run: Run,
    network: Network,
    objective: Objective,
    cases: np.ndarray,
    budget: Budget,
    steps: int,
    restarts: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The few best points ``[B, n]`` of such a descent, and the case ``[B]`` of each."""
    run.counters["attacks"] = run.counters.get("attacks", 0) + 1
    generator = torch.Generator(device=network.device).manual_seed(
        run.settings.seed + run.counters["attacks"]
    )
    lower, upper, target = target_of(network, objective, cases)
    points, case, _ = pgd(network, lower, upper, target, generator, steps, restarts, budget)
    return points[:_REPLAYS].double().cpu().numpy(), cases[case[:_REPLAYS].cpu().numpy()]


def target_of(
    network: Network, objective: Objective, cases: np.ndarray
) -> tuple[Tensor, Tensor, Target]:
    """Boxes ``[B, n]`` of ``cases`` and what a descent in ``network`` aims at there."""
    box = objective.box[cases]
    d = None if objective.D is None else network.tensor(objective.D[cases])
    target = Target(network.tensor(objective.C[cases]), d, network.tensor(objective.rhs[cases]))
    return network.tensor(objective.lower[box]), network.tensor(objective.upper[box]), target


def descend_to_the_end(
    run: Run, networks: Sequence[Network], objective: Objective, cases: np.ndarray
) -> Witness | None:
    """Descent until a witness is found or time is up, in one of ``networks`` after the other:
    bounds can do no more."""
    with run.phase("attack"):
        for network in cycle(networks):
            if run.budget.is_expired():
                return None
            witness = descend(run, network, objective, cases, run.budget.capped(10.0), 200, 16)
            if witness is not None:
                return witness
    return None
