"""What each relaxation looks like where the answer is known by hand, and how good it is compared
with a brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.errors import UnsupportedError
from bitcrown.model.graph import Node


def relax(
    op: str, low: float, up: float, alpha: list[float] | None = None, **attrs: Any
) -> Relaxation:
    node = Node("y", op, ("x",), (1,), attrs)
    ends = [torch.tensor([[value]], dtype=torch.float64) for value in (low, up)]
    chosen = (
        None if alpha is None else torch.tensor(alpha, dtype=torch.float64).reshape(-1, 1, 1, 1)
    )
    if chosen is not None:
        ends = [end.unsqueeze(1) for end in ends]
    return nonlinear_row(op).relax(node, [ends[0]], [ends[1]], chosen)


def numbers(relaxation: Relaxation) -> tuple[float, float, float, float]:
    parts = (relaxation.lower_slopes[0], relaxation.lower_intercept)
    parts += (relaxation.upper_slopes[0], relaxation.upper_intercept)
    first, second, third, fourth = (part.item() for part in parts)
    return first, second, third, fourth


def interval(op: str, low: float, up: float, **attrs: Any) -> tuple[float, float]:
    node = Node("y", op, ("x",), (1,), attrs)
    ends = [torch.tensor([[value]], dtype=torch.float64) for value in (low, up)]
    first, second = nonlinear_row(op).interval(node, [ends[0]], [ends[1]])
    return first.item(), second.item()


def test_an_operator_without_row_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        nonlinear_row("Gemm")


def test_relu() -> None:
    assert numbers(relax("Relu", -1.0, 3.0)) == pytest.approx((1.0, 0.0, 0.75, 0.75))
    assert numbers(relax("Relu", -3.0, 1.0)) == pytest.approx((0.0, 0.0, 0.25, 0.75))
    assert numbers(relax("Relu", -3.0, 1.0, alpha=[0.5])) == pytest.approx((0.5, 0.0, 0.25, 0.75))


@pytest.mark.parametrize(
    ("low", "up", "slope"), [(0.0, 2.0, 1.0), (-2.0, 0.0, 0.0), (1.0, 2.0, 1.0), (-2.0, -1.0, 0.0)]
)
def test_a_stable_or_split_relu_is_exact_for_every_alpha(
    low: float, up: float, slope: float
) -> None:
    for alpha in (None, [0.0], [0.5], [1.0]):
        assert numbers(relax("Relu", low, up, alpha)) == (slope, 0.0, slope, 0.0)


def test_the_relu_intercept_keeps_one_quantity_axis() -> None:
    """``relu_step`` multiplies by one upper intercept for all quantities."""
    alpha = torch.rand(1, 3, 5, 4)
    low, up = -torch.rand(3, 1, 4), torch.rand(3, 1, 4)
    found = nonlinear_row("Relu").relax(Node("y", "Relu", ("x",), (4,)), [low], [up], alpha)
    assert found.lower_slopes[0].shape == (3, 5, 4)
    assert found.upper_slopes[0].shape == found.upper_intercept.shape == (3, 1, 4)


def test_a_shared_box_broadcasts_against_many_alphas() -> None:
    """Bounds may come with one row while alpha has one per domain."""
    for op in ("Relu", "Sigmoid", "Exp", "Reciprocal", "Sin", "Clip", "Sign", "Floor", "Elu"):
        row = nonlinear_row(op)
        node = Node("y", op, ("x",), (4,), {"min": -1.0, "max": 0.5} if op == "Clip" else {})
        found = row.relax(
            node,
            [torch.full((1, 1, 4), -0.7)],
            [torch.full((1, 1, 4), 1.3)],
            torch.rand(row.alphas, 6, 2, 4),
        )
        for part in (
            found.lower_slopes[0],
            found.lower_intercept,
            found.upper_slopes[0],
            found.upper_intercept,
        ):
            assert part.expand(6, 2, 4).shape == (6, 2, 4)


def test_clip_is_a_relu_while_it_does_not_saturate_above() -> None:
    assert numbers(relax("Clip", -1.0, 3.0, min=0.0, max=6.0)) == pytest.approx(
        (1.0, 0.0, 0.75, 0.75)
    )


def test_clip_with_both_kinks() -> None:
    lower_slope, lower_cut, upper_slope, upper_cut = numbers(
        relax("Clip", -2.0, 2.0, min=-1.0, max=1.0)
    )
    assert (lower_slope, lower_cut) == pytest.approx((2 / 3, -1 / 3))
    assert (upper_slope, upper_cut) == pytest.approx((2 / 3, 1 / 3))


def test_mccormick_planes_are_the_ends_of_alpha() -> None:
    node = Node("y", "Mul", ("x", "z"), (1,))
    a, b, c, d = (torch.tensor([[[value]]], dtype=torch.float64) for value in (-1.0, 2.0, 0.5, 3.0))
    for first, (s, t, cut) in ((0.0, (0.5, -1.0, 0.5)), (1.0, (3.0, 2.0, -6.0))):
        found = nonlinear_row("Mul").relax(
            node, [a, c], [b, d], torch.full((2, 1, 1, 1), first, dtype=torch.float64)
        )
        assert [
            part.item() for part in (*found.lower_slopes, found.lower_intercept)
        ] == pytest.approx([s, t, cut])
    for second, (s, t, cut) in ((0.0, (3.0, -1.0, 3.0)), (1.0, (0.5, 2.0, -1.0))):
        found = nonlinear_row("Mul").relax(
            node, [a, c], [b, d], torch.full((2, 1, 1, 1), second, dtype=torch.float64)
        )
        assert [
            part.item() for part in (*found.upper_slopes, found.upper_intercept)
        ] == pytest.approx([s, t, cut])


def test_a_product_keeps_the_sign_of_its_operands() -> None:
    node = Node("y", "Mul", ("x", "z"), (1,))
    a, b, c, d = (torch.tensor([[value]]) for value in (0.0, 2.0, -3.0, 0.0))
    low, up = nonlinear_row("Mul").interval(node, [a, c], [b, d])
    assert up.item() == 0.0 and low.item() == pytest.approx(-6.0)


def test_intervals_of_sine_and_cosine_know_their_extrema() -> None:
    assert interval("Sin", 0.0, math.pi) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert interval("Cos", 1.0, 4.0) == pytest.approx((-1.0, math.cos(1.0)))
    assert interval("Sin", -2.0, 2.0) == pytest.approx((-1.0, 1.0))
    assert interval("Sin", 100.0, 100.5) == pytest.approx((math.sin(100.0), math.sin(100.5)))
    assert interval("Cos", -1e9, 1e9) == (-1.0, 1.0)


def test_no_bound_where_a_function_is_not_defined() -> None:
    assert interval("Log", -1.0, 1.0)[0] == -math.inf
    assert interval("Reciprocal", -1.0, 1.0) == (-math.inf, math.inf)
    assert interval("Sqrt", -1.0, 4.0) == pytest.approx((0.0, 2.0))
    assert numbers(relax("Log", -1.0, 1.0))[:2] == (0.0, -math.inf)
    assert numbers(relax("Reciprocal", 0.0, 1.0)) == (0.0, -math.inf, 0.0, math.inf)


def test_staircases_stay_within_one_step() -> None:
    assert numbers(relax("Floor", -3.3, 7.8)) == pytest.approx((1.0, -1.0, 1.0, 0.0))
    assert numbers(relax("Round", -3.3, 7.8)) == pytest.approx((1.0, -0.5, 1.0, 0.5))
    assert numbers(relax("Ceil", -3.3, 7.8)) == pytest.approx((1.0, 0.0, 1.0, 1.0))
    assert numbers(relax("Round", 0.6, 1.4)) == (0.0, 1.0, 0.0, 1.0)


def test_sign_needs_its_jump_inside() -> None:
    assert numbers(relax("Sign", 0.5, 2.0)) == (0.0, 1.0, 0.0, 1.0)
    assert numbers(relax("Sign", -1.0, 3.0)) == pytest.approx((2 / 3, -1.0, 0.0, 1.0))
    assert numbers(relax("Sign", 0.0, 2.0)) == pytest.approx((0.5, 0.0, 0.0, 1.0))


def test_elu_with_a_negative_scale_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        nonlinear_row("Elu").interval(
            Node("y", "Elu", ("x",), (1,), {"alpha": -1.0}), [torch.zeros(1, 1)], [torch.ones(1, 1)]
        )


def envelope_at_middle(function: Callable[[Tensor], Tensor], low: float, up: float) -> float:
    """Value at the midpoint of the convex envelope of ``function`` on ``[low, up]``, by brute
    force."""
    x = torch.linspace(low, up, 2001, dtype=torch.float64)
    y = function(x)
    middle = (low + up) / 2
    left, right = x[x <= middle], x[x >= middle]
    first, second = y[: len(left)], y[len(x) - len(right) :]
    weight = (right[None, :] - middle) / (right[None, :] - left[:, None]).clamp(min=1e-12)
    chords = weight * first[:, None] + (1 - weight) * second[None, :]
    return min(chords.min().item(), function(torch.tensor([middle], dtype=torch.float64)).item())


FUNCTIONS = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Softplus": torch.nn.functional.softplus,
    "Square": torch.square,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Relu": torch.relu,
}


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize(
    ("low", "up"),
    [(-1.0, 2.0), (-3.0, 0.5), (-0.2, 0.1), (0.3, 2.5), (-2.5, -1.0), (-4.0, 4.5), (2.0, 8.0)],
)
def test_the_default_lines_have_the_least_area(op: str, low: float, up: float) -> None:
    """A line's area depends on its value at the midpoint only, where the envelope is the best there
    is."""
    function = FUNCTIONS[op]
    lower_slope, lower_cut, upper_slope, upper_cut = numbers(relax(op, low, up))
    middle = (low + up) / 2
    best_low = envelope_at_middle(function, low, up)
    best_up = -envelope_at_middle(lambda x: -function(x), low, up)
    room = best_up - best_low
    assert lower_slope * middle + lower_cut >= best_low - 1e-3 * room - 1e-5
    assert upper_slope * middle + upper_cut <= best_up + 1e-3 * room + 1e-5


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh"])
def test_very_wide_s_shapes_keep_a_tangent(op: str) -> None:
    """The tangent point must follow the width far beyond the table's end, or one side is lost."""
    lower_slope, lower_cut, _, _ = numbers(relax(op, -50.0, 1e14))
    floor = 0.0 if op == "Sigmoid" else -1.0
    assert lower_slope > 0
    assert lower_slope * 1e14 + lower_cut >= floor + 0.9 * (1 - floor)


def test_planes_of_products_are_parallel_to_the_last_bit() -> None:
    """Passes over sums of products (``bounds.centred.bilinear``) are taken only where they are."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        middle = torch.randn(2, 1, 1, 2000, dtype=dtype, generator=random)
        low, up = middle - 0.1, middle + 0.1
        node, row = Node("y", "Mul", ("x", "z"), (2000,)), nonlinear_row("Mul")
        assert row.default_alpha is not None
        start = row.default_alpha(node, [low[0], low[1]], [up[0], up[1]])
        for alpha in (None, start):
            line = row.relax(node, [low[0], low[1]], [up[0], up[1]], alpha)
            for below, above in zip(line.lower_slopes, line.upper_slopes, strict=True):
                assert torch.equal(below, above)
