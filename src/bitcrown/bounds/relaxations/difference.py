"""``f(z) - f(w)`` of close arguments: the difference of two networks, neuron by neuron.

The row has the operands ``(z, w, d, y, v)`` with ``d = z - w``, ``y = f(z)``, ``v = f(w)``. As
``e = y - v`` the node is affine, and what other paths carry of ``y`` and ``v`` cancels. But bounds
of ``d`` come from the layers before, where they may be far better than the difference of the bounds
of ``z`` and ``w`` (Paulsen, Wang and Wang, *ReluDiff*, 2020; Paulsen, Wang, Wang and Wang,
*NeuroDiff*, 2020). So there are lines of ``d``, too, and alpha chooses between the two.

*ReLU.* With ``D+ = min(max(d), max(z))`` and ``D- = min(-min(d), -min(z))``, neither below 0, three
upper lines hold wherever the three operands are in their ranges:

    e                            <=  min(relu(z), D+)           (relu(w) >= 0)
    e - d = relu(-z) - relu(-w)  <=  min(relu(-z), D-)          (relu(-w) >= 0)
    e - t d                      <=  max((1 - t) D+, t D-)      for every t in [0, 1].

The last one because ``e - t d = p(z) - p(w)`` with ``p(z) = (1 - t) relu(z) + t relu(-z)``: if
``p(z) > p(w)``, then for ``z >= 0`` the difference is at most ``(1 - t) min(z, z - w)``, for
``z < 0`` at most ``t min(-z, w - z)``. Each right side is below a chord: on ``[-|l|, D+]`` in
``z``, on ``[-D-, u]`` in ``z``, on ``[-D-, D+]`` in ``d``. Equal operands have ``D+ = D- = 0`` and
the difference 0.

*Smooth functions.* ``f(z) - f(w) = f'(x) d`` for an ``x`` between the two, and with
``m <= f' <= M`` there, ``f'(x) d <= max(m d, M d)``, which is convex: its chord is a line.

Lower lines are the upper ones of ``f(w) - f(z)``, turned: ``(w, z, -d)``. The default is the line
that is best in the middle, where ``y - v`` counts with the lines of ``f``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import above, below, padding
from bitcrown.bounds.relaxations.registry import (
    Operands,
    Pair,
    Relaxation,
    nonlinear_row,
    register_nonlinear,
)
from bitcrown.model.graph import Node
from bitcrown.model.registry import DIFFERENCE

_VANISHING = 2.0**-30
"""Share of the other end that an end of an interval may have and still count as 0: rounding."""
DerivativeRange = Callable[[Node, Tensor, Tensor], Pair]
"""``(node, low, up) -> (m, M)`` with ``m <= f' <= M`` on ``[low, up]``."""


class UpperLine(NamedTuple):
    """``e <= z s_z + d s_d + (y - v) s + c``; turned, a lower line."""

    z: Tensor
    d: Tensor
    e: Tensor
    c: Tensor

    def is_finite(self) -> Tensor:
        return torch.isfinite(self.z) & torch.isfinite(self.d + self.c)


def _chord(left: Tensor, right: Tensor) -> Pair:
    """Slope ``s`` in [0, 1] and intercept ``c`` with ``max((1 - s) right, s left) <= c``, for
    ``left, right >= 0``: the chord of a ReLU on ``[-left, right]`` (see ``relu``)."""
    info = torch.finfo(left.dtype)
    width = (left + right).clamp(min=info.tiny * info.eps, max=info.max)
    slope = right / width
    intercept = torch.maximum(left * slope, (1 - slope) * right) * (1 + 4 * info.eps)
    return slope, intercept + torch.minimum(left, right).clamp(max=info.tiny)


def _either(line: UpperLine, other: UpperLine) -> UpperLine:
    """``line``, or ``other`` where it is not finite; no bound where neither is."""
    is_own, is_other = line.is_finite(), other.is_finite()
    ends = (0.0, 0.0, 0.0, torch.inf)
    return UpperLine(
        *(
            torch.where(is_own, a, torch.where(is_other, b, end))
            for a, b, end in zip(line, other, ends, strict=True)
        )
    )


def line_between(line: UpperLine, other: UpperLine, fraction: Tensor, sizes: Operands) -> UpperLine:
    """The line at ``fraction`` of the way, moved up by what rounding may have cost its slopes:
    nothing at the ends, and where all that it can reach is 0."""
    first, second = _either(line, other), _either(other, line)
    cuts = [torch.where(torch.isfinite(cut), cut, 0.0) for cut in (first.c, second.c)]
    pairs = [*zip(first[:3], second[:3], strict=True), (cuts[0], cuts[1])]
    # lerp is exact at both ends, and has a derivative there
    mixed = [torch.lerp(a + 0 * fraction, b + 0 * fraction, fraction) for a, b in pairs]
    relative, absolute = padding(fraction.dtype)
    size = cuts[0].abs() + cuts[1].abs()
    sunk = torch.full_like(size, absolute)  # a slope that underflows is lost as far as it reaches
    for (a, b), reach in zip(pairs, sizes, strict=False):
        is_none = (a == 0) & (b == 0)
        size = size + torch.where(is_none, 0.0, (a.abs() + b.abs()) * reach)
        sunk = sunk + torch.where(is_none, 0.0, reach * absolute)
    is_exact = (fraction == 0) | (fraction == 1) | (size == 0)
    lost = torch.where(is_exact, 0.0, size * relative + sunk)
    lost = torch.where(torch.isfinite(first.c), lost, torch.inf)
    return UpperLine(mixed[0], mixed[1], mixed[2], mixed[3] + lost)


def _relu_lines(low: Operands, up: Operands) -> list[UpperLine]:
    """Upper lines of ``relu(z) - relu(w)``: with the slope of ``d`` at 0, at 1, and between."""
    right, left = up[0].clamp(min=0), -low[0].clamp(max=0)
    most = torch.minimum(up[2].clamp(min=0), right)  # D+
    least = torch.minimum(-low[2].clamp(max=0), left)  # D-
    zero, one = torch.zeros_like(most), torch.ones_like(most)
    slope, cut = _chord(left, most)
    flat = UpperLine(slope, zero, zero, cut)
    # relu(-z) = relu(z) - z: the same chord with slope - 1, whose rounded value is what counts
    slope = 1 - _chord(least, right)[0]
    cut = torch.maximum(slope * right, (1 - slope) * least)
    info = torch.finfo(slope.dtype)
    cut = cut * (1 + 4 * info.eps) + torch.minimum(least, right).clamp(max=info.tiny)
    steep = UpperLine(-slope, one, zero, cut)
    slope, cut = _chord(least, most)
    return [flat, steep, UpperLine(zero, slope, zero, cut)]


def _smooth_line(node: Node, slopes: DerivativeRange, low: Operands, up: Operands) -> UpperLine:
    """The chord of ``max(m d, M d)``."""
    least, most = slopes(node, torch.minimum(low[0], low[1]), torch.maximum(up[0], up[1]))
    start, end = low[2], up[2]
    tops = torch.maximum(least * start, most * start), torch.maximum(least * end, most * end)
    slope = (tops[1] - tops[0]) / (end - start).clamp(min=torch.finfo(end.dtype).tiny)
    slope = torch.minimum(torch.maximum(slope, least), most)
    relative, absolute = padding(end.dtype)
    gaps = [
        top - slope * at + (top.abs() + (slope * at).abs()) * relative
        for top, at in zip(tops, (start, end), strict=True)
    ]
    is_zero = (start == 0) & (end == 0)
    cut = torch.where(is_zero, 0.0, torch.maximum(*gaps) + absolute)
    zero = torch.zeros_like(slope)
    return UpperLine(zero, slope, zero, cut)


def _turned(low: Operands, up: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """Ranges of ``(w, z, -d)``."""
    return [low[1], low[0], -up[2]], [up[1], up[0], -low[2]]


class _Difference:
    """The row of the difference of two values of ``base``; ``slopes(node, low, up)`` bound its
    derivative on ``[low, up]``, and are None for a ReLU. Each side is said of an upper line."""

    def __init__(self, base: str, slopes: DerivativeRange | None) -> None:
        self.base, self.slopes = base, slopes
        self.free = 3 if slopes is None else 1
        register_nonlinear(
            f"{base}{DIFFERENCE}", self._interval, self._relax, 2 * self.free, self._default_alpha
        )

    def _lines(self, node: Node, low: Operands, up: Operands) -> list[UpperLine]:
        """Lines of ``d`` and ``z``, and ``y - v`` as the last one."""
        lines = (
            _relu_lines(low, up)
            if self.slopes is None
            else [_smooth_line(node, self.slopes, low, up)]
        )
        zero = torch.zeros_like(lines[0].z)
        return [*lines, UpperLine(zero, zero, torch.ones_like(zero), zero)]

    def _top(self, node: Node, low: Operands, up: Operands) -> Tensor:
        """A number that ``f(z) - f(w)`` does not exceed."""
        row = nonlinear_row(self.base)
        ends = row.interval(node, [low[0]], [up[0]])[1], row.interval(node, [low[1]], [up[1]])[0]
        found = ends[0] - ends[1]
        found = torch.where((ends[0] == 0) | (ends[1] == 0), found, above(found))
        if self.slopes is None:
            # relu(w) >= w, and relu(z) = z where z >= 0
            by_difference = torch.where(low[0] >= 0, up[2], up[2].clamp(min=0))
        else:
            least, most = self.slopes(
                node, torch.minimum(low[0], low[1]), torch.maximum(up[0], up[1])
            )
            tops = [torch.maximum(least * end, most * end) for end in (low[2], up[2])]
            is_zero = (low[2] == 0) & (up[2] == 0)
            by_difference = torch.where(is_zero, 0.0, above(torch.maximum(*tops)))
        return torch.nan_to_num(torch.fmin(found, by_difference), nan=torch.inf, posinf=torch.inf)

    def _interval(self, node: Node, lowers: Operands, uppers: Operands) -> Pair:
        return -self._top(node, *_turned(lowers, uppers)), self._top(node, lowers, uppers)

    def _choice(self, node: Node, low: Operands, up: Operands) -> Tensor:
        """``[free, *]``: fractions at which only the line counts that is the lowest in the middle;
        ``y - v`` where it is not higher than the others, and not 0 alike."""
        row = nonlinear_row(self.base)
        low, up = ([torch.nan_to_num(end) for end in side] for side in (low, up))
        first = row.relax(node, [low[0]], [up[0]], None)
        second = row.relax(node, [low[1]], [up[1]], None)
        z, w, d = (a * 0.5 + b * 0.5 for a, b in zip(low, up, strict=True))
        apart = (
            first.upper_slopes[0] * z
            + first.upper_intercept
            - second.lower_slopes[0] * w
            - second.lower_intercept
        )
        lines = self._lines(node, low, up)[:-1]
        values = [line.z * z + line.d * d + line.c for line in lines]
        values = [torch.nan_to_num(value, nan=torch.inf) for value in (*values, apart)]
        best, chosen = values[0], []
        for value in values[1:]:
            chosen.append((value <= best).to(best.dtype))
            best = torch.minimum(value, best)
        # Of a difference that has one sign and may vanish, a line through 0 keeps the sign.
        size = torch.maximum(low[2].abs(), up[2].abs()) * _VANISHING
        keeps_sign = (up[2].abs() <= size) | (low[2].abs() <= size)
        if self.slopes is None:
            is_linear = (low[0] >= 0) & (low[1] >= 0)
            chosen[0] = torch.where(is_linear, 1.0, chosen[0])
            chosen[1] = torch.where(keeps_sign, (~is_linear).to(z.dtype), chosen[1])
        chosen[-1] = torch.where(keeps_sign, 0.0, chosen[-1])
        return torch.stack(chosen)

    def _default_alpha(self, node: Node, lowers: Operands, uppers: Operands) -> Tensor:
        low, up = lowers[:3], uppers[:3]
        return torch.cat([self._choice(node, *_turned(low, up)), self._choice(node, low, up)])

    def _chosen(self, node: Node, low: Operands, up: Operands, alpha: Tensor | None) -> UpperLine:
        """An upper line; the constant where no line is finite."""
        fraction = self._choice(node, low, up) if alpha is None else alpha
        lines = self._lines(node, low, up)
        sizes = [torch.maximum(low[k].abs(), up[k].abs()) for k in (0, 2)]
        sizes.append(sizes[0] + torch.maximum(low[1].abs(), up[1].abs()))
        line = lines[0]
        for k, other in enumerate(lines[1:]):
            line = line_between(line, other, fraction[k], sizes)
        is_known = line.is_finite()
        parts = [torch.where(is_known, part, 0.0) for part in line[:3]]
        top = self._top(node, low, up)
        return UpperLine(parts[0], parts[1], parts[2], torch.where(is_known, line.c, top))

    def _relax(
        self, node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None
    ) -> Relaxation:
        low, up = lowers[:3], uppers[:3]
        halves = (None, None) if alpha is None else (alpha[: self.free], alpha[self.free :])
        under = self._chosen(node, *_turned(low, up), halves[0])
        over = self._chosen(node, low, up, halves[1])
        # f(w) - f(z) <= s_z w - s_d d + (v - y) s + c, turned
        zero = torch.zeros_like(over.z)
        return Relaxation(
            (zero, -under.z, under.d, under.e, -under.e),
            -under.c,
            (over.z, zero, over.d, over.e, -over.e),
            over.c,
        )


def _fixed(least: float, most: float) -> DerivativeRange:
    return lambda node, low, up: (torch.full_like(low, least), torch.full_like(low, most))


def _bell(slope: Callable[[Tensor], Tensor]) -> DerivativeRange:
    """Of a derivative that is even and falls with ``|x|``."""

    def slopes(node: Node, low: Tensor, up: Tensor) -> Pair:
        near = torch.maximum(low, -up).clamp(min=0)
        far = torch.maximum(low.abs(), up.abs())
        return below(slope(far)).clamp(min=0), above(slope(near))

    return slopes


def _rising(slope: Callable[[Tensor], Tensor]) -> DerivativeRange:
    return lambda node, low, up: (below(slope(low)), above(slope(up)))


def _erf_slope(x: Tensor) -> Tensor:
    """The rounding of ``x^2`` costs ``exp`` that many times more, which 40 epsilons cover up to
    ``x^2 = 32``; beyond, the term does."""
    return torch.exp(-x * x) * (2 / math.sqrt(math.pi))


def _erf_slopes(node: Node, low: Tensor, up: Tensor) -> Pair:
    least, most = _bell(_erf_slope)(node, low, up)
    slack = most * (40 * torch.finfo(low.dtype).eps) + 1e-10 * torch.finfo(low.dtype).eps
    return (least - slack).clamp(min=0), most + slack


def _elu_slopes(node: Node, low: Tensor, up: Tensor) -> Pair:
    """``alpha exp(x)`` below 0, and 1 above."""
    scale = float(node.attrs["alpha"])
    ends = [scale * torch.exp(end.clamp(max=0)) for end in (low, up)]
    least, most = below(torch.minimum(*ends)), above(torch.maximum(*ends))
    least = torch.where(up > 0, least.clamp(max=1), least)
    most = torch.where(up > 0, most.clamp(min=1), most)
    is_linear = low >= 0
    return torch.where(is_linear, 1.0, least), torch.where(is_linear, 1.0, most)


def _clip_slopes(node: Node, low: Tensor, up: Tensor) -> Pair:
    start = float(node.attrs.get("min", -math.inf))
    end = float(node.attrs.get("max", math.inf))
    least = ((low >= start) & (up <= end)).to(low.dtype)
    return least, 1 - ((up <= start) | (low >= end)).to(low.dtype)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


SLOPES: dict[str, DerivativeRange | None] = {
    "Relu": None,
    "Sigmoid": _bell(_sigmoid_slope),
    "Tanh": _bell(lambda x: 4 * _sigmoid_slope(2 * x)),
    "Atan": _bell(lambda x: torch.reciprocal(1 + x * x)),
    "Erf": _erf_slopes,
    "Exp": _rising(torch.exp),
    "Softplus": _rising(torch.sigmoid),
    "Square": _rising(lambda x: 2 * x),
    "Elu": _elu_slopes,
    "Clip": _clip_slopes,
    "Sin": _fixed(-1.0, 1.0),
    "Cos": _fixed(-1.0, 1.0),
}
for _base, _slopes in SLOPES.items():
    _Difference(_base, _slopes)
