"""Descent on conjunctions: boxes, rows over outputs and inputs, chunks, networks without slope,
seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import Op


class Formula:
    """Stands for a Network: a formula over ``[B, n]`` and the little of a graph that the attack
    asks for."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dtype: torch.dtype = torch.float64,
        size: int = 10,
    ):
        self.function, self.dtype = function, dtype
        self.graph = self
        self.nodes = {"all": self}
        self.rows: dict[str, Op] = {}
        self.size = size
        self.points: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.points.append(len(x))
        return self.function(x)


def row(*numbers: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


def attack(
    network: Formula, lower: Tensor, upper: Tensor, target: Target, **more: object
) -> tuple[Tensor, ...]:
    options = {"steps": 40, "restarts": 8, "budget": Budget.of_cpu_seconds(60), "seed": 0} | more
    generator = torch.Generator().manual_seed(int(options.pop("seed")))  # type: ignore[call-overload]
    found = pgd(network, lower, upper, target, generator, **options)  # type: ignore[arg-type]
    return found.x, found.case, found.excess


def at_most(bound: float, dtype: torch.dtype = torch.float64) -> Target:
    """Violated where the only output is at most ``bound``."""
    return Target(torch.ones(1, 1, 1, dtype=dtype), None, torch.tensor([[bound]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_a_minimum_inside(dtype: torch.dtype) -> None:
    centre = row(0.3, -0.6, 0.2, dtype=dtype)
    network = Formula(lambda x: (x - centre).square().sum(dim=1, keepdim=True), dtype)
    x, case, excess = attack(
        network, -torch.ones(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype), at_most(0.01, dtype)
    )
    assert excess[0] <= 0 and x.dtype == dtype and not case.any()
    assert float((x[0] - centre).square().sum()) <= 0.0101
    assert (excess.diff() >= 0).all()


def test_points_stay_in_the_box_even_where_it_has_no_width() -> None:
    lower, upper = row(0.1, -0.3, 0.7).repeat(2, 1).float(), row(0.1, 0.3, 0.9).repeat(2, 1).float()
    target = Target(torch.ones(2, 1, 1), None, torch.full((2, 1), -100.0))
    x, case, _ = attack(
        Formula(lambda x: x.sum(dim=1, keepdim=True), torch.float32), lower, upper, target
    )
    assert ((x >= lower[0]) & (x <= upper[0])).all()
    assert sorted(case.tolist()) == [0] * 8 + [1] * 8


def test_all_rows_must_hold_and_rows_over_inputs_count() -> None:
    # y = x0 + x1 <= 0.6, and x1 - x0 <= -0.5: only a small triangle satisfies both.
    network = Formula(lambda x: x.sum(dim=1, keepdim=True))
    target = Target(
        torch.tensor([[[1.0], [0.0]]], dtype=torch.float64),
        torch.tensor([[[0.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64),
        torch.tensor([[0.6, -0.5]], dtype=torch.float64),
    )
    x, _, excess = attack(
        network,
        torch.zeros(1, 2, dtype=torch.float64),
        torch.ones(1, 2, dtype=torch.float64),
        target,
    )
    assert excess[0] <= 0 and x[0].sum() <= 0.6 and x[0, 1] - x[0, 0] <= -0.5


def test_padding_rows_always_hold() -> None:
    target = Target(torch.zeros(1, 2, 1), None, torch.tensor([[torch.inf, 1.0]]))
    assert target.excess(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 7.0)).tolist() == [[-1.0]]
    trivial = Target(torch.zeros(1, 1, 1), None, torch.full((1, 1), torch.inf))
    assert trivial.excess(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)).item() == -torch.inf


def test_what_is_no_number_is_never_a_violation() -> None:
    network = Formula(lambda x: torch.where(x > 0, x * torch.nan, x - 1))
    x, _, excess = attack(
        network,
        -torch.ones(1, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        at_most(-1.5),
    )
    assert excess[0] <= 0 and x[0] <= -0.5 and not torch.isnan(excess).any()


@pytest.mark.parametrize(
    "step", [torch.sign, lambda x: (x > 0.97).to(x.dtype), lambda x: x.detach().round()]
)
def test_without_a_slope_it_searches_at_random(step: Callable[[Tensor], Tensor]) -> None:
    network = Formula(lambda x: -step(x))
    lower, upper = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    _, _, excess = attack(network, lower, upper, at_most(-1.0), steps=60, restarts=16)
    assert excess[0] <= 0


def test_cases_that_do_not_fit_together_are_taken_in_chunks() -> None:
    network = Formula(lambda x: x.sum(dim=1, keepdim=True), size=1000)
    lower, upper = torch.zeros(10, 2, dtype=torch.float64), torch.ones(10, 2, dtype=torch.float64)
    rhs = torch.full((10, 1), -1.0, dtype=torch.float64)
    rhs[7] = 0.5
    target = Target(torch.ones(10, 1, 1, dtype=torch.float64), None, rhs)
    budget = Budget.of_cpu_seconds(60, memory=8 * 16 * 1000 * 8)
    _, case, excess = attack(network, lower, upper, target, budget=budget, restarts=4)
    assert max(network.points) <= 8
    assert case[0] == 7 and excess[0] <= 0 and (excess[excess <= 0] <= 0).all()


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    network = Formula(lambda x: (x * 7).sin().sum(dim=1, keepdim=True))
    lower, upper = -torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    state = torch.get_rng_state()
    runs = [attack(network, lower, upper, at_most(-9.0), seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()


def test_an_expired_budget_still_gives_the_starting_points() -> None:
    network = Formula(lambda x: x.sum(dim=1, keepdim=True))
    lower, upper = torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    target = Target(
        torch.ones(3, 1, 1, dtype=torch.float64), None, torch.zeros(3, 1, dtype=torch.float64)
    )
    x, _, excess = attack(network, lower, upper, target, budget=Budget.of_seconds(-1.0))
    assert len(network.points) == 1 and len(x) == len(excess) == 24


def test_staircases_are_descended_like_the_lines_through_them() -> None:
    """Their own slope is zero everywhere, and chance does not find the corner of forty inputs."""
    weight = torch.linspace(-1, 1, 40, dtype=torch.float64)
    nodes = {
        "x": Node("x", "Input", (), (40,)),
        "scaled": Node("scaled", "Scale", ("x",), (40,), params={"scale": np.array(8.0)}),
        "steps": Node("steps", "Round", ("scaled",), (40,)),
        "y": Node("y", "Linear", ("steps",), (1,), params={"weight": weight.numpy()[None]}),
    }
    network = Network(Graph(nodes, ("x",), ("y",)), torch.float64)
    lower, upper = -torch.ones(1, 40, dtype=torch.float64), torch.ones(1, 40, dtype=torch.float64)
    least = -8 * float(weight.abs().sum())
    assert (
        pgd(
            network,
            lower,
            upper,
            at_most(0.95 * least),
            torch.Generator(),
            40,
            8,
            Budget.of_cpu_seconds(60),
        ).excess[0]
        <= 0
    )


def test_pgd_works_without_gradients_enabled() -> None:
    network = Formula(lambda x: x.square().sum(dim=1, keepdim=True))
    lower, upper = -torch.ones(1, 2, dtype=torch.float64), 2 * torch.ones(1, 2, dtype=torch.float64)
    with torch.no_grad():
        x, case, _ = pgd(
            network,
            lower,
            upper,
            at_most(0.01),
            torch.Generator(),
            60,
            4,
            Budget.of_cpu_seconds(60),
        )  # type: ignore[arg-type]
    assert float(x[0].square().sum()) <= 0.01 and case[0] == 0
