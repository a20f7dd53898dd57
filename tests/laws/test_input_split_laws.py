"""Laws of the input split: rules differ in the tree that they grow, never in what is true.

Verdicts are compared between rules, with the search that lacks one of them, with enumeration on a
grid, and with a clock that runs away. Small networks are searched as wide ones are, with quick or
with deep bounds of single boxes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bitcrown.bounds import intermediate
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.search.inputs import bounds, parts
from bitcrown.search.inputs.boxes import GroupedRows, distinct_boxes
from bitcrown.search.inputs.rules import SPLIT_RULES, SplitRule
from bitcrown.search.inputs.search import InputOutcome, InputSplit
from bitcrown.search.inputs.wide import WideBoxes, known_by_signs, signs_known
from bitcrown.search.objective import Objective
from tests.random_networks import conv_graph, dense_graph

MEMORY = 1 << 30
NAMES = [rule.name for rule in SPLIT_RULES]


def objective(graph: Graph, width: float, limits: Sequence[float]) -> Objective:
    """Violated where ``y_0 <= limits[0]``, or where ``y_1 <= limits[1]``, and so on."""
    n, m = graph.n_inputs, graph.n_outputs
    rows = np.zeros((len(limits), 1, m))
    rows[np.arange(len(limits)), 0, np.arange(len(limits))] = 1.0
    return Objective(
        rows,
        None,
        np.array(limits)[:, None],
        np.full((1, n), -width),
        np.full((1, n), width),
        np.zeros(len(limits), dtype=np.int64),
    )


def outcome(
    graph: Graph,
    question: Objective,
    rules: Sequence[SplitRule] = SPLIT_RULES,
    seconds: float = 60.0,
) -> InputOutcome:
    """The search with witnesses replayed by the network itself."""
    network = Network(graph, torch.float64)

    def confirm(x: np.ndarray) -> object | None:
        y = network(torch.from_numpy(x)[None])[0].numpy()
        reached = (question.C[:, 0] @ y <= question.rhs[:, 0]).any()
        inside = (x >= question.lower[0]).all() and (x <= question.upper[0]).all()
        return x if reached and inside else None

    cases = np.arange(question.n_cases)
    budget = Budget.of_cpu_seconds(seconds, MEMORY)
    split = InputSplit(network, question, cases, confirm, budget, rules)
    return split.run(seconds)


def least_on_grid(graph: Graph, width: float, steps: int) -> np.ndarray:
    axes = [np.linspace(-width, width, steps)] * graph.n_inputs
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, graph.n_inputs)
    values: np.ndarray = Network(graph, torch.float64)(torch.from_numpy(points)).numpy().min(0)
    return values


def questions(seed: int) -> list[tuple[Graph, Objective, bool]]:
    """Small networks with limits above and below the least value that a fine grid finds."""
    result = []
    for op in ("Relu", "Tanh"):
        graph = dense_graph(seed, [2, 10, 10, 2], op)
        least = least_on_grid(graph, 1.0, 201)
        result.append((graph, objective(graph, 1.0, least - 0.05), False))
        result.append((graph, objective(graph, 1.0, [least[0] - 1.0, least[1] + 0.01]), True))
    return result


def is_right(found: InputOutcome, is_violated: bool) -> bool:
    return (found.witness is not None) == is_violated and found.proved == (not is_violated)


@pytest.mark.parametrize("rule", SPLIT_RULES, ids=NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_every_rule_alone_decides(rule: SplitRule, seed: int) -> None:
    for graph, question, is_violated in questions(seed):
        assert is_right(outcome(graph, question, [rule]), is_violated)


@pytest.mark.parametrize("missing", NAMES)
def test_no_rule_is_needed(missing: str) -> None:
    others = [rule for rule in SPLIT_RULES if rule.name != missing]
    for graph, question, is_violated in questions(7):
        assert is_right(outcome(graph, question, others), is_violated)


@pytest.mark.parametrize("seed", range(3))
def test_races_change_no_verdict(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny trials and allowances: parts race, are dealt out and race again all the time."""
    monkeypatch.setattr(parts, "FIRST", 1)
    monkeypatch.setattr(parts, "RUNGS", (2, 4, 8))
    monkeypatch.setattr(parts, "ALLOWANCE", 4)
    monkeypatch.setattr(parts, "STANDSTILL", 1.0)
    monkeypatch.setattr(parts, "BRANCHES", 2)
    for graph, question, is_violated in questions(seed):
        assert is_right(outcome(graph, question), is_violated)


def test_trees_that_race_share_equal_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that agree everywhere race at once: each box is bounded once, and counted for both."""
    monkeypatch.setattr(parts, "FIRST", 1)
    graph, question, _ = questions(3)[0]
    influence = SPLIT_RULES[1]
    twins = [influence] + [SplitRule(f"twin {k}", influence.score) for k in range(3)]
    alone, together = outcome(graph, question, twins[:1]), outcome(graph, question, twins)
    assert alone.proved and together.proved
    assert together.domains < 2 * alone.domains


def test_equal_boxes_are_found() -> None:
    graph, question, _ = questions(3)[0]
    grouped = GroupedRows(question, np.arange(2), Network(graph, torch.float64))
    empty = torch.zeros(1, 0, dtype=torch.float64)
    boxes = grouped.roots(torch.zeros(6, dtype=torch.int64), (empty, empty))
    boxes.lower, boxes.open = boxes.lower.clone(), boxes.open.clone()
    boxes.lower[[1, 4], 0] = -0.5
    boxes.open[5, 0] = False
    first, kind = distinct_boxes(boxes)
    assert sorted(first.tolist()) == [0, 1, 5]
    assert first[kind].tolist() == [0, 1, 0, 0, 1, 5]


def test_a_slow_clock_grows_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of the clock is a day later; what counts work does not notice."""
    graph, question, _ = questions(1)[0]
    expected = outcome(graph, question)
    network, day = Network(graph, torch.float64), [0.0]

    def monotonic() -> float:
        day[0] += 86400.0
        return day[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    split = InputSplit(
        network, question, np.arange(2), lambda x: None, Budget(float("inf"), MEMORY)
    )
    for _ in range(1000):
        found = split.run(1.0)
        if found.proved:
            break
    assert found.proved and (found.domains, found.rounds) == (expected.domains, expected.rounds)


def test_a_deadline_that_has_passed_proves_nothing() -> None:
    graph, question, _ = questions(2)[0]
    found = outcome(graph, question, seconds=0.0)
    assert not found.proved and found.witness is None


def test_conjunctions_and_several_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty boxes, more than one part takes, with both rows of a case to hold together."""
    monkeypatch.setattr(parts, "FIRST", 4)
    graph = dense_graph(3, [2, 10, 2])
    edges = np.linspace(-1.0, 1.0, 41)
    lower = np.stack([edges[:-1], np.full(40, -1.0)], axis=1)
    upper = np.stack([edges[1:], np.full(40, 1.0)], axis=1)
    rows = np.broadcast_to(np.eye(2)[None], (40, 2, 2)).copy()
    points = np.random.default_rng(0).uniform(-1, 1, (20000, 2))
    y = Network(graph, torch.float64)(torch.from_numpy(points)).numpy()
    least = float(y.max(axis=1).min())
    for shift, is_violated in ((-0.1, False), (0.05, True)):
        rhs = np.full((40, 2), least + shift)
        question = Objective(rows, None, rhs, lower, upper, np.arange(40))
        network = Network(graph, torch.float64)

        def confirm(x: np.ndarray, limit: float = least + shift, net: Network = network) -> object:
            return x if (net(torch.from_numpy(x)[None])[0] <= limit).all() else None

        budget = Budget.of_cpu_seconds(60.0, MEMORY)
        split = InputSplit(network, question, np.arange(40), confirm, budget)
        assert is_right(split.run(60.0), is_violated)


@pytest.fixture(params=[False, True], ids=["quick", "deep"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every network counts as wide; after the first trial all boxes are bounded in one way."""
    monkeypatch.setattr(bounds, "PAIRS_BELOW", 0)
    monkeypatch.setattr(intermediate, "_WIDE", 1)

    def decide(self: WideBoxes, quick: float, deep: float) -> None:
        self.is_deep, self.next_trial = request.param, 1e9

    monkeypatch.setattr(WideBoxes, "_decide", decide)
    return bool(request.param)


@pytest.mark.parametrize("seed", range(3))
def test_wide_networks_are_decided_either_way(wide: bool, seed: int) -> None:
    for graph, question, is_violated in questions(seed):
        assert is_right(outcome(graph, question), is_violated)


@pytest.mark.parametrize("seed", range(4))
def test_samples_lie_inside_bounds_of_halved_boxes(wide: bool, seed: int) -> None:
    """Down a path of halves, each of which knows the signs in the one before."""
    graph = dense_graph(seed, [2, 16, 16, 2]) if seed % 2 else conv_graph(seed)
    network = Network(graph, torch.float64)
    question = objective(graph, 1.0, [1e9])  # violated everywhere
    split = InputSplit(
        network, question, np.arange(1), lambda x: None, Budget.of_cpu_seconds(60.0, MEMORY)
    )
    bounder = split.bounder
    found = split.rows.roots(torch.zeros(1, dtype=torch.int64), bounder.root())
    generator = torch.Generator().manual_seed(seed)
    decided = 0
    for depth in range(12):
        stage, found = bounder.sharp(found)
        share = torch.rand(256, graph.n_inputs, generator=generator, dtype=torch.float64)
        share[::2] = share[::2].round()  # corners
        x = found.lower + share * (found.upper - found.lower)
        for name, value in network.activations(x).items():
            low, up = stage.bounds[name]
            allowance = 1e-13 * (1 + value.abs())
            assert (value >= low - allowance).all() and (value <= up + allowance).all(), name
        assert (found.known_lower == 0).sum() >= decided
        decided = int((found.known_lower == 0).sum())
        axis = (depth * 5 + seed) % graph.n_inputs
        middle = (found.lower[0, axis] + found.upper[0, axis]) / 2
        end = found.upper if depth % 2 else found.lower
        end[0, axis] = middle
    assert bounder.wide.is_deep == wide


def test_what_quick_bounds_close_has_no_others() -> None:
    """Where magnitudes at the root are infinite those of a round are taken, and it had no box."""
    graph = dense_graph(0, [2, 8, 2])
    split = InputSplit(
        Network(graph, torch.float64),
        objective(graph, 0.1, [-1e9]),
        np.arange(1),
        lambda x: None,
        Budget.of_cpu_seconds(60.0, MEMORY),
    )
    roots = split.rows.roots(torch.zeros(1, dtype=torch.int64), split.bounder.root())
    split.bounder.root_scales, split.bounder.losses, split.rounds = None, {}, 1
    left, rows, witness = split._examine(roots)
    assert len(left) == 0 and len(rows.best) == 0 and witness is None


def test_only_finite_bounds_say_a_sign() -> None:
    inf, nan = float("inf"), float("nan")
    low = torch.tensor([[1.0, 0.0, -1.0, -3.0, inf, nan, -inf, 5e-324]], dtype=torch.float64)
    up = torch.tensor([[2.0, 0.0, 1.0, -1.0, inf, nan, -inf, inf]], dtype=torch.float64)
    found = known_by_signs(*signs_known(low, up), torch.float64)
    assert found[0].tolist() == [[0.0, 0.0, -inf, -inf, -inf, -inf, -inf, 0.0]]
    assert found[1].tolist() == [[inf, 0.0, inf, 0.0, inf, inf, inf, inf]]


@pytest.mark.parametrize("quick", [0.0, 5e-324, 1.0, np.inf, np.nan])
@pytest.mark.parametrize("deep", [0.0, 5e-324, 1.0, np.inf, np.nan])
def test_products_of_any_size_are_compared(quick: float, deep: float) -> None:
    """Of distances near the smallest number both products were 0, and one was divided by the
    other."""
    network = Network(dense_graph(1, [2, 4, 2], "Relu"), torch.float64)
    boxes = WideBoxes(network, MEMORY, Budget.of_cpu_seconds(60.0, MEMORY), torch.ones(2) > 0)
    boxes.boxes = 3
    boxes._decide(quick, deep)
    assert boxes.is_deep == (deep < quick)
    assert 12.0 <= boxes.next_trial <= 12e6


def test_the_way_with_the_smaller_product_has_the_boxes() -> None:
    """Bounds are stood in for by numbers: seconds do not matter where distances are 0 or equal."""
    graph = dense_graph(1, [2, 4, 2], "Relu")
    network = Network(graph, torch.float64)
    box = -torch.ones(1, 2).double(), torch.ones(1, 2).double()
    distances: list[float] = []

    def distance(enclosure: Enclosure) -> float:
        return distances.pop(0)

    def fresh() -> WideBoxes:
        budget = Budget.of_cpu_seconds(60.0, MEMORY)
        return WideBoxes(network, MEMORY, budget, torch.ones(2, dtype=torch.bool))

    closed = fresh()
    distances[:] = [0.0]  # nothing to compare
    closed.run(box, {}, distance)
    assert not closed.is_deep and closed.next_trial == 1.0
    same = fresh()
    distances[:] = [1.0, 1.0]  # deep bounds are dearer and no better
    same.run(box, {}, distance)
    assert not same.is_deep and same.next_trial >= 4.0
    better = fresh()
    distances[:] = [1.0, 0.0]
    better.run(box, {}, distance)
    assert better.is_deep and better.next_trial > 1000.0
    nothing = fresh()
    distances[:] = [float("inf"), float("inf")]
    nothing.run(box, {}, distance)
    assert not nothing.is_deep and nothing.next_trial == 4.0
