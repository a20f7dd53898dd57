"""Projected gradient descent on images (Madry et al., "Towards deep learning models resistant to
attacks", 2018).

From a random point of the ball: ``x <- P(x + a d)`` where ``d`` is the direction of steepest ascent
of the cross entropy (of the margin where that underflows) in the ball's norm (the sign of the
gradient for L-infinity, the normalised gradient for L2, its largest entries for L1), ``P`` the
projection and ``a = 2.5 eps / steps``, so that any point of the ball can be reached. An image is
done as soon as it is misclassified; the first restart begins at the clean image.

All climbs, one for each image and restart, share the calls of the network: a call costs as much for
five points as for fifty. Who is done leaves, and the next climb takes its place at once, so calls
are full until the last climbs have begun. What counts for an image is the first restart that breaks
it; later ones leave then, earlier ones go on, so the answer does not depend on who climbs when.

Legend: ``B`` images, ``R`` climbs under way, ``C`` channels, ``H x W`` pixels, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball, BallAround
from bitcrown.attacks.images.losses import cross_entropy_or_margin
from bitcrown.attacks.images.noise import stream_keys
from bitcrown.attacks.images.victim import Classifier, Victim, rows_for, widest_call
from bitcrown.attacks.images.windows import Places

_L1_SHARE = 0.05
"""Share of the pixels that one L1 step moves."""


class _Budget(NamedTuple):
    steps: int
    restarts: int
    seed: int


def pgd_images(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    steps: int,
    restarts: int,
    seed: int,
    batch: int = 100,
    number: Places | None = None,
) -> Tensor:
    """``[B, C, H, W]``: a misclassified point of each ball, the clean image where none is found.

    Images that are misclassified as they are stay as they are. ``batch`` images climb at a time: it
    bounds memory and changes no result. ``number [B]``: in the data set (default: from 0 on), which
    random starts depend on.
    """
    victim = Victim(model, rows_for(len(images) * restarts, widest_call(model, images)))
    budget = _Budget(steps, restarts, seed)
    number = np.arange(len(images)) if number is None else number
    found = [
        _Climbs(victim, images[part], labels[part], number[part], ball, budget).run()
        for part in (slice(first, first + batch) for first in range(0, len(images), batch))
    ]
    return torch.cat(found) if found else images.clone()


class _UnderWay(NamedTuple):
    """Climbs, each field ``[R, ...]``: image, restart and steps done; label, ball and point."""

    image: Places
    restart: Places
    step: Places
    labels: Tensor
    around: BallAround
    x: Tensor

    def at(self, kept: Places) -> _UnderWay:
        """Climbs of numbers ``kept`` only."""
        index = torch.from_numpy(kept).to(self.x.device)
        return _UnderWay(
            self.image[kept],
            self.restart[kept],
            self.step[kept],
            self.labels.index_select(0, index),
            self.around.at(index),
            self.x.index_select(0, index),
        )

    def joined(self, new: _UnderWay) -> _UnderWay:
        return _UnderWay(
            np.concatenate([self.image, new.image]),
            np.concatenate([self.restart, new.restart]),
            np.concatenate([self.step, new.step]),
            torch.cat([self.labels, new.labels]),
            self.around.joined(new.around),
            torch.cat([self.x, new.x]),
        )


class _Climbs:
    """All climbs from the images ``clean [B, C, H, W]``; ``number [B]``: in the data set."""

    def __init__(
        self,
        victim: Victim,
        clean: Tensor,
        labels: Tensor,
        number: Places,
        ball: Ball,
        budget: _Budget,
    ) -> None:
        self.victim, self.ball, self.budget = victim, ball, budget
        self.clean, self.labels, self.number = clean, labels, number
        self.result = clean.clone()
        self.broken_at = np.full(len(clean), budget.restarts)

    def run(self) -> Tensor:
        """``[B, C, H, W]``: see ``pgd_images``."""
        steps, rows = self.budget.steps, self.victim.rows or len(self.clean)
        right = self.victim.logits(self.clean).argmax(dim=1) == self.labels
        waiting = self._waiting(right.nonzero().flatten().tolist())
        now = self._begun(list(islice(waiting, rows)))
        while len(now.x):
            logits, _, slope = self.victim.gradient(now.x, cross_entropy_or_margin, now.labels)
            self._note(now, self.victim.breaks(now.x, logits, now.labels))
            stays = np.flatnonzero((now.step < steps) & (now.restart < self.broken_at[now.image]))
            if len(stays) < len(now.x):
                now = now.at(stays)
                slope = slope.index_select(0, torch.from_numpy(stays).to(slope.device))
            moved = now.x + 2.5 * self.ball.eps / max(1, steps) * steepest(slope, self.ball.norm)
            now = now._replace(step=now.step + 1, x=now.around.project(moved))
            if chosen := list(islice(waiting, rows - len(stays))):
                now = now.joined(self._begun(chosen))
        return self.result

    def _note(self, now: _UnderWay, broken: Tensor) -> None:
        for place in broken.nonzero().flatten().tolist():
            image, restart = now.image[place], now.restart[place]
            if restart < self.broken_at[image]:
                self.broken_at[image], self.result[image] = restart, now.x[place]

    def _waiting(self, images: list[int]) -> Iterator[tuple[int, int]]:
        """Restart and image of each climb in their order; none of images that are broken by
        then."""
        for restart in range(self.budget.restarts):
            for image in images:
                if restart < self.broken_at[image]:
                    yield restart, image

    def _begun(self, chosen: list[tuple[int, int]]) -> _UnderWay:
        """Those climbs at their beginnings."""
        restart, image = np.array(chosen, dtype=np.int64).reshape(-1, 2).T
        at = torch.from_numpy(image.copy()).to(self.clean.device)
        clean = self.clean.index_select(0, at)
        x = clean.clone()
        for number in np.unique(restart[restart > 0]).tolist():
            part = np.flatnonzero(restart == number)
            keys = stream_keys(self.budget.seed, self.number[image[part]], "pgd", number)
            index = torch.from_numpy(part).to(x.device)
            x[index] = self.ball.start_inside(clean.index_select(0, index), keys)
        labels, around = self.labels.index_select(0, at), self.ball.around(clean)
        return _UnderWay(image, restart, np.zeros_like(image), labels, around, x)


def steepest(slope: Tensor, norm: str) -> Tensor:
    """Unit direction in ``norm`` in which a function of gradient ``slope`` grows fastest.

    For L1 that would be one pixel: the largest ``_L1_SHARE`` of them share the step. NaN moves
    nothing.
    """
    slope = slope.nan_to_num(0.0, 0.0, 0.0)
    if norm == "Linf":
        return slope.sign_()
    flat: Tensor = slope.flatten(1)
    if norm == "L2":
        length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / length.clamp(min=1e-30)).reshape(slope.shape)
    share = torch.full((len(flat),), _L1_SHARE, dtype=torch.float64, device=flat.device)
    return sparse_direction(slope, share)


def sparse_direction(slope: Tensor, share: Tensor) -> Tensor:
    """Signs of the largest entries of ``slope [B, C, H, W]``, a ``share [B]`` of them (one at
    least), of sum 1 in absolute value. NaN moves nothing."""
    flat = slope.nan_to_num(0.0, 0.0, 0.0).flatten(1)
    count = (share * flat.shape[1]).long().clamp(1, flat.shape[1])
    # The count-th largest size is the threshold; ties with it move too, zeros have no sign.
    ranked = flat.abs().sort(dim=1, descending=True).values
    least = ranked.gather(1, count.unsqueeze(1) - 1)
    signs = torch.where(flat.abs() >= least, flat.sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1.0)).reshape(slope.shape)
