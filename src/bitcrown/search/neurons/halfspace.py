"""Neuron bounds on a box cut by a halfspace, by duality.

A domain only matters where it violates, and there the line that bounds its row is at most zero:
``a x + c <= 0``. Weighted with any ``t >= 0`` and added to a neuron's lower line, that bounds the
neuron on what the halfspace leaves of the box:

    min { L x + l : x in box, a x + c <= 0 }  >=  min over the box of (L + t a) x + l + t c.

The best ``t`` is at a kink of a concave function; three multiples of a natural scale come near it
at a fraction of the cost (Clip-and-Verify, 2025, "complete" form).

Legend: ``B`` domains, ``K`` neurons of a domain, ``n`` inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.bounds.claims import known, ratio, reciprocals
from bitcrown.search.neurons.root_lines import LOST, PAD

_MULTIPLIERS = (0.3, 0.8, 2.0)
"""Multiples of the natural scale (width of the neuron's line / width of the row) that are tried for
a row."""


def least_within(
    row: Tensor, offset: Tensor, a: Tensor, least: Tensor, x_lower: Tensor, x_upper: Tensor
) -> Tensor:
    """Least values ``[B, K]`` of ``row [B, K, n] x + offset [B, K]`` where ``a x + c <= 0``,
    rounded down.

    ``c`` is recovered from ``least [B]``, the least value of ``a x + c``. The large products run in
    float32, whose rounding error (every sum has ``n`` terms and a few factors) is taken off, and
    whatever its products and the float32 forms of its factors may lose below its smallest normal
    number. For that ``a x + c`` is first divided by its largest coefficient, which changes no
    halfspace. NaN-free: ``-inf`` says nothing.
    """
    # 1. Scale the halfspace to a largest coefficient of 1: float32 then has room for it.
    inverse = reciprocals(a.abs().amax(dim=1, keepdim=True))[0]
    a, least = a * inverse, least * inverse.squeeze(1)
    # 2. a x over the box is centre -+ swing, so c >= least - (centre - swing), rounded down.
    middle, radius = (x_lower + x_upper) / 2, (x_upper - x_lower) / 2
    size = torch.maximum(x_lower.abs(), x_upper.abs())
    reach, swing, centre = (a.abs() * size).sum(1), (a.abs() * radius).sum(1), (a * middle).sum(1)
    constant = least - (centre - swing) - (PAD * (reach + least.abs()) + LOST)
    # 3. The bound is (L + t a) middle + l + t c - |L + t a| radius: linear in t but for the last
    #    term; slope is what t multiplies, sway bounds its absolute terms.
    slope = (centre + constant).unsqueeze(1)
    short = [
        part.float()
        for part in (row, offset, a, middle, radius, size, swing, slope, reach + constant.abs())
    ]
    row, offset, a, middle, radius, size, swing, slope, sway = short
    single = torch.finfo(torch.float32)
    pad = (a.shape[1] + 16) * single.eps
    shifted = row.abs()
    # A factor that falls below ``single.tiny`` is off by at most that; the other one is a size, or
    # a coefficient.
    lost = (a.shape[1] + 16) * single.tiny * (1 + size.amax(dim=1, keepdim=True))
    sway = sway + lost.squeeze(1) / single.eps
    # 4. What does not depend on t, less the float32 error of all sums and what underflows.
    width = torch.matmul(shifted, radius.unsqueeze(2)).squeeze(2)
    error = pad * (torch.matmul(shifted, size.unsqueeze(2)).squeeze(2) + offset.abs())
    error = error + lost * (1 + shifted.amax(dim=2))
    fixed = torch.matmul(row, middle.unsqueeze(2)).squeeze(2) + offset - error
    # 5. Near t = width / swing the two lines cancel best; any t >= 0 is valid.
    scale = ratio(width, swing.unsqueeze(1))
    best = torch.full_like(offset, -torch.inf)
    for multiple in _MULTIPLIERS:
        t = multiple * scale
        torch.addcmul(row, t.unsqueeze(2), a.unsqueeze(1), out=shifted).abs_()
        spread = torch.matmul(shifted, radius.unsqueeze(2)).squeeze(2)
        value = fixed + t * slope - spread - pad * (t * sway.unsqueeze(1))
        best = torch.maximum(best, known(value, -torch.inf))
    return best.to(least.dtype)
