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
from bitcrown.attack.windows import draws, places, window

FIRST_SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(victim: Victim, clean: Tensor, labels: Tensor, ball: Ball, keys: Keys, queries: int) -> Trace:
    """At most ``queries`` evaluations of each image of ``clean [B, C, H, W]``; for L-infinity and L2."""
    trace = Trace.empty(clean)
    place = torch.arange(len(clean), device=clean.device)
    region = ball.around(clean)
    x = _striped_start(region, keys) if ball.norm == "Linf" else tiled_start(region, keys)
    logits = victim.logits(x)
    value = lead(logits, labels).nan_to_num(-torch.inf)
    for query in range(1, queries + 1):
        broken = victim.breaks(x, logits, labels[place])
        if bool(broken.any()):
            trace.record(place[broken], x[broken])
            left = ~broken
            place, x, value, region = place[left], x[left], value[left], region.at(left)
            keys = keys[left.cpu().numpy()]
        if query == queries or not len(place):
            break
        share = FIRST_SHARE / 2 ** sum(query > limit for limit in HALVED_AFTER)
        change = _flipped if ball.norm == "Linf" else moved_mass
        tried = change(region, x, keys, query, share)
        tried_logits = victim.logits(tried)
        tried_value = lead(tried_logits, labels[place])
        better = tried_value > value
        x = torch.where(better.reshape(-1, 1, 1, 1), tried, x)
        value = torch.where(better, tried_value, value)
        # Points that were kept were looked at before and were not misclassified: their logits are not needed.
        logits = torch.where(better.unsqueeze(1), tried_logits, torch.zeros_like(tried_logits))
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


def _flipped(region: Region, x: Tensor, keys: Keys, query: int, share: float) -> Tensor:
    """``x [R, C, H, W]`` with one window of each image at the ends of its range."""
    _, channels, height, width = x.shape
    side = min(max(round((share * height * width) ** 0.5), 1), height, width)
    share_of = draws(keys, query, 2 + channels, x.device)
    mask = window(places(share_of[:, :2], side, height, width), side, height, width)
    coin = share_of[:, 2:] > 0.5
    return torch.where(mask, torch.where(coin.reshape(-1, channels, 1, 1), region.upper, region.lower), x)
