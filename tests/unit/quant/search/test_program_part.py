"""A part of a program bounds what it keeps exactly as the whole does, and what it proves is
accepted elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.bounds.staircase_dual import dual_value
from bitcrown.quant.bounds.subprogram import SubProgram, by_position
from bitcrown.quant.network.graph import Conv, Input, IntegerNetwork, MaxPool, Stairs, WeightedSum
from bitcrown.quant.proof.tree import ProofTree, sparse
from bitcrown.quant.proof.writer import certificate_form, network_form, property_form
from bitcrown.quant.search import decide as decide_module
from bitcrown.quant.search.argument_bounds import argument_bounds
from bitcrown.quant.search.decide import decide_query
from bitcrown.verdict import Status
from tests.tiny_integer_networks import (
    finished,
    is_satisfiable,
    random_branched,
    random_chain,
    random_dense,
    random_query,
)


def fine_staircase(
    rng: np.random.Generator, shape: tuple[int, ...], source: int, exact: bool
) -> Stairs:
    late = np.arange(-12, 13, 2)[None] + rng.integers(-2, 3, size=(shape[0], 1))
    return Stairs(
        shape, source, rng.integers(-2, 3, size=shape[0]), late - (0 if exact else 1), late
    )


def random_planes(rng: np.random.Generator, exact: bool = True) -> IntegerNetwork:
    """Two convolutions with a maximum between them on a 1x6x7 image, the second grouped, strided
    and padded."""
    start = Input((1, 6, 7), np.zeros(42, dtype=np.int64), np.full(42, 5, dtype=np.int64))
    first = Conv(
        (2, 6, 6),
        0,
        (6, 7),
        rng.integers(-3, 4, size=(2, 1, 3, 2)),
        np.array([2, -1]),
        padding=(1, 0, 1, 0),
    )
    steps = fine_staircase(rng, (2, 6, 6), 1, exact)
    pool = MaxPool((2, 3, 4), 2, (6, 6), (2, 2), (2, 2), (0, 1, 0, 1))
    kernel = rng.integers(-3, 4, size=(4, 1, 2, 2))
    second = Conv(
        (4, 3, 3),
        3,
        (3, 4),
        kernel,
        rng.integers(-5, 6, size=4),
        (1, 1),
        (1, 0, 0, 0),
        (1, 1),
        2,
        pad_value=1,
    )
    twice = WeightedSum((4, 3, 3), (5, 4, 5), (2, 1, -3), np.arange(36))
    last = random_dense(rng, 6, 36, 3)
    return finished(
        [start, first, steps, pool, second, fine_staircase(rng, (4, 3, 3), 4, exact), twice, last]
    )


@pytest.mark.parametrize("make", [random_chain, random_branched, random_planes])
@pytest.mark.parametrize("seed", range(12))
def test_bounds_in_a_part_equal_those_in_the_whole(make, seed: int) -> None:
    rng = np.random.default_rng(7100 + seed)
    network = make(rng, exact=seed % 3 != 0)
    program = Program(network)
    node_input = network.nodes[0]
    assert isinstance(node_input, Input)
    ends = np.sort(
        rng.integers(node_input.low, node_input.high + 1, size=(2, node_input.low.size)), axis=0
    )
    bounds = program.root(ends[0], ends[1])
    shapes = {n: (program.sizes[n],) for n in program.stairs} | {
        n: i.shape for n, (_, i) in program.pools.items()
    }
    for node in program.affine:
        for group in by_position(
            network.nodes[node].shape, np.flatnonzero(rng.random(program.sizes[node]) < 0.7)
        ):
            kept = SubProgram.seen(program, bounds, node, group)
            assert kept is not None
            part = SubProgram(program, bounds, kept)
            slopes = {n: rng.integers(-6, 7, size=(1, part.sizes[n])) for n in part.stairs}
            slopes |= {
                n: rng.integers(-6, 7, size=(1, *i.shape)) * (i >= 0)
                for n, (_, i) in part.pools.items()
            }
            goal = rng.integers(-5, 6, size=(1, len(group)))
            found = dual_value(
                part, part.cut(bounds), {node: goal}, np.zeros(1, dtype=np.int64), slopes
            ).value
            whole = {n: np.zeros((1, *shape), dtype=np.int64) for n, shape in shapes.items()}
            for n, entries in part.named(sparse(part, slopes, 0)):
                for *place, value in entries:
                    whole[n][0, *place] = value
            far = np.zeros((1, program.sizes[node]), dtype=np.int64)
            far[0, group] = goal
            assert (
                found
                == dual_value(
                    program, bounds, {node: far}, np.zeros(1, dtype=np.int64), whole
                ).value
            )


def test_parts_keep_only_what_varies_and_is_seen() -> None:
    program = Program(random_planes(np.random.default_rng(0)))
    node = 4
    groups = by_position((4, 3, 3), np.arange(36))
    assert sorted(np.concatenate(groups).tolist()) == list(range(36)) and len(groups) == 9
    low, high = np.ones(42, dtype=np.int64), np.full(42, 3, dtype=np.int64)
    everywhere = program.root(low, high)
    below = program.root(low, np.where(np.arange(42) < 21, 1, high))
    for group in groups:
        whole, cut = (
            SubProgram.seen(program, everywhere, node, group),
            SubProgram.seen(program, below, node, group),
        )
        assert whole is not None and cut is not None
        assert len(whole[node]) == len(cut[node]) == 4
        assert len(whole[2]) <= 2 * 16 and 0 < len(whole[0]) < 42
        assert (cut.get(0, np.array([21])) >= 21).all()
        assert set(cut.get(2, group[:0])) <= set(whole.get(2, group[:0]))


@pytest.mark.parametrize("make", [random_chain, random_branched])
@pytest.mark.parametrize("seed", range(15))
def test_decisions_with_argument_bounds_are_right_and_their_proofs_accepted(
    make, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decide_module, "_QUICK_ROUNDS", 0
    )  # bounds on every accumulator, however easy the query
    rng = np.random.default_rng(7300 + seed)
    query = random_query(rng, make(rng))
    found = decide_query(query, Budget.of_cpu_seconds(60.0), want_certificate=True)
    assert (found.status is Status.SAT) == is_satisfiable(query)
    if found.status is Status.UNSAT:
        assert found.proof is not None
        certificate = certificate_form(query, found.proof, found.roots)
        finding = check_integer_proof(
            network_form(query.network), property_form(query), certificate
        )
        assert finding.accepted, finding


@pytest.mark.parametrize("limit", [0, 1 << 23])
def test_argument_bounds_hold_and_gain_in_parts_as_in_the_whole(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitcrown.quant.bounds.subprogram._MOST_ENTRIES", limit)
    gained = 0
    for seed in range(6):
        rng = np.random.default_rng(7500 + seed)
        network = random_planes(rng, exact=seed % 2 == 0)
        program = Program(network)
        centre = rng.integers(1, 5, size=42)
        low, high = centre - (rng.random(42) < 0.25), centre + (rng.random(42) < 0.25)
        bounds = program.root(low, high)
        gained += argument_bounds(program, bounds, ProofTree(False), Budget.of_cpu_seconds(60.0))
        points = rng.integers(low, high + 1, size=(400, 42))
        for value, lower, upper in zip(
            network.values(points), bounds.low, bounds.high, strict=True
        ):
            assert (lower <= value).all() and (value <= upper).all()
    assert gained > 0
