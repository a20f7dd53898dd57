"""What the gradients of an attack were worth: NaN, infinite, zero or exploding ones are counted, never swallowed.

A gradient attack steps along ``sign(g)``. Where ``g`` is NaN torch makes that 0: the attack stands still, finds
nothing, and the network looks robust. Masking by zero, infinite or NaN gradients is the commonest reason for wrong
robustness numbers (Athalye, Carlini & Wagner 2018; Carlini et al. 2019), so every gradient that passes back to the
pixels is looked at on its way, whichever attack asked for it, and left as it is.

Legend: ``B`` images, ``...`` the axes of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

EXPLODING = 1e6
"""Largest entry from which a gradient counts as exploding: pixels are in [0, 1], losses of order one."""


@dataclass(frozen=True)
class GradientHealth:
    """Counts over gradients with respect to single images; one gradient can count as NaN and infinite at once.

    ``zero``: every entry is exactly 0. ``exploding``: finite, but an entry is at least ``EXPLODING``. ``largest`` and
    ``smallest``: extremes of the largest absolute entry of a finite gradient that is not zero (0 if there is none).
    """

    gradients: int = 0
    with_nan: int = 0
    with_infinity: int = 0
    zero: int = 0
    exploding: int = 0
    largest: float = 0.0
    smallest: float = 0.0

    def __add__(self, other: GradientHealth) -> GradientHealth:
        smallest = [health.smallest for health in (self, other) if health.smallest > 0]
        return GradientHealth(
            self.gradients + other.gradients,
            self.with_nan + other.with_nan,
            self.with_infinity + other.with_infinity,
            self.zero + other.zero,
            self.exploding + other.exploding,
            max(self.largest, other.largest),
            min(smallest, default=0.0),
        )

    @property
    def useless(self) -> int:
        """Upper bound of the gradients that give no direction: NaN, infinite or all zero."""
        return min(self.gradients, self.with_nan + self.with_infinity + self.zero)

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


def gradient_health(gradient: Tensor) -> GradientHealth:
    """Counts for ``gradient [B, ...]``, one gradient an image."""
    if not gradient.numel():
        return GradientHealth()
    entries = gradient.detach().flatten(1) if gradient.dim() > 1 else gradient.detach().unsqueeze(1)
    has_nan, has_infinity = entries.isnan().any(dim=1), entries.isinf().any(dim=1)
    peak = entries.nan_to_num(0.0, 0.0, 0.0).abs().amax(dim=1)
    is_finite = ~(has_nan | has_infinity)
    sound = peak[is_finite & (peak > 0)]
    return GradientHealth(
        gradients=len(entries),
        with_nan=int(has_nan.sum()),
        with_infinity=int(has_infinity.sum()),
        zero=int((is_finite & (peak == 0)).sum()),
        exploding=int((is_finite & (peak >= EXPLODING)).sum()),
        largest=float(sound.max()) if len(sound) else 0.0,
        smallest=float(sound.min()) if len(sound) else 0.0,
    )


class GradientTally:
    """The running sum over an attack, filled by ``watch_gradients``."""

    def __init__(self) -> None:
        self.health = GradientHealth()

    def add(self, gradient: Tensor) -> None:
        self.health = self.health + gradient_health(gradient)


class _Watched(torch.autograd.Function):
    """The identity; its backward pass counts what goes by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tally: GradientTally) -> Tensor:
        ctx.tally = tally
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.tally.add(gradients[0])
        return gradients[0], None


def watch_gradients(model: Callable[[Tensor], Tensor], tally: GradientTally) -> Callable[[Tensor], Tensor]:
    """``model`` with unchanged values and gradients; every gradient reaching ``x [B, ...]`` is added to ``tally``.

    An image whose loss was left out of the backward pass counts as a zero gradient.
    """

    def watched(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not x.requires_grad:
            return model(x)
        seen = _Watched.apply(x, tally)  # type: ignore[no-untyped-call]
        assert isinstance(seen, Tensor)
        return model(seen)

    return watched
