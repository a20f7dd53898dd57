"""Laws of the search: planted violations are never called unsat (h), unions (c), permutations (g),
honest witnesses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import bitcrown.search.decision as decision
import bitcrown.search.input_decision as input_decision
from bitcrown import Settings, Status, load, verify
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.verdict import Verdict
from tests.audit import audit
from tests.random_networks import box_property, dense_graph, save_onnx

Ask = Callable[[Graph, np.ndarray, np.ndarray, str], Verdict]
SHAPES = [[2, 8, 8, 2], [5, 12, 12, 2], [3, 10, 2]]


@pytest.fixture(params=["input split", "both", "neuron split", "neuron split, reduced network"])
def ask(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Decide a property of a network with one of the searches, or with both in turns."""
    if request.param == "both":
        monkeypatch.setattr(input_decision, "_ALONE", 0.0)
        monkeypatch.setattr(input_decision, "_FIRST_TURN", 0.0)
        monkeypatch.setattr(input_decision, "_PREPARATION", 0.0)
    elif request.param != "input split":
        monkeypatch.setattr(decision, "FEW_INPUTS", 0)
    if request.param.endswith(
        "reduced network"
    ):  # as in large networks: float32 guide, no clipping
        monkeypatch.setattr("bitcrown.search.neurons.guide.SMALL_NETWORK", 0)
        monkeypatch.setattr("bitcrown.search.neurons.root.CLIP_INPUTS", 0)
        monkeypatch.setattr(
            DomainBounder, "seconds", lambda bounder, domains: float(bounder.guide.reduced is None)
        )

    def decide(graph: Graph, lower: np.ndarray, upper: np.ndarray, formula: str) -> Verdict:
        save_onnx(graph, tmp_path / "net.onnx")
        text = box_property(lower, upper, graph.n_outputs, formula)
        (tmp_path / "p.vnnlib").write_text(text)
        problem = load(tmp_path / "net.onnx", tmp_path / "p.vnnlib")
        verdict = verify(problem, Settings(), cpu_seconds=60.0)
        if verdict.status is Status.UNSAT:
            replay = RuntimeReplay(problem.query, problem.networks)
            assert audit(problem, Confirmer(problem, replay), 2000, 7) is None
        return verdict

    return decide


def instance(
    seed: int, sizes: list[int], width: float
) -> tuple[Graph, np.ndarray, np.ndarray, np.ndarray]:
    """A network, a float32 box and the values of ``y_0 - y_1`` at many points of it."""
    graph = dense_graph(seed, sizes)
    random = np.random.default_rng(seed)
    centre = random.normal(size=sizes[0])
    lower, upper = ((centre + s * width).astype(np.float32).astype(np.float64) for s in (-1, 1))
    share = random.random((4000, sizes[0]))
    points = lower + share * (upper - lower)
    y = Network(graph, torch.float64)(torch.from_numpy(points)).numpy()
    return graph, lower, upper, y


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("width", [0.05, 0.5])
def test_planted_violations_are_found_or_left_open(
    ask: Ask, sizes: list[int], width: float
) -> None:
    for seed in range(3):
        graph, lower, upper, y = instance(seed, sizes, width)
        rare = float(np.quantile(y[:, 0], 0.002))
        verdict = ask(graph, lower, upper, f"(<= Y_0 {rare!r})")
        assert verdict.status is Status.SAT, verdict
        assert verdict.witness is not None
        x, out = verdict.witness.inputs["X"], verdict.witness.outputs["Y"]
        assert (x >= lower).all() and (x <= upper).all() and out[0] <= rare


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_the_very_minimum_is_never_excluded(ask: Ask, sizes: list[int]) -> None:
    """The least sampled value lies in the violation set by construction: unsat would be wrong."""
    for seed in range(4):
        graph, lower, upper, y = instance(seed, sizes, 0.3)
        least = float(y[:, 0].min())
        verdict = ask(graph, lower, upper, f"(<= Y_0 {least!r})")
        assert verdict.status is not Status.UNSAT


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_what_is_far_below_the_minimum_is_excluded(ask: Ask, sizes: list[int]) -> None:
    for seed in range(3):
        graph, lower, upper, y = instance(seed, sizes, 0.3)
        margin = 0.5 * float(y[:, 0].max() - y[:, 0].min()) + 0.05
        verdict = ask(graph, lower, upper, f"(<= Y_0 {float(y[:, 0].min()) - margin!r})")
        assert verdict.status is Status.UNSAT and verdict.witness is None


def test_verdict_of_a_union_is_the_union_of_verdicts(ask: Ask) -> None:
    for seed in range(3):
        graph, lower, upper, y = instance(seed, [3, 10, 10, 2], 0.3)
        below = f"(<= Y_0 {float(y[:, 0].min()) - 1.0!r})"
        planted = f"(<= Y_1 {float(np.quantile(y[:, 1], 0.01))!r})"
        absent = f"(>= Y_1 {float(y[:, 1].max()) + 1.0!r})"
        assert ask(graph, lower, upper, below).status is Status.UNSAT
        assert ask(graph, lower, upper, f"(or {below} {absent})").status is Status.UNSAT
        assert ask(graph, lower, upper, f"(or {below} {planted})").status is Status.SAT
        assert ask(graph, lower, upper, f"(and {below} {planted})").status is Status.UNSAT


def permuted(graph: Graph, order: np.ndarray) -> Graph:
    """The same function with the neurons of the first hidden layer in another order."""
    first, second = graph.nodes["z1"], graph.nodes["z2"]
    changed = dict(graph.nodes)
    params = {"weight": first.params["weight"][order], "bias": first.params["bias"][order]}
    changed["z1"] = Node("z1", "Linear", first.inputs, first.shape, {}, params)
    after = {"weight": second.params["weight"][:, order], "bias": second.params["bias"]}
    changed["z2"] = Node("z2", "Linear", second.inputs, second.shape, {}, after)
    return Graph(changed, graph.inputs, graph.outputs, graph.input_dtypes)


def test_the_order_of_neurons_changes_no_verdict(ask: Ask) -> None:
    for seed in range(3):
        graph, lower, upper, y = instance(seed, [3, 10, 10, 2], 0.3)
        other = permuted(graph, np.random.default_rng(seed).permutation(10))
        for threshold in (float(np.quantile(y[:, 0], 0.01)), float(y[:, 0].min()) - 0.5):
            formula = f"(<= Y_0 {threshold!r})"
            assert (
                ask(graph, lower, upper, formula).status is ask(other, lower, upper, formula).status
            )


@pytest.mark.parametrize("sizes", [[3, 10, 10, 2], [3, 10, 2]], ids=str)
def test_conjunctions_need_one_point_that_satisfies_all(ask: Ask, sizes: list[int]) -> None:
    """Each half is reachable, both together are not; one hidden layer takes the way over linear
    programs."""
    graph, lower, upper, y = instance(5, sizes, 0.3)
    middle = float(np.median(y[:, 0]))
    both = f"(and (>= Y_0 {middle!r}) (<= Y_0 {middle - 1e-3!r}))"
    assert ask(graph, lower, upper, both).status is Status.UNSAT
    near = f"(and (>= Y_0 {middle - 0.05!r}) (<= Y_0 {middle + 0.05!r}))"
    assert ask(graph, lower, upper, near).status is Status.SAT


def test_a_conjunction_that_every_row_alone_allows_is_excluded(ask: Ask) -> None:
    """The excess of ``y_0 + y_1`` over its maximum is shared between two rows, each reachable by
    itself."""
    for seed in range(3):
        graph, lower, upper, y = instance(seed, [3, 10, 2], 0.4)
        best = y[(y[:, 0] + y[:, 1]).argmax()]
        formula = f"(and (>= Y_0 {float(best[0]) + 0.05!r}) (>= Y_1 {float(best[1]) + 0.05!r}))"
        excluded = not ((y[:, 0] >= best[0] + 0.05) & (y[:, 1] >= best[1] + 0.05)).any()
        verdict = ask(graph, lower, upper, formula)
        assert verdict.status is (Status.UNSAT if excluded else Status.SAT)
