"""Which elements rows are worth for."""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.wanted import has_exact_interval, undecided
from bitcrown.model.graph import Graph, Node

WIDE, POINT = (0.0, 1.0), (0.5, 0.5)


def ends(*pairs: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, up = zip(*pairs, strict=True)
    return torch.tensor([low]), torch.tensor([up])


def test_factors_of_numbers_are_decided() -> None:
    """A product with a number is a line, whatever the other factor's range."""
    node = Node("y", "Mul", ("a", "b"), (3,))
    bounds = {"a": ends(WIDE, WIDE, POINT), "b": ends(WIDE, POINT, WIDE)}
    for source in "ab":
        assert undecided(node, source, bounds).tolist() == [[True, False, False]]


def test_an_infinite_factor_of_a_number_is_asked_for() -> None:
    node = Node("y", "Mul", ("a", "b"), (2,))
    bounds = {"a": ends((0.0, torch.inf), WIDE), "b": ends(POINT, POINT)}
    assert undecided(node, "a", bounds).tolist() == [[True, False]]
    assert not undecided(node, "b", bounds).any()


def test_a_square_asks_for_its_operand() -> None:
    node = Node("y", "Mul", ("a", "a"), (2,))
    assert undecided(node, "a", {"a": ends(WIDE, POINT)}).tolist() == [[True, False]]


def test_copies_and_first_maps_of_inputs_are_exact() -> None:
    nodes = [
        Node("x", "Input", (), (4,)),
        Node("part", "Slice", ("x",), (2,)),
        Node("copies", "Expand", ("part",), (3, 2)),
        Node("first", "Linear", ("part",), (5,)),
        Node("of_copies", "Linear", ("copies",), (3, 5)),
        Node("r", "Relu", ("first",), (5,)),
        Node("second", "Linear", ("r",), (1,)),
        Node("sum", "Add", ("part", "part"), (2,)),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x",), ("second",))
    exact = {node.name for node in nodes if has_exact_interval(graph, node.name)}
    assert exact == {"x", "part", "copies", "first"}
