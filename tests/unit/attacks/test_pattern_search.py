"""Pattern search reaches the kink that gradients only circle, and stays in the box."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitcrown.attacks.property.pattern import pattern_search
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

PEAK = np.array([0.3, -0.125, 0.7321, 0.0])


def pyramid() -> Network:
    """``y = sum |x_i - p_i| = sum 2 relu(x_i - p_i) - (x_i - p_i)``."""
    nodes = {
        "x": Node("x", "Input", (), (4,)),
        "d": Node("d", "Scale", ("x",), (4,), {}, {"shift": -PEAK}),
        "r": Node("r", "Relu", ("d",), (4,)),
        "t": Node("t", "Scale", ("r",), (4,), {}, {"scale": np.array(2.0)}),
        "a": Node("a", "Sub", ("t", "d"), (4,)),
        "y": Node("y", "ReduceSum", ("a",), (1,), {"axes": (0,), "keepdims": True, "count": 4}),
    }
    return Network(Graph(nodes, ("x",), ("y",)), torch.float64)


def search(x: torch.Tensor, low: torch.Tensor, up: torch.Tensor, most: int) -> torch.Tensor:
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    target = Target(one, None, torch.zeros(1, 1, dtype=torch.float64))
    return pattern_search(pyramid(), x, low, up, target, Budget.unlimited(), most)


@pytest.mark.parametrize("seed", range(5))
def test_the_peak_is_reached(seed: int) -> None:
    low = torch.full((4,), -1.0, dtype=torch.float64)
    x = torch.tensor(np.random.default_rng(seed).uniform(-1, 1, 4))
    found = search(x, low, -low, 1 << 20)
    assert float(pyramid()(found[None])) < 1e-6
    np.testing.assert_allclose(found, PEAK, atol=1e-6)


def test_the_box_is_kept_and_an_input_that_does_not_vary_as_well() -> None:
    low = torch.tensor([0.5, -1.0, -1.0, 0.2], dtype=torch.float64)
    up = torch.tensor([0.9, 1.0, 0.25, 0.2], dtype=torch.float64)
    found = search((low + up) / 2, low, up, 1 << 20)
    np.testing.assert_allclose(found, [0.5, -0.125, 0.25, 0.2], atol=1e-6)


def test_it_never_gets_worse_and_looks_no_further_than_allowed() -> None:
    low = torch.full((4,), -1.0, dtype=torch.float64)
    x = torch.tensor([0.9, 0.9, -0.9, 0.5], dtype=torch.float64)
    assert torch.equal(search(x, low, -low, 7), x)  # one step looks at eight points
    values = [float(pyramid()(search(x, low, -low, most)[None])) for most in (0, 8, 40, 200)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
