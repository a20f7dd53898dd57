"""Laws of every relaxation row: enclosure, inclusion, tightness, differentiability. One line in
``CASES`` per operator.

Truth is computed in extended precision (``numpy.longdouble``, 64 bits of mantissa on x86), from the
same floating-point inputs, so that the only tolerance is that of the truth itself: a few of its own
epsilons. Where the platform has no wider type than float64 that tolerance is a few float64
epsilons.

Legend: ``B`` boxes, ``P`` sample points per box, ``K`` operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from bitcrown.bounds.relaxations.registry import Nonlinear, Relaxation, nonlinear_row
from bitcrown.model.graph import Node

Wide = np.longdouble
Real = np.ndarray[Any, np.dtype[np.longdouble]]
EPSILON = 8 * float(np.finfo(Wide).eps)
ERF_EPSILON = 2.0**-51
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Case:
    """``truth(operands, attrs)`` in extended precision; ``scale`` a typical width; ``domain`` where
    f is defined.

    ``linear`` intervals are those on which the function is affine, hence the relaxation exact;
    ``smooth`` functions have relaxations whose gap shrinks with the square of the width, everywhere
    in ``smooth`` (an interval).
    """

    op: str
    truth: Callable[..., Real]
    operands: int = 1
    attrs: Mapping[str, Any] = field(default_factory=dict)
    domain: tuple[float, float] = (-math.inf, math.inf)
    scale: float = 3.0
    epsilon: float = EPSILON
    linear: tuple[tuple[float, float], ...] = ()
    smooth: tuple[float, float] | None = None
    points: tuple[float, ...] = (0.0,)

    @property
    def row(self) -> Nonlinear:
        return nonlinear_row(self.op)

    @property
    def node(self) -> Node:
        return Node("y", self.op, tuple("xz"[: self.operands]), (1,), self.attrs)


def _sigmoid(x: Real) -> Real:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Real) -> Real:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: Real, alpha: float) -> Real:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _erf(x: Real) -> Real:
    return np.vectorize(lambda value: Wide(math.erf(float(value))))(x)


CASES = {
    "Relu": Case(
        "Relu", lambda x: np.maximum(x, 0), linear=((0, 2), (-2, 0), (1, 3), (-3, -1), (0, 0))
    ),
    "Sigmoid": Case("Sigmoid", _sigmoid, smooth=(-6, 6)),
    "Tanh": Case("Tanh", np.tanh, smooth=(-4, 4)),
    "Erf": Case("Erf", _erf, epsilon=ERF_EPSILON, smooth=(-3, 3)),
    "Atan": Case("Atan", np.arctan, smooth=(-4, 4)),
    "Truncate": Case(
        "Truncate",
        lambda x, most: np.trunc(x),
        attrs={"most": 2.0**31 - 1},
        linear=((-0.5, 0.5), (1.25, 1.75), (-1.75, -1.25), (3, 3)),
        points=(0.0, 1.0, -1.0, 2.0),
    ),
    "Exp": Case("Exp", np.exp, smooth=(-4, 4)),
    "Softplus": Case("Softplus", _softplus, smooth=(-5, 5)),
    "Square": Case("Square", np.square, smooth=(-5, 5)),
    "Log": Case("Log", np.log, domain=(0, math.inf), smooth=(0.5, 5)),
    "Sqrt": Case("Sqrt", np.sqrt, domain=(0, math.inf), smooth=(0.5, 5)),
    "Reciprocal": Case("Reciprocal", lambda x: 1 / x, smooth=(0.5, 5)),
    "Sin": Case("Sin", np.sin, scale=2.0, smooth=(-10, 10), points=(0.0, math.pi / 2, -math.pi)),
    "Cos": Case("Cos", np.cos, scale=2.0, smooth=(-10, 10), points=(0.0, math.pi / 2, math.pi)),
    "Clip": Case(
        "Clip",
        lambda x, **limits: np.clip(x, limits["min"], limits["max"]),
        attrs={"min": -1.25, "max": 2.5},
        linear=((-1.25, 2.5), (-1, 2), (-3, -1.25), (-9, -2), (2.5, 4), (3, 5), (0, 0)),
        points=(-1.25, 2.5, 0.0),
    ),
    "Clip without min": Case(
        "Clip", lambda x, max: np.minimum(x, max), attrs={"max": 0.5}, linear=((-9, 0.5), (1, 2))
    ),
    "Clip without max": Case(
        "Clip", lambda x, min: np.maximum(x, min), attrs={"min": 0.5}, linear=((-9, 0.5), (1, 2))
    ),
    "Sign": Case("Sign", np.sign, linear=((1, 3), (-3, -1), (0, 0))),
    "Floor": Case(
        "Floor", np.floor, linear=((0, 0.5), (-1, -0.25), (3, 3)), points=(0.0, 1.0, -2.0)
    ),
    "Ceil": Case("Ceil", np.ceil, linear=((0.5, 1), (-0.75, 0), (3, 3)), points=(0.0, 1.0, -2.0)),
    "Round": Case(
        "Round",
        np.rint,
        linear=((-0.5, 0.5), (1.5, 2.5), (0.75, 1.25)),
        points=(0.5, 1.5, -0.5, -1.5),
    ),
    "Elu": Case(
        "Elu",
        lambda x, alpha: _elu(x, alpha),
        attrs={"alpha": 1.0},
        linear=((0, 2), (1, 3)),
        smooth=(-5, -1),
    ),
    "Elu flat": Case(
        "Elu", lambda x, alpha: _elu(x, alpha), attrs={"alpha": 0.25}, linear=((0, 2), (1, 3))
    ),
    "Elu steep": Case(
        "Elu", lambda x, alpha: _elu(x, alpha), attrs={"alpha": 3.0}, linear=((0, 2), (1, 3))
    ),
    "Perturb": Case(
        "Perturb",
        lambda v, q, share, least: v + (share * np.abs(q) + least) * np.sin(1e3 * (v + q)),
        operands=2,
        attrs={"share": 2.0**-9, "least": 2.0**-20},
    ),
    "Mul": Case("Mul", lambda x, y: x * y, operands=2, smooth=(-5, 5)),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "float64"))


def boxes(
    case: Case, dtype: torch.dtype, seed: int = 0, count: int = 400
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Lower and upper ends ``[B]`` per operand: ordinary, wide, tiny, degenerate, huge, one-sided
    and symmetric."""
    rng = np.random.default_rng(seed)
    lowers, uppers = [], []
    for _ in range(case.operands):
        centre = rng.normal(size=count) * case.scale
        radius = (
            np.abs(rng.normal(size=count)) * case.scale * 10.0 ** rng.integers(-2, 2, size=count)
        )
        low, up = centre - radius, centre + radius
        kinds = [
            (0.0, radius), (-radius, 0.0), (-radius, radius), (centre, centre), (centre,
            centre + 1e-12),
            (centre - 1e-12, centre), (0.0, 0.0), (-1e30, radius), (-radius, 1e30), (-1e30, 1e30),
            (1e30, 1e30),
            (-1e-30, 1e30), (-1e-12, 1e-12), (-1e-30, 1e-30), (0.0, 1e-30), (-radius,
            radius * 1e-9),
        ]  # fmt: skip
        part = rng.permutation(np.repeat(np.arange(len(kinds)), count // (2 * len(kinds))))
        for position, kind in enumerate(part):
            ends = [np.broadcast_to(end, (count,))[position] for end in kinds[kind]]
            low[position], up[position] = ends
        for step, point in enumerate(case.points):
            low[-1 - 2 * step], up[-1 - 2 * step] = point, point + abs(radius[step])
            low[-2 - 2 * step], up[-2 - 2 * step] = point - abs(radius[step]), point
        low, up = np.clip(low, *case.domain), np.clip(up, *case.domain)
        first, second = torch.tensor(low, dtype=dtype), torch.tensor(up, dtype=dtype)
        lowers.append(torch.minimum(first, second))
        uppers.append(torch.maximum(first, second))
    return lowers, uppers


def wide(tensor: torch.Tensor) -> Real:
    return tensor.detach().numpy().astype(Wide)


def samples(
    low: torch.Tensor, up: torch.Tensor, rng: np.random.Generator, points: int = 65
) -> Real:
    """``[P, B]`` real points of ``[low, up]``: ends, random ones, ones near the ends and near
    zero."""
    start, end = wide(low), wide(up)
    fraction = np.concatenate(
        [[0, 1, 0.5], rng.random(points), 10.0 ** rng.uniform(-18, 0, points)]
    ).astype(Wide)
    inside = start + fraction[:, None] * (end - start)
    from_end = end - fraction[:, None] * (end - start)
    special = np.concatenate([fraction, -fraction, [0]])[:, None] * Wide(4.0)
    clipped = np.clip(np.broadcast_to(special, (len(special), len(start))), start, end)
    return np.clip(np.concatenate([inside, from_end, clipped]), start, end)


def operand_samples(
    lowers: list[torch.Tensor], uppers: list[torch.Tensor], seed: int
) -> list[Real]:
    rng = np.random.default_rng(seed)
    parts = [samples(low, up, rng) for low, up in zip(lowers, uppers, strict=True)]
    if len(parts) > 1:
        ends = [np.stack([wide(low), wide(up)]) for low, up in zip(lowers, uppers, strict=True)]
        corners = [(i, j) for i in range(2) for j in range(2)]
        parts = [
            np.concatenate(
                [part[rng.permutation(len(part))], np.stack([end[c[k]] for c in corners])]
            )
            for k, (part, end) in enumerate(zip(parts, ends, strict=True))
        ]
    return parts


def truth_of(case: Case, points: list[Real]) -> Real:
    with np.errstate(all="ignore"):
        value: Real = case.truth(*points, **case.attrs)
    return value


def line(
    slopes: tuple[torch.Tensor, ...], intercept: torch.Tensor, points: list[Real]
) -> tuple[Real, Real]:
    """Value of a linear function in extended precision, and the size of its terms."""
    terms = [wide(slope) * point for slope, point in zip(slopes, points, strict=True)] + [
        wide(intercept)
    ]
    with np.errstate(all="ignore"):
        return sum(terms), sum(np.abs(term) for term in terms)


def assert_encloses(case: Case, relaxation: Relaxation, points: list[Real], value: Real) -> None:
    defined = np.isfinite(value)
    low, low_size = line(relaxation.lower_slopes, relaxation.lower_intercept, points)
    up, up_size = line(relaxation.upper_slopes, relaxation.upper_intercept, points)
    assert not np.isnan(low).any() and not np.isnan(up).any()
    with np.errstate(all="ignore"):
        too_high = (
            defined
            & np.isfinite(low)
            & (low - value > case.epsilon * np.abs(value) + EPSILON * low_size)
        )
        too_low = (
            defined
            & np.isfinite(up)
            & (value - up > case.epsilon * np.abs(value) + EPSILON * up_size)
        )
    assert (low < np.inf).all() and (up > -np.inf).all()
    assert not too_high.any(), np.argwhere(too_high)[:3]
    assert not too_low.any(), np.argwhere(too_low)[:3]


def alphas(
    case: Case, boxes_count: int, quantities: int, seed: int, dtype: torch.dtype
) -> torch.Tensor:
    """``[alphas, B, S, 1]`` in [0, 1], with both ends among them."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(
        case.row.alphas, boxes_count, quantities, 1, generator=generator, dtype=dtype
    )
    alpha[:, :, 0], alpha[:, :, 1] = 0.0, 1.0
    return alpha


def with_axes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """``[B]`` to ``[B, 1, 1]``: an axis for quantities and the node's shape."""
    return [tensor[:, None, None] for tensor in tensors]


@every_dtype
@every_case
def test_samples_lie_inside_the_interval(case: Case, dtype: torch.dtype) -> None:
    lowers, uppers = boxes(case, dtype)
    low, up = case.row.interval(case.node, lowers, uppers)
    value = truth_of(case, operand_samples(lowers, uppers, seed=1))
    assert not torch.isnan(low).any() and not torch.isnan(up).any()
    defined = np.isfinite(value)
    slack = case.epsilon * np.abs(np.where(defined, value, 0))
    assert (~defined | (value >= wide(low) - slack)).all()
    assert (~defined | (value <= wide(up) + slack)).all()
    assert (low <= up).all()


@every_dtype
@every_case
def test_samples_lie_between_the_lines(case: Case, dtype: torch.dtype) -> None:
    lowers, uppers = boxes(case, dtype)
    points = operand_samples(lowers, uppers, seed=2)
    assert_encloses(
        case, case.row.relax(case.node, lowers, uppers, None), points, truth_of(case, points)
    )


@every_dtype
@every_case
def test_samples_lie_between_the_lines_for_every_alpha(case: Case, dtype: torch.dtype) -> None:
    if case.row.alphas == 0:
        return
    lowers, uppers = boxes(case, dtype, seed=3)
    alpha = alphas(case, len(lowers[0]), 5, 4, dtype)
    relaxation = case.row.relax(case.node, with_axes(lowers), with_axes(uppers), alpha)
    points = operand_samples(lowers, uppers, seed=5)
    value = truth_of(case, points)
    for quantity in range(alpha.shape[2]):
        parts = [
            tensor.expand(len(lowers[0]), alpha.shape[2], 1)[:, quantity, 0]
            for tensor in (
                *relaxation.lower_slopes,
                relaxation.lower_intercept,
                *relaxation.upper_slopes,
                relaxation.upper_intercept,
            )
        ]
        k = case.operands
        chosen = Relaxation(
            tuple(parts[:k]), parts[k], tuple(parts[k + 1 : 2 * k + 1]), parts[2 * k + 1]
        )
        assert_encloses(case, chosen, points, value)


@every_dtype
@every_case
def test_a_smaller_box_never_has_a_looser_interval(case: Case, dtype: torch.dtype) -> None:
    """Up to the ulps by which torch's functions are not monotone."""
    lowers, uppers = boxes(case, dtype, seed=6)
    outer = case.row.interval(case.node, lowers, uppers)
    rng = np.random.default_rng(7)
    inner_lowers, inner_uppers = [], []
    for low, up in zip(lowers, uppers, strict=True):
        first, second = (
            torch.clamp(low + torch.tensor(rng.random(len(low)), dtype=dtype) * (up - low), low, up)
            for _ in range(2)
        )
        inner_lowers.append(torch.minimum(first, second))
        inner_uppers.append(torch.maximum(first, second))
    inner = case.row.interval(case.node, inner_lowers, inner_uppers)
    info = torch.finfo(dtype)
    slack = (
        8 * info.eps * (outer[0].abs().nan_to_num(posinf=0) + outer[1].abs().nan_to_num(posinf=0))
        + info.tiny
    )
    slack = slack + (64 * info.eps) ** 2
    if not case.row.is_piecewise_linear:
        assert (inner[0] >= outer[0] - slack).all() and (inner[1] <= outer[1] + slack).all()
    else:
        assert (inner[0] >= outer[0]).all() and (inner[1] <= outer[1]).all()


@every_dtype
@every_case
def test_default_alpha_reproduces_the_default(case: Case, dtype: torch.dtype) -> None:
    if case.row.alphas == 0:
        return
    assert case.row.default_alpha is not None
    lowers, uppers = boxes(case, dtype, seed=8)
    lowers, uppers = [t[:, None] for t in lowers], [t[:, None] for t in uppers]
    alpha = case.row.default_alpha(case.node, lowers, uppers)
    assert alpha.shape == (case.row.alphas, len(lowers[0]), 1)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    expected = case.row.relax(case.node, lowers, uppers, None)
    spread = ([t.unsqueeze(1) for t in lowers], [t.unsqueeze(1) for t in uppers])
    found = case.row.relax(case.node, *spread, alpha.unsqueeze(2))
    for first, second in zip(
        (
            *expected.lower_slopes,
            expected.lower_intercept,
            *expected.upper_slopes,
            expected.upper_intercept,
        ),
        (*found.lower_slopes, found.lower_intercept, *found.upper_slopes, found.upper_intercept),
        strict=True,
    ):
        torch.testing.assert_close(first, second.squeeze(1).expand_as(first), rtol=1e-5, atol=1e-6)


@every_dtype
@every_case
def test_gradients_in_alpha_are_finite(case: Case, dtype: torch.dtype) -> None:
    if case.row.alphas == 0:
        return
    lowers, uppers = boxes(case, dtype, seed=9)
    alpha = alphas(case, len(lowers[0]), 4, 10, dtype).requires_grad_(True)
    relaxation = case.row.relax(case.node, with_axes(lowers), with_axes(uppers), alpha)
    parts = (
        *relaxation.lower_slopes,
        relaxation.lower_intercept,
        *relaxation.upper_slopes,
        relaxation.upper_intercept,
    )
    usable = [
        torch.where(torch.isfinite(part), part, 0.0).sum() for part in parts if part.requires_grad
    ]
    (gradient,) = torch.autograd.grad(torch.stack(usable).sum(), [alpha])
    assert not torch.isnan(gradient).any()
    assert (gradient != 0).any()


@every_dtype
@every_case
def test_linear_pieces_are_exact(case: Case, dtype: torch.dtype) -> None:
    for start, end in case.linear:
        lowers, uppers = [torch.tensor([start], dtype=dtype)], [torch.tensor([end], dtype=dtype)]
        for alpha in (None, torch.full((case.row.alphas, 1, 1), 0.3, dtype=dtype)):
            relaxation = case.row.relax(
                case.node, [t[:, None] for t in lowers], [t[:, None] for t in uppers], alpha
            )
            points = [np.array([[start], [end], [(start + end) / 2]], dtype=Wide)]
            value = truth_of(case, points)
            flat = [t.reshape(-1) for t in (relaxation.lower_slopes[0], relaxation.lower_intercept)]
            flat += [
                t.reshape(-1) for t in (relaxation.upper_slopes[0], relaxation.upper_intercept)
            ]
            assert (line((flat[0],), flat[1], points)[0] == value).all()
            assert (line((flat[2],), flat[3], points)[0] == value).all()


@every_case
def test_the_gap_shrinks_with_the_square_of_the_width(case: Case) -> None:
    if case.smooth is None:
        return
    rng = np.random.default_rng(11)
    centres = [
        torch.tensor(rng.uniform(*case.smooth, size=200), dtype=torch.float64)
        for _ in range(case.operands)
    ]
    for width in (1e-1, 1e-2, 1e-3, 1e-4):
        lowers, uppers = [c - width / 2 for c in centres], [c + width / 2 for c in centres]
        relaxation = case.row.relax(case.node, lowers, uppers, None)
        points = operand_samples(lowers, uppers, seed=12)
        gap = (
            line(relaxation.upper_slopes, relaxation.upper_intercept, points)[0]
            - line(relaxation.lower_slopes, relaxation.lower_intercept, points)[0]
        )
        curvature = max(2.0, float(np.max(np.abs(truth_of(case, points)))))
        if case.op == "Reciprocal":
            curvature = 16.0
        assert gap.max() <= 0.5 * curvature * width**2 + 1e-12
