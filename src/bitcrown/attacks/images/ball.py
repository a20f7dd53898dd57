"""The set an attacked image may move in: a norm ball around the clean image, cut with the range of
pixel values.

``{x' : ||x' - x||_p <= eps, low <= x' <= high}`` for p = infinity, 2 or 1. Images are float32, so a
projection done in real numbers may leave the ball by a rounding. Here it never does: every point
that ``project`` and ``start`` return lies inside when the distance is computed in float64 from the
rounded pixels, with ``eps`` as given.

* L-infinity: the ball is a box; its float32 limits are rounded inward once, then clamping is exact.
* L2: ``x + d min(1, eps / ||d||)``, then clamped to the pixel range (which only brings it nearer to
  ``x``), shrunk by one part in 10^7 or more where rounding would lead outside.
* L1: the point of ball and box nearest to ``x + d`` (Croce & Hein, "Mind the box", 2021):
  ``sign(d) min(max(|d| - t, 0), room)`` with the least ``t >= 0`` for which the sum is at most eps.

Legend: ``B`` images, ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.images.noise import Keys, normal_like, uniform_like
from bitcrown.errors import SettingsError

NORMS = ("Linf", "L2", "L1")
_SHRINKS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1.0)
"""Shares by which a move is made shorter, one tried after the other, until the rounded point lies
inside the ball."""
_ROUGH = 0.01
"""A distance computed in float32 is off by less than a thousandth of itself; this is ten times as
much."""


@dataclass(frozen=True)
class Ball:
    """Radius ``eps`` in ``norm`` (``NORMS``), pixels within ``[low, high]``."""

    norm: str
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise SettingsError(f"norm {self.norm!r} is not known; use one of {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise SettingsError(
                f"the radius must be a finite number not below 0, but is {self.eps!r}"
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise SettingsError(f"pixel range {self.low!r} to {self.high!r} is empty or not finite")

    def limits(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value of each pixel, rounded inward to the dtype of ``clean``.

        For L2 and L1 this is the smallest box around the ball.
        """
        # Subtraction in float64 and the conversion back may each err to the outside by one float32;
        # whatever lies outside moves inward by one, and then exact - lower <= eps as computed.
        exact = clean.double()
        lower = (exact - self.eps).clamp(min=self.low).to(clean.dtype)
        upper = (exact + self.eps).clamp(max=self.high).to(clean.dtype)
        infinity = torch.tensor(torch.inf, dtype=clean.dtype, device=clean.device)
        is_out = (exact - lower.double() > self.eps) | (lower.double() < self.low)
        lower = torch.where(is_out, torch.nextafter(lower, infinity), lower)
        is_out = (upper.double() - exact > self.eps) | (upper.double() > self.high)
        upper = torch.where(is_out, torch.nextafter(upper, -infinity), upper)
        return lower, upper

    def project(self, x: Tensor, clean: Tensor) -> Tensor:
        """A point of the ball around ``clean`` near (Linf, L1: nearest to) ``x [B, C, H, W]``."""
        return self.around(clean).project(x)

    def around(self, clean: Tensor) -> BallAround:
        """The ball around each image of ``clean [B, C, H, W]``, for many projections."""
        return BallAround(self, clean, *self.limits(clean))

    def _shrunk(self, x: Tensor, clean: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """``x`` pulled into an L2 or L1 ball; ``contains`` holds for every point returned."""
        centre = clean.double()
        move = x.double() - centre
        shrink = self._l2_shrink(move) if self.norm == "L2" else self._l1_shrink(move, centre)
        result = torch.minimum(torch.maximum((centre + shrink).to(clean.dtype), lower), upper)
        # The projection is right in real numbers. Where its rounding is outside, the move is made
        # shorter by ever larger shares; the last is all of it, which leaves the clean image.
        for share in _SHRINKS:
            is_out = ~self.contains(result, clean)
            if not bool(is_out.any()):
                break
            nearer = (centre + (1.0 - share) * shrink).to(clean.dtype)
            nearer = torch.minimum(torch.maximum(nearer, lower), upper)
            result = torch.where(is_out.reshape(-1, 1, 1, 1), nearer, result)
        return result

    def _l2_shrink(self, move: Tensor) -> Tensor:
        length = move.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        share: Tensor = (self.eps / length.clamp(min=1e-300)).clamp(max=1.0)
        return move * share

    def _l1_shrink(self, move: Tensor, centre: Tensor) -> Tensor:
        # With the least t >= 0 for which the sum is at most eps, sign(d) min(max(|d| - t, 0), room)
        # is the move of ball and pixel range nearest to d: t is the multiplier of the radius.
        room = torch.where(move > 0, self.high - centre, centre - self.low).clamp(min=0.0)
        size = move.abs()

        def shrunk(cut: Tensor) -> Tensor:
            return torch.minimum((size - cut).clamp(min=0.0), room)

        # The sum falls in t, from its value at 0 to nothing at t = max |d|. Bisection keeps
        # sum(least) > eps >= sum(most); a row that fits already has least = most = 0. 60 halvings
        # exhaust the 53 bits of a double.
        least = torch.zeros(len(move), 1, 1, 1, dtype=move.dtype, device=move.device)
        most = size.amax(dim=(1, 2, 3), keepdim=True)
        most = torch.where(shrunk(least).sum(dim=(1, 2, 3), keepdim=True) <= self.eps, least, most)
        for _ in range(60 if bool((most > least).any()) else 0):
            middle = (least + most) / 2
            fits = shrunk(middle).sum(dim=(1, 2, 3), keepdim=True) <= self.eps
            least, most = torch.where(fits, least, middle), torch.where(fits, middle, most)
        return move.sign() * shrunk(most)

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """``[B]`` in float64: how far ``x`` is from ``clean`` in this norm."""
        return self._length((x.double() - clean.double()).flatten(1))

    def _length(self, move: Tensor) -> Tensor:
        """``[B]`` of ``move [B, n]``; torch's norms of order 1 and infinity take much longer."""
        if self.norm == "L2":
            length: Tensor = torch.linalg.vector_norm(move, dim=1)
            return length
        size = move.abs()
        return size.amax(dim=1) if self.norm == "Linf" else size.sum(dim=1)

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """``[B]`` bool: inside, computed in float64 from the pixels as they are; NaN is outside."""
        pixels = x.flatten(1)
        inside = (pixels.amin(dim=1).double() >= self.low) & (
            pixels.amax(dim=1).double() <= self.high
        )
        # First in float32, which is cheap: who is beyond the radius by more than its error is out.
        # Only the others need the distance in float64, which costs as much as a step of an attack.
        inside &= self._length((x - clean).flatten(1)) <= self.eps * (1.0 + _ROUGH)
        near = inside.nonzero().flatten()
        inside[near] = (
            self.distance(x.index_select(0, near), clean.index_select(0, near)) <= self.eps
        )
        return inside

    def start(self, clean: Tensor, keys: Keys) -> Tensor:
        """A random point on the sphere, clamped to the pixel range; ``keys [B]``: streams."""
        if self.norm == "Linf":
            noise = uniform_like(clean, keys)
            return self.project(
                clean + self.eps * noise / noise.abs().amax(dim=(1, 2, 3), keepdim=True), clean
            )
        noise = normal_like(clean, keys)
        if self.norm == "L2":
            noise = noise * (self.eps / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
        return self.project(clean + noise, clean)

    def start_inside(self, clean: Tensor, keys: Keys) -> Tensor:
        """A random start for PGD: for L-infinity any point of the box, all equally likely (Madry et
        al. 2018); for L2 and L1 on the sphere, as ``start``."""
        if self.norm == "Linf":
            return self.project(clean + self.eps * uniform_like(clean, keys), clean)
        return self.start(clean, keys)


class BallAround(NamedTuple):
    """``ball`` around each image of ``clean``, with the ``limits`` computed once for many
    projections; tensors are ``[B, C, H, W]``."""

    ball: Ball
    clean: Tensor
    lower: Tensor
    upper: Tensor

    def project(self, x: Tensor) -> Tensor:
        """As ``Ball.project``."""
        if self.ball.norm == "Linf":
            return x.clamp(self.lower, self.upper)
        return self.ball._shrunk(x, self.clean, self.lower, self.upper)

    def at(self, index: Tensor) -> BallAround:
        """Of the images of numbers ``index`` only."""
        return BallAround(
            self.ball,
            *(field.index_select(0, index) for field in (self.clean, self.lower, self.upper)),
        )

    def joined(self, other: BallAround) -> BallAround:
        """Around its own images and those of ``other``, which has the same ball."""
        pairs = zip(self[1:], other[1:], strict=True)
        return BallAround(self.ball, *(torch.cat(pair) for pair in pairs))
