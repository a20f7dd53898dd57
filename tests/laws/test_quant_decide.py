"""Laws of the exact decision: it agrees with enumeration, bounds enclose, certificates prove,
mutations do not."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.check.certificates.documents import content_digest as content_digest
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.bounds.staircase_dual import dual_value
from bitcrown.quant.network.graph import IntegerNetwork, Stairs
from bitcrown.quant.proof.writer import certificate_form, network_form, property_form
from bitcrown.quant.query import IntegerQuery, LinearConstraint
from bitcrown.quant.search.decide import Decision, decide_query
from bitcrown.quant.search.settings import SearchSettings
from bitcrown.verdict import Status
from tests.tiny_integer_networks import (
    box_points,
    is_satisfiable,
    random_branched,
    random_chain,
    random_query,
)

SEARCH_ONLY = SearchSettings(root_steps=30, steps=12, enumerate_points=1)
SECONDS = 60.0


def decided(query: IntegerQuery, settings: SearchSettings = SEARCH_ONLY) -> Decision:
    return decide_query(query, Budget.of_cpu_seconds(SECONDS), 0, True, None, settings)


def assert_evidence(query: IntegerQuery, decision: Decision) -> None:
    if decision.status is Status.SAT:
        assert decision.witness is not None
        assert (query.low <= decision.witness).all() and (decision.witness <= query.high).all()
        assert query.violated(query.network.evaluate(decision.witness[None]))[0]
        return
    assert decision.proof is not None
    forms = [
        network_form(query.network),
        property_form(query),
        certificate_form(query, decision.proof, decision.roots),
    ]
    finding = check_integer_proof(*(json.loads(json.dumps(form)) for form in forms))
    assert finding.accepted, finding.message


@pytest.mark.parametrize("make", [random_chain, random_branched])
@pytest.mark.parametrize("seed", range(100))
def test_decision_equals_enumeration(make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query = random_query(rng, make(rng))
    decision = decided(query)
    assert decision.status is (Status.SAT if is_satisfiable(query) else Status.UNSAT)
    assert_evidence(query, decision)


@pytest.mark.parametrize("seed", range(20))
def test_enumerating_leaves_changes_no_verdict(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    query = random_query(rng, random_chain(rng))
    decision = decided(query, SearchSettings(enumerate_points=4096))
    assert decision.status is (Status.SAT if is_satisfiable(query) else Status.UNSAT)
    assert_evidence(query, decision)


@pytest.mark.parametrize("make", [random_chain, random_branched])
@pytest.mark.parametrize("seed", range(30))
def test_unpinned_arithmetic_is_never_decided_wrongly(make, seed: int) -> None:
    """The function is one of those between the two staircases: a verdict must be right for the two
    extreme ones."""
    rng = np.random.default_rng(2000 + seed)
    network = make(rng, exact=False)
    query = random_query(rng, network)
    decision = decided(query)
    if decision.status is Status.UNKNOWN:
        return
    for side in ("late", "early"):
        pinned = with_one_side(network, side)
        extreme = IntegerQuery(pinned, query.low, query.high, query.cases)
        assert is_satisfiable(extreme) is (decision.status is Status.SAT)
        if decision.status is Status.SAT:
            assert decision.witness is not None
            assert extreme.violated(pinned.evaluate(decision.witness[None]))[0]
    if decision.status is Status.UNSAT:
        assert_evidence(query, decision)


@pytest.mark.parametrize("make", [random_chain, random_branched])
@pytest.mark.parametrize("seed", range(20))
def test_intervals_enclose_and_propagation_keeps_every_violation(make, seed: int) -> None:
    rng = np.random.default_rng(3000 + seed)
    query = random_query(rng, make(rng))
    program = Program(query.network)
    points = box_points(query.low, query.high)
    values = query.network.values(points)
    bounds = program.root(query.low, query.high)
    for node, value in enumerate(values):
        assert (bounds.low[node] <= value).all() and (value <= bounds.high[node]).all()
    for case in query.cases:
        violating = IntegerQuery(query.network, query.low, query.high, (case,)).violated(values[-1])
        tightened = bounds.rows([0])
        tightened.dirty.add(program.output)
        for _ in range(3):
            program.propagate(tightened, [case])
        for node, value in enumerate(values):
            kept = value[violating]
            assert (tightened.low[node] <= kept).all() and (kept <= tightened.high[node]).all()


@pytest.mark.parametrize("make", [random_chain, random_branched])
@pytest.mark.parametrize("seed", range(20))
def test_dual_bound_encloses_for_any_multipliers(make, seed: int) -> None:
    rng = np.random.default_rng(4000 + seed)
    network = make(rng, exact=seed % 3 != 0)
    query = random_query(rng, network)
    program = Program(network)
    bounds = program.root(query.low, query.high)
    size = program.sizes[program.output]
    goal = rng.integers(-5, 6, size=(1, size))
    slopes = {n: rng.integers(-6, 7, size=(1, program.sizes[n])) for n in program.stairs}
    slopes |= {
        n: rng.integers(-6, 7, size=(1, *index.shape)) for n, (_, index) in program.pools.items()
    }
    bound = dual_value(
        program, bounds, {program.output: goal}, np.zeros(1, dtype=np.int64), slopes
    ).value
    outputs = query.network.evaluate(box_points(query.low, query.high))
    assert bound[0] <= (outputs @ goal[0]).min()


def mutations(content: object, path: tuple = ()):
    """Paths to every integer in the proof, and to every list that can lose an entry."""
    if isinstance(content, list):
        for place, value in enumerate(content):
            yield ("drop", (*path, place))
            yield from mutations(value, (*path, place))
    elif isinstance(content, int):
        yield ("change", path)


def mutated(certificate: dict, kind: str, path: tuple, rng: np.random.Generator) -> dict:
    out = copy.copy(certificate)
    holder = out
    for key in path[:-1]:
        holder[key] = copy.copy(holder[key])
        holder = holder[key]
    if kind == "drop":
        del holder[path[-1]]
    else:
        holder[path[-1]] += int(rng.choice([-1, 1, 7, -50, 10**6]))
    return out


def proved_queries(count: int):
    rng = np.random.default_rng(77)
    while count:
        query = random_query(rng, random_chain(rng) if count % 2 else random_branched(rng))
        decision = decided(query)
        if (
            decision.status is Status.UNSAT
            and decision.proof is not None
            and len(decision.proof.parts) > 2
        ):
            count -= 1
            yield query, certificate_form(query, decision.proof, decision.roots)


def test_mutated_certificates_are_rejected() -> None:
    """With the digest left alone every change is seen; whatever the change, a bare digest never
    saves a wrong proof."""
    rng = np.random.default_rng(5)
    tried = 0
    for query, certificate in proved_queries(25):
        network, prop = network_form(query.network), property_form(query)
        assert check_integer_proof(network, prop, certificate).accepted
        places = list(mutations(certificate["parts"], ("parts",))) + list(
            mutations(certificate["roots"], ("roots",))
        )
        for pick in rng.permutation(len(places))[:100]:
            kind, path = places[pick]
            assert not check_integer_proof(
                network, prop, mutated(certificate, kind, path, rng)
            ).accepted
            tried += 1
    assert tried >= 1000


def test_a_certificate_never_proves_a_false_claim() -> None:
    """Certificates re-signed for a property that does not hold, mutated or not, are rejected."""
    rng = np.random.default_rng(6)
    rejected = 0
    for query, certificate in proved_queries(12):
        network = network_form(query.network)
        loosened = satisfiable_neighbour(query)
        if loosened is None:
            continue
        prop = property_form(loosened)
        places = list(mutations(certificate["parts"], ("parts",)))
        for trial in range(40):
            forged = dict(certificate)
            for _ in range(trial % 4):
                kind, path = places[int(rng.integers(len(places)))]
                try:
                    forged = mutated(forged, kind, path, rng)
                except (IndexError, TypeError):
                    continue
            forged["property"] = content_digest(prop)
            forged["digest"] = content_digest({k: v for k, v in forged.items() if k != "digest"})
            assert not check_integer_proof(network, prop, forged).accepted
            rejected += 1
    assert rejected >= 150


def test_resigned_mutations_are_proofs_or_rejected() -> None:
    """Re-signed mutations of a true claim may be other proofs; then the claim is true, by
    enumeration, all the same.

    Each accepted one must still be a proof under the checker when its network or property is
    exchanged: rejected.
    """
    rng = np.random.default_rng(8)
    accepted = 0
    for query, certificate in proved_queries(6):
        network, prop = network_form(query.network), property_form(query)
        assert not is_satisfiable(query)
        places = list(mutations(certificate["parts"], ("parts",)))
        for pick in rng.permutation(len(places))[:60]:
            kind, path = places[pick]
            forged = mutated(certificate, kind, path, rng)
            forged["digest"] = content_digest({k: v for k, v in forged.items() if k != "digest"})
            accepted += check_integer_proof(network, prop, forged).accepted
        other = copy.deepcopy(network)
        other["nodes"][1]["bias"][0] += 1
        assert not check_integer_proof(other, prop, certificate).accepted
    assert accepted < 6 * 60


def satisfiable_neighbour(query: IntegerQuery) -> IntegerQuery | None:
    """The same query with all bounds raised until it can be satisfied."""
    for shift in range(1, 12):
        cases = tuple(
            tuple(LinearConstraint(c.terms, c.bound + shift) for c in case) for case in query.cases
        )
        loosened = IntegerQuery(query.network, query.low, query.high, cases)
        if is_satisfiable(loosened):
            return loosened
    return None


def with_one_side(network: IntegerNetwork, side: str) -> IntegerNetwork:
    nodes = [
        replace(node, early=getattr(node, side), late=getattr(node, side))
        if isinstance(node, Stairs)
        else node
        for node in network.nodes
    ]
    return replace(network, nodes=tuple(nodes))
