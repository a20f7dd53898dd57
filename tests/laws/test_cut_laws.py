"""Laws of cuts: a bound with them holds wherever they hold, multipliers of 0 change nothing, a
useful cut is worth something, and the proof covers its own rounding."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.cuts import Cuts
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows, bound_rows
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons.bounder import DomainBounder, bounder_of
from bitcrown.search.neurons.guide import whole_guide
from bitcrown.search.neurons.root import root_of, rows_of_cases
from bitcrown.search.neurons.search import NeuronSplit
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.objective import Objective
from tests.random_networks import conv_graph, dense_graph

MEMORY = 1 << 26
GRAPHS = {
    "dense": lambda seed: dense_graph(seed, [3, 8, 8, 2]),
    "residual": lambda seed: dense_graph(seed, [4, 6, 6, 6, 2], residual=True),
    "conv": conv_graph,
}


class Setting:
    """A network, a box, one random row over it, and samples with the neurons' values ``[M, N]``."""

    def __init__(self, graph: Graph, seed: int, width: float = 0.5, count: int = 4000) -> None:
        random = np.random.default_rng(seed)
        self.graph, self.network = graph, Network(graph, torch.float64)
        self.layout = Layout(self.network)
        centre = torch.from_numpy(random.normal(size=(1, graph.n_inputs)))
        self.lower, self.upper = centre - width, centre + width
        c = torch.from_numpy(random.normal(size=(1, 1, graph.n_outputs)))
        self.rows = Rows(c, None, torch.zeros(1, 1).double(), self.lower, self.upper)
        self.enclosure = LayerBounder(self.network, 1 << 22).run(self.lower, self.upper)
        share = torch.from_numpy(random.random((count, graph.n_inputs)))
        self.points = self.lower + share * (self.upper - self.lower)
        values = self.network.activations(self.points)
        self.z = torch.cat([values[name].flatten(1) for name in self.layout.neuron_at], dim=1)
        self.q = self.network(self.points) @ c[0, 0]
        slopes = torch.from_numpy(random.random((1, 1, self.layout.n_alphas)))
        self.plain = Multipliers(self.layout, slopes)

    def proved(self, multipliers: Multipliers) -> torch.Tensor:
        enclosure = self.enclosure
        return proved_minimum(
            self.network, self.rows, enclosure.bounds, enclosure.scales, multipliers
        )


def random_cuts(setting: Setting, seed: int, count: int = 5) -> Cuts:
    """Halfspaces that hold at many of the samples, each with some neurons that it leaves out."""
    random = np.random.default_rng(100 + seed)
    g = random.normal(size=(count, setting.layout.n_neurons))
    g *= random.random(g.shape) < 0.6
    coefficient = torch.from_numpy(g)
    return Cuts(coefficient, torch.quantile(setting.z @ coefficient.T, 0.8, dim=0))


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "of each domain"])
def test_the_bound_holds_wherever_the_cuts_hold(kind: str, shared: bool) -> None:
    """Any halfspace is a valid cut of the domain that it defines."""
    raised = 0
    for seed in range(8):
        setting = Setting(GRAPHS[kind](seed), seed)
        cuts = random_cuts(setting, seed)
        inside = (setting.z @ cuts.coefficient.T <= cuts.bound).all(dim=1)
        assert inside.any()
        if not shared:
            cuts = Cuts(cuts.coefficient[None], cuts.bound[None])
        plain = setting.proved(setting.plain)
        for size in (1e-3, 0.1, 3.0):
            mu = size * torch.rand(1, 5, generator=torch.Generator().manual_seed(seed)).double()
            value = setting.proved(replace(setting.plain, cuts=cuts, mu=mu))
            assert float(value) <= float(setting.q[inside].min())
            raised += bool(value > plain)
    assert raised


@pytest.mark.parametrize("kind", GRAPHS)
def test_multipliers_of_zero_change_nothing(kind: str) -> None:
    """To the last bit, in a guide and in a proof, with splits and without."""
    for seed in range(4):
        setting = Setting(GRAPHS[kind](seed), seed, count=500)
        n = setting.layout.n_neurons
        generator = torch.Generator().manual_seed(seed)
        split = torch.randint(-1, 2, (1, n), generator=generator, dtype=torch.int8)
        beta = torch.rand(1, n, generator=generator, dtype=torch.float64)
        cuts = random_cuts(setting, seed)
        for plain in (setting.plain, replace(setting.plain, beta=beta, split=split)):
            given = replace(plain, cuts=cuts, mu=torch.zeros(1, 5).double())
            assert torch.equal(setting.proved(given), setting.proved(plain))
            bounds = setting.layout.split_bounds(setting.enclosure.bounds, plain.split)
            guesses = [
                bound_rows(
                    setting.network, setting.rows, each.backward(setting.network, bounds), 0.0
                )
                for each in (given, plain)
            ]
            assert torch.equal(*guesses)


def test_a_cut_with_one_entry_is_a_split() -> None:
    """``s z_j >= 0`` with beta, or ``-s z_j <= 0`` with the same number as mu."""
    for seed in range(6):
        setting = Setting(GRAPHS["dense"](seed), seed, count=10)
        n = setting.layout.n_neurons
        generator = torch.Generator().manual_seed(seed)
        split = torch.randint(-1, 2, (1, n), generator=generator, dtype=torch.int8)
        beta = torch.rand(1, n, generator=generator, dtype=torch.float64)
        cuts = Cuts(torch.diag(-split[0].double()), torch.zeros(n).double())
        as_beta = setting.proved(replace(setting.plain, beta=beta, split=split))
        as_cuts = setting.proved(replace(setting.plain, split=split, cuts=cuts, mu=beta))
        assert torch.allclose(as_beta, as_cuts, rtol=1e-12, atol=1e-12)


NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("number", NOT_NUMBERS)
@pytest.mark.parametrize("place", ["coefficient", "bound", "multiplier"])
def test_what_is_no_number_says_nothing(number: float, place: str) -> None:
    """The other cuts keep their effect; a negative multiplier would turn its cut around."""
    setting = Setting(GRAPHS["dense"](1), 1, count=500)
    cuts, mu = random_cuts(setting, 1), torch.full((1, 5), 0.1).double()
    rest = replace(setting.plain, cuts=cuts, mu=mu.clone().index_fill_(1, torch.tensor([2]), 0.0))
    g, bound = cuts.coefficient.clone(), cuts.bound.clone()
    {"coefficient": g[2], "bound": bound, "multiplier": mu[0]}[place][2] = number
    broken = replace(setting.plain, cuts=Cuts(g, bound), mu=mu)
    assert torch.equal(setting.proved(broken), setting.proved(rest))
    negative = replace(rest, mu=rest.mu.index_fill(1, torch.tensor([2]), -1.0))
    assert torch.equal(setting.proved(negative), setting.proved(rest))


def test_a_cut_over_an_unbounded_neuron_proves_nothing_and_spoils_nothing() -> None:
    setting = Setting(GRAPHS["dense"](2), 2, count=500)
    first = next(iter(setting.layout.neuron_at))
    scales = setting.enclosure.scales
    scales[first] = torch.full_like(scales[first], torch.inf)
    g = torch.zeros(2, setting.layout.n_neurons).double()
    g[0, 0], g[1, -1] = 1.0, 1.0  # of the first, unbounded layer, and of the last
    cuts = Cuts(g, torch.ones(2).double())
    for mu, is_bound in (([0.0, 0.0], True), ([0.0, 1.0], True), ([1.0, 0.0], False)):
        penalty = cuts.penalty(torch.tensor([mu]).double(), setting.layout, scales, 1e-13)
        assert penalty.error is not None
        assert bool(torch.isfinite(penalty.error).all()) == is_bound


def exact_values(graph: Graph, x: list[Fraction]) -> dict[str, list[Fraction]]:
    """All tensors of a dense ReLU network in rational arithmetic."""
    values = {"x": x}
    for node in graph.nodes.values():
        if node.op == "Linear":
            inputs = values[node.inputs[0]]
            values[node.name] = [
                sum((Fraction(w) * v for w, v in zip(row, inputs, strict=True)), Fraction(b))
                for row, b in zip(
                    node.params["weight"].tolist(), node.params["bias"].tolist(), strict=True
                )
            ]
        elif node.op == "Relu":
            values[node.name] = [max(v, Fraction(0)) for v in values[node.inputs[0]]]
    return values


@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
def test_the_proof_covers_the_rounding_of_large_multipliers(size: float) -> None:
    """The cuts touch a point: there ``G z - g`` is all but 0, however it is weighted."""
    for seed in range(10):
        graph = dense_graph(seed, [3, 6, 6, 2])
        setting = Setting(graph, seed, width=1e-7, count=1)
        values = exact_values(graph, [Fraction(v) for v in setting.points[0].tolist()])
        z = [value for name in setting.layout.neuron_at for value in values[name]]
        y = values[graph.outputs[0]]
        q = sum(Fraction(c) * v for c, v in zip(setting.rows.C[0, 0].tolist(), y, strict=True))
        g = torch.from_numpy(np.random.default_rng(seed).normal(size=(70, len(z))))
        reached = [sum(Fraction(c) * v for c, v in zip(row, z, strict=True)) for row in g.tolist()]
        bound = [float(value) for value in reached]
        bound = [
            b if Fraction(b) >= value else float(np.nextafter(b, np.inf))
            for b, value in zip(bound, reached, strict=True)
        ]
        mu = size * torch.rand(1, 70, generator=torch.Generator().manual_seed(seed)).double()
        cuts = Cuts(g, torch.tensor(bound).double())
        value = float(setting.proved(replace(setting.plain, cuts=cuts, mu=mu)))
        assert not np.isfinite(value) or Fraction(value) <= q


@pytest.mark.parametrize("size", [1.0, 1e14, 1e-308, 1e-318])
def test_the_error_of_a_penalty_covers_its_rounding(size: float) -> None:
    """Against rational arithmetic, at values of the neurons as large as their magnitudes."""
    setting = Setting(GRAPHS["dense"](3), 3, count=1)
    random, scales, n = np.random.default_rng(3), setting.enclosure.scales, setting.layout.n_neurons
    z = (setting.layout.magnitudes(scales).numpy() * random.choice([-1.0, 1.0], n)).tolist()
    cuts = Cuts(
        torch.from_numpy(random.normal(size=(70, n))), torch.from_numpy(random.normal(size=70))
    )
    mu = torch.from_numpy(size * random.random((1, 70)))
    penalty = cuts.penalty(mu, setting.layout, scales, rounding.gamma(setting.network))
    found = torch.cat([part.flatten() for part in penalty.coefficients.values()]).tolist()
    value = sum(Fraction(a) * Fraction(v) for a, v in zip(found, z, strict=True))
    value += Fraction(float(penalty.constant))
    rows = zip(mu[0].tolist(), cuts.coefficient.tolist(), cuts.bound.tolist(), strict=True)
    exact = Fraction(0)
    for weight, row, bound in rows:
        inner = sum(Fraction(a) * Fraction(v) for a, v in zip(row, z, strict=True))
        exact += Fraction(weight) * (inner - Fraction(bound))
    assert penalty.error is not None
    assert 0 < abs(value - exact) <= Fraction(float(penalty.error))


# -- a network in which one cut is worth a lot -----------------------------------------------------


def node(name: str, source: str, weight: list[list[float]], bias: list[float]) -> Node:
    params = {"weight": np.array(weight), "bias": np.array(bias)}
    return Node(name, "Linear", (source,), (1, len(weight)), {}, params)


def diamond() -> Graph:
    """``v = relu(x1 + x2) + relu(x1 - x2) - 1/2`` and ``w``, the same of ``-x1``;
    ``y = -relu(v) - relu(w)`` is at least -3/2 on [-1, 1]^2.

    There ``v + w = 2 max(|x1|, |x2|) - 1 <= 1``. Neither neuron alone, nor the triangles of the
    first layer, say so.
    """
    nodes = [
        Node("x", "Input", (), (1, 2)),
        node("z1", "x", [[1, 1], [1, -1], [-1, 1], [-1, -1]], [0, 0, 0, 0]),
        Node("r1", "Relu", ("z1",), (1, 4)),
        node("z2", "r1", [[1, 1, 0, 0], [0, 0, 1, 1]], [-0.5, -0.5]),
        Node("r2", "Relu", ("z2",), (1, 2)),
        node("y", "r2", [[-1, -1]], [0]),
    ]
    return Graph({part.name: part for part in nodes}, ("x",), ("y",), ("float64",))


def diamond_cut(network: Network, layout: Layout, enclosure: Enclosure, rows: Rows) -> Cuts | None:
    g = torch.zeros(1, layout.n_neurons, dtype=network.dtype)
    g[0, layout.neuron_at["z2"]] = 1.0
    return Cuts(g, torch.ones(1, dtype=network.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_useful_cut_raises_the_bound_and_the_proof_agrees(dtype: torch.dtype) -> None:
    network = Network(diamond(), torch.float64)
    layout, ones = Layout(network), torch.ones(1, 2).double()
    rows = Rows(torch.ones(1, 1, 1).double(), None, torch.zeros(1, 1).double(), -ones, ones)
    enclosure = LayerBounder(network, MEMORY).run(-ones, ones)
    plain = Multipliers(layout, layout.default_alpha(enclosure.bounds)[:, None])
    cuts = diamond_cut(network, layout, enclosure, rows)
    start = replace(plain, cuts=cuts, mu=torch.zeros(1, 1).double())
    climb, value = Ascent(100, rate_beta=0.1, decay=0.99), []
    for given in (plain, start):
        guide = Network(diamond(), dtype)
        found, guess = ascend(guide, rows, enclosure.bounds, given, climb, target=float("inf"))
        value.append(
            float(proved_minimum(network, rows, enclosure.bounds, enclosure.scales, found))
        )
        assert abs(value[-1] - float(guess)) < 1e-5
    assert value[0] < -3.0  # 4 * 5/6, as the triangles say
    assert -1.75 < value[1] <= -1.5


def diamond_bounder(guide_dtype: torch.dtype, threshold: float) -> DomainBounder:
    """Whether ``y <= threshold`` somewhere."""
    proof = Network(diamond(), torch.float64)
    guide = proof if guide_dtype == proof.dtype else Network(diamond(), guide_dtype)
    box = np.ones((1, 2))
    goal = Objective(
        np.ones((1, 1, 1)), None, np.full((1, 1), threshold), -box, box, np.zeros(1, dtype=np.int64)
    )
    rows = rows_of_cases(proof, goal)
    root = root_of(
        proof, guide, rows, LayerBounder(proof, MEMORY).run(rows.x_lower, rows.x_upper), MEMORY
    )
    trials, budget = Trials(lambda x: x.tolist()), Budget.of_cpu_seconds(60, MEMORY)
    return bounder_of(root, whole_guide(root, guide), trials, budget)


@pytest.mark.parametrize("form", ["clipped", "float32", "reduced"])
@pytest.mark.parametrize(("threshold", "holds"), [(-1.8, True), (-1.49, False)])
def test_a_family_in_the_table_reaches_every_form_of_the_search(
    form: str, threshold: float, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = "bitcrown.search.neurons.cuts.CUT_FAMILIES"
    if form != "clipped":
        monkeypatch.setattr("bitcrown.search.neurons.root.CLIP_INPUTS", 0)
    monkeypatch.setattr(
        DomainBounder,
        "seconds",
        lambda bounder, domains: float((bounder.guide.reduced is None) == (form == "reduced")),
    )
    dtype = torch.float64 if form == "clipped" else torch.float32
    counts = []
    for table in ((), (diamond_cut,)):
        monkeypatch.setattr(families, table)
        bounder = diamond_bounder(dtype, threshold)
        domains = bounder.root_domains(bounder.root.open_cases(), 1)
        assert domains.mu.shape[1] == len(table)
        search = NeuronSplit(bounder, domains)
        assert (search.bounder.guide.reduced is not None) == (
            form == "reduced" and len(domains) > 0
        )
        outcome = search.run()
        assert outcome.proved == holds and (outcome.witness is None) == holds
        counts.append(outcome.domains)
    if holds:
        assert counts[1] < counts[0]
