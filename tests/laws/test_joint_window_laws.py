"""Laws of windows that are bounded as one block: below every point, the checker's number, and
nothing is taken that does not fit the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.check.certificates.integers.dual import dual_bound
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.state import State
from bitcrown.check.certificates.integers.windows import joint_work
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.bounds.staircase_dual import (
    dual_value,
    pool_blocks,
    pool_minimum,
    settled_windows,
)
from bitcrown.quant.network.graph import Conv, IntegerNetwork, MaxPool, Stairs, WeightedSum
from bitcrown.quant.proof.tree import sparse
from bitcrown.quant.proof.writer import certificate_form, network_form, property_form
from bitcrown.quant.query import IntegerQuery, LinearConstraint
from bitcrown.quant.search.settings import SearchSettings
from tests.laws.test_quant_certificate_forgery import resigned
from tests.laws.test_quant_decide import decided
from tests.tiny_integer_networks import box_points, finished, random_branched


def pooled_network(rng: np.random.Generator, exact: bool) -> IntegerNetwork:
    """A convolution, staircases per channel, a maximum over 2x2 or 3x3 windows, perhaps padded."""
    node = random_branched(rng, exact).nodes[0]
    conv = Conv(
        (2, 3, 3),
        0,
        (2, 2),
        rng.integers(-4, 5, size=(2, 1, 2, 2)),
        rng.integers(-5, 6, size=2),
        padding=(1, 1, 1, 1),
        pad_value=int(rng.integers(0, 3)),
    )
    steps = int(rng.integers(1, 7))
    late = np.sort(rng.integers(-25, 26, size=(2, steps)), axis=1)
    early = late if exact else late - rng.integers(0, 4, size=(2, 1))
    stairs = Stairs((2, 3, 3), 1, rng.integers(-4, 3, size=2), early, late)
    if rng.random() < 0.5:
        pool = MaxPool((2, 2, 2), 2, (3, 3), (2, 2), (1, 1))
    else:
        pool = MaxPool((2, 2, 2), 2, (3, 3), (3, 3), (2, 2), (1, 1, 1, 1))
    return finished([node, conv, stairs, pool])


def shrunk(rng: np.random.Generator, program: Program, points: np.ndarray, count: int):
    """(intervals around some of ``points``, those that lie in them)."""
    some = points[rng.permutation(len(points))[:count]]
    bounds = program.root(some.min(axis=0), some.max(axis=0))
    values = program.values(some)
    if program.network.is_exact():
        for node in (1, 2):
            bounds.intersect(node, values[node].min(axis=0)[None], values[node].max(axis=0)[None])
    return bounds, some


def some_lines(rng: np.random.Generator, program: Program) -> np.ndarray:
    """Multipliers [1, N, U] on what half of the windows read, near the sums' own weights or far."""
    pool = program.joint[3]
    shares = rng.integers(-2, 1, size=(*pool.index.shape, 1))
    lines = (pool.weight * shares).sum(axis=1) + rng.integers(-1, 2, size=pool.patch.shape)
    used = (pool.heaviest > 0) & (rng.random((len(lines), 1)) < 0.6)
    return np.where(used, lines, 0).astype(np.int64)[None]


def checked(program: Program, bounds: Any, goal: np.ndarray, slopes: Any) -> int:
    """The same bound by the checker."""
    net = IntegerCircuit(network_form(program.network))
    state = State(*([end[0].tolist() for end in ends] for ends in (bounds.low, bounds.high)), set())
    named = sparse(program, slopes, 0)
    return dual_bound(net, state, ({program.output: goal[0].tolist()}, 0), named).value


@pytest.mark.parametrize("seed", range(60))
def test_blocks_are_below_every_point_and_what_the_checker_computes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = Program(pooled_network(rng, exact=seed % 3 != 0))
    assert program.joint, "a pool over staircases over a convolution can be bounded as one"
    network = program.network
    points = box_points(network.nodes[0].low, network.nodes[0].high)
    bounds, inside = shrunk(rng, program, points, int(rng.integers(2, 40)))
    goal = rng.integers(-6, 3, size=(1, program.sizes[program.output]))
    shape = program.pools[3][1].shape
    slopes = {
        2: rng.integers(-3, 4, size=(1, program.sizes[2])),
        3: rng.integers(-3, 4, size=(1, *shape)),
        -3: some_lines(rng, program),
    }
    nothing = np.zeros(1, dtype=np.int64)
    bound = dual_value(program, bounds, {program.output: goal}, nothing, slopes).value[0]
    assert bound <= (network.evaluate(inside) @ goal[0]).min()
    assert bound == checked(program, bounds, goal, slopes)


def block_and_least(rng: np.random.Generator, program: Program) -> tuple[int, int]:
    """(one window's block, the least that it has at a point), the window contested perhaps by a
    sum that was split."""
    node, pool = program.nodes[0], program.joint[3]
    ends = np.sort(rng.integers(node.low, node.high + 1, size=(2, len(node.low))), axis=0)
    points, bounds = box_points(*ends), program.root(*ends)
    values = program.values(points)
    window = int(rng.integers(len(pool.index)))
    if rng.random() < 0.5:
        member = int(rng.choice(pool.index[window][pool.index[window] >= 0]))
        sums = values[1][:, member]
        above = rng.random() < 0.5
        edge = int(rng.choice(sums))
        points = points[sums >= edge if above else sums <= edge]
        (bounds.low if above else bounds.high)[1][0, member] = edge
        bounds.dirty.add(1)
        program.propagate(bounds, [()])
        values = program.values(points)
    lines = np.where(pool.heaviest > 0, some_lines(rng, program)[0], 0)
    lines = np.where(np.arange(len(lines))[:, None] == window, lines, 0)
    mu = int(rng.integers(-4, 1))
    goal = np.zeros((1, program.sizes[3]), dtype=np.int64)
    goal[0, window] = mu
    nothing = {
        n: np.zeros((1, *s), dtype=np.int64)
        for n, s in ((2, (program.sizes[2],)), (3, pool.index.shape))
    }
    bound = dual_value(
        program, bounds, {3: goal}, np.zeros(1, dtype=np.int64), nothing | {-3: lines[None]}
    )
    first = bound.input[0]
    block = bound.value[0] - np.minimum(first * bounds.low[0][0], first * bounds.high[0][0]).sum()
    return int(block), int((mu * values[3][:, window] - points @ first).min())


@pytest.mark.parametrize("seed", range(6))
def test_a_block_is_below_every_point_of_its_patch_and_meets_some(seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    program = Program(pooled_network(rng, exact=True))
    found = [block_and_least(rng, program) for _ in range(20)]
    assert all(block <= least for block, least in found)
    # at many points it is attained, so that a block that is too high by one would be seen
    assert sum(block == least != 0 for block, least in found) >= 6


def test_blocks_are_tighter_than_boxes_where_members_share_their_patch() -> None:
    """Two equal members: their maximum is either, which a box of two values does not see."""
    rng = np.random.default_rng(1)
    node = random_branched(rng).nodes[0]
    weight = np.zeros((1, 1, 2, 2), dtype=np.int64)
    weight[0, 0] = [[1, 1], [1, 1]]
    conv = Conv((1, 1, 1), 0, (2, 2), weight, np.zeros(1, dtype=np.int64))
    late = np.arange(1, 29)[None]
    stairs = Stairs((1, 1, 1), 1, np.zeros(1, dtype=np.int64), late, late)
    wide = replace(conv, shape=(1, 2, 1), padding=(1, 0, 0, 0))
    steps = replace(stairs, shape=(1, 2, 1))
    pool = MaxPool((1, 1, 1), 2, (2, 1), (2, 1), (1, 1))
    program = Program(finished([node, wide, steps, pool]))
    bounds = program.root(program.nodes[0].low, program.nodes[0].high)
    # max(x0 + x1, x0 + x1 + x2 + x3) - (x0 + x1 + x2 + x3) <= 0
    goal = np.array([[-1]])
    slopes = {2: np.zeros((1, 2)), 3: np.zeros((1, 1, 2)), -3: -program.joint[3].weight[None, :, 1]}
    slopes = {n: s.astype(np.int64) for n, s in slopes.items()}
    value = dual_value(program, bounds, {3: goal}, np.zeros(1, dtype=np.int64), slopes)
    ends = value.input[0] * np.where(value.input[0] > 0, bounds.low[0][0], bounds.high[0][0])
    assert value.value[0] - ends.sum() == 0


@pytest.mark.parametrize("seed", range(20))
def test_settled_windows_have_the_minimum_of_all(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    low = rng.integers(-5, 6, size=(3, 7, 4))
    high = low + rng.integers(0, 4, size=low.shape)
    present = np.broadcast_to(rng.random((7, 4)) < 0.8, low.shape).copy()
    present[..., 0] = True
    low, high = np.where(present, low, 0), np.where(present, high, 0)
    outer, inner = rng.integers(-4, 5, size=low.shape[:2]), rng.integers(-4, 5, size=low.shape)
    inner = np.where(present, inner, 0)
    settled = settled_windows(low, high, present)
    assert settled[1].any()
    found = pool_blocks(outer, inner, low, high, present, settled)
    assert (found[0] == pool_minimum(outer, inner, low, high, present)[0]).all()


def large_outputs(rng: np.random.Generator, network: IntegerNetwork) -> IntegerQuery:
    """Whether a weighted sum of maxima exceeds all its values by a little: it does not."""
    node = network.nodes[0]
    size = int(np.prod(network.nodes[network.output].shape))
    used = rng.permutation(size)[: int(rng.integers(1, size + 1))]
    factors = -rng.integers(1, 3, size=len(used))
    low, high = node.low, np.minimum(node.high, 3)
    outputs = network.evaluate(box_points(low, high))
    least = int((outputs[:, used] @ factors).min()) - int(rng.integers(1, 4))
    terms = sorted((int(i), int(c)) for i, c in zip(used, factors, strict=True))
    return IntegerQuery(network, low, high, ((LinearConstraint(tuple(terms), least),),))


def test_proofs_with_blocks_are_accepted_and_not_of_what_is_false() -> None:
    rng = np.random.default_rng(9)
    joint = 0
    while joint < 4:
        query = large_outputs(rng, pooled_network(rng, exact=True))
        decision = decided(query, SearchSettings(root_steps=60, steps=20, enumerate_points=16))
        assert decision.proof is not None
        network, form = network_form(query.network), property_form(query)
        certificate = certificate_form(query, decision.proof, decision.roots)
        finding = check_integer_proof(network, form, certificate)
        assert finding.accepted, finding.message
        joint += "[-3," in str(certificate["parts"])
        # a bound that some input attains is no longer refuted by any of this
        case = query.cases[0][0]
        loose = replace(query, cases=((LinearConstraint(case.terms, case.bound + 3),),))
        forged = resigned(certificate, network, property_form(loose))
        assert not check_integer_proof(network, property_form(loose), forged).accepted


@pytest.mark.parametrize(
    ("slopes", "words"),
    [
        ([[-1, [[0, 0, 1]]]], "no maximum over windows"),
        ([[-3, [[9, 0, 1]]]], "no window"),
        ([[-3, [[0, 99, 1]]]], "no element"),
        ([[-3, [[0, -1, 1]]]], "no element"),
        ([[-3, [[0, 1]]]], "no window"),
    ],
)
def test_multipliers_of_no_window_are_refused(slopes: Any, words: str) -> None:
    net = IntegerCircuit(network_form(pooled_network(np.random.default_rng(3), True)))
    with pytest.raises(Reject, match=words):
        joint_work(net, slopes)


def test_windows_over_sums_of_two_nodes_are_no_blocks() -> None:
    node, conv, stairs, pool = pooled_network(np.random.default_rng(3), True).nodes
    total = WeightedSum((2, 3, 3), (1, 2), (1, 1), np.zeros(1, dtype=np.int64))
    steps, maxima = replace(stairs, source=3), replace(pool, source=4)
    network = finished([node, conv, replace(conv), total, steps, maxima])
    assert not Program(network).joint
    with pytest.raises(Reject, match="sums of one node"):
        joint_work(IntegerCircuit(network_form(network)), [[-5, [[0, 0, 1]]]])
