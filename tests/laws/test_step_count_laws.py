"""Laws of rows that count steps: what is claimed of steps holds at every sample, what is added up
is never above the row, and groups prove what no step proves alone."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.step_groups import StepGroups
from bitcrown.bounds.step_sums import StepClaim, StepRow, step_of, step_rows
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons import step_trees
from bitcrown.search.neurons.root import Root, root_of
from bitcrown.search.neurons.step_counts import StepCount, counted_root

torch.set_num_threads(1)
SIDES = (5, 6)
KINDS = ("labels", "signs", "dense")


def counting_graph(seed: int, kind: str) -> Graph:
    """Signs of an image (or of a dense layer), counted as they are or where they equal labels."""
    random = np.random.default_rng(seed)
    size = SIDES[0] * SIDES[1]

    def conv(name: str, source: str, inputs: int, outputs: int, kernel: int) -> Node:
        attrs = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "pads": [kernel // 2] * 2}
        weight = random.normal(size=(outputs, inputs, kernel, kernel)) / kernel
        params = {"weight": weight, "bias": random.normal(size=outputs) * 0.3}
        return Node(name, "Conv", (source,), (1, outputs, *SIDES), attrs, params)

    if kind == "dense":
        front = [
            Node("x", "Input", (), (8,)),
            Node("c", "Linear", ("x",), (12,), {}, {"weight": random.normal(size=(12, 8))}),
            Node("r", "Relu", ("c",), (12,)),
            Node("d", "Linear", ("r",), (size,), {}, {"weight": random.normal(size=(size, 12))}),
            Node("z", "Reshape", ("d",), SIDES, {"shape": SIDES}),
        ]
    else:
        wide = (1, 3, *SIDES)
        front = [
            Node("x", "Input", (), (1, 2, *SIDES)),
            conv("c", "x", 2, 3, 3),
            Node("r", "Relu", ("c",), wide),
            conv("d", "r", 3, 3, 3),
            Node("t", "Relu", ("d",), wide),
            conv("e", "t", 3, 1, 1),
            Node("z", "Reshape", ("e",), SIDES, {"shape": SIDES}),
        ]
    label = {"value": random.integers(0, 2, SIDES).astype(float)}
    minus, plus = {"scale": np.array(-1.0)}, {"scale": np.array(-1.0), "shift": np.array(1.0)}
    behind = [
        Node("h", "Relu", ("s",), SIDES),
        Node("m", "Constant", (), SIDES, {}, label),
        Node("off", "Sub", ("h", "m"), SIDES),
        Node("apart", "Sign", ("off",), SIDES),
        Node("above", "Relu", ("apart",), SIDES),
        Node("turned", "Scale", ("apart",), SIDES, {}, minus),
        Node("below", "Relu", ("turned",), SIDES),
        Node("far", "Add", ("above", "below"), SIDES),
        Node("same", "Scale", ("far",), SIDES, {}, plus),
    ]
    last = "same" if kind == "labels" else "s"
    total = Node("y", "ReduceSum", (last,), (), {"axes": (0, 1), "keepdims": False, "count": size})
    nodes = [*front, Node("s", "Sign", ("z",), SIDES), *(behind if kind == "labels" else ()), total]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


class Setting:
    """The least of a count, and of minus it, on a box; ``margins [2, M]`` are
    those of samples, half a step above the limit of the rows at least."""

    def __init__(self, seed: int, kind: str, width: float = 0.3) -> None:
        random = np.random.default_rng(seed + 100)
        self.network = Network(counting_graph(seed, kind), torch.float64)
        centre = torch.from_numpy(random.normal(size=(1, self.network.graph.n_inputs)))
        self.box = centre - width, centre + width
        C = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
        self.enclosure = LayerBounder(self.network, 1 << 24).run(*self.box)
        share = random.random((3000, centre.shape[1]))
        share[1500:] = share[1500:].round()
        self.points = self.box[0] + torch.from_numpy(share) * 2 * width
        self.values = self.network.activations(self.points)
        both = torch.cat([self.values["y"], -self.values["y"]]).reshape(2, -1)
        self.rows = Rows(C, None, both.amin(1)[None] - 0.5, *self.box)
        self.margins = both - self.rows.rhs.T
        self.counted = step_rows(self.network, self.enclosure, C[0], self.rows.rhs[0])

    def root(self) -> Root:
        return root_of(self.network, self.network, self.rows, self.enclosure, 1 << 26)

    def right(self, row: StepRow) -> torch.Tensor:
        return (self.values["z"].flatten(1) * row.direction > 0).double()

    def count_of(self, row: StepRow) -> StepCount:
        budget = Budget.unlimited()
        bounder = LayerBounder(self.network, 1 << 24)
        ascent = LayerAscent(self.network, 8, budget)
        return StepCount(StepGroups(bounder, self.enclosure, row, self.box, ascent), row)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_row_is_its_base_and_the_steps_that_are_right(kind: str, seed: int) -> None:
    setting = Setting(seed, kind)
    assert step_of(setting.network.graph) == ("h" if kind == "labels" else "s", "z")
    for number, row in enumerate(setting.counted):
        gains = torch.tensor([float(gain) for gain in row.gains])
        assert gains.sum() > 0  # something is open
        sums = row.base + setting.right(row) @ gains.double()
        values = setting.margins[number]
        assert (sums <= values + 1e-9).all()
        # and nothing is lost behind the steps: only a step of exactly 0 would be counted as less
        assert (sums >= values - 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(1, 4))
def test_what_is_claimed_holds_at_every_sample(kind: str, seed: int) -> None:
    setting = Setting(seed, kind)
    for number, row in enumerate(setting.counted):
        count = setting.count_of(row)
        count.run()
        right = setting.right(row)
        for claim in count.claims + count.cliques():
            assert right[:, list(claim.members)].sum(1).min() >= claim.least
        assert row.base <= count.value <= setting.margins[number].min()


def test_a_tree_with_open_leaves_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_trees, "_LEVELS", 1)
    proved = wrong = 0
    for seed in range(1, 4):
        setting = Setting(seed, "labels")
        for row in setting.counted:
            count, right = setting.count_of(row), setting.right(row)
            found = count.trees.proved([(member,) for member in count.members])
            proved += len(found)
            wrong += int((right[:, count.members].amin(0) < 1).sum())
            for group in found:
                assert right[:, list(group)].sum(1).min() >= 1
    assert proved  # some
    assert wrong  # and some may not be proved


def test_groups_prove_what_no_step_proves_alone() -> None:
    """Pairs and larger groups are found, rows rise by them, and what rises is the root's bound."""
    largest, rises = 0, 0
    for seed, kind in ((1, "labels"), (2, "dense"), (4, "dense")):
        setting = Setting(seed, kind, 0.12 if kind == "dense" else 0.3)
        root = setting.root()
        counted = counted_root(root, setting.network, Budget.unlimited())
        assert (counted.row_value >= root.row_value).all()
        assert (counted.row_value[0] <= setting.margins.amin(1)).all()
        rises += int((counted.row_value > root.row_value + 0.5).sum())
        for row in setting.counted:
            count = setting.count_of(row)
            count.run()
            largest = max([largest, *(len(claim.members) for claim in count.claims)])
    assert largest >= 2
    assert rises >= 2


def test_sums_of_claims_are_at_most_the_least_of_all_that_they_allow() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        size = int(random.integers(2, 6))
        gains = [Fraction(float(gain)) for gain in random.random(size) * 3]
        row = StepRow("z", -1.5, gains, torch.ones(size))
        claims = []
        for _ in range(int(random.integers(1, 6))):
            members = random.permutation(size)[: int(random.integers(1, size + 1))]
            least = int(random.integers(1, len(members) + 1))
            claims.append(StepClaim(tuple(sorted(members.tolist())), least))
        allowed = [
            sum((g for g, is_right in zip(gains, right, strict=True) if is_right), Fraction(0))
            for right in product((False, True), repeat=size)
            if all(sum(right[k] for k in claim.members) >= claim.least for claim in claims)
        ]
        weights = (random.random(len(claims)) * 3).tolist()
        assert Fraction(row.least(claims, weights)) <= min(allowed) + Fraction(-1.5)


def test_weights_that_are_no_numbers_say_nothing() -> None:
    row = StepRow("z", -2.0, [Fraction(1)], torch.ones(1))
    for weight in (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300):
        assert row.least([StepClaim((0,))], [weight]) == -2.0
    unknown = StepRow("z", -math.inf, [Fraction(1)], torch.ones(1))
    assert unknown.least([StepClaim((0,))], [1.0]) == -math.inf
    assert not unknown.may_suffice()
    assert row.least([StepClaim((0,))], [1.0]) == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("climbs", [False, True])
def test_groups_are_bounded_together_as_each_alone(kind: str, climbs: bool) -> None:
    setting = Setting(2, kind)
    for row in setting.counted:
        count = setting.count_of(row)
        pairs = [pair for pair in zip(count.members, count.members[1:], strict=False)][::3]
        every = [(member,) for member in count.members[::4]] + pairs
        together = count.groups.least(every, climbs)
        alone = torch.cat([count.groups.least([group], climbs) for group in every])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6 if climbs else 1e-9)
