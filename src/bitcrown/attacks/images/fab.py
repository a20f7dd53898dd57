"""FAB: walk along the decision boundary, ever nearer to the clean image.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020,
algorithm 1. Unlike gradient ascent it does not follow the loss inside the ball but looks for the
nearest misclassified point; the radius only says which find counts. At ``x_k``, with
``f = z_l - z_y`` for the class ``l`` whose linearised boundary is nearest (targeted: the class
aimed at), ``d_1`` and ``d_3`` are the shortest moves from ``x_k`` and from the clean image onto the
hyperplane ``f(x_k) + grad f . (x - x_k) = 0`` (``hyperplane``), and

``x_{k+1} = P((1 - a) (x_k + 1.05 d_1) + a (x_clean + 1.05 d_3))``, ``a = min(||d_1|| / (||d_1|| +
||d_3||), 0.1)``.

After every misclassified point the walk goes back towards the clean image,
``x <- 0.1 x_clean + 0.9 x``. It begins at the clean image; further restarts begin at a random point
of the sphere of radius eps / 2.

Legend: ``B`` images, ``R`` of them still standing, ``n`` pixels, ``K`` classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.hyperplane import shortest_move
from bitcrown.attacks.images.noise import Keys
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import Victim

_MOST_CLEAN = 0.1
_OVERSHOOT = 1.05
_BACKWARD = 0.9
_DUAL = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


class _Boundary(NamedTuple):
    """Linearised boundaries ``f + w . (x - x_k) = 0``: ``value [R]``, ``normal [R, n]``."""

    value: Tensor
    normal: Tensor


class _Walk(NamedTuple):
    """The images still standing; every field ``[R, ...]``. No ``targets``: all boundaries."""

    place: Tensor
    clean: Tensor
    labels: Tensor
    targets: Tensor | None

    def keep(self, index: Tensor) -> _Walk:
        targets = None if self.targets is None else self.targets[index]
        return _Walk(
            self.place[index], self.clean.index_select(0, index), self.labels[index], targets
        )


def fab(
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    ball: Ball,
    keys: Keys | None,
    steps: int,
    targets: Tensor | None = None,
) -> Trace:
    """One run for ``clean [B, C, H, W]``; ``keys [B]``: random start (None: the clean image).

    ``targets [B]``: aim at the boundary to that class only. Any class other than the label breaks
    an image.
    """
    trace = Trace.empty(clean)
    walk = _Walk(torch.arange(len(clean), device=clean.device), clean, labels, targets)
    x = clean if keys is None else replace(ball, eps=ball.eps / 2).start(clean, keys)
    for step in range(steps):
        boundary = _boundary(victim, x, walk, ball.norm)
        trace.note_gradient(walk.place, boundary.normal.reshape(x.shape), is_first=step == 0)
        x = _step(x, walk.clean, boundary, ball)
        x, walk = _judge(victim, x, walk, ball, trace)
        if not len(walk.place):
            break
    return trace


def _step(x: Tensor, clean: Tensor, boundary: _Boundary, ball: Ball) -> Tensor:
    """The next points for ``x [R, C, H, W]``; one whose boundary is unknown (NaN, none) stays."""
    both = torch.stack([x.flatten(1), clean.flatten(1)])
    now, origin = both
    # The hyperplane f + w . (x - x_k) = 0: a move d from x_k reaches it with w . d = -f, one from
    # the clean image with w . d = -f + w . (x_k - x_clean).
    w, offset = boundary.normal, -boundary.value
    largest = w.abs().amax(dim=1)
    usable = torch.isfinite(largest) & (largest > 0) & torch.isfinite(offset)
    is_whole = bool(usable.all())
    if not is_whole:
        w = torch.where(usable.unsqueeze(1), w, torch.zeros_like(w))
        offset = torch.where(usable, offset, torch.zeros_like(offset))
    reach = torch.stack([offset, offset + (now - origin).mul_(w).sum(dim=1)])
    move = shortest_move(both, w, reach, ball.norm, ball.low, ball.high)
    # a = |d_1| / (|d_1| + |d_3|), at most 0.1: the nearer x_k is to the boundary, the less the
    # clean image pulls.
    near, far = _length(move, ball.norm)
    share = (near / (near + far).clamp(min=1e-30)).clamp(max=_MOST_CLEAN).unsqueeze(1)
    # (1 - a) (x_k + 1.05 d_1) + a (x_clean + 1.05 d_3), both terms computed in one tensor.
    first, third = move.mul_(_OVERSHOOT).add_(both).mul_(torch.stack([1.0 - share, share]))
    ahead: Tensor = first.add_(third).clamp_(ball.low, ball.high)
    if not is_whole:
        ahead = torch.where(usable.unsqueeze(1), ahead, now)
    return ahead.reshape(x.shape)


def _length(move: Tensor, norm: str) -> Tensor:
    """``[2, R]``; torch's norms of order 1 and infinity take many times as long."""
    if norm == "L2":
        return move.square().sum(dim=-1).sqrt()
    size = move.abs()
    return size.amax(dim=-1) if norm == "Linf" else size.sum(dim=-1)


def _judge(
    victim: Victim, x: Tensor, walk: _Walk, ball: Ball, trace: Trace
) -> tuple[Tensor, _Walk]:
    """What is left: images broken inside the ball leave, those broken outside turn back."""
    logits = victim.logits(x)
    beyond = (logits.argmax(dim=1) != walk.labels).nonzero().flatten()
    if not len(beyond):
        return x, walk
    found, origin = x.index_select(0, beyond), walk.clean.index_select(0, beyond)
    inside = ball.contains(found, origin).nonzero().flatten()
    place = beyond[inside]
    broken = inside[victim.breaks(found[inside], logits[place], walk.labels[place])]
    trace.record(walk.place[beyond[broken]], found[broken])
    x = x.index_copy(0, beyond, (1.0 - _BACKWARD) * origin + _BACKWARD * found)
    if not len(broken):
        return x, walk
    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    left[beyond[broken]] = False
    kept = left.nonzero().flatten()
    return x.index_select(0, kept), walk.keep(kept)


def _boundary(victim: Victim, x: Tensor, walk: _Walk, norm: str) -> _Boundary:
    """The boundary aimed at, or of all classes the nearest by its linearisation."""
    if walk.targets is not None:
        _, value, slope = victim.gradient(x, _rise, torch.stack([walk.labels, walk.targets], dim=1))
        return _Boundary(value, slope.flatten(1))
    logits, slopes = victim.jacobian(x)
    # f_k = z_k - z_y for every class k; the distance to {f_k + w_k . d = 0} is |f_k| / ||w_k||_q
    # with the dual norm q. The label itself (0 / 0) is never the nearest.
    own = walk.labels.reshape(-1, 1)
    value = logits - logits.gather(1, own)
    normal = slopes - slopes.gather(1, own.unsqueeze(2).expand(-1, 1, slopes.shape[2]))
    distance = value.abs() / torch.linalg.vector_norm(normal, ord=_DUAL[norm], dim=2).clamp(
        min=1e-30
    )
    nearest = distance.nan_to_num(torch.inf).scatter(1, own, torch.inf).argmin(dim=1)
    row = torch.arange(len(x), device=x.device)
    return _Boundary(value[row, nearest], normal[row, nearest])


def _rise(logits: Tensor, classes: Tensor) -> Tensor:
    """``z_t - z_y`` for ``classes [B, 2]`` = label and target."""
    pair = logits.gather(1, classes)
    return pair[:, 1] - pair[:, 0]
