"""``DynamicQuantize``: its lines and intervals hold for the float32 numbers that onnxruntime makes
of a tensor.

Legend: ``B`` boxes, ``P`` points of a box, ``N`` elements of the tensor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.bounds.subnetworks.receptive_field import view_of
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.onnx_reader import read_graph
from tests.quant_models import Writer

torch.set_num_threads(1)
ROW = nonlinear_row("DynamicQuantize")
SHAPES = ((5,), (1, 2, 3), ())


def boxes(count: int, shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, *shape]``: of all sizes and distances from zero, of one sign and of both, some elements
    fixed."""
    rng = np.random.default_rng(seed)
    size = (count, *shape)
    each = (count, *[1] * len(shape))
    centre = rng.normal(size=size) * 10.0 ** rng.integers(-3, 3, size=each) + rng.choice(
        [-4, 0, 4], size=each
    )
    radius = rng.random(size) * (rng.random(size) < 0.8) * 10.0 ** rng.integers(-6, 2, size=each)
    centre = np.where(rng.random(each) < 0.3, np.abs(centre) + radius, centre)
    low, up = centre - radius, centre + radius
    return torch.from_numpy(low.astype(np.float32)), torch.from_numpy(up.astype(np.float32))


def points_of(low: np.ndarray, up: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``[P, N]`` float32: random points, corners, and points half a step from where the rounding
    turns."""
    share = rng.random((40, *low.shape))
    share[:15] = share[:15] > 0.5
    points = (low + share.astype(np.float32) * (up - low)).clip(low, up)
    scale = (points.clip(min=0).max(axis=1) - points.clip(max=0).min(axis=1))[:, None] / 255
    turned = (np.floor(points / np.where(scale > 0, scale, 1)) + np.float32(0.5)) * scale
    return np.concatenate([points, turned.clip(low, up)]).astype(np.float32)


def session() -> onnxruntime.InferenceSession:
    w = Writer([None])  # type: ignore[list-item]
    w.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    content = w.model(w.add("DequantizeLinear", "q", "s", "z")).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
def test_what_onnxruntime_computes_is_enclosed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    runtime, node = session(), Node("y", "DynamicQuantize", ("x",), shape)
    low, up = boxes(150, shape, 1)
    ends = [low.to(dtype)], [up.to(dtype)]
    least, greatest = (
        end.flatten(1) if shape else end[:, None] for end in ROW.interval(node, *ends)
    )
    alpha = torch.rand(2, len(low), 4, *shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    alpha[:, :, 0], alpha[:, :, 1] = 0.0, 1.0
    alpha[:, :, 2] = ROW.default_alpha(node, *ends)  # type: ignore[misc]
    lines = ROW.relax(node, [ends[0][0].unsqueeze(1)], [ends[1][0].unsqueeze(1)], alpha)
    parts = (*lines.lower_slopes, lines.lower_intercept, *lines.upper_slopes, lines.upper_intercept)
    below, below_at, above, above_at = (
        part.expand(len(low), 4, *shape).reshape(len(low), 4, -1).double().numpy() for part in parts
    )
    rng = np.random.default_rng(3)
    closest = np.inf
    for b in range(len(low)):
        x = points_of(low[b].numpy().reshape(-1), up[b].numpy().reshape(-1), rng)
        y = np.stack([runtime.run(None, {"x": point})[0] for point in x]).astype(np.float64)
        x = x.astype(np.float64)
        assert (y >= least[b].double().numpy()).all() and (y <= greatest[b].double().numpy()).all()
        for k in range(4):
            room = 1e-12 * np.abs(x).max()  # of the evaluation here
            assert (below[b, k] * x + below_at[b, k] <= y + room).all()
            assert (above[b, k] * x + above_at[b, k] >= y - room).all()
        width = x.clip(min=0).max() - x.clip(max=0).min()
        if width > 0:
            closest = min(closest, float((width / 510 - np.abs(y - x)).min() / width))
    assert (
        closest < 1e-4 or shape == ()
    )  # elements that are moved by nearly half a step were among them


def test_the_plain_alpha_is_the_default_and_gradients_are_finite() -> None:
    node = Node("y", "DynamicQuantize", ("x",), (5,))
    low, up = boxes(50, (5,), 4)
    alpha = ROW.default_alpha(node, [low], [up])  # type: ignore[misc]
    assert set(alpha.unique().tolist()) == {0.0, 1.0}
    spread = [low.unsqueeze(1)], [up.unsqueeze(1)]
    found = ROW.relax(node, *spread, alpha.unsqueeze(2))
    expected = ROW.relax(node, *spread, None)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    free = torch.rand(2, 50, 3, 5).requires_grad_(True)
    chosen = ROW.relax(node, *spread, free)
    (gradient,) = torch.autograd.grad(
        chosen.lower_intercept.sum() + chosen.upper_slopes[0].sum(), [free]
    )
    assert torch.isfinite(gradient).all() and (gradient != 0).any()


def image_network(folder: Path) -> Graph:
    """Two quantized convolutions of a 16 x 16 image, then a dense layer."""
    rng = np.random.default_rng(6)
    w = Writer([1, 1, 16, 16])
    value = "x"
    for layer, (inputs, outputs) in enumerate(((1, 3), (3, 2))):
        q, s, z = (f"{part}{layer}" for part in "qsz")
        w.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [value], [q, s, z]))
        weight = w.constant(rng.integers(-128, 128, (outputs, inputs, 3, 3)), np.int8)
        sums = w.add("ConvInteger", q, weight, z, pads=[1, 1, 1, 1])
        floats = w.add("Mul", w.add("Cast", sums, to=1), w.add("Mul", s, w.constant(0.01 / inputs)))
        value = w.add(
            "Relu", w.add("Add", floats, w.constant(rng.normal(size=(1, outputs, 1, 1)) * 0.1))
        )
    flat = w.add("Flatten", value)
    return read_graph(
        w.save(folder, w.add("MatMul", flat, w.constant(rng.normal(size=(512, 3)) / 20)))
    )


def test_bounds_of_a_network_hold_and_no_tile_is_taken_alone(tmp_path: Path) -> None:
    """The scale depends on the whole image: bounds from the part of it that an element sees would
    be too tight."""
    graph = image_network(tmp_path)
    network = Network(graph, torch.float64)
    convolutions = [node for node in graph.nodes.values() if node.op == "Conv"]
    assert len(convolutions) == 2
    assert view_of(graph, convolutions[-1].name, ((4, 6), (4, 6))) is None
    rng = np.random.default_rng(7)
    centre = torch.from_numpy(rng.random((1, 256)))
    low, up = (centre - 0.02).clamp(0, 1), (centre + 0.02).clamp(0, 1)
    ascent = LayerAscent(network, 3, Budget.of_cpu_seconds(60))
    share = torch.from_numpy(rng.random((300, 256)))
    share[:150] = (share[:150] > 0.5).double()
    values = network.activations(low + share * (up - low))
    for bounder in (LayerBounder(network, 1 << 26), LayerBounder(network, 1 << 26, ascent)):
        for name, (least, greatest) in bounder.run(low, up).bounds.items():
            assert (values[name] >= least - 1e-12).all() and (
                values[name] <= greatest + 1e-12
            ).all(), name
