"""Square attack: random search that needs no gradient, so nothing that hides gradients stops it.

Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", 2020. Every query changes a random square window of the best point so far and keeps the change if the lead of
another class over the label grew. The window's area is a share ``p`` of the image, from 0.8 halved after 10, 50, 200,
500, 1000, 2000, 4000, 6000 and 8000 queries.

* L-infinity (algorithm 2): the start is vertical stripes; each colour channel of the window goes to ``x - eps`` or
  ``x + eps`` as a whole, whichever a coin says.
* L2 (algorithm 3): the budget is a sum of squares, so what one window gets another must give up: see ``square_l2``.

Legend: ``B`` images, ``R`` of them still standing, ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitcrown.attack.ball import Ball, Region
from bitcrown.attack.losses import lead
from bitcrown.attack.noise import Keys, uniforms
from bitcrown.attack.square_l2 import moved_mass, tiled_start
from bitcrown.attack.trace import Trace
from bitcrown.attack.victim import Victim
from bitcrown.attack.windows import BLOCK, draws, places, window

FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(victim: Victim, clean: Tensor, labels: Tensor, ball: Ball, keys: Keys, queries: int) -> Trace:
    """At most ``queries`` evaluations of each image of ``clean [B, C, H, W]``; for L-infinity and L2."""
    trace = Trace.empty(clean)
    place = torch.arange(len(clean), device=clean.device)
    region = ball.around(clean)
    x = _striped_start(region, keys) if ball.norm == "Linf" else tiled_start(region, keys)
    tried, tried_logits = x, victim.logits(x)
    value = torch.full((len(x),), -torch.inf, device=x.device)
    random = draws(keys, 0, clean)
    change = _flipped if ball.norm == "Linf" else moved_mass
    for query in range(queries):
        tried_value = lead(tried_logits, labels[place])
        better = tried_value > value
        x = torch.where(better.reshape(-1, 1, 1, 1), tried, x)
        value = torch.where(better, tried_value, value)
        if bool((tried_value > 0).any()):
            left = ~victim.breaks(tried, tried_logits, labels[place])
            trace.record(place[~left], tried[~left])
            place, x, value, region, random = place[left], x[left], value[left], region.at(left), random[left]
        if query + 1 == queries or not len(place):
            break
        if (query + 1) % BLOCK == 0:
            random = draws(keys[place.cpu().numpy()], query + 1, clean)
        share = FIRST_SHARE / 2 ** sum(query + 1 > limit for limit in HALVED_AFTER)
        tried = change(region, x, random[:, (query + 1) % BLOCK], share)
        tried_logits = victim.logits(tried)
    return trace


def random_points(victim: Victim, clean: Tensor, labels: Tensor, ball: Ball, keys: Keys, queries: int) -> Trace:
    """``queries`` independent points of each image's sphere: what chance alone achieves, and a floor for the others."""
    trace = Trace.empty(clean)
    place = torch.arange(len(clean), device=clean.device)
    for query in range(queries):
        x = ball.start(clean[place], keys + np.uint64(query))
        broken = victim.breaks(x, victim.logits(x), labels[place])
        trace.record(place[broken], x[broken])
        place, keys = place[~broken], keys[(~broken).cpu().numpy()]
        if not len(place):
            break
    return trace


def _striped_start(region: Region, keys: Keys) -> Tensor:
    count, channels, _, width = region.clean.shape
    coin = torch.from_numpy(uniforms(keys, channels * width) > 0.5).to(region.clean.device)
    return torch.where(coin.reshape(count, channels, 1, width), region.upper, region.lower)


def _flipped(region: Region, x: Tensor, random: Tensor, share: float) -> Tensor:
    """``x [R, C, H, W]`` with one window of each image at the ends of its range; ``random [R, J]`` chooses."""
    _, channels, height, width = x.shape
    side = min(max(round((share * height * width) ** 0.5), 1), height, width)
    mask = window(places(random[:, :2], side, height, width), side, height, width)
    coin = (random[:, 2 : 2 + channels] > 0.5).reshape(-1, channels, 1, 1)
    return torch.where(mask, torch.where(coin, region.upper, region.lower), x)
