"""``Truncate``: a real number cut to a whole one towards zero, attributes ``least`` and ``most`` of
the type it must fit; without ``least`` it must lie between ``-most`` and ``most``.

With ``b = trunc(l)`` and ``t = trunc(u)`` two kinds of lines enclose it: the constants, and lines
of slope one, ``x - p <= trunc(x) <= x + q``. What is cut off a positive number is below 1, and at
most ``u``; nothing is added to one. So ``p = min(max(u, 0), 1)`` and likewise
``q = min(max(-l, 0), 1)``. Every mixture ``m (x - p) + (1 - m) b`` of two lines below is a line
below; alpha chooses ``m``, and the default is 1 as soon as the values span more than one step.

What becomes of a number that the type cannot hold once its fraction is cut off depends on the
processor: there is no bound then. It holds those between ``least - 1`` and ``most + 1``; for 64
bits, where these are no numbers of double precision, they become ``least`` and 2^63.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import padding
from bitcrown.bounds.relaxations.registry import Operands, Relaxation, register_nonlinear
from bitcrown.model.graph import Node


def _ends(node: Node, low: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``b``, ``t``, and whether the interval fits the type."""
    most = float(node.attrs["most"])
    ends = (node.attrs["least"] - 1, most + 1) if "least" in node.attrs else (-most, most)
    return torch.trunc(low), torch.trunc(up), (low > ends[0]) & (up < ends[1])


def _interval(node: Node, lowers: Operands, uppers: Operands) -> tuple[Tensor, Tensor]:
    bottom, top, fits = _ends(node, lowers[0], uppers[0])
    return torch.where(fits, bottom, -torch.inf), torch.where(fits, top, torch.inf)


def _default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
    bottom, top, _ = _ends(node, lowers[0], uppers[0])
    return (top - bottom > 1).to(bottom.dtype).expand(2, *bottom.shape)


def _relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
    low, up = lowers[0], uppers[0]
    bottom, top, fits = _ends(node, low, up)
    slope = _default_alpha(node, lowers, uppers) if alpha is None else alpha
    slope = torch.where(fits & (top > bottom), slope, 0.0)
    values = torch.stack([bottom.expand_as(slope[0]), top.expand_as(slope[1])]) * (1 - slope)
    shift = slope * torch.stack([up, -low]).clamp(0, 1)
    # exact for slopes 0 and 1; otherwise each intercept is off by a few roundings of its terms
    error = torch.where(
        (slope == 0) | (slope == 1), 0.0, (values.abs() + shift) * padding(low.dtype)[0]
    )
    lower = torch.where(fits, values[0] - shift[0] - error[0], -torch.inf)
    upper = torch.where(fits, values[1] + shift[1] + error[1], torch.inf)
    return Relaxation((slope[0],), lower, (slope[1],), upper)


register_nonlinear("Truncate", _interval, _relax, alphas=2, default_alpha=_default_alpha)
