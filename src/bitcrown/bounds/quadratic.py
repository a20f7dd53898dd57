"""Products that are added up, bounded together: the sum of their remainders is a quadratic form.

For centres ``t``, ``s`` of two operands,

    sum_i a_i x_i y_i = sum_i a_i (s_i x_i + t_i y_i - s_i t_i) + sum_i a_i (x_i - t_i)(y_i - s_i).

McCormick's planes (``relaxations.product``) bound each term of the last sum by itself, and lose
``|a_i|`` times the product of both radii. But operands that are nearly linear in the inputs
(``affine_forms``), ``x - t = X e + e_x`` and ``y - s = Y e + e_y`` with ``e`` in ``[-1, 1]^K``,
have

    sum_i a_i (x_i - t_i)(y_i - s_i)  >=  e' B e - sum_i |a_i| (|e_x| |y - s| + |X e| |e_y|)_i,
    B = sum_i a_i (X_i Y_i' + Y_i X_i') / 2,

and ``e' B e`` is a small matter: ``K`` is the number of inputs. Where ``B`` has no negative
eigenvalue nothing is lost at all: the tangent of a convex quadratic form is a bound. That is what
happens with a Lyapunov function ``x' Q x``, and with its decrease.

*The least value of a form.* For any vectors ``v_k`` and numbers ``l_k``, whatever they are, and
``E = B - sum_k l_k v_k v_k'``,

    e' B e = sum_k l_k (v_k e)^2 + e' E e  >=  sum_k min(l_k, 0) |v_k|_1^2 - sum |E|;

those of ``eigh`` make ``E`` as small as rounding. And row by row, by ``2 |e_i e_j| <= e_i^2 +
e_j^2``, ``e' B e >= sum_i min(0, B_ii - sum_j |B_ij|)`` with ``j != i``.

*Beyond tangents at the middle.* What ``l_k > 0`` contribute is convex, so *any* of its tangents may
be added to the line that a backward pass has found; the best one touches where line and form
together are least (``tangent``).

Legend: ``B`` boxes, ``S`` rows, ``K`` inputs that vary, ``*`` the product's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.affine_forms import AffineForm
from bitcrown.bounds.claims import known, ratio
from bitcrown.model.execute import Network

if TYPE_CHECKING:
    from bitcrown.bounds.crown import Lines

MOST_VARYING = 16
"""Inputs that vary, up to which products that are added up are bounded together."""
_SWEEPS = 3
"""Over the coordinates, in search of the least point of a convex form."""


def sums_of_products(network: Network, varying: int) -> set[str]:
    """Products of several elements, where few inputs vary."""
    if not 0 < varying <= MOST_VARYING:
        return set()
    nodes = network.graph.nodes.values()
    return {node.name for node in nodes if node.op == "Mul" and node.size > 1}


class Coupling(NamedTuple):
    """``first = t``, ``second = s`` ``[B, 1, *]``; ``first_slopes = X``, ``second_slopes = Y``
    ``[B, K, *]``; ``rest [B, 1, *]`` bounds ``|(x - t)(y - s) - (X e)(Y e)|``, ``size [B, 1, *]``
    every ``|X e| |Y e|``."""

    first: Tensor
    second: Tensor
    first_slopes: Tensor
    second_slopes: Tensor
    rest: Tensor
    size: Tensor

    def scale(self, first: Tensor, second: Tensor) -> Tensor:
        """What gamma multiplies where the planes of all products are taken (``rounding``), for
        operands of magnitudes ``first``, ``second``."""
        t, s = self.first.abs(), self.second.abs()
        return s * first + t * second + t * s + known(self.rest, 0.0) + self.size


def coupled_step(
    a: Tensor, given: Coupling, parts: Sequence[Tensor], constant: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Coefficients of both operands and the constant ``[B, S]`` behind products with coefficients
    ``a [B, S, *]``, and the form ``[B, S, K, K]`` without negative eigenvalues that is left over;
    ``parts``, ``constant`` are those of McCormick's planes, and stay where they are higher at the
    centres."""
    t, s = given.first, given.second
    own = [a * s, a * t]
    middle = (a * (t * s)).flatten(2).sum(2)
    with torch.no_grad():
        remainder, convex = least_remainder(a.detach(), given)
        theirs = (parts[0] * t + parts[1] * s).flatten(2).sum(2) + constant
        is_higher = torch.isfinite(remainder + middle) & (middle + remainder > theirs)
        convex = torch.where(is_higher[..., None, None], convex, 0.0)
    shape = (*is_higher.shape, *[1] * (a.dim() - 2))
    chosen = [
        torch.where(is_higher.reshape(shape), mine, part)
        for mine, part in zip(own, parts, strict=True)
    ]
    return chosen, torch.where(is_higher, remainder - middle, constant), convex


def coupling(
    first: AffineForm, second: AffineForm, ends: tuple[Tensor, Tensor], shape: tuple[int, ...]
) -> Coupling:
    """Of a product of two operands; ``ends [B, *]`` enclose the second one.

    ``(x - t)(y - s) = (X e)(Y e) + e_x (y - s) + (X e) e_y``; ``|y - s|`` is bounded by its form
    and by its interval. A few steps up cover the roundings made here. Where some number is not
    finite all are zero, and ``rest`` is infinite: nothing is known.
    """
    low, up = ends
    wide = torch.maximum(up - second.centre, second.centre - low)
    radius = torch.fmin(known(wide, torch.inf), second.reach() + second.error)
    rest = first.error * radius + first.reach() * second.error
    info = torch.finfo(rest.dtype)
    count = 4 + 2 * first.slopes.shape[1]
    rest = rest * (1 + count * info.eps) + info.tiny
    size = (first.reach() * second.reach()) * (1 + count * info.eps) + info.tiny
    boxes = max(first.centre.shape[0], second.centre.shape[0])
    is_known = torch.isfinite(rest) & torch.isfinite(size)
    is_known = is_known & torch.isfinite(first.centre) & torch.isfinite(second.centre)
    full = (boxes, *shape)

    def usable(part: Tensor, otherwise: float = 0.0) -> Tensor:
        return torch.where(is_known, part, otherwise).expand(full).unsqueeze(1)

    every = is_known.unsqueeze(1)
    return Coupling(
        usable(first.centre),
        usable(second.centre),
        torch.where(every, first.slopes, 0.0).expand(boxes, -1, *shape),
        torch.where(every, second.slopes, 0.0).expand(boxes, -1, *shape),
        usable(rest, torch.inf),
        usable(size),
    )


def least_remainder(a: Tensor, given: Coupling) -> tuple[Tensor, Tensor]:
    """``r [B, S]`` and a form ``G [B, S, K, K]`` with ``sum_i a_i (x_i - t_i)(y_i - s_i) >= r +
    2 p' G e - p' G p`` for every ``p`` in ``[-1, 1]^K``, where ``a [B, S, *]``; where nothing is
    known ``-inf`` and 0.

    Entries of ``B`` are sums of products of three factors, off by ``gamma |a| |X| |Y|``, which adds
    up to ``gamma sum |a| size`` over all of ``e' B e``.
    """
    info = torch.finfo(a.dtype)
    flat = a.flatten(2)
    x, y = given.first_slopes.flatten(2), given.second_slopes.flatten(2)
    weighted = flat.unsqueeze(2) * x.unsqueeze(1)
    form = torch.matmul(weighted, y.mT.unsqueeze(1))
    form = (form + form.mT) / 2
    gamma = 4 * (flat.shape[2] + 8) * info.eps
    loss = given.rest + gamma * given.size
    lost = torch.matmul(flat.abs(), loss.flatten(2).mT).squeeze(2)
    lost = lost * (1 + gamma) + (form.shape[-1] ** 2 + 1) * (flat.shape[2] + 1) * info.tiny
    least, convex = least_of_form(form)
    return known(least - lost, -torch.inf), convex


def least_of_form(form: Tensor) -> tuple[Tensor, Tensor]:
    """``r [...]`` and ``G [..., K, K]`` with ``e' B e >= r + 2 p' G e - p' G p`` for all ``e`` and
    ``p`` in ``[-1, 1]^K``, for symmetric ``B [..., K, K]``; ``-inf`` and 0 where some entry is no
    finite number.

    With ``l_k^+ = max(l_k, 0)`` the exact ``G = sum_k l_k^+ v_k v_k'`` has no negative eigenvalue,
    so ``e' G e >= 2 p' G e - p' G p``; as rounded it is off by a few ``eps |v_k| |v_k|'`` in each
    entry, which ``slack`` covers three times over.
    """
    info, size = torch.finfo(form.dtype), form.shape[-1]
    is_known = torch.isfinite(form).all(-1).all(-1)
    form = torch.where(is_known[..., None, None], form, 0.0)
    sums = form.abs().sum(-1) - form.diagonal(dim1=-2, dim2=-1).abs()
    by_rows = (form.diagonal(dim1=-2, dim2=-1) - sums).clamp(max=0).sum(-1)
    try:
        values, vectors = torch.linalg.eigh(form)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence; any vectors will do
        values, vectors = torch.zeros_like(form[..., 0]), form
    convex = torch.matmul(vectors * values.clamp(min=0).unsqueeze(-2), vectors.mT)
    rest = torch.matmul(vectors * values.clamp(max=0).unsqueeze(-2), vectors.mT)
    parts = values.abs() * vectors.abs().sum(-2).square()
    by_values = torch.where(values < 0, -parts, 0.0).sum(-1)
    by_values = by_values - (form - convex - rest).abs().sum((-2, -1))
    # Every number above is a sum of at most K^2 terms of a few products, whose sizes are these.
    largest = form.abs().sum((-2, -1)) + parts.sum(-1)
    slack = 32 * (size * size + 8) * (info.eps * largest + info.tiny)
    is_known = is_known & torch.isfinite(slack) & torch.isfinite(by_values)
    # Rows know better where eigenvectors are many; then the form is used up.
    by_values, by_rows = by_values - slack, by_rows - slack
    is_convex = is_known & (by_values >= by_rows)
    least = torch.where(is_known, torch.fmax(by_rows, by_values), -torch.inf)
    return least, torch.where(is_convex[..., None, None], convex, 0.0)


def tangent(lines: Lines, x_lower: Tensor, x_upper: Tensor, varying: Tensor, gamma: float) -> Lines:
    """``lines`` plus the tangent ``2 p' G e - p' G p`` of the form ``[B, S, K, K]`` that is left
    over, at the point where line and form together are least on the box.

    ``x = c + r e`` on the inputs that vary (``AffineForms.inputs``). A few sweeps over the
    coordinates find ``p``; any would do. With ``w = 2 G p / r`` as rounded, ``w (x - c)`` is off
    from ``2 p' G e`` by the rounding of ``w``, ``x`` and ``c``, which ``error`` takes.
    """
    form = lines.form
    if form is None:
        return lines
    middle = ((x_lower + x_upper) / 2)[:, varying].unsqueeze(1)
    radius = ((x_upper - x_lower) / 2)[:, varying].unsqueeze(1)
    rise = (lines.coefficient.detach()[:, :, varying] * radius) / 2
    p = torch.zeros_like(rise)
    diagonal = form.diagonal(dim1=-2, dim2=-1)
    for _ in range(_SWEEPS):
        for k in range(p.shape[2]):
            others = (form[:, :, k] * p).sum(2) - diagonal[:, :, k] * p[:, :, k]
            best = -ratio(rise[:, :, k] + others, diagonal[:, :, k])
            p[:, :, k] = best.clamp(-1.0, 1.0)
    step = torch.matmul(form, p.unsqueeze(3)).squeeze(3)
    weight = ratio(2 * step, radius.expand_as(step))
    info = torch.finfo(p.dtype)
    sizes = weight.abs() * (middle.abs() + radius)
    coefficient = lines.coefficient.index_add(2, varying, weight)
    constant = lines.constant - (p * step).sum(2) - (weight * middle).sum(2)
    # Entries of G are bounded by its trace, and products of p and e by one.
    trace = diagonal.sum(2)
    unused = torch.where(weight == 0, (2 * step).abs(), 0.0).sum(2)
    count = p.shape[2] ** 2 + 8
    lost = (weight.abs() * info.tiny).sum(2)
    error = (
        unused + lost + gamma * sizes.sum(2) + 8 * count * (info.eps * count * trace + info.tiny)
    )
    return lines._replace(
        coefficient=coefficient, constant=constant, error=lines.error + error, form=None
    )
