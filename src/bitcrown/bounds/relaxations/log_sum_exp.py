"""``LogSumExp``: ``lse(x) = log sum_j exp(x_j)`` along the last axis, as one function of ``n``
numbers on a box.

``lse`` is convex, and its gradient ``softmax(x)`` adds up to 1.

*Below*: a tangent, ``lse(x) >= lse(p) + <g, x - p>`` with ``g = softmax(p)``. A composition of
exponentials, a sum and a logarithm would lose the chord of the logarithm on top. If the stored
``g'`` is off by ``d``, the inequality loses ``<|d|, |x - p|>``.

*Above*: for every ``S0 > 0`` the logarithm has ``log S <= log S0 - 1 + S / S0``, and on
``[l_j, u_j]`` an exponential is below its chord. Since ``lse(x) = x_r + lse(x - x_r)`` for every r,
that may be said of the numbers themselves (after a common shift ``m``),

    lse(x) <= m + log S0 - 1 + sum_j chord_j(x_j - m) / S0,

or of their differences to one of them, ``d_j = x_j - x_r`` in ``[l_j - u_r, u_j - l_r]``,

    lse(x) <= x_r + log S0 - 1 + 1 / S0 + sum_{j != r} chord_j(d_j) / S0.

The second has ranges that are twice as wide, but nothing to lose on ``x_r`` itself: it is better
where one entry outweighs the others (r is the largest in the middle). Whichever is lower in the
middle of the box is taken. (Wei et al., "Convex Bounds on the Softmax Function with Applications to
Robustness Verification", 2023, compare such bounds.) Alpha chooses ``p`` on the diagonal of the
box, and ``S0`` between the sums of the least and the largest exponentials.

Any slope is sound with the intercept that belongs to it as stored, as in ``lines``. An exponential
of ``t = x - m``, whose rounding is at most ``|t| eps``, is known to ``(8 + |t|) eps``, relatively,
and to the smallest normal number. Entries that ``counted`` (a parameter, 0 or 1) leaves out are no
terms of the sum; every row has one that counts. Without entries that hardly do (masks are large
negative numbers) the sum is no larger, and as good as equal. Legend: ``*`` the node's shape, whose
last extent is 1; ``n`` the operand's last extent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import mix, padding, reach, secant_slope
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def counted_of(node: Node, like: Tensor) -> Tensor | None:
    """Which entries of the operand are terms of the sum, booleans; None where all are."""
    given = node.params.get("counted")
    return None if given is None else torch.as_tensor(given, device=like.device) != 0


def without(counted: Tensor | None, x: Tensor, otherwise: float) -> Tensor:
    """``x`` with the entries that do not count replaced."""
    return x if counted is None else torch.where(counted, x, otherwise)


def log_sum_exp(x: Tensor) -> tuple[Tensor, Tensor]:
    """``lse(x)`` over the last axis ``[*, 1]``, and a bound on the error of that number. Infinite
    ends are those of the limit; NaN stays NaN.

    With ``m = max x``, terms ``exp(x - m)`` are off by ``(8 + m - x) eps`` of themselves, together
    by ``(8 + n / e) eps`` of their sum, which is at least 1, and adding them up by ``n eps``.
    """
    relative, absolute = padding(x.dtype)
    value = torch.logsumexp(x, dim=-1, keepdim=True)
    size = value.abs() + known_largest(x).abs() + (2.0 * x.shape[-1] + 8.0)
    return value, size * relative + absolute


def known_largest(x: Tensor) -> Tensor:
    """The largest entry of each row where that is a finite number, else 0: ``[*, 1]``."""
    most = x.amax(-1, keepdim=True)
    return torch.where(torch.isfinite(most), most, 0.0)


def _interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
    counted = counted_of(node, lowers[0])
    low, loss = log_sum_exp(without(counted, lowers[0], -torch.inf))
    up, gain = log_sum_exp(without(counted, uppers[0], -torch.inf))
    info = torch.finfo(low.dtype)  # what is finite may be rounded to infinity
    low = torch.where(lowers[0].isposinf().any(-1, True), low, low.clamp(max=info.max))
    return low - loss, up + gain


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    return torch.full_like(lowers[0][..., :1], 0.5).expand(2, *[-1] * lowers[0].dim())


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    low, up = lowers[0], uppers[0]
    range_low, range_up = _interval(node, lowers, uppers)
    counted, lost = _heard(counted_of(node, low), low, up)
    # Numbers whose sums and differences are numbers; of other rows the range is all that is known.
    limit = torch.finfo(low.dtype).max ** 0.25
    is_moderate = (without(counted, torch.maximum(low.abs(), up.abs()), 0.0) < limit).all(-1, True)
    counted = counted & is_moderate
    low, up = (torch.where(counted, end, 0.0) for end in (low, up))
    half = torch.full_like(low[..., :1], 0.5)
    first, second = (half, half) if alpha is None else (alpha[0], alpha[1])
    slope, intercept = _tangent(low, up, first, counted)
    peak = torch.maximum(slope * low, slope * up).sum(-1, keepdim=True) + intercept
    useful = is_moderate & (peak >= range_low)
    below = torch.where(useful, slope, 0.0), torch.where(useful, intercept, range_low)
    slope, intercept = _chords(low, up, second, counted)
    intercept = intercept + lost
    trough = torch.minimum(slope * low, slope * up).sum(-1, keepdim=True) + intercept
    useful = is_moderate & (trough <= range_up)
    above = torch.where(useful, slope, 0.0), torch.where(useful, intercept, range_up)
    return Relaxation((below[0],), below[1], (above[0],), above[1])


def _heard(counted: Tensor | None, low: Tensor, up: Tensor) -> tuple[Tensor, float]:
    """The entries that count and are not below the largest lower end by so much that all others
    together add ``n tiny`` to ``lse`` at most, and that number: large negative masks."""
    info = torch.finfo(low.dtype)
    floor = without(counted, low, -torch.inf).amax(-1, keepdim=True)
    depth = float(torch.log(torch.tensor(info.tiny, dtype=torch.float64)))
    is_heard = ~(up - floor < depth)
    return is_heard if counted is None else is_heard & counted, 2 * low.shape[-1] * info.tiny


def _tangent(low: Tensor, up: Tensor, fraction: Tensor, counted: Tensor) -> Pair:
    """Slopes ``[*, n]`` and intercept ``[*, 1]`` of the tangent at a point of the diagonal."""
    info, terms = torch.finfo(low.dtype), low.shape[-1]
    p = mix(low, up, fraction)
    most = without(counted, p, -torch.inf).detach().amax(-1, keepdim=True)
    most = torch.where(torch.isfinite(most), most, 0.0)
    away = (p - most).clamp(max=0)
    part = without(counted, torch.exp(away), 0.0)
    total = part.sum(-1, keepdim=True).clamp(min=info.tiny)
    slope, height = part / total, torch.log(total)
    intercept = most + height - (slope * p).sum(-1, keepdim=True)
    with torch.no_grad():
        size = most.abs() + height.abs() + (slope * p.abs()).sum(-1, keepdim=True)
        off = slope * (2 * terms + 16 + away.abs()) * info.eps + without(
            counted, torch.full_like(slope, info.tiny), 0.0
        )
        slack = (terms + 8) * info.eps * (size + 2) + info.tiny
        slack = 2 * slack + 2 * (off * reach(p, low, up)).sum(-1, keepdim=True)
    return slope, intercept - slack


def _chords(low: Tensor, up: Tensor, fraction: Tensor, counted: Tensor) -> Pair:
    """Slopes ``[*, n]`` and intercept ``[*, 1]`` of the better of the two upper bounds."""
    middle = (low + up) * 0.5
    of_all = _chords_of_numbers(low, up, fraction, counted)
    of_rest = _chords_of_differences(low, up, middle, fraction, counted)
    with torch.no_grad():
        first, second = (
            (slope * middle).sum(-1, keepdim=True) + intercept
            for slope, intercept in (of_all, of_rest)
        )
        is_rest = second < first
    return torch.where(is_rest, of_rest[0], of_all[0]), torch.where(is_rest, of_rest[1], of_all[1])


def _chords_of_numbers(low: Tensor, up: Tensor, fraction: Tensor, counted: Tensor) -> Pair:
    info, terms = torch.finfo(low.dtype), low.shape[-1]
    most = without(counted, up, -torch.inf).amax(-1, keepdim=True)
    most = torch.where(torch.isfinite(most), most, 0.0)
    slope, cut, scale = _scaled_chords(
        (low - most).clamp(max=0), (up - most).clamp(max=0), fraction, counted, 0.0
    )
    total, height = cut.sum(-1, keepdim=True), torch.log(scale)
    intercept = most + height - 1 + total - most * slope.sum(-1, keepdim=True)
    with torch.no_grad():
        size = most.abs() * (1 + slope.sum(-1, keepdim=True)) + height.abs() + 1
        size = size + cut.abs().sum(-1, keepdim=True)
        # l - most and u - most are rounded, which moves a chord by its slope times as much
        size = size + (slope * (low.abs() + up.abs())).sum(-1, keepdim=True)
        slack = 2 * (terms + 8) * info.eps * size + info.tiny
    return slope, intercept + slack


def _chords_of_differences(
    low: Tensor, up: Tensor, middle: Tensor, fraction: Tensor, counted: Tensor
) -> Pair:
    info, terms = torch.finfo(low.dtype), low.shape[-1]
    limit = 0.25 * float(torch.log(torch.tensor(info.max, dtype=torch.float64)))
    largest = without(counted, middle, -torch.inf).argmax(-1, keepdim=True)
    is_other = torch.ones_like(low, dtype=torch.bool).scatter_(-1, largest, False)
    wanted = is_other & counted
    least, most = low.gather(-1, largest), up.gather(-1, largest)
    ends = torch.where(wanted, low - most, 0.0), torch.where(wanted, up - least, 0.0)
    is_small = (ends[1] <= limit).all(-1, keepdim=True)
    slope, cut, scale = _scaled_chords(
        ends[0].clamp(max=limit), ends[1].clamp(max=limit), fraction, wanted, 1.0
    )
    total, height = slope.sum(-1, keepdim=True), torch.log(scale)
    intercept = height - 1 + 1 / scale + cut.sum(-1, keepdim=True)
    with torch.no_grad():
        edge = torch.maximum(least.abs(), most.abs())
        size = height.abs() + 2 + cut.abs().sum(-1, keepdim=True) + (1 + total) * edge
        size = size + (slope * (low.abs() + up.abs() + 2 * edge)).sum(-1, keepdim=True)
        slack = 2 * (terms + 8) * info.eps * size + info.tiny
    return torch.where(is_other, slope, 1 - total), torch.where(
        is_small, intercept + slack, torch.inf
    )


def _scaled_chords(
    low: Tensor, up: Tensor, fraction: Tensor, counted: Tensor, others: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Lines ``slope t + cut >= exp(t) / S0`` on ``[low, up]``, zero where nothing counts, and
    ``S0 [*, 1]``, which lies between ``others`` plus the sums of the ends."""
    info = torch.finfo(low.dtype)
    ends = torch.exp(low), torch.exp(up)
    sums = [without(counted, end, 0.0).sum(-1, keepdim=True) + others for end in ends]
    scale = mix(sums[0], sums[1], fraction).clamp(min=info.tiny**0.25)
    chord = secant_slope(low, up, *ends)
    slope = torch.minimum(torch.maximum(chord, ends[0]), ends[1]) / scale
    cuts = []
    for t, end in zip((low, up), ends, strict=True):
        height, rise = end / scale, slope * t
        loss = (height * (8 + t.abs()) + 4 * rise.abs()) * info.eps + info.tiny / scale
        cuts.append(height - rise + 2 * loss.detach() + info.tiny)
    cut = torch.maximum(cuts[0], cuts[1])
    return without(counted, slope, 0.0), without(counted, cut, 0.0), scale


register_nonlinear("LogSumExp", _interval, _relax, alphas=2, default_alpha=_default_alpha)
