"""``f'(z) u``: the derivative of an activation along a direction ``u`` (``model.directional``).

*Any ``f``.* With ``m <= f' <= M`` on the interval of ``z``, ``f'(z) u <= max(m u, M u)``, which is
convex: its chord in ``u`` is an upper line.

*ReLU* on ``[a, b]`` with ``a < 0 < b``, and ``u`` in ``[l, h]``; ``h+ = max(h, 0)``,
``l- = max(-l, 0)``. With ``H`` in [0, 1] for ``f'(z)``, 0 for ``z < 0`` and 1 for ``z > 0``,

    H <= 1 - z / a    gives   H u  <=  H h+            <=  h+ (1 - z / a)
    H >= z / b        gives   H u   =  u - (1 - H) u   <=  u + l- (1 - z / b),

beside the chord of ``max(u, 0)``. Each line has two places at which it may be lowest over the value
(``z = a`` and ``z = 0``, ``z = 0`` and ``z = b``); its intercept serves both for the slope as
rounded. Where the sign of ``z`` is known, the value is ``u`` or 0; where ``z`` may only touch 0, it
is so almost everywhere, which is all that the integral of derivatives asks.

Lower lines are the upper ones of ``-u``, turned. The line that is lowest in the middle is where
alpha begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.claims import enclosure, known
from bitcrown.bounds.relaxations.difference import SLOPES, DerivativeRange, UpperLine, line_between
from bitcrown.bounds.relaxations.lines import above, padding
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node
from bitcrown.model.registry import SLOPE


def _relu_range(node: Node, low: Tensor, up: Tensor) -> Pair:
    """0 or 1 where the sign is known."""
    is_active = low >= 0
    return is_active.to(low.dtype), (is_active | ~(up <= 0)).to(low.dtype)


def _chord(least: Tensor, most: Tensor, low: Tensor, up: Tensor) -> UpperLine:
    """Of ``max(m u, M u)`` on ``[low, up]``, for the slope as rounded."""
    ends = torch.maximum(least * low, most * low), torch.maximum(least * up, most * up)
    info = torch.finfo(low.dtype)
    slope = (ends[1] - ends[0]) / (up - low).clamp(min=info.tiny, max=info.max)
    slope = torch.minimum(torch.maximum(slope, least), most)
    # m u and M u are lines: what they exceed the chord by is largest at an end, or at 0
    relative, absolute = padding(low.dtype)
    reaches = []
    for end in (low, up):
        for factor in (least, most):
            rise = (factor - slope) * end
            size = (factor.abs() + slope.abs()) * end.abs()
            is_exact = (factor == slope) | (end == 0)
            reaches.append(torch.where(is_exact, 0.0, rise + (size * relative + absolute)))
    cut = torch.maximum(torch.maximum(*reaches[:2]), torch.maximum(*reaches[2:]))
    return UpperLine(torch.zeros_like(slope), slope, torch.zeros_like(slope), cut)


def _relu_lines(low: Operands, up: Operands) -> list[UpperLine]:
    """Upper lines that read ``z``, where it is unstable; not finite elsewhere."""
    info = torch.finfo(low[0].dtype)
    left, right = -low[0].clamp(max=0), up[0].clamp(min=0)
    least, most = -low[1].clamp(max=0), up[1].clamp(min=0)
    found = []
    for size, reach, turn in ((most, left, 1.0), (least, right, -1.0)):
        slope = size / reach
        cut = torch.maximum(size, slope * reach) * (1 + 4 * info.eps) + info.tiny
        is_own = (left > 0) & (right > 0) & torch.isfinite(slope)
        cut = torch.where(is_own & torch.isfinite(cut), cut, torch.inf)
        own = torch.ones_like(slope) if turn < 0 else torch.zeros_like(slope)
        found.append(UpperLine(known(turn * slope, 0.0), own, torch.zeros_like(slope), cut))
    return found


class _Slope:
    """The row of ``f'(z) u`` for an ``f`` of which ``derivative`` bounds the slope."""

    def __init__(self, base: str, derivative: DerivativeRange | None) -> None:
        self.is_relu = derivative is None
        self.derivative = _relu_range if derivative is None else derivative
        more = (4, self._default_alpha) if self.is_relu else ()
        register_nonlinear(f"{base}{SLOPE}", self._interval, self._relax, *more)

    def _range(self, node: Node, lowers: Operands, uppers: Operands) -> Pair:
        least, most = self.derivative(node, lowers[0], uppers[0])
        return known(least, -torch.inf), known(most, torch.inf)

    def _interval(self, node: Node, lowers: Operands, uppers: Operands) -> Pair:
        factors = self._range(node, lowers, uppers)
        products = [factor * end for factor in factors for end in (lowers[1], uppers[1])]
        is_still = (lowers[1] == 0) & (uppers[1] == 0)
        is_exact = self.is_relu | is_still
        up = torch.maximum(torch.maximum(*products[:2]), torch.maximum(*products[2:]))
        low = torch.minimum(torch.minimum(*products[:2]), torch.minimum(*products[2:]))
        low, up = torch.where(is_exact, low, -above(-low)), torch.where(is_exact, up, above(up))
        return enclosure(torch.where(is_still, 0.0, low), torch.where(is_still, 0.0, up))

    def _lines(self, node: Node, low: Operands, up: Operands) -> list[UpperLine]:
        chord = _chord(*self._range(node, low, up), low[1], up[1])
        return [chord, *_relu_lines(low, up)] if self.is_relu else [chord]

    def _choice(self, node: Node, low: Operands, up: Operands) -> Tensor:
        """``[2, *]``: fractions at which only the line counts that is the lowest in the middle."""
        z, u = (torch.nan_to_num(low[k] * 0.5 + up[k] * 0.5) for k in (0, 1))
        values = [line.z * z + line.d * u + line.c for line in self._lines(node, low, up)]
        best, *others = (torch.nan_to_num(value, nan=torch.inf) for value in values)
        chosen = []
        for value in others:
            chosen.append((value < best).to(best.dtype))
            best = torch.minimum(value, best)
        return torch.stack(chosen)

    def _default_alpha(self, node: Node, lowers: Operands, uppers: Operands) -> Tensor:
        turned = _turned(lowers, uppers)
        return torch.cat([self._choice(node, *turned), self._choice(node, lowers, uppers)])

    def _upper(self, node: Node, low: Operands, up: Operands, alpha: Tensor | None) -> UpperLine:
        """An upper line; the constant where no line is finite."""
        line, *others = self._lines(node, low, up)
        if others:
            fraction = self._choice(node, low, up) if alpha is None else alpha
            sizes = [torch.maximum(low[k].abs(), up[k].abs()) for k in (0, 1)]
            for k, other in enumerate(others):
                line = line_between(line, other, fraction[k], sizes)
        is_known = torch.isfinite(line.z + line.d) & torch.isfinite(line.c)
        z, u, zero = (torch.where(is_known, part, 0.0) for part in line[:3])
        top = self._interval(node, low, up)[1]
        return UpperLine(z, u, zero, torch.where(is_known, line.c, top))

    def _relax(
        self, node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None
    ) -> Relaxation:
        halves = (None, None) if alpha is None else (alpha[:2], alpha[2:])
        under = self._upper(node, *_turned(lowers, uppers), halves[0])
        over = self._upper(node, lowers, uppers, halves[1])
        return Relaxation((-under.z, under.d), -under.c, (over.z, over.d), over.c)


def _turned(low: Operands, up: Operands) -> tuple[Operands, Operands]:
    """Ranges of ``(z, -u)``."""
    return [low[0], -up[1]], [up[0], -low[1]]


for _base, _derivative in SLOPES.items():
    _Slope(_base, _derivative)
