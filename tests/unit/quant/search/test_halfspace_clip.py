"""Clipped accumulators keep every violation; gradient steps find what saturation hides and report
only the truth."""

from __future__ import annotations

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.quant.attack.gradient import GradientAttack
from bitcrown.quant.bounds.case_objective import CaseObjective
from bitcrown.quant.bounds.exact import exact_bound
from bitcrown.quant.bounds.halfspace_clip import HalfspaceClipper
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.bounds.relaxation import StaircaseRelaxation
from bitcrown.quant.bounds.slope_ascent import ascend_slopes
from bitcrown.quant.network.graph import Ints
from bitcrown.quant.query import IntegerQuery, robustness_query
from tests.tiny_integer_networks import box_points, random_chain


def random_query(seed: int) -> IntegerQuery:
    rng = np.random.default_rng(seed)
    network = random_chain(rng)
    x = rng.integers(network.nodes[0].low, network.nodes[0].high + 1)
    return robustness_query(
        network, x, int(network.evaluate(x[None])[0].argmax()), int(rng.integers(1, 4))
    )


def clips_of(query: IntegerQuery, case: int, steps: int):
    """(entries or None, clipper, root intervals) for the bound after a few steps of ascent."""
    program = Program(query.network)
    clipper = HalfspaceClipper.of(program)
    bounds = program.root(query.low, query.high)
    cases = CaseObjective(program, query, bounds)
    objective, pinned = cases.on([case], bounds)
    state = ascend_slopes(
        StaircaseRelaxation(program, bounds, objective, pinned),
        None,
        None,
        steps,
        1.0,
        lambda _: False,
    )
    dual = exact_bound(program, bounds, objective, state, np.array([0]), 12).dual
    return None if clipper is None or dual is None else clipper.clip(bounds, dual), clipper, bounds


def test_every_violation_stays_within_the_clipped_intervals() -> None:
    narrowed = seen = 0
    for seed in range(120):
        query = random_query(seed)
        for case in range(len(query.cases)):
            clips, clipper, bounds = clips_of(query, case, 1 + seed % 20)
            if clips is None:
                continue
            before = bounds.high[clipper.node] - bounds.low[clipper.node]
            clips.narrow(bounds, np.array([0]))
            narrowed += bool((bounds.high[clipper.node] - bounds.low[clipper.node] < before).any())
            points = box_points(query.low, query.high)
            constraint = query.cases[case][0]
            values = query.network.values(points)
            total = sum(c * values[query.network.output][:, i] for i, c in constraint.terms)
            inside = values[clipper.node][total <= constraint.bound]
            seen += len(inside)
            assert (inside >= bounds.low[clipper.node]).all() and (
                inside <= bounds.high[clipper.node]
            ).all()
    assert narrowed > 20 and seen > 100


@pytest.mark.parametrize("seed", range(40))
def test_the_gradient_attack_reports_only_counterexamples_of_the_box(seed: int) -> None:
    query = random_query(seed)

    def accept(points: Ints) -> Ints | None:
        assert (query.low <= points).all() and (points <= query.high).all()
        hits = np.nonzero(query.violated(query.network.evaluate(points)))[0]
        return points[hits[0]] if len(hits) else None

    attack = GradientAttack(Program(query.network), query, accept)
    witness = attack.run(Budget.of_cpu_seconds(30.0), np.random.default_rng(seed))
    points = box_points(query.low, query.high)
    bad = query.violated(query.network.evaluate(points))
    if witness is not None:
        assert query.violated(query.network.evaluate(witness[None]))[0]
    elif bad.mean() > 0.2:
        raise AssertionError("a fifth of the box are counterexamples and none was found")
