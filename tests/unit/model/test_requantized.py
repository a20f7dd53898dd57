"""Quantizers of what is quantized already: which ones are passed over, and that nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import read_graph
from tests.quant_models import Writer, run


def chain(folder: Path, scales: list[float], zeros: list[int], kinds: list[type]) -> Path:
    """Quantizers behind each other with moves between them, then a layer."""
    w = Writer([1, 2, 3])
    x = "x"
    for k, (scale, zero, kind) in enumerate(zip(scales, zeros, kinds, strict=True)):
        x = w.quantized(x, np.float32(scale), zero, kind)
        x = w.add("Transpose", x, perm=[0, 2, 1]) if k % 2 else x
        x = w.add("Reshape", x, w.constant([1, 3, 2] if k % 2 else [1, 2, 3], np.int64))
    flat = w.add("Reshape", x, w.constant([1, 6], np.int64))
    rng = np.random.default_rng(0)
    return w.save(folder, w.add("MatMul", flat, w.constant(rng.normal(size=(6, 2)))))


def staircases(graph: Graph) -> int:
    return sum(node.op == "Round" for node in graph.nodes.values())


@pytest.mark.parametrize(
    ("scales", "zeros", "kinds", "left"),
    [
        ([0.05] * 4, [7] * 4, [np.uint8] * 4, 1),
        ([0.05] * 3, [7, 100, 3], [np.uint8, np.uint8, np.int8], 1),  # saturation stays
        ([0.05, 0.05, 0.1, 0.1], [7] * 4, [np.uint8] * 4, 2),
        ([0.05, 0.0500001], [7] * 2, [np.uint8] * 2, 2),
        ([3e-39] * 2, [0] * 2, [np.int8] * 2, 2),  # k s may be flushed to zero
        ([3e36] * 2, [0] * 2, [np.int16] * 2, 2),  # k s may overflow
    ],
)
def test_same_scale_is_one_staircase_and_the_same_function(
    scales: list[float], zeros: list[int], kinds: list[type], left: int, tmp_path: Path
) -> None:
    path = chain(tmp_path, scales, zeros, kinds)
    graph = read_graph(path, "runtime")
    assert staircases(graph) == left
    scale, rng = np.float32(scales[0]), np.random.default_rng(1)
    if scales[0] > 1e30:
        return
    edge = ((rng.integers(-200, 200, (200, 6)) + np.float32(0.5)) * scale).astype(np.float32)
    points = np.where(rng.random(edge.shape) < 0.5, edge, rng.normal(size=edge.shape) * 60 * scale)
    points = points.astype(np.float32)
    truth = run(path, points)
    network, x = Network(graph, torch.float64), torch.from_numpy(points).double()
    with torch.no_grad():
        low, up = interval_bounds(network, x, x, wanted=graph.outputs)[graph.outputs[0]]
    low, up = low.reshape(truth.shape).numpy(), up.reshape(truth.shape).numpy()
    seen = np.isfinite(truth)
    assert ((low <= truth) | ~seen).all() and ((truth <= up) | ~seen).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_integer_of_the_type_moves(dtype: type) -> None:
    """What the module claims, for every integer and many scales, with the numbers it allows."""
    largest = 65535 if dtype is np.float32 else 255
    whole = np.arange(-largest, largest + 1)
    for scale in 10 ** np.random.default_rng(2).uniform(-3, -1, 40):
        s = dtype(scale)
        with np.errstate(over="ignore"):
            again = np.rint((whole.astype(dtype) * s).astype(dtype) / s)
        seen = np.isfinite(again)
        unit = 2.0**-24 if dtype is np.float32 else 2.0**-11
        if 2 * (unit + unit) * largest < 0.5:
            assert (again == whole)[seen].all()
