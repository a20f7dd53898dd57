"""The maximum robust radius of a sample: the largest eps at which no input within eps (L-infinity)
changes the label.

Robustness is monotone in eps, so a radius is exact once one eps is proved and the next one has a
counterexample. A counterexample at distance d refutes every eps >= d; it bounds the search from
above at once, and is moved towards the sample first (inputs are reset as far as the violation
allows), which often lowers the bound by several steps. The attack alone goes first: eps is doubled
until a counterexample is found, then the gap is halved, which takes no proof and rarely ends more
than a step above the radius. So the eps just below it is the one to prove, and gets most of the
time; if it stays open, the gap is halved from below, which narrows the interval, before it is asked
again. A radius that the time does not suffice for comes with the interval it lies in. Legend: ``N``
input elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.attack.gradient import GradientAttack
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.network.graph import Input, IntegerNetwork, Ints
from bitcrown.quant.query import robustness_query
from bitcrown.quant.search.decide import Decision, WitnessJudge, decide_query
from bitcrown.verdict import Status

SHARES = (0.1, 0.25, 0.5)
"""Of the time left, for the first, second and every later query about one eps."""
TOP_SHARE = 0.6
"""Of the time left, for the first query just below the smallest counterexample."""
ATTACK_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Radius:
    """``proved``: largest eps known robust (-1: misclassified); ``refuted``: smallest eps known
    vulnerable or ``None``.

    Exact iff ``refuted == proved + 1``, or nothing refutes and the whole input range is proved
    (``is_whole_range``). ``witness``: [N], a counterexample within ``refuted``; ``decision``: the
    one that proved ``proved``.
    """

    proved: int
    refuted: int | None
    is_whole_range: bool
    witness: Ints | None
    decision: Decision | None
    queries: int

    def is_exact(self) -> bool:
        return self.is_whole_range or self.refuted == self.proved + 1


def nearer(witness: Ints, x: Ints, is_bad: Callable[[Ints], bool]) -> Ints:
    """A counterexample no farther from ``x`` than ``witness`` [N]: clipped to smaller and smaller
    radii while bad."""
    distance = int(np.abs(witness - x).max())
    while distance > 1:
        closer = np.clip(witness, x - (distance - 1), x + (distance - 1))
        if not is_bad(closer):
            break
        witness, distance = closer, distance - 1
    return witness


def maximum_radius(
    network: IntegerNetwork,
    x: Ints,
    label: int,
    budget: Budget,
    seed: int = 0,
    want_certificate: bool = False,
    program: Program | None = None,
) -> Radius:
    """Exact largest robust eps of sample ``x`` [N] with ``label``, or the interval known when the
    budget ends."""
    program = program or Program(network)
    node = network.nodes[0]
    assert isinstance(node, Input)
    x = np.asarray(x, dtype=np.int64).reshape(-1)
    limit = int(np.maximum(x - node.low, node.high - x).max())
    whole = robustness_query(network, x, label, limit)

    def is_bad(point: Ints) -> bool:
        return network.is_exact() and bool(whole.violated(network.evaluate(point[None]))[0])

    if is_bad(x):
        return Radius(-1, 0, False, x, None, 0)
    witness = _attacked(
        network, x, label, limit, program, budget.capped(ATTACK_SHARE * budget.remaining()), seed
    )
    proved, refuted = -1, limit + 1
    if witness is not None:
        witness = nearer(witness, x, is_bad)
        refuted = int(np.abs(witness - x).max())
    best: Decision | None = None
    asked: dict[int, int] = {}
    while refuted - proved > 1 and not budget.is_expired():
        eps = next_radius(proved, refuted, asked, witness is not None)
        is_top = witness is not None and eps == refuted - 1 and eps not in asked
        share = budget.capped(
            (TOP_SHARE if is_top else SHARES[min(asked.get(eps, 0), len(SHARES) - 1)])
            * budget.remaining()
        )
        asked[eps] = asked.get(eps, 0) + 1
        decision = decide_query(
            robustness_query(network, x, label, eps), share, seed, want_certificate, program
        )
        if decision.status is Status.UNSAT:
            proved, best = eps, decision
        elif decision.status is Status.SAT and decision.witness is not None:
            witness = nearer(decision.witness, x, is_bad)
            refuted = int(np.abs(witness - x).max())
        elif decision.status is not Status.TIMEOUT:
            break
    found = refuted if witness is not None else None
    return Radius(
        proved, found, witness is None and proved == limit, witness, best, sum(asked.values())
    )


def _attacked(
    network: IntegerNetwork,
    x: Ints,
    label: int,
    limit: int,
    program: Program,
    budget: Budget,
    seed: int,
) -> Ints | None:
    """A counterexample [N] at a small distance from ``x``, by the attack alone; ``None`` if none
    was found."""
    low, high, witness = 0, limit + 1, None
    while high - low > 1 and not budget.is_expired():
        eps = min(max(2 * low, 1), limit) if witness is None else (low + high) // 2
        query = robustness_query(network, x, label, eps)
        found = GradientAttack(program, query, WitnessJudge(query, program).try_points).run(
            budget, np.random.default_rng(seed)
        )
        if found is None:
            low = eps
        else:
            witness, high = found, min(eps, int(np.abs(found - x).max()))
    return witness


def next_radius(proved: int, refuted: int, asked: Mapping[int, int], is_bounded: bool) -> int:
    """Which eps between ``proved`` and ``refuted`` to ask about: of those asked least often, the
    one in the middle.

    Before anything ``is_bounded`` by a counterexample: twice as far as the last question; after
    that, first the eps just below ``refuted``, which alone can settle the radius.
    """
    if is_bounded and refuted - 1 not in asked:
        return refuted - 1
    inner = range(proved + 1, refuted)
    least = min(asked.get(eps, 0) for eps in inner)
    fresh = [eps for eps in inner if asked.get(eps, 0) == least]
    if is_bounded:
        return fresh[len(fresh) // 2]
    target = 2 * max(asked, default=0) or 1
    return min(fresh, key=lambda eps: abs(eps - target))
