"""Laws of bounds under a violation: they hold at every point where the premises hold, the premises
hold where a case is violated worst, and a search with them says what a search without them says."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.violation import Violation, climbed
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.search.neurons.bounder import DomainBounder, bounder_of
from bitcrown.search.neurons.case_bounds import CaseBounds, sweeps_left
from bitcrown.search.neurons.guide import whole_guide
from bitcrown.search.neurons.premises import premises_of
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.search.neurons.root import root_of, rows_of_cases
from bitcrown.search.neurons.tightening import TightenedRace
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.objective import Objective
from tests.laws.test_cut_laws import exact_values
from tests.random_networks import conv_graph, dense_graph

MEMORY = 1 << 26
GRAPHS = {
    "dense": lambda seed: dense_graph(seed, [3, 8, 8, 3]),
    "residual": lambda seed: dense_graph(seed, [4, 6, 6, 6, 3], residual=True),
    "conv": conv_graph,
}
NOT_NUMBERS = (math.nan, math.inf, -math.inf)


class Setting:
    """A network, a box, premises that some samples satisfy, and the samples' neurons ``[M, N]``."""

    def __init__(
        self,
        graph: Graph,
        seed: int,
        width: float = 0.5,
        count: int = 4000,
        with_inputs: bool = False,
    ) -> None:
        random = np.random.default_rng(seed)
        self.graph, self.network = graph, Network(graph, torch.float64)
        self.layout = Layout(self.network)
        centre = torch.from_numpy(random.normal(size=(1, graph.n_inputs)))
        lower, upper = centre - width, centre + width
        self.enclosure = LayerBounder(self.network, 1 << 22).run(lower, upper)
        share = torch.from_numpy(random.random((count, graph.n_inputs)))
        self.points = lower + share * (upper - lower)
        values = self.network.activations(self.points)
        self.z = torch.cat([values[name].flatten(1) for name in self.layout.neuron_at], dim=1)
        c = torch.from_numpy(random.normal(size=(1, 2, graph.n_outputs)))
        d = torch.from_numpy(random.normal(size=(1, 2, graph.n_inputs))) if with_inputs else None
        reached = self.network(self.points) @ c[0].T
        if d is not None:
            reached = reached + self.points @ d[0].T
        spread = reached.std(dim=0) if count > 1 else torch.zeros(2)
        rhs = (reached[0] + 0.1 * spread).unsqueeze(0)  # one sample satisfies both, and some others
        self.is_inside = (reached <= rhs).all(dim=1)
        self.premises = Rows(c, d, rhs, lower, upper)
        self.violation = Violation(self.network, self.layout, self.premises, self.enclosure.bounds)

    def layers(self) -> list[torch.Tensor]:
        return [torch.arange(at.start, at.stop) for at in self.layout.neuron_at.values()]

    def proved(
        self, neurons: torch.Tensor, alpha: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.violation.proved(neurons, alpha, weight, self.enclosure.scales, 10)

    def holds(self, neurons: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> bool:
        z = self.z[self.is_inside][:, neurons]
        return bool(((low <= z) & (z <= up)).all())


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("with_inputs", [False, True])
def test_bounds_hold_wherever_the_premises_hold(kind: str, with_inputs: bool) -> None:
    """For any slopes and weights; and where the box is small even random ones are worth
    something."""
    raised = 0
    for seed in range(6):
        setting = Setting(GRAPHS[kind](seed), seed, with_inputs=with_inputs)
        assert setting.is_inside.any()
        generator = torch.Generator().manual_seed(seed)
        for neurons in setting.layers():
            count = 2 * len(neurons)
            alpha = torch.rand(count, 1, setting.layout.n_alphas, generator=generator).double()
            plain = setting.proved(neurons, alpha, torch.zeros(count, 2))
            for size in (1e-3, 0.1, 3.0):
                weight = size * torch.rand(count, 2, generator=generator)
                low, up = setting.proved(neurons, alpha, weight)
                assert setting.holds(neurons, low, up)
                raised += int((low > plain[0]).sum() + (up < plain[1]).sum())
    assert raised or kind == "conv"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_climbing_tightens_every_layer_and_the_proof_agrees(dtype: torch.dtype) -> None:
    for seed in range(4):
        setting = Setting(GRAPHS["residual"](seed), seed)
        guide = Network(setting.graph, dtype)
        violation = replace(setting.violation, network=guide)
        low, up = setting.layout.flat_bounds(setting.enclosure.bounds)
        won = 0.0
        for neurons in setting.layers():
            alpha, weight = climbed(violation, neurons, 20, Budget.unlimited())
            guess = violation.in_dtype(dtype).least(neurons, alpha, weight).double()
            found = setting.proved(neurons, alpha, weight)
            assert torch.allclose(guess, torch.cat([found[0], -found[1]]), rtol=1e-4, atol=1e-4)
            assert setting.holds(neurons, *found)
            won += float((up[0, neurons] - found[1]).clamp(min=0).sum())
            won += float((found[0] - low[0, neurons]).clamp(min=0).sum())
        assert won > 0.1


@pytest.mark.parametrize("number", [*NOT_NUMBERS, -1.0, 2.0])
def test_parameters_that_are_not_feasible_prove_nothing_wrong(number: float) -> None:
    """A slope of 2, a weight of -1, no number at all; premises that hold by far punish a wrong
    sign."""
    setting = Setting(GRAPHS["dense"](1), 1)
    far = replace(setting.premises, rhs=setting.premises.rhs + 20.0)
    setting.violation = replace(setting.violation, premises=far)
    generator = torch.Generator().manual_seed(1)
    neurons = setting.layers()[1]
    for place in ("alpha", "weight"):
        alpha = torch.rand(16, 1, setting.layout.n_alphas, generator=generator).double()
        weight = torch.rand(16, 2, generator=generator).double()
        {"alpha": alpha, "weight": weight}[place][:, ..., 0::2] = number
        assert setting.holds(neurons, *setting.proved(neurons, alpha, weight))


def test_a_premise_without_limit_says_nothing() -> None:
    setting = Setting(GRAPHS["dense"](2), 2)
    neurons = setting.layers()[1]
    alpha, weight = torch.rand(16, 1, setting.layout.n_alphas).double(), torch.ones(16, 2).double()
    rhs = setting.premises.rhs.clone()
    rhs[0, 1] = torch.inf
    padded = replace(setting.violation, premises=replace(setting.premises, rhs=rhs))
    low, up = padded.proved(neurons, alpha, weight, setting.enclosure.scales, 10)
    weight[:, 1] = 0.0
    one = setting.proved(neurons, alpha, weight)
    assert torch.allclose(low, one[0]) and torch.allclose(up, one[1])


@pytest.mark.parametrize("size", [1.0, 1e6, 1e14])
def test_the_proof_covers_the_rounding_of_large_weights(size: float) -> None:
    """The premises touch a point: there the rows are all but 0, however they are weighted."""
    for seed in range(10):
        graph = dense_graph(seed, [3, 6, 6, 2])
        setting = Setting(graph, seed, width=0.0, count=1)
        values = exact_values(graph, [Fraction(v) for v in setting.points[0].tolist()])
        y = values[graph.outputs[0]]
        c = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 70, 2)))
        exact = [sum(Fraction(a) * v for a, v in zip(r, y, strict=True)) for r in c[0].tolist()]
        rhs = [
            float(v) if Fraction(float(v)) >= v else float(np.nextafter(float(v), np.inf))
            for v in exact
        ]
        premises = replace(setting.premises, C=c, rhs=torch.tensor([rhs], dtype=torch.float64))
        violation = replace(setting.violation, premises=premises)
        for name, neurons in zip(setting.layout.neuron_at, setting.layers(), strict=True):
            count = 2 * len(neurons)
            weight = size * torch.rand(count, 70, generator=torch.Generator().manual_seed(seed))
            alpha = torch.full((count, 1, setting.layout.n_alphas), 0.5).double()
            found = violation.proved(neurons, alpha, weight, setting.enclosure.scales, 100)
            for k, (low, up) in enumerate(zip(*(part.tolist() for part in found), strict=True)):
                assert not math.isfinite(low) or Fraction(low) <= values[name][k]
                assert not math.isfinite(up) or Fraction(up) >= values[name][k]


# -- which premises ----------------------------------------------------------------------------


def random_rows(seed: int, cases: int, with_inputs: bool) -> Rows:
    """Rows with coefficients that no short sum holds exactly, among whole ones."""
    random = np.random.default_rng(seed)
    c = torch.from_numpy(random.integers(-3, 4, (cases, 2, 3)).astype(float))
    c[-1, 0] = torch.from_numpy(random.normal(size=3) * 2.0 ** random.integers(-40, 40, 3))
    d = torch.from_numpy(random.integers(-2, 3, (cases, 2, 2)).astype(float))
    rhs = torch.from_numpy(random.normal(size=(cases, 2)))
    rhs[1:, 1] = torch.inf  # all but the first case have a single row
    box = torch.ones(1, 2).double()
    return Rows(c, d if with_inputs else None, rhs, -box, box)


def exact_excess(rows: Rows, case: int, row: int, x: list[Fraction], y: list[Fraction]) -> Fraction:
    terms = list(zip(rows.C[case, row].tolist(), y, strict=True))
    if rows.D is not None:
        terms += list(zip(rows.D[case, row].tolist(), x, strict=True))
    limit = Fraction(float(rows.rhs[case, row]))
    return sum((Fraction(a) * v for a, v in terms), Fraction(0)) - limit


@pytest.mark.parametrize("with_inputs", [False, True])
def test_the_worst_case_of_a_point_has_all_its_premises(with_inputs: bool) -> None:
    """Exactly, for any values of inputs and outputs; "excluded" are cases that it does not
    violate."""
    said = 0
    for seed in range(60):
        rows = random_rows(seed, 5, with_inputs)
        random = np.random.default_rng(1000 + seed)
        x, y = ([Fraction(v) for v in random.normal(size=n).tolist()] for n in (2, 3))
        excess = {case: exact_excess(rows, case, 0, x, y) for case in range(1, 5)}
        case = min(excess, key=lambda case: excess[case])
        excluded = {other for other, value in excess.items() if value > 0 and other % 2} - {case}
        premises = premises_of(rows, case, excluded)
        assert premises.C.shape[1] == 2 + 3
        says = torch.isfinite(premises.rhs[0])
        said += int(says.sum())
        for row in says.nonzero().flatten().tolist()[1:]:
            assert exact_excess(premises, 0, row, x, y) <= 0
        assert exact_excess(premises, 0, 0, x, y) == excess[case]
    assert said > 2 * 60


def test_a_case_with_several_rows_has_these_alone() -> None:
    rows = random_rows(0, 4, False)
    premises = premises_of(rows, 0, {1, 2})
    assert torch.equal(premises.C, rows.C[:1]) and torch.equal(premises.rhs, rows.rhs[:1])


# -- whole searches ----------------------------------------------------------------------------


def bounder_for(graph: Graph, objective: Objective, recorder: Recorder | None) -> DomainBounder:
    proof, guide = Network(graph, torch.float64), Network(graph, torch.float32)
    rows = rows_of_cases(proof, objective)
    enclosure = LayerBounder(proof, MEMORY).run(rows.x_lower, rows.x_upper)
    root = root_of(proof, guide, rows, enclosure, MEMORY)
    trials, budget = Trials(lambda x: None), Budget.of_cpu_seconds(60, MEMORY)
    return bounder_of(root, whole_guide(root, guide), trials, budget, recorder)


def rivals(graph: Graph, seed: int, width: float) -> tuple[Objective, np.ndarray]:
    """Every other output may overtake output 0 by no more than a limit; and by how much it does at
    most on a grid of the box."""
    network, m = Network(graph, torch.float64), graph.n_outputs
    random = np.random.default_rng(seed)
    centre = random.normal(size=(1, graph.n_inputs))
    lower, upper = centre - width, centre + width
    share = random.random((20000, graph.n_inputs))
    share[10000:] = share[10000:].round()
    y = network(torch.from_numpy(lower + share * (upper - lower))).numpy()
    c = np.zeros((m - 1, 1, m))
    c[:, 0, 0] = 1.0
    c[np.arange(m - 1), 0, np.arange(1, m)] = -1.0
    least = (y @ c[:, 0].T).min(axis=0)
    box = np.zeros(m - 1, dtype=np.int64)
    return Objective(c, None, np.zeros((m - 1, 1)), lower, upper, box), least


@pytest.mark.parametrize(("kind", "recorded"), [("dense", False), ("residual", True)])
def test_searches_with_bounds_of_their_own_find_every_violation_and_finish_every_proof(
    kind: str, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No point is ever confirmed, so only wrong claims could close a case that is violated: by all
    of it, by a little, and in no other case."""
    monkeypatch.setattr("bitcrown.search.neurons.root.CLIP_INPUTS", 0)
    monkeypatch.setattr("bitcrown.search.neurons.tightening._LEAST_SLICE", 0.02)
    monkeypatch.setattr(
        TightenedRace,
        "is_tired",
        lambda race: race.rest < math.inf and race.race.seconds > race.since,
    )
    monkeypatch.setattr("bitcrown.search.neurons.case_bounds._STEPS", 8)
    tightened = proofs = 0
    for seed in (int(recorded),):
        sizes = [4, 6, 6, 4] if kind == "dense" else [4, 6, 6, 6, 4]
        graph = dense_graph(seed, sizes, residual=kind == "residual")
        objective, least = rivals(graph, seed, 0.5)
        start = bounder_for(graph, objective, None).root.case_value.numpy()
        holding = least - 0.3 * (least - start)
        for violated in (None, seed, 2):
            limit = holding.copy()
            if violated is not None:
                limit[violated] = least[violated] + 1e-3
            if violated == 2:  # and another one everywhere, so that 2 is nowhere violated worst
                limit[0] = least[0] + 10.0
            given = replace(objective, rhs=limit[:, None])
            recorder = Recorder() if recorded else None
            bounder = bounder_for(graph, given, recorder)
            domains = bounder.root_domains(bounder.root.open_cases(), 2)
            race = TightenedRace(bounder, domains, 0.0)
            outcome = race.run()
            assert outcome.proved == (violated is None), (seed, violated)
            # what is taken for excluded on the whole box is violated by no sample
            assert all(least[case] > limit[case] for case in race.excluded)
            tightened += race.counters["tightened_cases"]
            if outcome.proved:
                proofs += 1
                if recorder is not None:
                    closed = {int(case) for batch in recorder.batches for case in batch.case}
                    assert closed == set(bounder.root.open_cases().tolist())
    assert tightened and proofs


def test_a_case_that_is_violated_is_not_refuted_by_its_own_bounds() -> None:
    """However long it is tightened; and one that has no violation is refuted without a split."""
    refuted = 0
    for seed in range(2):
        graph = GRAPHS["residual"](seed)
        objective, least = rivals(graph, seed, 0.4)
        bounder = bounder_for(graph, objective, None)
        bounder = replace(bounder, root=replace(bounder.root, clipper=None))
        start = bounder.root.case_value.numpy()
        for share in (0.5, 1.01):
            limit = start + share * (least - start) + (share > 1) * 1e-3
            given = bounder_for(graph, replace(objective, rhs=limit[:, None]), None)
            given = replace(given, root=replace(given.root, clipper=None))
            domains = given.root_domains(given.root.open_cases(), 1)
            for k in range(len(domains)):
                own = CaseBounds(given, domains.select(torch.tensor([k])))
                own.run(given.root.rows.of_cases(domains.case[k : k + 1]), 5.0, 0.0)
                assert share < 1 or len(own.domains)
                refuted += share < 1 and not len(own.domains)
    assert refuted


def test_sweeps_that_shrink_are_summed_up() -> None:
    for distance, rise, q in ((1.0, 0.5, 0.9), (0.3, 0.2, 0.7), (2.0, 0.25, 0.95)):
        sweeps, step = 0, rise
        left = distance
        while left > 0:
            step *= q
            left -= step
            sweeps += 1
        assert sweeps - 1 <= sweeps_left(distance, rise, rise / q) <= sweeps
    assert sweeps_left(1.0, 0.1, 0.2) == math.inf  # 0.1 + 0.05 + ... = 0.2 in all, less what was
    assert sweeps_left(0.09, 0.1, 0.2) < math.inf
    assert sweeps_left(1.0, 0.1, None) == sweeps_left(1.0, 0.1, 0.1) == pytest.approx(10.0)
    assert sweeps_left(0.0, 0.1, 0.2) == 0.0
    assert sweeps_left(1.0, 0.0, 0.2) == sweeps_left(1.0, 5e-324, 1.0) == math.inf
