"""One infinite end of an operand costs an affine node the ends that it reaches, and no others.

The truth is read off the node's matrix, column by column: the lower end of ``sum W+ l - W- u`` is
finite exactly where no positive weight meets an infinite ``l`` and no negative one an infinite
``u``. Where it is finite, it encloses sampled values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.crown import Backward, minimum, output_seeds, relaxations_of
from bitcrown.bounds.interval import interval_bounds, node_interval, node_scale
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

RNG = np.random.default_rng(5)


def sparse(*shape: int) -> np.ndarray:
    """Weights of both signs, many of them zero and some next to nothing."""
    sizes = RNG.choice([0.0, 1.0, 1e-300, 5e-324, 1e6], shape, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    return sizes * RNG.choice([-1.0, 1.0], shape)


WEIGHTS = ("weight", "matrix", "scale", "shift", "bias")


def node(op: str, operands: int, shape: tuple[int, ...], given: dict[str, Any]) -> Node:
    params = {key: value for key, value in given.items() if key in WEIGHTS}
    attrs = {key: value for key, value in given.items() if key not in WEIGHTS}
    return Node("y", op, tuple(f"x{k}" for k in range(operands)), shape, attrs, params)


PLAIN = {"strides": [1, 1], "pads": [1, 0], "dilations": [1, 1], "group": 1}
CASES: dict[str, tuple[list[tuple[int, ...]], Node]] = {}
for name, shapes, shape, rest in (
    ("Linear", [(2, 4)], (2, 3), {"weight": sparse(3, 4), "bias": sparse(3)}),
    ("MatMulLeft", [(4, 2)], (3, 2), {"matrix": sparse(3, 4)}),
    ("Conv", [(1, 2, 3, 3)], (1, 2, 4, 2), {"weight": sparse(2, 2, 2, 2), **PLAIN}),
    ("Scale", [(3, 4)], (3, 4), {"scale": sparse(3, 4), "shift": sparse(3, 4)}),
    ("Scale", [(3, 4)], (3, 4), {"shift": sparse(3, 4)}),
    ("Add", [(5,), (5,)], (5,), {}),
    ("Sub", [(5,), (5,)], (5,), {}),
    ("ReduceSum", [(3, 4)], (3,), {"axes": (1,), "keepdims": False, "count": 4}),
    ("AveragePool", [(1, 1, 4, 4)], (1, 1, 3, 3), {"kernel": [2, 2], "strides": [1, 1]}),
    ("Concat", [(2, 2), (2, 3)], (2, 5), {"axis": 1}),
    ("Slice", [(5,)], (2,), {"slices": ((1, 4, 2),)}),
    ("Gather", [(5,)], (4,), {"axis": 0, "indices": np.array([0, 3, 3, 1])}),
    ("Expand", [(1, 3)], (4, 3), {"shape": (4, 3)}),
    ("Pad", [(3,)], (5,), {"pads": ((1,), (1,)), "value": 2.0}),
):
    CASES[f"{name}{len(CASES)}"] = (shapes, node(name, len(shapes), shape, rest))


def matrix(network: Network, given: Node, shapes: list[tuple[int, ...]]) -> torch.Tensor:
    """``[outputs, inputs]`` over all operands."""
    unit = torch.eye(given.size, dtype=torch.float64).reshape(given.size, *given.shape)
    parts = network.adjoint(given, unit)
    return torch.cat([part.reshape(given.size, -1) for part in parts], dim=1)


@pytest.mark.parametrize("name", CASES)
def test_what_is_lost_is_what_is_read(name: str) -> None:
    shapes, given = CASES[name]
    inputs = {f"x{k}": Node(f"x{k}", "Input", (), shape) for k, shape in enumerate(shapes)}
    network = Network(Graph({**inputs, "y": given}, tuple(inputs), ("y",)), torch.float64)
    weights = matrix(network, given, shapes)
    total = weights.shape[1]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        low = torch.tensor(np.where(rng.random(total) < 0.3, -np.inf, rng.uniform(-2, 0, total)))
        up = torch.tensor(np.where(rng.random(total) < 0.3, np.inf, rng.uniform(0, 2, total)))
        start, pairs = 0, []
        for shape in shapes:
            end = start + int(np.prod(shape))
            pairs.append(tuple(e[start:end].reshape(1, *shape) for e in (low, up)))
            start = end
        found = node_interval(network, given, pairs, rounding.gamma(network))  # type: ignore[arg-type]
        lower, upper = (end.flatten() for end in found)
        plus, minus = weights > 0, weights < 0
        for found_end, own, other in ((lower, low, up), (upper, up, low)):
            is_lost = (plus & own.isinf()).any(1) | (minus & other.isinf()).any(1)
            assert (found_end.isinf() == is_lost).all()
        # points reach far where an end is open
        least = torch.where(low.isinf(), torch.minimum(up, torch.zeros(())) - 1e9, low)
        most = torch.where(up.isinf(), torch.maximum(low, torch.zeros(())) + 1e9, up)
        for _ in range(20):
            corner = torch.tensor(rng.random(total) < 0.5)
            x = torch.where(corner, least, most)
            y = network(x[None])[0]
            assert (lower <= y).all() and (y <= upper).all()


def test_ends_near_the_largest_number_do_not_overflow() -> None:
    shapes, given = CASES["Add5"]
    inputs = {f"x{k}": Node(f"x{k}", "Input", (), shape) for k, shape in enumerate(shapes)}
    network = Network(Graph({**inputs, "y": given}, tuple(inputs), ("y",)), torch.float64)
    big = torch.full((1, 5), torch.finfo(torch.float64).max, dtype=torch.float64)
    pair = big, torch.full_like(big, torch.inf)
    lower, upper = node_interval(network, given, [pair, pair], rounding.gamma(network))
    assert (lower > 1e290).all() and upper.isinf().all()


def exponentials() -> Network:
    """``1 / (1 + exp(x) + exp(x + 2000))`` and ``exp(x)``: the second exponential overflows."""
    nodes = {
        "x": Node("x", "Input", (), (1,)),
        "far": Node("far", "Scale", ("x",), (1,), {}, {"shift": np.array([2000.0])}),
        "e": Node("e", "Exp", ("x",), (1,)),
        "f": Node("f", "Exp", ("far",), (1,)),
        "s": Node("s", "Add", ("e", "f"), (1,)),
        "t": Node("t", "Scale", ("s",), (1,), {}, {"shift": np.array([1.0])}),
        "r": Node("r", "Reciprocal", ("t",), (1,)),
        "y": Node("y", "Concat", ("r", "e"), (2,), {"axis": 0}),
    }
    return Network(Graph(nodes, ("x",), ("y",)), torch.float64)


def test_a_backward_pass_is_not_lost_to_what_it_does_not_read() -> None:
    network = exponentials()
    low, up = torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double()
    bounds = interval_bounds(network, low, up)
    scales = rounding.Scales(rounding.gamma(network))
    for given in network.graph.nodes.values():
        scales[given.name] = node_scale(network, given, bounds[given.name], scales)
    assert "f" in scales.unbounded
    eye = torch.eye(2, dtype=torch.float64)
    backward = Backward(network, relaxations_of(network, bounds), scales=scales)
    lines = backward.run(output_seeds(network, torch.cat([eye, -eye])[None]))
    value = minimum(lines, low, up, backward.gamma)[0]
    assert -1e-6 <= value[0] <= 0 and -1e-6 <= value[2] <= 0  # 1 / (1 + ...) is next to nothing
    assert value[1] <= np.exp(-1) and np.e <= -value[3] <= np.e + 1e-6
    # What does read the exponential that overflows has no bound, and says so.
    far = Backward(network, relaxations_of(network, bounds), scales=scales)
    lines = far.run({"f": torch.tensor([[[-1.0]]]).double()})
    assert minimum(lines, low, up, far.gamma)[0, 0] == -torch.inf
