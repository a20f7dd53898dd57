"""Slopes for torch's rounding functions, whose own derivative is zero or undefined.

While ``RoundingSlopes`` lasts, ``round``, ``floor``, ``ceil``, ``trunc`` and ``sign`` keep their
values bit for bit, wherever a network calls them, and are differentiated by a rule:

* ``straight-through``: the line through the staircase, slope one (sign: that of the hard tanh);
* ``spread``: stairs as above; a sign of ``x`` has the slope ``s / (s^2 + x^2)``, where ``s`` is how
  far ``x`` was seen to spread over the points of a batch, at most so far. What the box can hardly
  move across zero has next to none, whatever its size, and what it can has the more, the closer to
  zero it is: a slope of one within [-1, 1] says nothing of sums that move by hundreds.
* ``smooth``: a wave that is one on average and largest at the jumps (sign: that of tanh).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _hard_tanh_slope(x: Tensor) -> Tensor:
    return (x.abs() <= 1).to(x.dtype)


def _wave_at_halves(x: Tensor) -> Tensor:
    return 1 - torch.cos(2 * math.pi * x)


def _wave_at_wholes(x: Tensor) -> Tensor:
    return 1 + torch.cos(2 * math.pi * x)


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x).square()


_LEAST_SPREAD = 1e-3
"""Of an element that no point of a batch moves, as a share of how far the elements lie apart."""
_STAIRS = ("round", "floor", "ceil", "trunc")
_ROUNDING_SLOPES: Mapping[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
    "straight-through": {**dict.fromkeys(_STAIRS, torch.ones_like), "sign": _hard_tanh_slope},
    "smooth": {
        **dict.fromkeys(_STAIRS, _wave_at_wholes),
        "round": _wave_at_halves,
        "sign": _tanh_slope,
    },
}


class _Sloped(torch.autograd.Function):
    """``(value, x, slope) -> value`` with ``dvalue/dx = slope``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (slope,) = ctx.saved_tensors
        return None, gradients[0] * slope, None


class RoundingSlopes(TorchFunctionMode):
    """While it lasts, torch's rounding functions keep their values and get the slopes of a rule."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        self.is_spread = rule == "spread"
        self.spreads: list[Tensor] = []
        self.turn = 0
        rule = "straight-through" if self.is_spread else rule
        self.slopes: dict[Any, Callable[[Tensor], Tensor]] = {}
        for name, slope in _ROUNDING_SLOPES[rule].items():
            self.slopes[getattr(torch, name)] = self.slopes[getattr(Tensor, name)] = slope

    def __enter__(self) -> RoundingSlopes:
        self.turn = 0
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _spread_slope(self, x: Tensor) -> Tensor:
        """``[R, *]``: of the sign that is called at this turn, batch after batch."""
        spread = x.std(dim=0, keepdim=True, unbiased=False)
        spread = torch.maximum(spread, _LEAST_SPREAD * x.std(unbiased=False))
        if self.turn < len(self.spreads) and self.spreads[self.turn].shape == spread.shape:
            spread = torch.maximum(spread, self.spreads[self.turn])
            self.spreads[self.turn] = spread
        else:
            self.spreads[self.turn :] = [spread]
        self.turn += 1
        return (spread / (spread.square() + x.square())).nan_to_num(0.0, 0.0, 0.0)

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        slope = self.slopes.get(function)
        x = args[0] if args else None
        if (
            slope is None
            or not isinstance(x, Tensor)
            or not x.requires_grad
            or not torch.is_grad_enabled()
        ):
            return function(*args, **(kwargs or {}))
        with torch.no_grad():
            value = function(*args, **(kwargs or {}))
            is_sign = function in (torch.sign, Tensor.sign)
            at_x = self._spread_slope(x) if self.is_spread and is_sign else slope(x)
        return _Sloped.apply(value, x, at_x)  # type: ignore[no-untyped-call]
