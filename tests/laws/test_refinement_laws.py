"""Laws of refined layers: their bounds hold on the whole box, trees only tighten, what is left of a
pass promises what it says, and a search that begins anew under them finds the same answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitcrown.bounds import claims
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons import refinement
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.race import Race
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.refinement import Refinement
from bitcrown.search.neurons.rules import TACTICS
from bitcrown.search.neurons.small_trees import SmallTrees
from bitcrown.search.neurons.tightening import CASE_BOUNDS, REFINEMENT, TightenedRace
from bitcrown.search.objective import Objective
from tests.laws.test_violation_laws import GRAPHS, bounder_for, rivals
from tests.random_networks import dense_graph


def unclipped(
    graph: Graph, objective: Objective, recorder: Recorder | None = None
) -> DomainBounder:
    bounder = bounder_for(graph, objective, recorder)
    return replace(bounder, root=replace(bounder.root, clipper=None))


def sampled_neurons(bounder: DomainBounder, seed: int) -> torch.Tensor:
    """``[M, N]``: the neurons at random points and corners of the box."""
    rows, random = bounder.root.rows, np.random.default_rng(seed)
    share = torch.from_numpy(random.random((3000, rows.x_lower.shape[1])))
    share = torch.cat([share, share.round()])
    points = rows.x_lower + share * (rows.x_upper - rows.x_lower)
    values = bounder.root.proof.activations(points)
    return torch.cat([values[name].flatten(1) for name in bounder.root.layout.neuron_at], dim=1)


@pytest.mark.parametrize("kind", GRAPHS)
def test_trees_bound_their_neurons_and_more_rounds_tighten(kind: str) -> None:
    tighter = 0
    for seed in range(2):
        graph = GRAPHS[kind](seed)
        objective, _ = rivals(graph, seed, 0.6)
        bounder = unclipped(graph, objective)
        layout, bounds = bounder.root.layout, bounder.root.enclosure.bounds
        z = sampled_neurons(bounder, seed)
        low, up = (end[0] for end in layout.flat_bounds(bounds))
        name, where = list(layout.neuron_at.items())[-1]
        neurons = claims.is_unstable(low[where], up[where]).nonzero().flatten()
        if not len(neurons):
            continue
        seen = z[:, where][:, neurons]
        last = None
        for rounds in (0, 2, 5):
            trees = SmallTrees(bounder, name, neurons)
            trees.grow(rounds)
            found = trees.proved()
            assert bool((found[0].clamp(max=0.0) <= seen.clamp(max=0.0)).all())
            # a quantity that is positive everywhere is bounded by zero: its size does not matter
            is_decided = (found[0] >= 0) | (found[1] <= 0)
            assert bool(((seen <= found[1]) | is_decided).all())
            assert bool(((seen >= found[0]) | is_decided).all())
            assert bool((seen[:, found[0] >= 0] > 0).all() and (seen[:, found[1] <= 0] < 0).all())
            width = float((found[1] - found[0]).sum())
            assert last is None or width <= 1.01 * last
            tighter += last is not None and width < 0.99 * last
            last = width
    assert tighter


@pytest.mark.parametrize("kind", GRAPHS)
def test_refined_layers_hold_on_the_whole_box(kind: str) -> None:
    gained = 0.0
    for seed in range(3):
        graph = GRAPHS[kind](seed)
        objective, least = rivals(graph, seed, 0.6)
        bounder = unclipped(graph, objective)
        start = bounder.root.case_value.numpy()
        limit = start + 0.7 * (least - start)
        bounder = unclipped(graph, replace(objective, rhs=limit[:, None]))
        domains = bounder.root_domains(bounder.root.open_cases(), 1)
        if not len(domains):
            continue
        way = Refinement(bounder, domains)
        gained += way.run(0.5, 0.0)
        new = way.bounder.root
        low, up = (end[0] for end in new.layout.flat_bounds(new.enclosure.bounds))
        z = sampled_neurons(bounder, seed)
        assert bool((z >= low).all() and (z <= up).all())
        old = bounder.root.layout.flat_bounds(bounder.root.enclosure.bounds)
        assert bool((low >= old[0][0]).all() and (up <= old[1][0]).all())
        # no case that some sample violates has gone
        refuted = set(domains.case.tolist()) - set(way.domains.case.tolist())
        assert all(least[case] > limit[case] for case in refuted)
    assert gained > 0


def test_a_race_that_begins_anew_finds_what_it_would_have_found() -> None:
    restarts = proofs = 0
    for seed in range(2):
        graph = GRAPHS["residual"](seed)
        objective, least = rivals(graph, seed, 0.8)
        start = unclipped(graph, objective).root.case_value.numpy()
        for share in (0.9, 1.05):
            limit = start + share * (least - start) + (share > 1) * 1e-3
            for recorded in (False, True):
                recorder = Recorder() if recorded else None
                bounder = unclipped(graph, replace(objective, rhs=limit[:, None]), recorder)
                domains = bounder.root_domains(bounder.root.open_cases(), 1)
                race = TightenedRace(bounder, domains, 0.0)
                race.case_rate = -1.0  # refinement alone
                race.rest = 0.0
                outcome = race.run()
                assert outcome.proved == bool((least > limit).all())
                assert all(least[case] > limit[case] for case in race.excluded)
                restarts += race.counters["restarts"]
                if outcome.proved and recorder is not None:
                    proofs += 1
                    closed = {int(case) for batch in recorder.batches for case in batch.case}
                    assert closed == set(bounder.root.open_cases().tolist())
    assert restarts and proofs


def test_a_case_that_opens_again_is_not_taken_for_refuted() -> None:
    """Its tree was given up for lack of memory; it may have been closed under bounds of its own,
    which says nothing of the whole box, where premises of other cases would take it from."""
    graph = GRAPHS["residual"](0)
    objective, least = rivals(graph, 0, 0.8)
    start = unclipped(graph, objective).root.case_value.numpy()
    limit = start + 1.2 * (least - start)
    bounder = unclipped(graph, replace(objective, rhs=limit[:, None]))
    domains = bounder.root_domains(bounder.root.open_cases(), 1)
    race = TightenedRace(bounder, domains, 0.0)
    again, *others = sorted(race.race.cases)
    assert others
    race.refinement.keep(set(others))
    old = race.race
    race._refine({again, *others}, 1.0, 0.0)
    assert again not in race.excluded and again in race.race.cases and race.race is old


@pytest.mark.parametrize("left_out", [REFINEMENT, CASE_BOUNDS, "upper, product", "every tactic"])
def test_a_rule_left_out_takes_no_part_and_answers_stay(left_out: str) -> None:
    every = tuple(tactic.name for tactic in TACTICS)
    without = every if left_out == "every tactic" else (left_out,)
    for seed, share in ((1, 0.9), (0, 1.05)):
        graph = GRAPHS["residual"](seed)
        objective, least = rivals(graph, seed, 0.8)
        start = unclipped(graph, objective).root.case_value.numpy()
        limit = start + share * (least - start) + (share > 1) * 1e-3
        bounder = unclipped(graph, replace(objective, rhs=limit[:, None]))
        domains = bounder.root_domains(bounder.root.open_cases(), 1)
        race = TightenedRace(bounder, domains, 0.0, without)
        race.rest = 0.0
        names = {search.tactic.name for search in race.race.searches}
        assert names and (left_out not in every or left_out not in names)
        outcome = race.run()
        assert outcome.proved == bool((least > limit).all())
        if left_out == REFINEMENT:
            assert not race.counters["refined_neurons"]
        if left_out == CASE_BOUNDS:
            assert not race.counters["tightened_cases"]


def test_neurons_that_lose_next_to_nothing_have_no_trees() -> None:
    losses = torch.tensor([0.0, 5.0, 0.01, 3.0, 0.0, 2.0, 0.02], dtype=torch.float64)
    assert refinement._worth(losses).tolist() == [1, 3, 5]
    assert refinement._worth(torch.zeros(3)).tolist() == []
    assert len(refinement._worth(torch.ones(40))) == 38


def test_steps_are_as_large_as_their_time_allows() -> None:
    """A layer of costly neurons is refined by few at a time, and what a step costs says so."""
    graph = GRAPHS["residual"](0)
    objective, _ = rivals(graph, 0, 0.8)
    bounder = unclipped(graph, objective)
    way = Refinement(bounder, bounder.root_domains(bounder.root.open_cases(), 1))
    first = way.together
    assert 1 <= first < 128
    for took, seconds, wanted in (
        (0.1, 1.0, 80),
        (0.1, math.inf, 128),
        (4.0, 1.0, 2),
        (100.0, 1.0, 1),
        (0.0, 0.0, 1),
    ):
        way._resize(8, took, seconds)
        assert way.together == wanted
    way._resize(0, 1.0, 1.0)  # an empty layer says nothing
    assert way.together == 1


def tied(seed: int) -> Graph:
    """Two outputs behind a ReLU each: the first is positive, which intervals do not see, and the
    second negative."""
    graph = dense_graph(seed, [3, 10, 10, 2])
    nodes, random = dict(graph.nodes), np.random.default_rng(seed)
    share = random.random((4000, 3)) - 0.5
    reached = Network(graph, torch.float64)(torch.from_numpy(share)).numpy()
    last = nodes["z3"]
    shift = np.array([0.3 - reached[:, 0].min(), -0.3 - reached[:, 1].max()])
    params = {**last.params, "bias": last.params["bias"] + shift}
    nodes["z3"] = replace(last, params=params)
    nodes["y"] = Node("y", "Relu", ("z3",), (1, 2))
    return replace(graph, nodes=nodes, outputs=("y",))


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_a_decision_makes_constant_is_no_end(seed: int) -> None:
    """Where both outputs are cut off they are equal, at any slopes; a search has to go on until
    the decisions that did this contradict each other."""
    graph, one = tied(seed), np.array([[[1.0, -1.0]]])
    lower, box = np.full((1, 3), -0.5), np.zeros(1, dtype=np.int64)
    objective = Objective(one, None, np.zeros((1, 1)), lower, -lower, box)
    bounder = unclipped(graph, objective)
    outcome = Race(bounder, bounder.root_domains(torch.tensor([0]), 1)).run()
    assert outcome is not None and outcome.proved and outcome.stuck == 0
