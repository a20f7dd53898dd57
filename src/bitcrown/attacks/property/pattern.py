"""Pattern search: the last bits of a violation, coordinate by coordinate.

Gradient steps zigzag where a network has kinks, and a violation that exists only there, or only
after the runtime's rounding, is never quite reached. Hooke and Jeeves (1961): try every coordinate
in both directions by one step, take all moves that help together, or the best of them alone where
together they do not; if none helps, halve the step. No slope is asked for. It ends when steps are
below the resolution of the numbers that are looked for.

Legend: ``n`` inputs, ``S`` rows of one case.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.model.execute import Network

_COARSEST, _FINEST = 2, 24
"""Binary logarithms of the width of the box over the first and the last step."""
_MOST_POINTS = 1 << 10
"""Points of one forward pass."""


def pattern_search(
    network: Network,
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    target: Target,
    budget: Budget,
    most: int,
) -> Tensor:
    """A point ``[n]`` of the box with no larger excess than ``x [n]``; ``target`` is of one case.

    Looks at about ``most`` points: as many as the descent before it looked at, so that neither
    outweighs the other.
    """

    def excess(points: Tensor) -> Tensor:
        values = [network(part) for part in torch.split(points, _MOST_POINTS)]
        return target.excess(points.unsqueeze(0), torch.cat(values).unsqueeze(0))[0]

    with torch.no_grad():
        best = excess(x.unsqueeze(0))[0]
        width = upper - lower
        varying = (width > 0).nonzero().flatten()
        count = len(varying)
        place = torch.arange(count, device=x.device)
        exponent = _COARSEST
        while exponent <= _FINEST and 0 < 2 * count <= most and not budget.is_expired():
            most -= 2 * count
            step = width[varying] * 2.0**-exponent
            tried = x.repeat(2, count, 1)
            tried[0, place, varying] += step
            tried[1, place, varying] -= step
            tried = torch.minimum(torch.maximum(tried, lower), upper)
            found = excess(tried.flatten(0, 1)).reshape(2, count)
            value, side = found.min(dim=0)
            helps = value < best
            if not bool(helps.any()):
                exponent += 1
                continue
            moved = tried[side, place, varying]
            together = x.clone()
            together[varying] = torch.where(helps, moved, x[varying])
            alone = int(value.argmin())
            choices = torch.stack([together, tried[side[alone], alone]])
            values = excess(choices)
            x, best = choices[int(values.argmin())], values.min()
    return x
