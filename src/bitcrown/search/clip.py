"""Propagation between input box, neuron bounds and rows inside one domain: cheap deductions before any bounding.

At the root every unstable ReLU operand ``a_j`` got two lines valid on the whole box, ``L_j x + l_j <= a_j <= U_j x +
u_j``. They stay valid on every smaller box, so a domain that imposes ``a_j <= h`` must satisfy ``L_j x + l_j <= h``:
that shrinks its box, and the smaller box in turn tightens every neuron through the same lines (Clip-and-Verify, 2025,
"relaxed" form). The last layer works backward, too: from ``sum_j c_j z_j + d <= rhs`` follows
``z_j <= zlow_j + (rhs - least value) / c_j`` for ``c_j > 0``, unit propagation where a network encodes clauses.

A domain only matters where it violates, so the line that bounds its row, ``a x + c <= row``, is a constraint ``a x + c
<= 0`` as well. Neurons are bounded on the box cut by that halfspace, not only on the box around the cut: for every
``t >= 0``, ``a_j >= min over the box of (L_j + t a) x + l_j + t c`` ("complete" clipping, by duality). In networks with
one hidden layer this cuts search trees by a factor of a hundred.

All in float64; each deduction is widened by more than its rounding error. Legend: ``B`` domains, ``S`` rows, ``N``
neurons, ``n`` inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.bounds.crown import Backward, output_seeds
from bitcrown.bounds.layer_bounds import Enclosure, LayerBounder, undecided
from bitcrown.bounds.optimise import Layout
from bitcrown.model.execute import Network, elements

PAD = 1e-11
TINY = 1e-150
NARROW = 1e-7
"""Rows over inputs that vary by less cut nothing worth the work."""
MULTIPLIERS = (0.3, 0.8, 2.0)
"""Multiples of the natural scale (width of the neuron's line / width of the row) that are tried for a row."""
ENTRIES = 4_000_000
"""Entries of one temporary in ``within_halfspace``: enough to amortise calls, small enough for the cache."""


class Region(NamedTuple):
    """``x_lower``/``x_upper [B, n]``, ``low``/``up [B, N]`` and ``feasible [B]``: False proves a domain empty."""

    x_lower: Tensor
    x_upper: Tensor
    low: Tensor
    up: Tensor
    feasible: Tensor


class NeuronLines:
    """Root lines of the neurons ``index [K]`` (unstable ones): ``L``, ``U`` ``[K, n]``, ``l``, ``u`` ``[K]``."""

    def __init__(self, network: Network, layout: Layout, enclosure: Enclosure, memory: int) -> None:
        low, up, index, offset = [], [], [], []
        backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
        bounder = LayerBounder(network, memory)
        for node in layout.nodes:
            if node.op != "Relu":
                continue
            source = node.inputs[0]
            where = layout.neuron_at[source]
            flat = undecided(node, *enclosure.bounds[source])
            if not len(flat):
                continue
            shape, size = network.graph.nodes[source].shape, network.graph.nodes[source].size
            step = max(1, bounder.rows_per_pass(1) // 2)
            for begin in range(0, len(flat), step):
                part = flat[begin : begin + step]
                unit = torch.zeros(len(part), size, dtype=network.dtype, device=network.device)
                unit[torch.arange(len(part), device=part.device), part] = 1
                lines = backward.run({source: torch.cat([unit, -unit]).reshape(1, -1, *shape)})
                reach = torch.maximum(*(enclosure_inputs(network, enclosure)))
                error = lines.error[0] + bounder.gamma * (lines.coefficient[0].abs() @ reach + lines.constant[0].abs())
                constant, count = lines.constant[0] - error, len(part)
                coefficient, constant = _without_unbounded(lines.coefficient[0], constant)
                low.append(coefficient[:count])
                up.append(-coefficient[count:])
                offset.append(torch.stack([constant[:count], -constant[count:]]))
                index.append(part + where.start)
        n = network.graph.n_inputs
        empty = torch.zeros(0, n, dtype=network.dtype, device=network.device)
        self.L, self.U = torch.cat([empty, *low]), torch.cat([empty, *up])
        both = torch.cat([empty.new_zeros(2, 0), *offset], dim=1)
        self.l, self.u = both[0], both[1]
        self.index = torch.cat([torch.zeros(0, dtype=torch.int64, device=network.device), *index])


def _without_unbounded(coefficient: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Lower lines that are not finite say nothing: coefficient 0, constant ``-inf``."""
    known = torch.isfinite(coefficient).all(dim=1) & torch.isfinite(constant)
    zero, nothing = torch.zeros_like(coefficient), torch.full_like(constant, -torch.inf)
    return torch.where(known.unsqueeze(1), coefficient, zero), torch.where(known, constant, nothing)


def enclosure_inputs(network: Network, enclosure: Enclosure) -> tuple[Tensor, Tensor]:
    """Largest absolute value of each flat input at its two ends: two ``[n]``."""
    low = torch.cat([enclosure.bounds[name][0].reshape(-1) for name in network.graph.inputs])
    up = torch.cat([enclosure.bounds[name][1].reshape(-1) for name in network.graph.inputs])
    return low.abs(), up.abs()


def _extreme(a: Tensor, x_lower: Tensor, x_upper: Tensor) -> Tensor:
    """Least value ``[B, K]`` of ``a [K, n]`` over the boxes, rounded down."""
    least = x_lower @ a.clamp(min=0).T + x_upper @ a.clamp(max=0).T
    size = torch.maximum(x_lower.abs(), x_upper.abs()) @ a.abs().T
    return least - PAD * size


def _least_within(row: Tensor, offset: Tensor, a: Tensor, least: Tensor, x_lower: Tensor, x_upper: Tensor) -> Tensor:
    """Least values ``[B, K]`` of ``row [B, K, n] x + offset [B, K]`` where ``a x + c <= 0``, rounded down.

    ``c`` is recovered from ``least [B]``, the least value of ``a x + c``. The large products run in float32, whose
    rounding error (every sum has ``n`` terms and a few factors) is taken off. NaN-free: ``-inf`` says nothing.
    """
    middle, radius = (x_lower + x_upper) / 2, (x_upper - x_lower) / 2
    size = torch.maximum(x_lower.abs(), x_upper.abs())
    reach, swing, centre = (a.abs() * size).sum(1), (a.abs() * radius).sum(1), (a * middle).sum(1)
    constant = least - (centre - swing) - PAD * reach
    slope = (centre + constant).unsqueeze(1)
    short = [part.float() for part in (row, offset, a, middle, radius, size, swing, slope, reach + constant.abs())]
    row, offset, a, middle, radius, size, swing, slope, sway = short
    pad = (a.shape[1] + 16) * torch.finfo(torch.float32).eps
    moved = row.abs()
    width = torch.matmul(moved, radius.unsqueeze(2)).squeeze(2)
    error = pad * (torch.matmul(moved, size.unsqueeze(2)).squeeze(2) + offset.abs()) + torch.finfo(torch.float32).tiny
    fixed = torch.matmul(row, middle.unsqueeze(2)).squeeze(2) + offset - error
    scale = width / swing.clamp(min=1e-30).unsqueeze(1)
    best = torch.full_like(offset, -torch.inf)
    for multiple in MULTIPLIERS:
        t = multiple * scale
        torch.addcmul(row, t.unsqueeze(2), a.unsqueeze(1), out=moved).abs_()
        spread = torch.matmul(moved, radius.unsqueeze(2)).squeeze(2)
        value = fixed + t * slope - spread - pad * (t * sway.unsqueeze(1))
        best = torch.maximum(best, value.nan_to_num(-torch.inf, -torch.inf, -torch.inf))
    return best.to(least.dtype)


def halfspaces(
    x_lower: Tensor, x_upper: Tensor, inverse: Tensor, bound: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Shrink boxes by ``a x <= bound`` for all rows: ``inverse [2, B, K, n]`` of ``a``; ``bound``, ``least [B, K]``.

    From ``a_i x_i <= bound - (least - min_i)``: ``x_i <= xlow_i + (bound - least) / a_i`` where ``a_i > 0``.
    """
    room = _room(bound, least).unsqueeze(2)
    return _moved(x_lower, x_upper, (room * inverse[0]).amin(dim=1), (room * inverse[1]).amin(dim=1))


def _room(bound: Tensor, least: Tensor) -> Tensor:
    return ((bound - least).clamp(min=0) * (1 + PAD) + TINY).nan_to_num(torch.inf, torch.inf)


def _moved(x_lower: Tensor, x_upper: Tensor, above_lower: Tensor, below_upper: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes whose points lie at most so far above the lower and below the upper ends they had."""
    pad = PAD * torch.maximum(x_lower.abs(), x_upper.abs())
    return torch.maximum(x_lower, x_upper - below_upper - pad), torch.minimum(x_upper, x_lower + above_lower + pad)


def inverses(a: Tensor) -> Tensor:
    """What ``halfspaces`` multiplies room by: for the upper and for the lower ends, stacked in front."""
    return torch.stack([_inverse(a), _inverse(-a)])


def _inverse(a: Tensor) -> Tensor:
    """``1 / a`` where ``a`` is positive, otherwise (and where that overflows) a huge number that limits nothing."""
    return torch.where(a > TINY, 1 / a.clamp(min=TINY), torch.full_like(a, 1 / TINY)) * (1 + PAD)


class Clipper:
    """Propagation for one problem. ``last [P, S, N]`` are the rows' coefficients on ReLU outputs where the rows are
    affine in the last ReLU layer and nothing else (else None); ``rest [P, S]`` their constants, ``rhs [P, S]``;
    ``scale [P, S]`` bounds every term that went into ``last`` and ``rest``, so that ``PAD * scale`` covers rounding;
    ``active``: lines ``[P, S, n]``, ``[P, S]`` of what neurons active at the root contribute, plus ``rest``."""

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
        self.inverse_L, self.inverse_U = inverses(lines.L), inverses(-lines.U)
        self.slack = PAD * (1 + lines.l.abs() + lines.u.abs())
        self.short_L, self.short_U = lines.L.float(), lines.U.float()
        self.last_known = None if last is None else last[:, :, lines.index]
        self.is_bounded = bool(torch.isfinite(lines.l).all() and torch.isfinite(lines.u).all())
        self.offsets = (lines.l.abs() + lines.u.abs()).nan_to_num(0.0, 0.0)
        self.magnitude = torch.maximum(lines.L.abs(), lines.U.abs())

    def tighten(self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Neuron bounds ``[B, N]`` implied by the box and the rows, intersected with ``low``/``up``."""
        lines = self.lines
        if self.last is not None:
            up = self._from_rows(case, low, up)
        least = _extreme(lines.L, x_lower, x_upper) + lines.l - self.slack
        most = lines.u - _extreme(-lines.U, x_lower, x_upper) + self.slack
        new_low = low.index_copy(1, lines.index, torch.maximum(low[:, lines.index], least))
        new_up = up.expand(len(case), -1).index_copy(1, lines.index, torch.minimum(up[:, lines.index], most))
        return new_low, new_up

    def run(self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor, rounds: int) -> Region:
        """Propagate in domains of ``case [B]`` with imposed neuron bounds ``low``/``up [B, N]``."""
        lines = self.lines
        feasible = torch.ones(len(case), dtype=torch.bool, device=case.device)
        for _ in range(rounds):
            low, up = self.tighten(case, x_lower, x_upper, low, up)
            feasible &= ~(low > up).any(dim=1)  # NaN would not be evidence
            low, up = torch.minimum(low, up), torch.maximum(low, up)
            k_low, k_up = low[:, lines.index], up[:, lines.index]
            if self.rhs.shape[1] == 1:  # the line of a single row holds all that these cuts would find
                continue
            x_lower, x_upper = self._cut(x_lower, x_upper, lines.L, self.inverse_L, k_up - lines.l + self.slack)
            x_lower, x_upper = self._cut(x_lower, x_upper, -lines.U, self.inverse_U, lines.u - k_low + self.slack)
            if self.active is not None:
                x_lower, x_upper, excluded = self._cut_by_rows(case, x_lower, x_upper, low, up)
                feasible &= ~excluded
            feasible &= ~(x_lower > x_upper).any(dim=1)
            x_lower, x_upper = torch.minimum(x_lower, x_upper), torch.maximum(x_lower, x_upper)
        return Region(x_lower, x_upper, low, up, feasible)

    def _row_lines(self, case: Tensor, low: Tensor, up: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Each row by itself, ``sum_j c_j z_j + rest >= a x + constant``: ``a [B, S, n]``, ``constant [B, S]``.

        ``z_j`` is bounded through its neuron's lines, from below by ``a_j`` or 0, from above by the chord; ``size
        [B, n]`` bounds the inputs in absolute value. What the root found active is in ``active`` already.
        """
        assert self.last_known is not None and self.active is not None
        lines = self.lines
        c, active_a, active_constant = (_of_cases(part, case) for part in (self.last_known, *self.active))
        low, up = low[:, lines.index], up[:, lines.index]
        below, above = low.clamp(max=0), up.clamp(min=0)
        slope = (above / (above - below).clamp(min=TINY)).unsqueeze(1)
        floor = ((above > -below) | (low >= 0)).to(c.dtype).unsqueeze(1)
        rising, falling = c.clamp(min=0) * floor, c.clamp(max=0) * slope
        a = rising @ lines.L + falling @ lines.U + active_a
        if self.is_bounded:
            constant = torch.matmul(rising, lines.l) + torch.matmul(falling, lines.u)
        else:  # a line that says nothing has an infinite offset and only matters where it has weight
            constant = (rising * lines.l).nan_to_num(0.0, 0.0, -torch.inf).sum(2)
            constant = constant + (falling * lines.u).nan_to_num(0.0, 0.0, -torch.inf).sum(2)
        constant = constant - torch.matmul(falling, below.unsqueeze(2)).squeeze(2) + active_constant
        weight = rising - falling
        reach = self.magnitude @ size.amax(dim=0) + self.offsets
        terms = torch.matmul(weight, (reach - below).unsqueeze(2)).squeeze(2) + _of_cases(self.scale, case)
        return a, constant - PAD * (terms + (active_a.abs() * size.unsqueeze(1)).sum(2))

    def _cut_by_rows(
        self, case: Tensor, x_lower: Tensor, x_upper: Tensor, low: Tensor, up: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes cut by each row's line, and ``[B]`` whether a row excludes the domain outright."""
        size = torch.maximum(x_lower.abs(), x_upper.abs())
        a, constant = self._row_lines(case, low, up, size)
        least = torch.matmul(a.clamp(min=0), x_lower.unsqueeze(2)) + torch.matmul(a.clamp(max=0), x_upper.unsqueeze(2))
        least = (least - PAD * torch.matmul(a.abs(), size.unsqueeze(2))).squeeze(2)
        bound = self.rhs[case] - constant
        bound = (bound + PAD * (self.rhs[case].abs() + constant.abs())).nan_to_num(torch.inf, torch.inf, torch.inf)
        return *halfspaces(x_lower, x_upper, inverses(a), bound, least), (least > bound).any(dim=1)

    def _cut(
        self, x_lower: Tensor, x_upper: Tensor, a: Tensor, inverse: Tensor, bound: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shrink boxes by the rows ``a [K, n] x <= bound [B, K]`` that can move an end of the box at all."""
        least = _extreme(a, x_lower, x_upper)
        size, width = a.abs(), x_upper - x_lower
        swing = width @ size.T
        reach = torch.minimum(swing, size.amax(dim=1) * width.amax(dim=1, keepdim=True))
        domain, row = ((bound - least < reach) & (swing > NARROW * size.sum(dim=1))).nonzero(as_tuple=True)
        if not len(domain):
            return x_lower, x_upper
        room = _room(bound[domain, row], least[domain, row])
        target = domain.unsqueeze(1).expand(-1, a.shape[1])
        wide = torch.full_like(x_lower, 1 / TINY)
        moves = [wide.scatter_reduce(0, target, room.unsqueeze(1) * side[row], "amin") for side in inverse]
        return _moved(x_lower, x_upper, *moves)

    def within_halfspace(self, region: Region, a: Tensor, least: Tensor) -> Region:
        """Neuron bounds on the part of the boxes where ``a x + c <= 0``; ``a [B, n]``, ``least [B]`` is the least value
        of ``a x + c`` over the boxes of ``region``, rounded down."""
        lines = self.lines
        unstable = (region.low[:, lines.index] < 0) & (region.up[:, lines.index] > 0)
        usable = torch.isfinite(least) & (least < 0)
        unstable &= usable.unsqueeze(1)
        count = int(unstable.sum(dim=1).max()) if unstable.numel() else 0
        if count == 0:
            return region
        low, up = region.low.clone(), region.up.clone()
        step = max(1, ENTRIES // (count * a.shape[1]))
        for begin in range(0, len(a), step):
            part = slice(begin, begin + step)
            chosen = unstable[part].to(torch.int8).topk(count, dim=1).indices
            neurons = lines.index[chosen]
            box = region.x_lower[part], region.x_upper[part]
            for bounds, row, offset, sign in ((low, self.short_L, lines.l, 1.0), (up, self.short_U, lines.u, -1.0)):
                found = sign * _least_within(sign * row[chosen], sign * offset[chosen], a[part], least[part], *box)
                old = bounds[part].gather(1, neurons)
                new = torch.maximum(old, found) if sign > 0 else torch.minimum(old, found)
                new = torch.where(usable[part].unsqueeze(1), new, old)
                bounds[part] = bounds[part].scatter(1, neurons, new)
        feasible = region.feasible & ~(low > up).any(dim=1)
        return Region(region.x_lower, region.x_upper, torch.minimum(low, up), torch.maximum(low, up), feasible)

    def cut_rows(self, region: Region, a: Tensor, value: Tensor) -> Region:
        """Shrink boxes by row lines ``a [B, S, n]`` whose least value minus ``rhs`` is ``value [B, S]``."""
        zero = torch.zeros_like(value)
        x_lower, x_upper = halfspaces(
            region.x_lower, region.x_upper, inverses(a), zero, value.nan_to_num(0.0, 0.0, -torch.inf)
        )
        feasible = region.feasible & ~(x_lower > x_upper).any(dim=1)
        return Region(torch.minimum(x_lower, x_upper), torch.maximum(x_lower, x_upper), region.low, region.up, feasible)

    def _from_rows(self, case: Tensor, low: Tensor, up: Tensor) -> Tensor:
        """Upper bounds of last-layer neurons implied by ``sum_j c_j z_j + rest <= rhs`` (interval reasoning)."""
        assert self.last is not None and self.rest is not None
        c, rest, scale, rhs = (_of_cases(part, case) for part in (self.last, self.rest, self.scale, self.rhs))
        z_low, z_up = low.clamp(min=0).unsqueeze(1), up.clamp(min=0).unsqueeze(1)
        least = (torch.matmul(c.clamp(min=0), z_low.mT) + torch.matmul(c.clamp(max=0), z_up.mT)).squeeze(2) + rest
        size = torch.matmul(c.abs(), torch.maximum(z_low, z_up).mT).squeeze(2) + scale + rhs.abs()
        room = (rhs - least).clamp(min=0) + PAD * size
        room = torch.where(torch.isfinite(room), room, torch.full_like(room, torch.inf)).unsqueeze(2)
        allowed = torch.where(c > 0, z_low + room / c, torch.full_like(c, torch.inf)).nan_to_num(torch.inf, torch.inf)
        return torch.minimum(up, torch.maximum(allowed.amin(dim=1), low))


def _of_cases(values: Tensor, case: Tensor) -> Tensor:
    """Rows of ``values [P, ...]``; where there is but one case, the one row for all to share."""
    return values if len(values) == 1 else values[case]


def last_layer(network: Network, rows: Tensor) -> tuple[Tensor, Tensor, str] | None:
    """Rows ``[P, S, m]`` as affine functions of one ReLU layer: ``(c [P, S, size], rest [P, S], ReLU node)``.

    None where the outputs also depend on something else.
    """
    pending = dict(output_seeds(network, rows))
    constant = rows.new_zeros(rows.shape[:2])
    for node in reversed(list(network.graph.nodes.values())):
        if len(pending) == 1 and node.name in pending and node.op == "Relu":
            return elements(pending[node.name], 2), constant, node.name
        a = pending.pop(node.name, None)
        if a is None:
            continue
        if node.name in network.graph.inputs or not network.rows[node.name].is_affine:
            return None
        constant = constant + elements(a, 2) @ network.offset(node).flatten()
        parts = network.adjoint(node, a.flatten(0, 1)) if node.inputs else []
        for source, part in zip(node.inputs, parts, strict=True):
            part = part.reshape(*rows.shape[:2], *part.shape[1:])
            pending[source] = pending[source] + part if source in pending else part
    return None


def clipper_of(
    network: Network, layout: Layout, enclosure: Enclosure, rows: tuple[Tensor, Tensor | None, Tensor], memory: int
) -> Clipper:
    """The clipper of a problem with rows ``C [P, S, m]``, ``D`` or None, ``rhs [P, S]``."""
    c, d, rhs = rows
    lines = NeuronLines(network, layout, enclosure, memory)
    found = last_layer(network, c) if d is None else None
    outputs = torch.cat([enclosure.scales[name].flatten() for name in network.graph.outputs])
    scale = c.abs() @ outputs
    if found is None:
        return Clipper(lines, None, None, rhs, scale)
    coefficient, rest, node = found
    where = layout.neuron_at[network.graph.nodes[node].inputs[0]]
    full = torch.zeros(*coefficient.shape[:2], layout.n_neurons, dtype=network.dtype, device=network.device)
    full[:, :, where] = coefficient
    low = enclosure.bounds[network.graph.nodes[node].inputs[0]][0]
    seed = (coefficient * (low.flatten() >= 0)).reshape(*coefficient.shape[:2], *low.shape[1:])
    backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
    part = backward.run({network.graph.nodes[node].inputs[0]: seed})
    active = part.coefficient, part.constant - part.error + rest - PAD * (part.constant.abs() + scale)
    return Clipper(lines, full, rest, rhs, scale, active if torch.isfinite(active[1]).all() else None)
