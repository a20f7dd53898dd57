"""The decision: attack, bounds, reduced costs and branching on integers, until every subproblem is closed.

``unsat`` needs a closed proof for every case, all of it evaluated in integers; ``sat`` needs an input of the box whose
outputs, evaluated by ``network.evaluate`` (and by the file's own runtime where the arithmetic is not pinned down),
satisfy a case. Floats only choose multipliers, candidates and branches.

One round on a batch of open subproblems: interval rules; ascent of the multipliers; exact evaluation, which closes a
subproblem or, by reduced costs, shrinks its intervals; candidates from the averaged minimisers; a split on the
argument of the staircase whose averaged value lies farthest off its step, weighted by its coefficient, or on an input
where no staircase is left. Splits are on integers (``a <= k | a >= k + 1``), so the search always ends; small boxes are
enumerated. Legend: ``R`` rows, ``N`` elements, ``T`` constraints of a case, ``M`` outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.integer_bounds import Program
from bitcrown.quant.integer_graph import Ints
from bitcrown.quant.integer_search import Search, SearchSettings
from bitcrown.quant.proof_tree import Domain, Proof
from bitcrown.quant.query import IntegerQuery
from bitcrown.verdict import Reason, Status


@dataclass(frozen=True, eq=False)
class Decision:
    """Outcome of ``decide``. ``witness``: [N] integers of the input node when ``sat``; ``proof`` when ``unsat``."""

    status: Status
    reason: Reason = Reason.NONE
    detail: str = ""
    witness: Ints | None = None
    decided_by: str = ""
    counters: dict[str, Any] = field(default_factory=dict)
    proof: Proof | None = None
    roots: tuple[int, ...] = ()


class Judge:
    """Tries candidate inputs exactly; remembers nothing but how many were tried."""

    def __init__(self, query: IntegerQuery) -> None:
        self.query = query
        self.tried = 0

    def try_points(self, points: Ints) -> Ints | None:
        """The first row of ``points`` [B, N] that is a counterexample, else ``None``."""
        self.tried += len(points)
        hits = np.nonzero(self.query.violated(self.query.network.evaluate(points)))[0]
        return points[hits[0]] if len(hits) else None


def decide(
    query: IntegerQuery,
    budget: Budget,
    seed: int = 0,
    want_certificate: bool = False,
    program: Program | None = None,
    settings: SearchSettings | None = None,
) -> Decision:
    """Whether some input of the box satisfies a case. ``program`` may be shared between queries on one network."""
    if query.is_empty():
        return Decision(Status.UNSAT, decided_by="empty box" if query.cases else "no case")
    judge = Judge(query)
    middle = (query.low + query.high) // 2
    witness = judge.try_points(np.stack([middle, query.low, query.high]))
    if witness is not None:
        return Decision(Status.SAT, witness=witness, decided_by="probe")
    program = program or Program(query.network)
    proof = Proof(want_certificate)
    search = Search(program, query, proof, judge.try_points, settings or SearchSettings())
    domains = search.roots(program.root(query.low, query.high))
    roots = tuple(domain.part for domain in domains)
    witness, left = search.run(domains, budget)
    counters = dict(vars(search.counters))
    if witness is not None:
        return Decision(Status.SAT, witness=witness, decided_by="search", counters=counters)
    if left:
        return Decision(Status.TIMEOUT, Reason.DEADLINE, f"{len(left)} subproblems open", counters=counters)
    return Decision(Status.UNSAT, decided_by="staircase bounds", counters=counters, proof=proof, roots=roots)
