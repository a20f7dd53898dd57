"""Radii against enumeration; climbs that stay in the box and only report real counterexamples."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.qnn_robustness.maximum_radius import maximum_radius
from bitcrown.budget import Budget
from bitcrown.quant.attack.coordinate import LatticeAttack
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.query import robustness_query
from bitcrown.quant.search.decide import decide_query
from bitcrown.verdict import Reason, Status
from tests.tiny_integer_networks import box_points, is_satisfiable, random_branched, random_chain


@pytest.mark.parametrize("seed", range(25))
def test_radius_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = (random_branched if seed % 5 == 4 else random_chain)(rng)
    node = network.nodes[0]
    x = rng.integers(node.low, node.high + 1)
    label = int(network.evaluate(x[None])[0].argmax()) if seed % 6 else 0
    found = maximum_radius(network, x, label, Budget.of_cpu_seconds(60.0))
    points = box_points(node.low, node.high)
    bad = np.abs(points - x).max(axis=1)[network.evaluate(points).argmax(axis=1) != label]
    assert found.is_exact()
    assert found.refuted == (int(bad.min()) if len(bad) else None)
    if len(bad):
        assert found.proved == bad.min() - 1 and found.witness is not None
        assert np.abs(found.witness - x).max() == bad.min()
        assert network.evaluate(found.witness[None])[0].argmax() != label


@pytest.mark.parametrize("seed", range(20))
def test_climbs_report_only_counterexamples_of_the_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = random_chain(rng)
    node = network.nodes[0]
    x = rng.integers(node.low, node.high + 1)
    query = robustness_query(network, x, int(network.evaluate(x[None])[0].argmax()), 3)
    seen: list[np.ndarray] = []

    def accept(points: np.ndarray) -> np.ndarray | None:
        seen.extend(points)
        hits = np.nonzero(query.violated(network.evaluate(points)))[0]
        return points[hits[0]] if len(hits) else None

    attack = LatticeAttack(Program(network), query, accept)
    for case in query.cases:
        witness, _ = attack.climb(x, case, 10, Budget.of_cpu_seconds(30.0))
        assert witness is None or is_satisfiable(query)
    assert all((query.low <= p).all() and (p <= query.high).all() for p in seen)


def test_no_time_is_a_timeout_with_its_reason() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        network = random_chain(rng)
        node = network.nodes[0]
        x = (node.low + node.high) // 2
        query = robustness_query(network, x, int(network.evaluate(x[None])[0].argmax()), 7)
        decision = decide_query(query, Budget.of_seconds(-1.0))
        if decision.status is not Status.SAT:
            assert decision.status is Status.TIMEOUT and decision.reason is Reason.DEADLINE
            assert decision.proof is None and decision.witness is None
            return
    raise AssertionError("no query of fifty survived the probes")
