"""The decision: attack, bounds, reduced costs and branching on integers, until every subproblem is
closed.

``unsat`` needs a closed proof for every case, all of it evaluated in integers; ``sat`` needs an
input of the box whose outputs, evaluated by ``network.evaluate`` (and by the file's own runtime
where the arithmetic is not pinned down), satisfy a case. Floats only choose multipliers, candidates
and branches.

In order, the cheapest first: a few probes; a few rounds of branch and bound, which end most
queries; the gradient attack; dual bounds on every accumulator behind a staircase; branch and bound
to the end. Every split is on integers, so the search always ends. Legend: ``N`` input elements,
``M`` outputs, ``B`` points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.attack.gradient import GradientAttack
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.network.graph import Ints
from bitcrown.quant.proof.tree import ProofTree
from bitcrown.quant.query import IntegerQuery
from bitcrown.quant.search.argument_bounds import argument_bounds
from bitcrown.quant.search.branch_and_bound import RootMultipliers, Search
from bitcrown.quant.search.settings import SearchSettings
from bitcrown.quant.search.subproblem import Subproblem
from bitcrown.verdict import Reason, Status

_RANDOM_PROBES = 5
_BOUNDS_SHARE = 0.3
_QUICK_ROUNDS = 4
"""Rounds before bounds on every accumulator behind a staircase are worth their time (most queries
end here)."""
_ATTACK_SHARE = 0.2
_RUNTIME_TRIALS = 4


@dataclass(frozen=True, eq=False)
class Decision:
    """Outcome of ``decide_query``. ``witness``: [N] integers of the input node when ``sat``;
    ``proof`` when ``unsat``."""

    status: Status
    reason: Reason = Reason.NONE
    detail: str = ""
    witness: Ints | None = None
    decided_by: str = ""
    counters: dict[str, Any] = field(default_factory=dict)
    proof: ProofTree | None = None
    roots: tuple[int, ...] = ()


class WitnessJudge:
    """Tries candidate inputs; only what certainly violates the query counts.

    Where the arithmetic is not pinned down, a point counts if the violation holds for every order
    of summation (the outputs are then intervals), or if the file's own runtime computes it.
    """

    def __init__(self, query: IntegerQuery, program: Program) -> None:
        self.query, self.program = query, program
        self.is_exact = query.network.is_exact()
        self.tried = 0

    def try_points(self, points: Ints) -> Ints | None:
        """The first row of ``points`` [B, N] that is a counterexample, else ``None``."""
        self.tried += len(points)
        query = self.query
        if self.is_exact:
            hits = np.nonzero(query.violated(self.program.values(points)[self.program.output]))[0][
                :1
            ]
            confirmed = query.violated(query.network.evaluate(points[hits])) if len(hits) else hits
            return self._row(points, hits) if all(confirmed) else None
        found = self.program.images(points)
        output = self.program.output
        hits = np.nonzero(query.surely_violated(found.low[output], found.high[output]))[0]
        if len(hits):
            return self._row(points, hits)
        possible = np.nonzero(query.possibly_violated(found.low[output], found.high[output]))[0]
        for place, row in enumerate(possible[:_RUNTIME_TRIALS]):
            outputs = self._runtime_outputs(points[row])
            if outputs is not None and query.violated(outputs)[0]:
                return self._row(points, possible[[place]])
        return None

    def _row(self, points: Ints, hits: Ints) -> Ints | None:
        return np.array(points[hits[0]], dtype=np.int64) if len(hits) else None

    def _runtime_outputs(self, point: Ints) -> Ints | None:
        """Output integers [1, M] that the file's own runtime computes, where it can be asked."""
        network, box = self.query.network, self.query.real_box
        if network.runtime is None or box is None:
            return None
        real = network.runtime(network.entry.representative(point, *box)[None])
        integers = []
        for value, steps, low in zip(
            real[0].tolist(), network.exit.values, network.exit.low.tolist(), strict=True
        ):
            places = [k for k, step in enumerate(steps) if float(step) == value]
            if not places:
                return None
            integers.append(low + places[0])
        return np.array([integers], dtype=np.int64)


def decide_query(
    query: IntegerQuery,
    budget: Budget,
    seed: int = 0,
    want_certificate: bool = False,
    program: Program | None = None,
    settings: SearchSettings | None = None,
    proposals: Callable[[Budget], Iterable[Ints]] | None = None,
) -> Decision:
    """Whether some input of the box satisfies a case. ``program`` may be shared between queries on
    one network. ``proposals`` are points [B, N] that others hold for promising, made in a budget.

    ``seed`` orders nothing that a verdict could depend on; it varies the random candidates.
    """
    proof = ProofTree(want_certificate)
    if query.is_empty():
        roots = tuple(proof.new_part() for _ in query.cases)
        for part in roots:
            proof.add(part, ["empty"])
        detail = "the box is empty" if query.cases else "there is no case to satisfy"
        return Decision(Status.UNSAT, detail=detail, decided_by="empty", proof=proof, roots=roots)
    program = program or Program(query.network)
    judge = WitnessJudge(query, program)
    rng = np.random.default_rng(seed)
    low, high = query.reachable().low, query.reachable().high
    probes = [(low + high) // 2, low, high]
    probes += list(rng.integers(low, high + 1, size=(_RANDOM_PROBES, len(low))))
    witness = judge.try_points(np.stack(probes))
    if witness is not None:
        return Decision(Status.SAT, witness=witness, decided_by="probe")
    settings = settings or SearchSettings()
    known: RootMultipliers = {}
    for rounds in (_QUICK_ROUNDS, None):
        proof = ProofTree(want_certificate)
        root = program.root(query.low, query.high)
        search = Search(program, query, root, proof, judge.try_points, settings)
        if rounds is None:
            share = budget.capped(_ATTACK_SHARE * budget.remaining())
            witness = _attacked(program, query.reachable(), judge, share, rng, proposals)
            if witness is not None:
                return Decision(Status.SAT, witness=witness, decided_by="attack")
            argument_bounds(program, root, proof, budget.capped(_BOUNDS_SHARE * budget.remaining()))
        domains = search.roots(known)
        roots = tuple(domain.part for domain in domains)
        witness, left = search.run(domains, budget, rounds)
        known = search.multipliers
        if witness is not None or not left:
            break
    return _concluded(search, proof, roots, witness, left)


def _attacked(
    program: Program,
    query: IntegerQuery,
    judge: WitnessJudge,
    budget: Budget,
    rng: np.random.Generator,
    proposals: Callable[[Budget], Iterable[Ints]] | None,
) -> Ints | None:
    if proposals is not None:
        for points in proposals(budget.capped(0.5 * budget.remaining())):
            witness = judge.try_points(np.clip(points, query.low, query.high))
            if witness is not None:
                return witness
    return GradientAttack(program, query, judge.try_points).run(budget, rng)


def _concluded(
    search: Search,
    proof: ProofTree,
    roots: tuple[int, ...],
    witness: Ints | None,
    left: list[Subproblem],
) -> Decision:
    counters = dict(vars(search.counters))
    if witness is not None:
        return Decision(Status.SAT, witness=witness, decided_by="search", counters=counters)
    if left:
        detail = f"{len(left)} subproblems were open"
        return Decision(Status.TIMEOUT, Reason.DEADLINE, detail, counters=counters)
    if search.stuck:
        detail = f"{len(search.stuck)} single inputs depend on the runtime's order of summation"
        return Decision(Status.UNKNOWN, Reason.INCOMPLETE, detail, counters=counters)
    proof.finish()
    return Decision(
        Status.UNSAT, decided_by="staircase bounds", counters=counters, proof=proof, roots=roots
    )
