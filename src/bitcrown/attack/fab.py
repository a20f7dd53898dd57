"""FAB: walk along the decision boundary, ever nearer to the clean image.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020, algorithm 1. Unlike
gradient ascent it does not follow the loss inside the ball but looks for the nearest misclassified point; the radius
only says which find counts. At ``x_k``, with ``f = z_l - z_y`` for the class ``l`` whose linearised boundary is
nearest (targeted: the class aimed at), ``d_1`` and ``d_3`` are the shortest moves from ``x_k`` and from the clean image
onto the hyperplane ``f(x_k) + grad f . (x - x_k) = 0`` (``hyperplane``), and

``x_{k+1} = P((1 - a) (x_k + 1.05 d_1) + a (x_clean + 1.05 d_3))``, ``a = min(||d_1|| / (||d_1|| + ||d_3||), 0.1)``.

After every misclassified point the walk goes back towards the clean image, ``x <- 0.1 x_clean + 0.9 x``. It begins at
the clean image; further restarts begin at a random point of the sphere of radius eps / 2.

Legend: ``B`` images, ``R`` of them still standing, ``n`` pixels, ``K`` classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attack.ball import Ball
from bitcrown.attack.hyperplane import shortest_move
from bitcrown.attack.noise import Keys
from bitcrown.attack.trace import Trace
from bitcrown.attack.victim import Victim

MOST_CLEAN = 0.1
OVERSHOOT = 1.05
BACKWARD = 0.9
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


class _Boundary(NamedTuple):
    """Linearised boundaries ``f + w . (x - x_k) = 0``: ``value [R]``, ``normal [R, n]``."""

    value: Tensor
    normal: Tensor


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

    ``targets [B]``: aim at the boundary to that class only. Any class other than the label breaks an image.
    """
    trace = Trace.empty(clean)
    place = torch.arange(len(clean), device=clean.device)
    x = clean if keys is None else replace(ball, eps=ball.eps / 2).start(clean, keys)
    for step in range(steps):
        boundary = _boundary(victim, x, labels[place], None if targets is None else targets[place], ball.norm)
        trace.note_gradient(place, boundary.normal.reshape(x.shape), is_first=step == 0)
        x = _walk(x, clean[place], boundary, ball)
        x, place = _judge(victim, x, clean, labels, place, ball, trace)
        if not len(place):
            break
    return trace


def _walk(x: Tensor, clean: Tensor, boundary: _Boundary, ball: Ball) -> Tensor:
    """One step for ``x [R, C, H, W]``; a point whose boundary is unknown (NaN, no gradient) stays."""
    now, origin = x.flatten(1), clean.flatten(1)
    w = boundary.normal
    offset = -boundary.value
    usable = torch.isfinite(w).all(dim=1) & torch.isfinite(offset) & (w != 0).any(dim=1)
    w = torch.where(usable.unsqueeze(1), w, torch.zeros_like(w))
    offset = torch.where(usable, offset, torch.zeros_like(offset))
    both = torch.cat([now, origin])
    reach = torch.cat([offset, offset + ((now - origin) * w).sum(dim=1)])
    move = shortest_move(both, torch.cat([w, w]), reach, ball.norm, ball.low, ball.high)
    first, third = move.chunk(2)
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}[ball.norm]
    near, far = (torch.linalg.vector_norm(part, ord=order, dim=1) for part in (first, third))
    share = (near / (near + far).clamp(min=1e-30)).clamp(max=MOST_CLEAN).unsqueeze(1)
    ahead = (1.0 - share) * (now + OVERSHOOT * first) + share * (origin + OVERSHOOT * third)
    ahead = torch.where(usable.unsqueeze(1), ahead.clamp(ball.low, ball.high), now)
    return ahead.reshape(x.shape)


def _judge(
    victim: Victim, x: Tensor, clean: Tensor, labels: Tensor, place: Tensor, ball: Ball, trace: Trace
) -> tuple[Tensor, Tensor]:
    """What is left: broken images inside the ball are recorded and leave, those broken outside turn back."""
    logits = victim.logits(x)
    beyond = logits.argmax(dim=1) != labels[place]
    inside = beyond & ball.contains(x, clean[place])
    broken = torch.zeros_like(inside)
    broken[inside] = victim.breaks(x[inside], logits[inside], labels[place[inside]])
    trace.record(place[broken], x[broken])
    back = (1.0 - BACKWARD) * clean[place] + BACKWARD * x
    x = torch.where(beyond.reshape(-1, 1, 1, 1), back, x)
    return x[~broken], place[~broken]


def _boundary(victim: Victim, x: Tensor, labels: Tensor, targets: Tensor | None, norm: str) -> _Boundary:
    """The boundary aimed at, or among those of all classes the one that is nearest by its linearisation."""
    if targets is not None:
        _, value, slope = victim.gradient(x, _rise, torch.stack([labels, targets], dim=1))
        return _Boundary(value, slope.flatten(1))
    logits, slopes = victim.jacobian(x)
    own = labels.reshape(-1, 1)
    value = logits - logits.gather(1, own)
    normal = slopes - slopes.gather(1, own.unsqueeze(2).expand(-1, 1, slopes.shape[2]))
    distance = value.abs() / torch.linalg.vector_norm(normal, ord=DUAL[norm], dim=2).clamp(min=1e-30)
    nearest = distance.nan_to_num(torch.inf).scatter(1, own, torch.inf).argmin(dim=1)
    row = torch.arange(len(x), device=x.device)
    return _Boundary(value[row, nearest], normal[row, nearest])


def _rise(logits: Tensor, classes: Tensor) -> Tensor:
    """``z_t - z_y`` for ``classes [B, 2]`` = label and target."""
    pair = logits.gather(1, classes)
    return pair[:, 1] - pair[:, 0]
