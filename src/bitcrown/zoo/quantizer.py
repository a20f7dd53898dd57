"""The quantization block of the Robust-Model-Zoo: a staircase on activations scaled by their
largest magnitude.

With ``M = max|x|``, ``s = clip(x / (M + 1e-9), -1, 1)``, step ``d = 1 / steps``, ``b`` the multiple
of ``d`` nearest to ``s``::

    Q(x) = M * (b + d * sigmoid(alpha * (s - b)))            alpha = 1e8

``alpha`` is so large that the sigmoid is a step: just above a grid point the value is the next grid
point, just below it the grid point itself, on it the middle. So ``Q`` rounds up, and the largest
element maps to ``1.05 M``. Its derivative is 0 above ``b``; below, ``exp`` overflows and the chain
rule multiplies infinity by zero: NaN, which reaches every other element through ``M``. That is kept
as published.

``M`` is taken over the whole tensor, so each image's values depend on its batch mates;
``per_image`` takes it over each image instead, which equals the published block on a batch of one.
A staircase also turns differences of rounding into whole steps: in float32 two correct
implementations of a deep network with this block disagree visibly.

Legend: ``B`` images, ``C`` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SCALE_FLOOR = 1e-9
_SMOOTH_STEEPNESS = 4.0
"""``alpha * step`` of the ramp that the rule "smooth" differentiates: its slopes lie between 0.4
and 1."""


class Quantizer(nn.Module):
    """``Q`` above; has no parameters. ``[B, C, H, W]`` to the same shape."""

    def __init__(self, steps: int = 10, alpha: float = 1e8, per_image: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.alpha = alpha
        self.per_image = per_image

    def forward(self, x: Tensor) -> Tensor:
        peak, s, step = self._scaled(x)
        b = torch.round(s / step) * step
        return peak * (b + step * (1.0 / (1.0 + torch.exp(-self.alpha * (s - b)))))

    def surrogate(self, x: Tensor, rule: str) -> Tensor:
        """What BPDA differentiates: ``M`` as it is, the staircase as a line or gentler sigmoid."""
        peak, s, step = self._scaled(x)
        with torch.no_grad():
            b = torch.round(s / step) * step
            level = b + step * torch.sigmoid(self.alpha * (s - b))
        ramp = step * torch.sigmoid(_SMOOTH_STEEPNESS * (s - b) / step) if rule == "smooth" else s
        # The level is the real one, so that the derivative in M is that of the real block.
        return peak * (level + (ramp - ramp.detach()))

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``M``, broadcastable to ``x``, ``s`` and the step, a quotient of float32 as published."""
        peak = x.abs().amax(dim=(1, 2, 3), keepdim=True) if self.per_image else x.abs().amax()
        step = torch.ones((), dtype=x.dtype, device=x.device) / self.steps
        return peak, (x / (peak + _SCALE_FLOOR)).clamp(-1.0, 1.0), step
