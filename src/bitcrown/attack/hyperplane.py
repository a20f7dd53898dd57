"""The shortest way from a point to a hyperplane without leaving the pixel range, for L-infinity, L2 and L1.

FAB (``fab``) walks along linearisations: at ``x`` it needs the shortest ``d`` with ``w . d = c`` and
``low <= x + d <= high`` (Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
2020, eq. 5). Each pixel moves in the direction that helps, ``sign(c w)``, by at most its ``room``. With ``a = |w|`` and
one number ``t >= 0`` that says how far everybody goes,

* L-infinity: pixel i moves ``min(t, room_i)``;
* L2: it moves ``min(t a_i, room_i)`` (stationary point of the Lagrangian);
* L1: pixels are used up in the order of falling ``a_i``.

The gain ``sum a_i move_i`` is concave and piecewise linear in ``t``, so Newton's method from ``t = 0`` climbs to the
solution from below without ever passing it, in a handful of steps: much cheaper than sorting the pixels. Where even the
corner of the pixel range is not enough, the corner is the answer.

Legend: ``R`` points, ``n`` pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 40


def shortest_move(x: Tensor, w: Tensor, c: Tensor, norm: str, low: float, high: float) -> Tensor:
    """``d [R, n]`` for points ``x [R, n]``, normals ``w [R, n]`` and values ``c [R]``."""
    direction = torch.where(c.unsqueeze(1) >= 0, w.sign(), -w.sign())
    room = torch.where(direction > 0, high - x, x - low).clamp(min=0.0)
    room = torch.where(direction == 0, torch.zeros_like(room), room)
    size = w.abs()
    if norm == "L1":
        return direction * _greedy(size, room, c.abs())
    # L-infinity: pixel i is spent at t = room_i and gains a_i per unit; L2: at t = room_i / a_i, and gains a_i^2.
    if norm == "Linf":
        until, rate = room, size
    else:
        until, rate = torch.where(size > 0, room / size.clamp(min=1e-30), torch.zeros_like(room)), size * size
    t = _newton(until, rate, c.abs())
    reach = t.unsqueeze(1).expand_as(room) if norm == "Linf" else t.unsqueeze(1) * size
    return direction * torch.minimum(reach, room)


def _newton(until: Tensor, rate: Tensor, gain: Tensor) -> Tensor:
    """Least ``t [R]`` with ``sum rate_i min(t, until_i) >= gain``; the largest ``until`` where there is none."""
    t = torch.zeros_like(gain)
    active = torch.ones_like(gain, dtype=torch.bool)
    zero = torch.zeros_like(rate)
    for _ in range(NEWTON_STEPS):
        free = until > t.unsqueeze(1)
        missing = gain - (rate * torch.minimum(until, t.unsqueeze(1))).sum(dim=1)
        slope = torch.where(free, rate, zero).sum(dim=1)
        # A row that has arrived is never touched again: how long the others take must not change its last bits.
        active = active & (missing > 1e-6 * gain) & (slope > 0)
        if not bool(active.any()):
            break
        t = torch.where(active, t + missing / slope.clamp(min=1e-30), t)
    return torch.minimum(t, until.amax(dim=1))


def _greedy(size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
    """Moves ``[R, n]`` that use up the pixels of the steepest slope first."""
    order = size.argsort(dim=1, descending=True, stable=True)
    ranked_size, ranked_room = size.gather(1, order), room.gather(1, order)
    gains = ranked_size * ranked_room
    before = gains.cumsum(dim=1) - gains
    needed = (gain.unsqueeze(1) - before).clamp(min=0.0) / ranked_size.clamp(min=1e-30)
    moves = torch.minimum(needed, ranked_room)
    return torch.zeros_like(room).scatter(1, order, moves)
