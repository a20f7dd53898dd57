"""How long the steps of many similar ascents should be, found out by the ascents themselves.

A child's ascent begins where its parent's ended, and how near that is to the best differs between
networks by orders of magnitude: where attention multiplies its inputs, every step of the usual
length led down, by as much as the whole distance to zero, and the few that an ascent has did not
come back to where it began. So some domains of each batch climb with steps of another length. If
they gain more, all the next ones do; if neither gains anything, the shorter one is the better bet.

Legend: ``B`` domains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.claims import known, ratio

_APART = 4.0
"""Between the two lengths. Less shows no difference in few steps, more skips the best."""
_TRIAL = 4
"""One domain in this many tries the other length."""
_SHORTEST = 2.0**-10
_RAREST = 8


class Stride:
    """``factor`` multiplies the usual length; at most 1. Ascents ask for ``factors`` and tell what
    they gained."""

    def __init__(self) -> None:
        self.factor, self.trial = 1.0, 1.0 / _APART
        self._wait = self._pause = 0

    def factors(self, like: Tensor) -> Tensor:
        """``[B]`` for a batch, in the type of ``like [B, ..]``."""
        factors = like.new_full((len(like),), self.factor)
        if self._wait:
            self._wait -= 1
        else:
            factors[_TRIAL - 1 :: _TRIAL] = self.factor * self.trial
        return factors

    def learn(self, factors: Tensor, first: Tensor, best: Tensor) -> None:
        """What a batch with ``factors [B]`` came to: from the values ``first [B]`` to ``best``."""
        tries = torch.arange(len(factors), device=factors.device) % _TRIAL == _TRIAL - 1
        tries &= factors != self.factor
        gain = known(ratio(best.clamp(max=0.0) - first, -first), 0.0)
        counts = torch.isfinite(first) & (first.sign() == -1)
        parts = []
        for which in (counts & tries, counts & ~tries):
            parts += [torch.where(which, gain, 0.0).sum(), which.sum().to(gain.dtype)]
        other, others, usual, usuals = torch.stack(parts).tolist()
        if not others or not usuals:
            return
        other, usual = other / others, usual / usuals
        if other > usual or (other == usual == 0.0 and self.trial < 1.0):
            self.factor = min(1.0, max(_SHORTEST, self.factor * self.trial))
            self._pause = 0
        else:
            self.trial = 1.0 / self.trial
            self._wait = self._pause = min(_RAREST, max(1, 2 * self._pause))
        if self.factor == 1.0:
            self.trial = 1.0 / _APART
