"""What the passes make of small graphs: the neighbours that merge, and those that must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.lowering.builder import Builder
from bitcrown.model.passes import simplified

Step = tuple[str, Sequence[str], Mapping[str, Any], Mapping[str, np.ndarray]]


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def graph_of(
    shape: tuple[int, ...], steps: Mapping[str, Step], outputs: Sequence[str] = ("y",)
) -> Graph:
    builder = Builder()
    builder.nodes["x"] = Node("x", "Input", (), shape)
    for name, (op, inputs, attrs, params) in steps.items():
        builder.emit(op, inputs, attrs, params, name)
    return Graph(builder.nodes, ("x",), tuple(outputs), ("float32",))


def simple(
    shape: tuple[int, ...], steps: Mapping[str, Step], outputs: Sequence[str] = ("y",)
) -> list[str]:
    """Operators left after all passes, which must not change the outputs."""
    before = graph_of(shape, steps, outputs)
    after = simplified(before)
    x = torch.randn(
        4, before.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(Network(after, torch.float64)(x), Network(before, torch.float64)(x))
    return [node.op for node in after.nodes.values() if node.op != "Input"]


def linear(source: str, out: int, into: int) -> Step:
    return "Linear", [source], {}, {"weight": array(out, into), "bias": array(out, seed=1)}


def conv(source: str, pads: int = 0) -> Step:
    attrs = {"strides": [1, 1], "pads": [pads, pads], "dilations": [1, 1], "group": 1}
    return "Conv", [source], attrs, {"weight": array(3, 2, 2, 2)}


def scale(source: str, *shape: int) -> Step:
    return "Scale", [source], {}, {"scale": array(*shape), "shift": array(*shape, seed=1)}


def test_scales_join_the_weights_around_them() -> None:
    assert simple((1, 3), {"a": linear("x", 4, 3), "y": scale("a", 4)}) == ["Linear"]
    assert simple((1, 3), {"a": scale("x", 3), "y": linear("a", 4, 3)}) == ["Linear"]
    assert simple((1, 2, 4, 4), {"a": conv("x", 1), "y": scale("a", 3, 1, 1)}) == ["Conv"]
    assert simple((1, 2, 4, 4), {"a": scale("x", 2, 1, 1), "y": conv("a")}) == ["Conv"]
    assert simple((2, 3), {"a": scale("x", 3), "b": scale("a", 2, 1), "y": scale("b", 2, 3)}) == [
        "Scale"
    ]


def test_a_scale_of_an_image_passes_its_flattening() -> None:
    steps = {
        "a": scale("x", 2, 1, 1),
        "b": ("Reshape", ["a"], {"shape": (1, 8)}, {}),
        "y": linear("b", 4, 8),
    }
    assert simple((1, 2, 2, 2), steps) == ["Reshape", "Linear"]


def test_scales_stay_where_they_do_not_fit() -> None:
    """A shift under zero padding; a scale that differs from row to row; one that others read."""
    assert simple((1, 2, 4, 4), {"a": scale("x", 2, 1, 1), "y": conv("a", 1)}) == ["Scale", "Conv"]
    assert simple((2, 3), {"a": scale("x", 2, 1), "y": linear("a", 4, 3)}) == ["Scale", "Linear"]
    assert simple((1, 3), {"a": linear("x", 4, 3), "y": scale("a", 4)}, ["a", "y"]) == [
        "Linear",
        "Scale",
    ]


def test_matrices_join_where_that_is_not_larger() -> None:
    assert simple((1, 3), {"a": linear("x", 4, 3), "y": linear("a", 2, 4)}) == ["Linear"]
    assert simple((1, 9), {"a": linear("x", 2, 9), "y": linear("a", 9, 2)}) == ["Linear", "Linear"]
    shared = {"a": linear("x", 4, 3), "y": linear("a", 2, 4), "z": linear("a", 5, 4)}
    assert simple((1, 3), shared, ["y", "z"]) == ["Linear"] * 3


def test_readers_are_counted_through_what_vanishes() -> None:
    """``b`` is ``a``; so ``a`` has the two readers of ``b`` and must not be multiplied into
    both."""
    same = ("Reshape", ["a"], {"shape": (1, 4)}, {})
    steps = {"a": linear("x", 4, 3), "b": same, "y": linear("b", 2, 4), "z": linear("b", 5, 4)}
    assert simple((1, 3), steps, ["y", "z"]) == ["Linear"] * 3


def test_movements_compose() -> None:
    turn = {"perm": (1, 2, 0)}
    twice = {
        "a": ("Transpose", ["x"], turn, {}),
        "y": ("Transpose", ["a"], {"perm": (0, 2, 1)}, {}),
    }
    assert simple((2, 3, 4), twice) == ["Transpose"]
    thrice = {
        "a": ("Transpose", ["x"], turn, {}),
        "b": ("Transpose", ["a"], turn, {}),
        "y": ("Transpose", ["b"], turn, {}),
    }
    assert simple((2, 3, 4), thrice) == []
    assert simple((1, 3, 4), {"y": ("Transpose", ["x"], turn, {})}) == ["Reshape"]
    steps = {
        "a": ("Reshape", ["x"], {"shape": (6,)}, {}),
        "y": ("Reshape", ["a"], {"shape": (3, 2)}, {}),
    }
    assert simple((2, 3), steps) == ["Reshape"]
    cut = {"slices": ((1, 2, 1), (1, 8, 3))}
    cuts = {
        "a": ("Slice", ["x"], {"slices": ((1, 4, 1), (0, 9, 1))}, {}),
        "y": ("Slice", ["a"], cut, {}),
    }
    assert simple((4, 9), cuts) == ["Slice"]
    strided = {
        "a": ("Slice", ["x"], {"slices": ((1, 9, 2),)}, {}),
        "y": ("Slice", ["a"], {"slices": ((1, 4, 2),)}, {}),
    }
    assert simple((9,), strided) == ["Slice"]
    grown = {
        "a": ("Expand", ["x"], {"shape": (2, 1)}, {}),
        "y": ("Expand", ["a"], {"shape": (2, 3)}, {}),
    }
    assert simple((1, 1), grown) == ["Expand"]


def test_nothing_is_computed_for_nobody_or_twice() -> None:
    steps: dict[str, Step] = {
        "a": ("Sigmoid", ["x"], {}, {}),
        "b": ("Sigmoid", ["x"], {}, {}),
        "dead": ("Tanh", ["x"], {}, {}),
        "same": ("Slice", ["b"], {"slices": ((0, 2, 1), (0, 3, 1))}, {}),
        "y": ("Mul", ["a", "same"], {}, {}),
    }
    assert simple((2, 3), steps) == ["Sigmoid", "Square"]


def test_equal_operators_with_unequal_weights_stay_apart() -> None:
    steps = {
        "a": linear("x", 2, 3),
        "b": linear("x", 2, 3),
        "c": ("Linear", ["x"], {}, {"weight": array(2, 3, seed=5)}),
    }
    steps |= {"d": ("Add", ["a", "b"], {}, {}), "y": ("Mul", ["d", "c"], {}, {})}
    assert simple((1, 3), steps) == ["Linear", "Linear", "Add", "Mul"]


def test_an_output_that_vanishes_is_the_tensor_it_equals() -> None:
    graph = simplified(
        graph_of((2, 3), {"y": ("Reshape", ["x"], {"shape": (2, 3)}, {})}, ["y", "x"])
    )
    assert graph.outputs == ("x", "x")
