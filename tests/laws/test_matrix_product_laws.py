"""Laws of ``MatMul``, the product of two bounded matrices as one node, and of the pass that makes
it.

Truth of single boxes is ``numpy.longdouble``, from the same floating-point numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import interval_bounds
from bitcrown.bounds.relaxations.registry import nonlinear_row, passed_back, terms_of
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph, Node
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.products import bytes_of_bounds, fitted, with_whole_products
from bitcrown.search.inputs.bounds import gathered
from tests.quant_models import Writer, run

Wide = np.longdouble
NODE = Node("z", "MatMul", ("x", "y"), (3, 4))


def boxes(seed: int, dtype: torch.dtype, inner: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of ``x [B, 3, inner]`` and ``y [B, 4, inner]``: centred at zero, of one sign, mixed, points,
    tiny and huge."""
    draw, found = np.random.default_rng(seed), []
    for rows in (3, 4):
        centre = (
            draw.normal(size=(10, rows, inner))
            * np.array([0, 1, 5, 1, 1, 1e3, 1, 0, 1, 1])[:, None, None]
        )
        reach = (
            draw.random((10, rows, inner))
            * np.array([1, 1, 1, 0, 1e-9, 10, 1e-30, 1e-160, 1e15, 3])[:, None, None]
        )
        centre[1] = np.abs(centre[1]) + reach[1]
        ends = [torch.as_tensor(centre + s * reach).to(dtype) for s in (-1, 1)]
        found.append((torch.minimum(*ends), torch.maximum(*ends)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [1, 2, 7, 100])
def test_range_and_planes_enclose_products(dtype: torch.dtype, inner: int) -> None:
    (a, b), (c, d) = boxes(inner, dtype, inner)
    row = nonlinear_row("MatMul")
    low, up = row.interval(NODE, [a, c], [b, d])
    lines = row.relax(NODE, [a, c], [b, d], None)
    draw = np.random.default_rng(1)
    wide = [end.numpy().astype(Wide) for end in (a, b, c, d)]
    for trial in range(40):
        share = [draw.random(end.shape) if trial % 2 else draw.integers(0, 2, end.shape) * 1.0
                 for end in (wide[0], wide[2])]  # fmt: skip
        x, y = (
            np.clip(
                wide[k] * (1 - share[k // 2]) + wide[k + 1] * share[k // 2], wide[k], wide[k + 1]
            )
            for k in (0, 2)
        )
        truth = np.einsum("bid,bjd->bij", x, y)
        size = np.einsum("bid,bjd->bij", np.abs(x), np.abs(y)) * 4 * inner * np.finfo(Wide).eps
        assert (low.numpy() <= truth + size).all() and (truth - size <= up.numpy()).all()
        for slopes, intercept, sign in (
            (lines.lower_slopes, lines.lower_intercept, 1),
            (lines.upper_slopes, lines.upper_intercept, -1),
        ):
            s, t = (part.numpy().astype(Wide) for part in slopes)
            plane = np.einsum("bid,bjd->bij", x, s) + np.einsum("bid,bjd->bij", t, y)
            terms = np.einsum("bid,bjd->bij", abs(x), abs(s)) + np.einsum(
                "bid,bjd->bij", abs(t), abs(y)
            )
            gap = sign * (truth - plane - intercept.numpy().astype(Wide))
            assert (gap >= -size - terms * 8 * inner * np.finfo(Wide).eps).all()


def test_range_is_exact_for_one_sign_and_for_centred_boxes() -> None:
    low = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    up, other = low + 1, torch.tensor([[[-3.0, 4.0]]], dtype=torch.float64)
    found = nonlinear_row("MatMul").interval(NODE, [low, other], [up, other + 2])
    assert np.allclose([float(end) for end in found], [-6 + 8, -1 + 18], atol=1e-9)
    found = nonlinear_row("MatMul").interval(NODE, [-up, -up], [up, up])
    assert np.allclose([float(end) for end in found], [-13, 13], atol=1e-9)


def test_an_infinite_entry_costs_its_row_alone() -> None:
    low = torch.zeros(1, 3, 2, dtype=torch.float64)
    up, ones = low.clone(), torch.ones(1, 4, 2, dtype=torch.float64)
    up[0, 1, 0] = torch.inf
    lines = nonlinear_row("MatMul").relax(NODE, [low, ones], [up, ones], None)
    assert all(bool(torch.isfinite(slope).all()) for slope in lines.lower_slopes)
    assert bool(torch.isfinite(lines.lower_intercept[0, [0, 2]]).all())


def test_coefficients_pass_back_as_terms_come() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
    for place, rows, others in ((0, 3, 4), (1, 4, 3)):
        value = torch.randn(2, rows, 5, generator=draw, dtype=torch.float64)
        slope = torch.randn(2, others, 5, generator=draw, dtype=torch.float64)
        forward = (a * terms_of(NODE, place, slope, value)).sum()
        back = (passed_back(NODE, place, a, slope) * value).sum()
        assert torch.allclose(forward, back)


def attention(folder: Path) -> Path:
    """Two matrices of the input, their product, a softmax, and the product with a third."""
    rng = np.random.default_rng(3)
    w = Writer([1, 6, 5])
    x = w.quantized("x", np.float32(0.02), 128, np.uint8)
    q, k, v = (w.add("MatMul", x, w.constant(rng.normal(size=(5, 4)))) for _ in range(3))
    scores = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 2, 1]))
    shares = w.quantized(w.add("Softmax", scores, axis=-1), np.float32(1 / 255), 0, np.uint8)
    mixed = w.add("MatMul", shares, v)
    return w.save(folder, w.add("MatMul", mixed, w.constant(rng.normal(size=(4, 3)))))


def crown(graph: Graph, low: torch.Tensor, up: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    network = Network(graph, torch.float64)
    with torch.no_grad():
        bounder = LayerBounder(network, 1 << 26)
        found = bounder.run(low, up)
        rows = torch.eye(graph.n_outputs, dtype=torch.float64)
        seeds = output_seeds(network, torch.cat([rows, -rows]).unsqueeze(0))
        backward = Backward(network, found.relaxations, scales=found.scales)
        least = minimum(backward.run(seeds), low, up, bounder.gamma)[0].numpy()
    return least[: len(rows)], -least[len(rows) :]


@pytest.mark.parametrize("width", [0.0, 0.003, 0.05])
def test_whole_products_enclose_what_the_runtime_computes(width: float, tmp_path: Path) -> None:
    path = attention(tmp_path)
    graph = read_graph(path, "runtime")
    whole = with_whole_products(graph)
    ops = [node.op for node in whole.nodes.values()]
    assert ops.count("MatMul") == 2 and bytes_of_bounds(whole) < bytes_of_bounds(graph)
    rng = np.random.default_rng(0)
    centre = rng.normal(size=30).astype(np.float32)
    low, up = (torch.from_numpy((centre + s * width).astype(np.float32)).double()[None]
               for s in (-1, 1))  # fmt: skip
    share = rng.random((60, 30))
    share[::3] = rng.integers(0, 2, (20, 30))
    inside = torch.minimum(torch.maximum(low + (up - low) * torch.from_numpy(share), low), up)
    points = inside.numpy().astype(np.float32)
    with torch.no_grad():
        values = Network(graph, torch.float64)(torch.from_numpy(points).double())
        same = Network(whole, torch.float64)(torch.from_numpy(points).double())
    assert torch.allclose(values, same, atol=1e-9)
    network = Network(whole, torch.float64)
    with torch.no_grad():
        thin = interval_bounds(network, low, up, wanted=whole.outputs)
        full = interval_bounds(network, low, up)
    assert set(thin) == set(whole.outputs)
    (name,) = whole.outputs
    assert torch.equal(thin[name][0], full[name][0]) and torch.equal(thin[name][1], full[name][1])
    truth = run(path, points)
    for least, most in (crown(whole, low, up), [end.numpy().ravel() for end in thin[name]]):
        assert (least <= truth).all() and (truth <= most).all()
    if width:  # single slopes are worth little more than parallel planes, both far above nothing
        single = crown(graph, low, up)
        assert (
            crown(whole, low, up)[1] - crown(whole, low, up)[0] < 3 * (single[1] - single[0]) + 1e-3
        ).all()


def test_products_stay_single_where_they_fit(tmp_path: Path) -> None:
    graph = read_graph(attention(tmp_path), "runtime")
    assert fitted(graph, bytes_of_bounds(graph)) is graph
    assert any(node.op == "MatMul" for node in fitted(graph, 1000).nodes.values())


def test_rounding_of_the_whole_is_no_less_than_that_of_the_parts(tmp_path: Path) -> None:
    graph = read_graph(attention(tmp_path), "runtime")
    whole = with_whole_products(graph)
    x = torch.from_numpy(np.random.default_rng(5).normal(size=(20, 30)))
    found = []
    for each in (graph, whole):
        network = Network(each, torch.float64)
        with torch.no_grad():
            bounds = interval_bounds(network, x, x)
        first = [node.name for node in whole.nodes.values() if node.op == "MatMul"][0]
        found.append(bounds[first][1] - bounds[first][0])
    assert (found[1] >= found[0] * (1 - 1e-6)).all() and bool((found[0] > 0).all())


def test_too_little_memory_leaves_intervals_and_attacks(tmp_path: Path) -> None:
    import bitcrown
    from bitcrown.budget import Budget

    path = attention(tmp_path)
    box = [torch.full((1, 30), v, dtype=torch.float64) for v in (-0.1, 0.1)]
    low, up = crown(read_graph(NetworkFile(path), "runtime"), *box)
    text = "".join(f"(declare-const X_{i} Real)" for i in range(30))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(18))
    text += "".join(f"(assert (>= X_{i} -0.1))(assert (<= X_{i} 0.1))" for i in range(30))
    reach = 100 * float(max(abs(low).max(), abs(up).max()))
    for limit, status in ((reach, "unsat"), (-reach, "sat")):
        (tmp_path / "p.vnnlib").write_text(text + f"(assert (>= Y_0 {limit:.6f}))")
        problem = bitcrown.load(path, tmp_path / "p.vnnlib")
        verdict = bitcrown.verify(problem, budget=Budget.of_cpu_seconds(20.0, 1 << 16))
        assert verdict.status == status, verdict
        assert status == "sat" or verdict.counters["root_by_intervals"] == 1


def test_copied_slopes_of_square_matrices_are_the_same_lines() -> None:
    """Where a search picks boxes of a batch it copies slopes; of square matrices these have the
    shape of the product, and must not be multiplied into it entry by entry."""
    nodes = [
        Node("x", "Input", (), (3, 3)),
        Node("y", "Input", (), (3, 3)),
        Node("z", "MatMul", ("x", "y"), (3, 3)),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x", "y"), ("z",))
    network = Network(graph, torch.float64)
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(2, 18, dtype=torch.float64, generator=generator)
    lower, upper = centre - 0.5, centre + 0.5
    relaxations = LayerBounder(network, 1 << 28).run(lower, upper).relaxations
    copied = {name: gathered(found, torch.arange(2)) for name, found in relaxations.items()}
    assert copied["z"].lower_slopes[0] is not copied["z"].upper_slopes[0]
    rows = torch.randn(1, 4, 9, dtype=torch.float64, generator=generator)
    seeds = output_seeds(network, rows.expand(2, -1, -1))
    bound, same = (
        minimum(Backward(network, found).run(dict(seeds)), lower, upper)
        for found in (relaxations, copied)
    )
    assert torch.equal(bound, same)
    share = torch.rand(500, 2, 18, dtype=torch.float64, generator=generator)
    values = network((lower + share * (upper - lower)).reshape(-1, 18)).reshape(500, 2, 1, 9)
    assert ((values * rows).sum(-1).amin(0) >= bound - 1e-9).all()
