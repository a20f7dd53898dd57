"""Softmax over masked entries: minus infinity is an exact zero, large negative numbers nearly one.

In each network row 0 of the scores keeps only entry 0, row 1 the entries 0 and 1, row 2 all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from tiny_models import Array, model_of, random_feed, run_graph, run_onnxruntime, saved

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.errors import UnsupportedError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph

KEPT = np.tril(np.ones((3, 3), dtype=bool))
DEPTHS = {"1e4": -1e4, "lowest": float(np.finfo(np.float32).min), "infinity": -np.inf}
VALUES = np.array([[1.0], [2.0], [3.0]], np.float32)


def added(depth: float) -> tuple[list[Any], dict[str, Array]]:
    mask = np.where(KEPT, np.float32(0), np.float32(depth))
    return [helper.make_node("Add", ["s", "mask"], ["m"])], {"mask": mask}


def added_twice(depth: float) -> tuple[list[Any], dict[str, Array]]:
    first, second = (np.where(keep, np.float32(0), np.float32(depth)) for keep in (KEPT, KEPT | 1))
    column = np.float32([[0.5], [-0.5], [0.25]])
    nodes = [
        helper.make_node("Add", ["s", "mask"], ["a"]),
        helper.make_node("Add", ["column", "a"], ["b"]),
        helper.make_node("Add", ["b", "second"], ["m"]),
    ]
    return nodes, {"mask": first, "second": second, "column": column}


def chosen(depth: float) -> tuple[list[Any], dict[str, Array]]:
    return [helper.make_node("Where", ["keep", "s", "low"], ["m"])], {
        "keep": KEPT,
        "low": np.float32(depth),
    }


def attention(build: Any, depth: float, axis: int, opset: int, repaired: bool) -> Any:
    """``repaired``: as torch exports it, where a softmax that is NaN becomes zero."""
    nodes, constants = build(depth)
    probability = "p"
    after = []
    if repaired:
        after = [
            helper.make_node("IsNaN", ["p"], ["n"]),
            helper.make_node("Where", ["n", "zero", "p"], ["q"]),
        ]
        constants, probability = {**constants, "zero": np.float32(0)}, "q"
    all_nodes = [
        helper.make_node("MatMul", ["x", "t"], ["s0"]),
        helper.make_node("MatMul", ["s0", "u"], ["s"]),
        *nodes,
        helper.make_node("Softmax", ["m"], ["p"], axis=axis),
        *after,
        helper.make_node("MatMul", [probability, "v"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    constants = {
        **constants,
        "t": rng.normal(size=(2, 2)).astype(np.float32),
        "u": rng.normal(size=(2, 3)).astype(np.float32),
        "v": VALUES,
    }
    return model_of(all_nodes, {"x": (3, 2)}, ["y"], constants, opset)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("build", [added, added_twice, chosen])
@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
def test_masked_attention(
    depth: str, build: Any, repaired: bool, opset: int, tmp_path: Path
) -> None:
    axis = 1 if opset == 11 else -1
    path = saved(attention(build, DEPTHS[depth], axis, opset, repaired), tmp_path)
    graph = read_graph(path)
    feed = random_feed(graph)
    found, expected = run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    network = Network(graph, torch.float64)
    low = torch.full((1, graph.n_inputs), -1.0, dtype=torch.float64)
    bounds = LayerBounder(network, 1 << 28).run(low, -low).bounds
    lower, upper = (end[0].flatten().numpy() for end in bounds[graph.outputs[0]])
    np.testing.assert_allclose([lower[0], upper[0]], 1, rtol=1e-9)  # nothing else is left
    assert (lower >= 0).all() and (upper <= 6 + 1e-9).all()  # each weight is at most 1
    assert upper[1] <= 3 + 1e-9  # 1 + 2: entry 2 is no part of it
    for seed in range(20):
        y = run_graph(graph, random_feed(graph, -1, 1, seed))[0].flatten()
        assert (lower - 1e-9 <= y).all() and (y <= upper + 1e-9).all()


REFUSED = {
    "nothing left": ("Softmax", np.full((3, 3), -np.inf, np.float32)),
    "logarithm of zero": ("LogSoftmax", np.where(KEPT, 0, -np.inf).astype(np.float32)),
    "another reader": ("Relu", np.where(KEPT, 0, -np.inf).astype(np.float32)),
    "output": ("", np.where(KEPT, 0, -np.inf).astype(np.float32)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_minus_infinity_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    op, mask = REFUSED[name]
    nodes = [helper.make_node("Add", ["x", "mask"], ["m" if op else "y"])]
    nodes += [helper.make_node(op, ["m"], ["y"])] if op else []
    path = saved(model_of(nodes, {"x": (3, 3)}, ["y"], {"mask": mask}), tmp_path)
    with pytest.raises(UnsupportedError, match="minus infinity"):
        read_graph(path)


NORMALISATIONS = {
    "LayerNormalization": ((2, 4), {"axis": -1}, np.sqrt(3)),
    "InstanceNormalization": ((1, 2, 5), {}, 2.0),
    "GroupNormalization": ((1, 2, 3), {"num_groups": 1}, np.sqrt(5)),
}


@pytest.mark.parametrize("op", NORMALISATIONS)
def test_normalised_entries_have_the_bounds_of_normalised_entries(op: str, tmp_path: Path) -> None:
    """``n`` entries with sum zero and sum of squares ``n`` are at most ``sqrt(n - 1)``, on any
    box."""
    shape, attrs, limit = NORMALISATIONS[op]
    size = shape[-1] if op == "LayerNormalization" else shape[1]
    constants = {"g": np.ones(size, np.float32), "b": np.zeros(size, np.float32)}
    node = helper.make_node(op, ["x", "g", "b"], ["y"], **attrs)
    opset = 21 if op == "GroupNormalization" else 17
    path = saved(model_of([node], {"x": shape}, ["y"], constants, opset), tmp_path)
    graph = read_graph(path)
    network = Network(graph, torch.float64)
    ends = torch.full((1, graph.n_inputs), -3.0, dtype=torch.float64)
    bounds = LayerBounder(network, 1 << 28).run(ends, -ends).bounds[graph.outputs[0]]
    assert (bounds[0] >= -limit - 1e-9).all() and (bounds[1] <= limit + 1e-9).all()
    # and they are reached: one entry alone differs
    x = np.zeros(shape, np.float32)
    x.reshape(-1)[0] = 3
    found, expected = run_graph(graph, {"x": x})[0], run_onnxruntime(path, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.max() > 0.99 * limit


def mean_square_normalised(op: str) -> list[Any]:
    """``x / sqrt(mean(x^2) + 1e-5)`` as exporters write it out."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["q"]),
        helper.make_node("ReduceMean", ["q"], ["m"], axes=[-1]),
        helper.make_node("Add", ["m", "e"], ["n"]),
        helper.make_node("Sqrt", ["n"], ["r"]),
    ]
    if op == "Div":
        return [*nodes, helper.make_node("Div", ["x", "r"], ["y"])]
    return [
        *nodes,
        helper.make_node("Reciprocal", ["r"], ["i"]),
        helper.make_node("Mul", ["i", "x"], ["y"]),
    ]


@pytest.mark.parametrize("op", ["Div", "Mul"])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1, -1e-6])
def test_a_normalisation_written_out_is_known_as_one(
    op: str, epsilon: float, tmp_path: Path
) -> None:
    """With ``epsilon < 0`` entries may be larger than ``sqrt(n)``: then nothing is claimed."""
    constants = {"e": np.float32(epsilon)}
    path = saved(model_of(mean_square_normalised(op), {"x": (2, 4)}, ["y"], constants), tmp_path)
    graph = read_graph(path)
    has_limit = any(node.op == "Clip" for node in graph.nodes.values())
    assert has_limit == (epsilon > 0)
    for scale in (1e-3, 1.0, 100.0):
        x = np.float32(scale) * np.eye(2, 4, dtype=np.float32)
        found, expected = run_graph(graph, {"x": x})[0], run_onnxruntime(path, {"x": x})[0]
        if np.isfinite(expected).all():
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_norm_of_another_line_is_no_limit(tmp_path: Path) -> None:
    """Sums of rows, laid along a row by broadcasting: entry (i, j) meets the sum of row j."""
    nodes = mean_square_normalised("Div")
    nodes[1] = helper.make_node("ReduceMean", ["q"], ["m"], axes=[1], keepdims=0)
    path = saved(model_of(nodes, {"x": (3, 3)}, ["y"], {"e": np.float32(1e-5)}), tmp_path)
    graph = read_graph(path)
    x = np.float32([[9, 9, 9], [1, 1, 1], [0.1, 0.1, 0.1]])
    found, expected = run_graph(graph, {"x": x})[0], run_onnxruntime(path, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.max() > 50


def test_a_norm_kept_from_zero_is_a_norm(tmp_path: Path) -> None:
    """``x / max(|x|, 1e-12)``, as torch writes ``normalize``: no entry is larger than 1."""
    nodes = [
        helper.make_node("ReduceL2", ["x"], ["n"], axes=[1], keepdims=1),
        helper.make_node("Clip", ["n", "e"], ["c"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Expand", ["c", "s"], ["w"]),
        helper.make_node("Div", ["x", "w"], ["y"]),
    ]
    path = saved(model_of(nodes, {"x": (2, 3)}, ["y"], {"e": np.float32(1e-12)}), tmp_path)
    graph = read_graph(path)
    network = Network(graph, torch.float64)
    ends = torch.full((1, graph.n_inputs), -3.0, dtype=torch.float64)
    bounds = LayerBounder(network, 1 << 28).run(ends, -ends).bounds[graph.outputs[0]]
    assert (bounds[0] >= -1 - 1e-9).all() and (bounds[1] <= 1 + 1e-9).all()
    feed = random_feed(graph)
    found, expected = run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
