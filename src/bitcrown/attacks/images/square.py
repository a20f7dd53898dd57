"""Square attack: random search that needs no gradient, so nothing that hides gradients stops it.

Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box adversarial
attack via random search", 2020. Every query changes a random square window of the best point so far
and keeps the change if the lead of another class over the label grew. The window's area is a share
``p`` of the image, from 0.8 halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries.

Late in the search few queries succeed, and one that fails changes nothing. So where a call of the
network has room, an image asks several of its queries at once, all from the point it is at: up to
the first that succeeds they are what they would have been one after the other, the rest is
forgotten. Every image goes on at its own pace.

* L-infinity (algorithm 2): the start is vertical stripes; each colour channel of the window goes to
  ``x - eps`` or ``x + eps`` as a whole, whichever a coin says.
* L2 (algorithm 3) and L1: the budget is a sum, so what one window gets another must give up: see
  ``square_mass``.

Legend: ``B`` images, ``R`` of them still standing, ``Q`` queries asked at once (sorted by image),
``C`` channels, ``H x W`` pixels, ``J`` random numbers of a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball, BallAround
from bitcrown.attacks.images.losses import lead
from bitcrown.attacks.images.noise import Keys, uniforms
from bitcrown.attacks.images.square_mass import moved_mass, tiled_start
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import Victim
from bitcrown.attacks.images.windows import BLOCK, Draws, Places, edges, places

_FIRST_SHARE = 0.8
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass
class _Search:
    """The images still standing, fields ``[R, ...]``; ``asked``: the next query's number."""

    place: Tensor
    x: Tensor
    value: Tensor
    region: BallAround
    labels: Tensor
    draws: Draws
    asked: Places

    def keep(self, mask: npt.NDArray[np.bool_]) -> None:
        """The images of ``mask [R]`` only."""
        if mask.all():
            return
        kept = np.flatnonzero(mask)
        index = torch.from_numpy(kept).to(self.x.device)
        self.place, self.x, self.value = self.place[index], self.x[index], self.value[index]
        self.region, self.labels = self.region.at(index), self.labels[index]
        self.draws, self.asked = self.draws.keep(kept), self.asked[kept]

    def questions(self, rows: int | None, queries: int) -> tuple[Places, Places]:
        """Images and numbers of the next queries, both ``[Q]``, for a call of ``rows``."""
        count = len(self.asked)
        image = np.arange(count)
        if rows is None or rows == count:
            return image, self.asked
        # Fewer rows than images: those that have asked least. More: an equal share of the rows
        # each, the remainder to those behind, but no query past the budget or the numbers drawn.
        behind = np.argsort(self.asked, kind="stable")
        if rows < count:
            image = np.sort(behind[:rows])
            return image, self.asked[image]
        share = np.full(count, rows // count)
        share[behind[: rows % count]] += 1
        share = np.minimum(share, np.minimum(BLOCK, queries - self.asked))
        offset = np.arange(share.sum()) - np.repeat(share.cumsum() - share, share)
        image = np.repeat(image, share)
        return image, self.asked[image] + offset


def square(
    victim: Victim, clean: Tensor, labels: Tensor, ball: Ball, keys: Keys, queries: int
) -> Trace:
    """At most ``queries`` evaluations of each image of ``clean [B, C, H, W]``."""
    trace = Trace.empty(clean)
    region = ball.around(clean)
    tried = _striped_start(region, keys) if ball.norm == "Linf" else tiled_start(region, keys)
    asked = np.zeros(len(clean), dtype=np.int64)
    search = _Search(
        torch.arange(len(clean), device=clean.device), tried.clone(),
        torch.full((len(clean),), -torch.inf, device=clean.device), region, labels,
        Draws.of(keys, asked, clean), asked,
    )  # fmt: skip
    image, query = np.arange(len(clean)), asked
    while True:
        _judge(victim, search, image, query, tried, trace)
        search.keep(search.asked < queries)
        if not len(search.place):
            return trace
        image, query = search.questions(victim.rows, queries)
        if (query >= search.draws.first[image] + BLOCK).any():
            search.draws = Draws.of(search.draws.keys, search.asked, clean)
        index = torch.from_numpy(image).to(clean.device)
        halvings = (query[:, None] > np.array(_HALVED_AFTER)).sum(axis=1)
        change = _flipped if ball.norm == "Linf" else _moved
        random = search.draws.at(image, query)
        tried = change(search.region, index, search.x.index_select(0, index), random, halvings)


def _judge(
    victim: Victim, search: _Search, image: Places, query: Places, tried: Tensor, trace: Trace
) -> None:
    """Take over the first success of each image among ``tried [Q, C, H, W]``."""
    logits = victim.logits(tried)
    index = torch.from_numpy(image).to(tried.device)
    labels = search.labels[index]
    ahead = lead(logits, labels)
    better, wrong = ahead > search.value[index], ahead > 0
    # The queries of an image stand in their order: up to its first event they were asked from the
    # point it is still at, the later ones are void and are asked again from the new point.
    events = (better | wrong).nonzero().flatten().cpu().numpy()
    who, first = np.unique(image[events], return_index=True)
    first = events[first]
    # Without an event all queries count, otherwise those up to it.
    search.asked = search.asked + np.bincount(image, minlength=len(search.asked))
    search.asked[who] = query[first] + 1
    chosen = torch.from_numpy(first).to(tried.device)
    rose = chosen[better[chosen]]
    search.x[index[rose]] = tried[rose]
    search.value[index[rose]] = ahead[rose]
    fooled = chosen[wrong[chosen]]
    if len(fooled):
        fooled = fooled[victim.breaks(tried[fooled], logits[fooled], labels[fooled])]
        trace.record(search.place[index[fooled]], tried[fooled])
        stands = np.ones(len(search.asked), dtype=np.bool_)
        stands[image[fooled.cpu().numpy()]] = False
        search.keep(stands)


def random_points(
    victim: Victim, clean: Tensor, labels: Tensor, ball: Ball, keys: Keys, queries: int
) -> Trace:
    """``queries`` random points of each sphere: what chance achieves, a floor for the others."""
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


def _striped_start(region: BallAround, keys: Keys) -> Tensor:
    count, channels, _, width = region.clean.shape
    coin = torch.from_numpy(uniforms(keys, channels * width) > 0.5).to(region.clean.device)
    return torch.where(coin.reshape(count, channels, 1, width), region.upper, region.lower)


def _flipped(
    region: BallAround, index: Tensor, x: Tensor, random: Tensor, halvings: Places
) -> Tensor:
    """``x [Q, C, H, W]`` of images ``index [Q]``, one window of each at an end of its range."""
    _, channels, height, width = x.shape
    sides = [
        round((_FIRST_SHARE / 2**k * height * width) ** 0.5) for k in range(len(_HALVED_AFTER) + 1)
    ]
    side = torch.from_numpy(np.array(sides).clip(1, min(height, width))[halvings]).to(x.device)
    rows, columns = edges(places(random[:, :2], side, height, width), side, height, width)
    # Inside the window far beyond the end that the coin says, outside nothing; then back into the
    # range.
    far = 4.0 * (region.ball.high - region.ball.low + region.ball.eps)
    ways = torch.where(random[:, 2 : 2 + channels] > 0.5, far, -far).to(x.dtype)
    ways = ways.unsqueeze(2) * rows.to(x.dtype).unsqueeze(1)
    tried = ways.unsqueeze(3) * columns.to(x.dtype)[:, None, None, :]
    return tried.add_(x).clamp_(
        region.lower.index_select(0, index), region.upper.index_select(0, index)
    )


def _moved(
    region: BallAround, index: Tensor, x: Tensor, random: Tensor, halvings: Places
) -> Tensor:
    """As ``_flipped``, by ``moved_mass``: windows of one size together."""
    parts, order = [], []
    for number in np.unique(halvings).tolist():
        part = torch.from_numpy(np.flatnonzero(halvings == number)).to(x.device)
        parts.append(
            moved_mass(region.at(index[part]), x[part], random[part], _FIRST_SHARE / 2**number)
        )
        order.append(part)
    return torch.cat(parts) if len(parts) == 1 else torch.cat(parts)[torch.cat(order).argsort()]
