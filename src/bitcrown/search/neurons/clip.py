"""Propagation between input box, neuron bounds and rows inside one domain: cheap deductions before
any bounding.

At the root every unstable ReLU operand ``a_j`` got two lines valid on the whole box,
``L_j x + l_j <= a_j <= U_j x + u_j``. They stay valid on every smaller box, so a domain that
imposes ``a_j <= h`` must satisfy ``L_j x + l_j <= h``: that shrinks its box, and the smaller box in
turn tightens every neuron through the same lines (Clip-and-Verify, 2025, "relaxed" form). The last
layer works backward, too: from ``sum_j c_j z_j + d <= rhs`` follows
``z_j <= zlow_j + (rhs - least value) / c_j`` for ``c_j > 0``, unit propagation where a network
encodes clauses.

A domain only matters where it violates, so the line that bounds its row, ``a x + c <= row``, is a
constraint ``a x + c <= 0`` as well. Neurons are bounded on the box cut by that halfspace, not only
on the box around the cut: for every ``t >= 0``, ``a_j >= min over the box of (L_j + t a) x + l_j +
t c`` ("complete" clipping, by duality). In networks with one hidden layer this cuts search trees by
a factor of a hundred.

All in float64; each deduction is widened by more than its rounding error, and what it claims is
decided in ``bounds.claims``. Legend: ``B`` domains, ``S`` rows, ``N`` neurons, ``n`` inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.claims import (
    chord_slope,
    clipped,
    crossed,
    excluded,
    floor_slope,
    halfspaces,
    is_active,
    is_unstable,
    known,
    least_margin,
    limit,
    moved,
    reciprocals,
    room,
    tightened,
)
from bitcrown.bounds.crown import Backward
from bitcrown.bounds.intermediate import Enclosure
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import Network
from bitcrown.search.neurons.halfspace import least_within
from bitcrown.search.neurons.root_lines import LOST, PAD, NeuronLines, last_layer

_NARROW = 1e-7
"""Rows over inputs that vary by less cut nothing worth the work."""
_ENTRIES = 4_000_000
"""Entries of one temporary in ``within_halfspace``: enough to amortise calls, small enough for the
cache."""


class Region(NamedTuple):
    """``x_lower``/``x_upper [B, n]``, ``low``/``up [B, N]`` and ``feasible [B]``: False proves a
    domain empty."""

    x_lower: Tensor
    x_upper: Tensor
    low: Tensor
    up: Tensor
    feasible: Tensor


def _extreme(a: Tensor, x_lower: Tensor, x_upper: Tensor) -> Tensor:
    """Least value ``[B, K]`` of ``a [K, n]`` over the boxes, rounded down."""
    least = x_lower @ a.clamp(min=0).T + x_upper @ a.clamp(max=0).T
    size = torch.maximum(x_lower.abs(), x_upper.abs()) @ a.abs().T
    return least - (PAD * size + LOST)


class Clipper:
    """Propagation for one problem. ``last [P, S, N]`` are the rows' coefficients on ReLU outputs
    where the rows are affine in the last ReLU layer and nothing else (else None); ``rest [P, S]``
    their constants, ``rhs [P, S]``; ``scale [P, S]`` bounds every term that went into ``last`` and
    ``rest``, so that ``PAD * scale`` covers rounding; ``active``: lines ``[P, S, n]``, ``[P, S]``
    of what neurons active at the root contribute, plus ``rest``."""

    def __init__(
        self,
        lines: NeuronLines,
        last: Tensor | None,
        rest: Tensor | None,
        rhs: Tensor,
        scale: Tensor,
        active: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.lines, self.last, self.rest, self.rhs, self.scale = lines, last, rest, rhs, scale
        self.active = active
        self.inverse_L, self.inverse_U = reciprocals(lines.L), reciprocals(-lines.U)
        self.inverse_last = None if last is None else reciprocals(last)[0]
        self.slack = PAD * (1 + lines.l.abs() + lines.u.abs())
        self.short_L, self.short_U = lines.L.float(), lines.U.float()
        self.last_known = None if last is None else last[:, :, lines.index]
        self.is_bounded = bool(torch.isfinite(lines.l).all() and torch.isfinite(lines.u).all())
        self.offsets = known(lines.l.abs() + lines.u.abs(), 0.0)
        self.magnitude = torch.maximum(lines.L.abs(), lines.U.abs())

    def tighten(
        self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Neuron bounds ``[B, N]`` implied by the box and the rows, intersected with
        ``low``/``up``."""
        lines = self.lines
        if self.last is not None:
            up = self._from_rows(case, low, up)
        least = _extreme(lines.L, x_lower, x_upper) + lines.l - self.slack
        most = lines.u - _extreme(-lines.U, x_lower, x_upper) + self.slack
        new_low, new_up = tightened(low[:, lines.index], up[:, lines.index], least, most)
        up = up.expand(len(case), -1)
        return low.index_copy(1, lines.index, new_low), up.index_copy(1, lines.index, new_up)

    def run(
        self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor, rounds: int
    ) -> Region:
        """Propagate in domains of ``case [B]`` with imposed neuron bounds ``low``/``up [B, N]``."""
        lines = self.lines
        feasible = torch.ones(len(case), dtype=torch.bool, device=case.device)
        for _ in range(rounds):
            # Box -> neurons: each lies between its lines on the box as it is now.
            low, up = self.tighten(case, x_lower, x_upper, low, up)
            low, up, is_empty = crossed(low, up)
            feasible &= ~is_empty
            k_low, k_up = low[:, lines.index], up[:, lines.index]
            if self.rhs.shape[1] == 1:  # a single row's line holds all that these cuts would find
                continue
            # Neurons -> box: L x + l <= a <= k_up, and -U x - u <= -a <= -k_low.
            x_lower, x_upper = self._cut(
                x_lower, x_upper, lines.L, self.inverse_L, k_up - lines.l + self.slack
            )
            x_lower, x_upper = self._cut(
                x_lower, x_upper, -lines.U, self.inverse_U, lines.u - k_low + self.slack
            )
            # Rows -> box, or nothing is left of the domain.
            if self.active is not None:
                x_lower, x_upper, is_out = self._cut_by_rows(case, x_lower, x_upper, low, up)
                feasible &= ~is_out
            x_lower, x_upper, is_empty = crossed(x_lower, x_upper)
            feasible &= ~is_empty
        return Region(x_lower, x_upper, low, up, feasible)

    def _row_lines(
        self, case: Tensor, low: Tensor, up: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each row by itself, ``sum_j c_j z_j + rest >= a x + constant``: ``a [B, S, n]``,
        ``constant [B, S]``.

        ``z_j`` is bounded through its neuron's lines, from below by ``a_j`` or 0, from above by the
        chord; ``size [B, n]`` bounds the inputs in absolute value. What the root found active is in
        ``active`` already.
        """
        assert self.last_known is not None and self.active is not None
        lines = self.lines
        c, active_a, active_constant = (
            _of_cases(part, case) for part in (self.last_known, *self.active)
        )
        # Rising terms take z >= floor (L x + l), falling ones z <= slope (U x + u - min(low, 0)).
        low, up = low[:, lines.index], up[:, lines.index]
        below = low.clamp(max=0)
        slope = chord_slope(low, up).unsqueeze(1)
        floor = floor_slope(low, up).unsqueeze(1)
        rising, falling = c.clamp(min=0) * floor, c.clamp(max=0) * slope
        a = rising @ lines.L + falling @ lines.U + active_a
        if self.is_bounded:
            constant = torch.matmul(rising, lines.l) + torch.matmul(falling, lines.u)
        else:
            # a line that says nothing has an infinite offset and only matters where it has weight
            constant = torch.where(rising == 0, 0.0, rising * lines.l).sum(2)
            constant = constant + torch.where(falling == 0, 0.0, falling * lines.u).sum(2)
        constant = constant - torch.matmul(falling, below.unsqueeze(2)).squeeze(2) + active_constant
        # Absolute terms of everything above, PAD of which is more than its rounding error.
        weight = rising - falling
        reach = self.magnitude @ size.amax(dim=0) + self.offsets
        terms = torch.matmul(weight, (reach - below).unsqueeze(2)).squeeze(2) + _of_cases(
            self.scale, case
        )
        return a, constant - (PAD * (terms + (active_a.abs() * size.unsqueeze(1)).sum(2)) + LOST)

    def _cut_by_rows(
        self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes cut by each row's line, and ``[B]`` whether a row excludes the domain outright."""
        size = torch.maximum(x_lower.abs(), x_upper.abs())
        a, constant = self._row_lines(case, low, up, size)
        least = torch.matmul(a.clamp(min=0), x_lower.unsqueeze(2)) + torch.matmul(
            a.clamp(max=0), x_upper.unsqueeze(2)
        )
        least = (least - (PAD * torch.matmul(a.abs(), size.unsqueeze(2)) + LOST)).squeeze(2)
        rhs = self.rhs[case]
        bound = rhs - constant + PAD * (rhs.abs() + constant.abs())
        cut = halfspaces(x_lower, x_upper, reciprocals(a), bound, least)
        return *cut, excluded(least_margin(least, bound)).any(dim=1)

    def _cut(
        self, x_lower: Tensor, x_upper: Tensor, a: Tensor, inverse: Tensor, bound: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shrink boxes by the rows ``a [K, n] x <= bound [B, K]`` that can move an end of the box
        at all."""
        # Only pairs (domain, row) whose gap is smaller than what the row varies by cut anything.
        least = _extreme(a, x_lower, x_upper)
        size, width = a.abs(), x_upper - x_lower
        swing = width @ size.T
        reach = torch.minimum(swing, size.amax(dim=1) * width.amax(dim=1, keepdim=True))
        gap = bound - least
        domain, row = ((gap < reach) & (swing > _NARROW * size.sum(dim=1))).nonzero(as_tuple=True)
        if not len(domain):
            return x_lower, x_upper
        rooms = room(bound[domain, row], least[domain, row]).unsqueeze(1)
        target = domain.unsqueeze(1).expand(-1, a.shape[1])
        wide = torch.full_like(x_lower, torch.inf)
        moves = [wide.scatter_reduce(0, target, rooms * side[row], "amin") for side in inverse]
        return moved(x_lower, x_upper, *moves)

    def within_halfspace(self, region: Region, a: Tensor, least: Tensor) -> Region:
        """Neuron bounds on the part of the boxes where ``a x + c <= 0``; ``a [B, n]``,
        ``least [B]`` is the least value of ``a x + c`` over the boxes of ``region``, rounded
        down."""
        # Unstable neurons only, as many a domain as the one with most has.
        lines = self.lines
        unstable = is_unstable(region.low[:, lines.index], region.up[:, lines.index])
        usable = torch.isfinite(least) & ~excluded(least)
        unstable &= usable.unsqueeze(1)
        count = int(unstable.sum(dim=1).max()) if unstable.numel() else 0
        if count == 0:
            return region
        low, up = region.low.clone(), region.up.clone()
        step = max(1, _ENTRIES // (count * a.shape[1]))
        for begin in range(0, len(a), step):
            part = slice(begin, begin + step)
            chosen = unstable[part].to(torch.int8).topk(count, dim=1).indices
            neurons = lines.index[chosen]
            box = region.x_lower[part], region.x_upper[part]
            sides = (
                (low, self.short_L, lines.l, 1.0, torch.maximum),
                (up, self.short_U, lines.u, -1.0, torch.minimum),
            )
            for bounds, row, offset, sign, better in sides:
                found = sign * least_within(
                    sign * row[chosen], sign * offset[chosen], a[part], least[part], *box
                )
                found = torch.where(usable[part].unsqueeze(1), found, -sign * torch.inf)
                old = bounds[part].gather(1, neurons)
                bounds[part] = bounds[part].scatter(1, neurons, better(old, found))
        low, up, is_empty = crossed(low, up)
        return Region(region.x_lower, region.x_upper, low, up, region.feasible & ~is_empty)

    def cut_rows(self, region: Region, a: Tensor, value: Tensor) -> Region:
        """Shrink boxes by row lines ``a [B, S, n]`` whose least value minus ``rhs`` is
        ``value [B, S]``."""
        x_lower, x_upper, is_left = clipped(region.x_lower, region.x_upper, a, value)
        return Region(x_lower, x_upper, region.low, region.up, region.feasible & is_left)

    def _from_rows(self, case: Tensor, low: Tensor, up: Tensor) -> Tensor:
        """Upper bounds of last-layer neurons implied by ``sum_j c_j z_j + rest <= rhs`` (interval
        reasoning)."""
        assert self.last is not None and self.rest is not None and self.inverse_last is not None
        c, rest, scale, rhs = (
            _of_cases(part, case) for part in (self.last, self.rest, self.scale, self.rhs)
        )
        inverse = _of_cases(self.inverse_last, case)
        # Every other term at its least: c_j z_j <= rhs - rest - least + c_j zlow_j, for c_j > 0.
        z_low, z_up = low.clamp(min=0).unsqueeze(1), up.clamp(min=0).unsqueeze(1)
        least = (
            torch.matmul(c.clamp(min=0), z_low.mT) + torch.matmul(c.clamp(max=0), z_up.mT)
        ).squeeze(2) + rest
        size = torch.matmul(c.abs(), torch.maximum(z_low, z_up).mT).squeeze(2) + scale + rhs.abs()
        rooms = room(rhs + (PAD * size + LOST), least).unsqueeze(2)
        return torch.minimum(
            up, torch.maximum(limit(z_low.squeeze(1), (rooms * inverse).amin(dim=1)), low)
        )


def _of_cases(values: Tensor, case: Tensor) -> Tensor:
    """Rows of ``values [P, ...]``; where there is but one case, the one row for all to share."""
    return values if len(values) == 1 else values[case]


def clipper_of(
    network: Network,
    layout: Layout,
    enclosure: Enclosure,
    rows: tuple[Tensor, Tensor | None, Tensor],
    memory: int,
) -> Clipper:
    """The clipper of a problem with rows ``C [P, S, m]``, ``D`` or None, ``rhs [P, S]``."""
    c, d, rhs = rows
    lines = NeuronLines(network, layout, enclosure, memory)
    found = (
        last_layer(network, c) if d is None and not enclosure.scales.radii else None
    )  # rounded rows are not affine
    outputs = torch.cat([enclosure.scales[name].flatten() for name in network.graph.outputs])
    scale = c.abs() @ outputs
    if found is None:
        return Clipper(lines, None, None, rhs, scale)
    coefficient, rest, node = found
    where = layout.neuron_at[network.graph.nodes[node].inputs[0]]
    full = torch.zeros(
        *coefficient.shape[:2], layout.n_neurons, dtype=network.dtype, device=network.device
    )
    full[:, :, where] = coefficient
    low = enclosure.bounds[network.graph.nodes[node].inputs[0]][0]
    seed = (coefficient * is_active(low.flatten())).reshape(*coefficient.shape[:2], *low.shape[1:])
    backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
    part = backward.run({network.graph.nodes[node].inputs[0]: seed})
    slack = PAD * (part.constant.abs() + rest.abs() + scale) + LOST
    active = part.coefficient, part.constant - part.error + rest - slack
    return Clipper(
        lines, full, rest, rhs, scale, active if torch.isfinite(active[1]).all() else None
    )
