"""Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015), going up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitcrown.bounds.claims import known

_BETAS = 0.9, 0.99
"""Decay of the moments; the second is shorter than usual because ascents are short."""


class Adam:
    """Moves each tensor of ``groups`` with its rate, which ``decay`` multiplies after every step,
    and ``scale [B]``, where there is one, for each of the ``B`` parts of the tensors.
    Own code because ``torch.optim`` costs a second of imports at first use."""

    def __init__(
        self, groups: list[tuple[Tensor, float]], decay: float, scale: Tensor | None = None
    ) -> None:
        self.groups, self.decay, self.scale, self.steps = groups, decay, scale, 0
        self.moments = [
            (torch.zeros_like(tensor), torch.zeros_like(tensor)) for tensor, _ in groups
        ]

    def of(self, groups: list[tuple[Tensor, float]], index: Tensor) -> Adam:
        """Going on with ``groups``, the parts of the tensors that are at ``index``."""
        result = Adam(groups, self.decay, None if self.scale is None else self.scale[index])
        result.steps = self.steps
        result.moments = [(mean[index], square[index]) for mean, square in self.moments]
        return result

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step up along ``gradients``; entries without gradient or with NaN stay where they
        are."""
        self.steps += 1
        first, second = _BETAS
        # The moments start at zero; the correction makes up for what is missing in them.
        correction = (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        with torch.no_grad():
            for (tensor, rate), (mean, square), gradient in zip(
                self.groups, self.moments, gradients, strict=True
            ):
                if gradient is None:
                    continue
                gradient = known(gradient, 0.0)
                mean.lerp_(gradient, 1 - first)
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                step = rate * correction * self.decay ** (self.steps - 1)
                size = square.sqrt().add_(1e-12)
                if self.scale is not None:
                    size /= self.scale.reshape(-1, *[1] * (tensor.dim() - 1))
                tensor.addcdiv_(mean, size, value=step)
