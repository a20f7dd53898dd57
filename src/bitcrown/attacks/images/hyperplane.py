"""The shortest way from a point to a hyperplane without leaving the pixel range, for L-infinity, L2
and L1.

FAB (``fab``) walks along linearisations: at ``x`` it needs the shortest ``d`` with ``w . d = c``
and ``low <= x + d <= high`` (Croce & Hein, "Minimally distorted adversarial examples with a fast
adaptive boundary attack", 2020, eq. 5). Each pixel moves in the direction that helps,
``sign(c w)``, by at most its ``room``. With ``a = |w|`` and one number ``t >= 0`` that says how far
everybody goes,

* L-infinity: pixel i moves ``min(t, room_i)``;
* L2: it moves ``min(t a_i, room_i)`` (stationary point of the Lagrangian);
* L1: pixels are used up in the order of falling ``a_i``.

The gain ``sum a_i move_i`` is concave and piecewise linear in ``t``, so Newton's method from
``t = 0`` climbs to the solution from below without ever passing it, in a handful of steps: much
cheaper than sorting the pixels. Where even the corner of the pixel range is not enough, the corner
is the answer.

Signs are kept in ``span_i``, the move to the end of the range that helps (its size is the room), so
that a move is ``span`` clamped to what ``t`` allows. (Comparisons, ``where`` and norms of whole
tensors cost several times a product.)

Legend: ``R`` points, ``n`` pixels, ``*`` any further axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON_STEPS = 40


def shortest_move(x: Tensor, w: Tensor, c: Tensor, norm: str, low: float, high: float) -> Tensor:
    """``d [*, R, n]`` for points ``x [*, R, n]``, normals ``w [R, n]`` and values ``c [*, R]``."""
    # Twice the width of the range in the direction sign(c w), clamped to the range, minus x: the
    # whole way to the end of the range that helps, 0 where w is 0.
    beyond = 2.0 * (high - low)
    ways = torch.where(c >= 0, beyond, -beyond).to(x.dtype).unsqueeze(-1)
    span = (x + w.sign() * ways).clamp_(low, high).sub_(x)
    size = w.abs()
    if norm == "L1":
        room = span.abs()
        return span.sign() * _greedy(size, room, c.abs())
    # L-infinity: pixel i is spent at t = room_i and gains a_i per unit; L2: at t = room_i / a_i,
    # and gains a_i^2.
    if norm == "Linf":
        reach = _newton(span.abs(), size, c.abs()).unsqueeze(-1)
    else:
        until = (span.abs() / size.clamp(min=1e-30)).mul_(size > 0)
        reach = _newton(until, size * size, c.abs()).unsqueeze(-1) * size
    # |span| is the room, so the clamp moves pixel i by min(reach_i, room_i) in its direction.
    return span.clamp(-reach, reach)


def _newton(until: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
    """Least ``t [*, R]`` with ``sum rate_i min(t, until_i) >= gain``, or largest ``until``."""
    # gain(t) = sum rate_i min(t, until_i) is concave with gain(0) = 0. Its tangent at t lies above
    # it, so t + missing / slope <= solution: Newton never passes it, and missing stays >= 0.
    t = torch.zeros_like(gain)
    active = torch.ones_like(gain, dtype=torch.bool)
    work = torch.empty_like(until)
    missing = gain
    for _ in range(_NEWTON_STEPS):
        # A row that has arrived is never touched again: how long the others take must not change
        # its last bits.
        active = active & (missing > 1e-6 * gain)
        if not bool(active.any()):
            break
        # Right derivative: the rates of the pixels that are not spent yet.
        slope = torch.gt(until, t.unsqueeze(-1), out=work).mul_(rate).sum(dim=-1)
        # Slope 0 with something missing: all pixels are spent, the corner is the answer.
        active = active & (slope > 0)
        t = torch.where(active, t + missing / slope.clamp(min=1e-30), t)
        missing = gain - torch.minimum(until, t.unsqueeze(-1), out=work).mul_(rate).sum(dim=-1)
    return torch.minimum(t, until.amax(dim=-1))


def _greedy(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """Moves ``[*, R, n]`` that use up the pixels of the steepest slope (``size [R, n]``) first."""
    # Fractional knapsack: moving pixel i by m gains a_i m, so the steepest pixels go first.
    order = size.argsort(dim=-1, descending=True, stable=True)
    ranked_size, order = size.gather(-1, order), order.expand_as(room)
    ranked_room = room.gather(-1, order)
    gains = ranked_size * ranked_room
    # What the pixels before gained; of the rest pixel i takes what it can, and none when it is 0.
    before = gains.cumsum(dim=-1) - gains
    needed = (gain.unsqueeze(-1) - before).clamp(min=0.0) / ranked_size.clamp(min=1e-30)
    moves = torch.minimum(needed, ranked_room)
    return torch.zeros_like(room).scatter(-1, order, moves)
