"""The exact Lagrangian bound over staircases, evaluated in integers: valid for any multipliers,
hence a proof.

Take a row of coefficients ``mu`` on the output of a staircase ``S`` with argument ``a = A(v)``. For
any slopes ``lambda``, ``mu S(a) = [mu S(a) - lambda a] + lambda A(v)``, so over the box

    min  mu S(A(v))  >=  sum_i  min { mu_i S(a_i) - lambda_i a_i : a_i integer in its interval }  +
    min  lambda A(v).

The first minimum is attained at an end of the interval or at an end of a level of the staircase:
finitely many values, no relaxation and no rounding. The second is the same problem one step
earlier, with coefficients ``A^T lambda``; it ends in a dot product with the input box. Maxima are
treated alike: ``mu max(x) - lambda x`` over a window's box is smallest at one of the upper ends or
at the largest lower end. If the smallest value of ``sum_k tau_k (c_k o - b_k)``, ``tau >= 0``, is
positive, no point of the box satisfies the case.

The same numbers tighten intervals. Every point that satisfies the case makes the sum of all blocks
at most zero, so an argument whose own block exceeds its minimum by more than ``-L`` cannot occur
(reduced costs). With ``q v_i`` as the objective, ``v_i >= ceil(L / q)``. Legend: ``R`` rows, ``N``
elements, ``J`` levels in reach, ``W`` window size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals, StairTable
from bitcrown.quant.bounds.joint_windows import JointPool, WindowBlocks, is_joint
from bitcrown.quant.bounds.subprogram import AnyProgram
from bitcrown.quant.network.graph import Input, Ints, Numbers
from bitcrown.quant.network.linear_steps import INT_EXACT, Overflow, exact_product, largest

_CHUNK_ELEMENTS = 4_000_000
Slopes = dict[int, Numbers]
_Add = Callable[[int, Numbers], None]


@dataclass(eq=False)
class DualValue:
    """``value``: [R], the bound L; for reduced costs the coefficients [R, N] that met each block.

    ``outer[n]`` (mu) and ``inner[n]`` (lambda) belong to staircase n, ``input``: [R, N] to the
    input box.
    """

    value: Ints
    outer: dict[int, Ints]
    inner: dict[int, Ints]
    input: Ints


def _safe(*terms: float) -> None:
    if sum(terms) >= INT_EXACT:
        raise Overflow("a bound could leave 62 bits")


def _stair_levels(
    table: StairTable, thresholds: Ints, low: Ints, high: Ints, positive: Numbers
) -> tuple[Ints, Ints]:
    """Arguments and levels [R, N, J] among which ``mu S(a) - lambda a`` is smallest on
    ``[low, high]``: [R, N].

    ``positive``: [R, N], whether lambda >= 0 (then the last argument of each level, else the first
    one). Levels out of reach repeat the last one.
    """
    # within one level S is constant and -lambda a is linear: an end of the level decides
    first, last = table.level(thresholds, low), table.level(thresholds, high)
    reach = int((last - first).max(initial=0)) + 1
    level = np.minimum(first[..., None] + np.arange(reach, dtype=np.int64), last[..., None])
    steps = thresholds.shape[1]
    if not steps:
        return np.where(positive, high, low)[..., None], level
    channel = np.broadcast_to(table.channel, low.shape)[..., None]
    ends = thresholds[channel, np.minimum(level, steps - 1)] - 1
    starts = thresholds[channel, np.maximum(level - 1, 0)]
    right = np.where(level == last[..., None], high[..., None], ends)
    left = np.where(level == first[..., None], low[..., None], starts)
    argument = np.where(positive[..., None], right, left)
    # where steps coincide, an argument passes several at once: its true level is looked up
    if (thresholds[:, 1:] == thresholds[:, :-1]).any():
        rows, size, _ = argument.shape
        flat = argument.transpose(0, 2, 1).reshape(-1, size)
        level = table.level(thresholds, flat).reshape(rows, -1, size).transpose(0, 2, 1)
    return argument, level


def stair_costs(
    table: StairTable, outer: Ints, inner: Ints, low: Ints, high: Ints
) -> tuple[Ints, Ints, Ints]:
    """``mu S(a) - lambda a`` at the decisive arguments: (costs, arguments, levels), [R, N, J] each.

    A staircase known only up to (late, early) takes the lower of the two for ``mu >= 0``, the upper
    one otherwise.
    """
    positive = inner >= 0
    _safe(
        largest(outer) * (largest(table.base) + table.late.shape[1]),
        largest(inner) * max(largest(low), largest(high)),
    )
    sides = [_stair_levels(table, rows, low, high, positive) for rows in table.sides()]
    argument, level = sides[0]
    if len(sides) == 2:
        reach = max(sides[0][0].shape[2], sides[1][0].shape[2])
        padded = [
            tuple(np.pad(a, ((0, 0), (0, 0), (0, reach - a.shape[2])), mode="edge") for a in side)
            for side in sides
        ]
        choose = (outer >= 0)[..., None]
        argument = np.where(choose, padded[0][0], padded[1][0])
        level = np.where(choose, padded[0][1], padded[1][1])
    value = table.base[None, :, None] + level
    return outer[..., None] * value - inner[..., None] * argument, argument, level


def stair_minimum(table: StairTable, outer: Ints, inner: Ints, low: Ints, high: Ints) -> Ints:
    """[R, N]: the exact minimum of each block, in chunks of elements that bound the memory."""
    out = np.empty(outer.shape, dtype=np.int64)
    span = int((table.level(table.early, high) - table.level(table.late, low)).max(initial=0)) + 1
    rows = max(1, _CHUNK_ELEMENTS // max(1, span * outer.shape[1]))
    for start in range(0, len(outer), rows):
        part = slice(start, start + rows)
        out[part] = stair_costs(table, outer[part], inner[part], low[part], high[part])[0].min(
            axis=2
        )
    return out


def pool_minimum(
    outer: Numbers, inner: Numbers, low: Numbers, high: Numbers, present: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Smallest ``mu m - lambda x`` over ``low <= x <= high``, ``m = max(x)``: (value [R, N], m [R,
    N], x [R, N, W]).

    For a given m, an element with ``lambda > 0`` is as large as it may be and any other at its
    lower end, except that one that can reach m must be m; the cheapest such one is taken. Between
    two upper ends this is a minimum of linear functions of m, hence concave, so that m at an upper
    end or at the largest lower end decides.
    """
    # the maximum m lies between the largest lower end (floor) and the upper ends above it
    far = np.where(present, low, np.min(low) if low.size else 0)
    floor = far.max(axis=2)
    best: Numbers | None = None
    tops = [floor] + [
        np.maximum(high[..., k], floor) * present[..., k] + floor * ~present[..., k]
        for k in range(low.shape[2])
    ]
    found_m, found_x = floor, low
    for top in tops:
        # each x at its cheaper end, none above m; regret: what it costs to lift one of them to m
        free = np.where(inner > 0, np.minimum(high, top[..., None]), low)
        regret = np.where(inner > 0, 0, -inner * (top[..., None] - low))
        can = present & (high >= top[..., None])
        regret = np.where(can, regret, np.iinfo(np.int64).max // 2)
        which = regret.argmin(axis=2)[..., None]
        x = free.copy()
        np.put_along_axis(x, which, top[..., None], axis=2)
        x = np.where(present, x, 0)
        reachable = np.take_along_axis(can, which, axis=2)[..., 0]
        value = outer * top - (inner * x).sum(axis=2)
        if best is None:
            best = value
            found_m, found_x = top, x
            continue
        better = reachable & (value < best)
        best = np.where(better, value, best)
        found_m = np.where(better, top, found_m)
        found_x = np.where(better[..., None], x, found_x)
    assert best is not None
    return best, found_m, found_x


def settled_windows(low: Numbers, high: Numbers, present: Numbers) -> tuple[Ints, Numbers]:
    """(place of the member with the largest lower end or the only one above it [R, N], whether that
    member is the maximum wherever its window is [R, N]); ends [R, N, W]."""
    lows = np.where(present, low, low.min(initial=0) - 1)
    floor = lows.max(axis=2, keepdims=True)
    above = present & (high > floor)
    count = above.sum(axis=2)
    place = np.where(count > 0, above.argmax(axis=2), lows.argmax(axis=2))
    reached = np.take_along_axis(lows, place[..., None], axis=2) == floor
    return place, (count <= 1) & reached[..., 0]


def pool_blocks(
    outer: Numbers,
    inner: Numbers,
    low: Numbers,
    high: Numbers,
    present: Numbers,
    settled: tuple[Ints, Numbers],
) -> tuple[Numbers, Numbers, Numbers]:
    """``pool_minimum``, which only windows need that are not ``settled``: in the others the maximum
    is a member, and the block is linear."""
    place, is_settled = settled[0][..., None], settled[1]
    cost = -inner
    np.put_along_axis(
        cost, place, np.take_along_axis(cost, place, axis=2) + outer[..., None], axis=2
    )
    x = np.where(present, np.where(cost > 0, low, high), 0)
    value, m = (cost * x).sum(axis=2), np.take_along_axis(x, place, axis=2)[..., 0]
    is_used = (outer != 0) | (inner != 0).any(axis=2)
    rest = np.nonzero((is_used & ~is_settled).any(axis=0))[0]
    if len(rest):
        parts = (a[:, rest] for a in (outer, inner, low, high, present))
        value[:, rest], m[:, rest], x[:, rest] = pool_minimum(*parts)
    return value, m, x


def gather_windows(values: Numbers, index: Ints) -> Numbers:
    """[R, N_source] -> [R, N, W]; padding becomes 0."""
    return np.where(index >= 0, values[:, np.maximum(index, 0)], 0)


def scatter_windows(values: Numbers, index: Ints, size: int) -> Numbers:
    """Adjoint of ``gather_windows``: [R, N, W] -> [R, size]. Within one window place the sources
    are distinct."""
    total = np.zeros((len(values), size + 1), dtype=values.dtype)
    for place in range(index.shape[1]):
        column = np.where(index[:, place] >= 0, index[:, place], size)
        np.add.at(total.T, column, values[:, :, place].T)
    return total[:, :size]


def dual_value(
    program: AnyProgram,
    bounds: Intervals,
    objective: dict[int, Ints],
    constant: Ints,
    slopes: Slopes,
) -> DualValue:
    """Exact lower bound [R] of ``constant + sum_n objective[n] . v_n`` over the rows of ``bounds``.

    ``objective[n]``: [R, N_n] integers; ``slopes``: integers, [R, N] per staircase and [R, N, W]
    per pool (under ``-n`` those of ``joint_windows``, [R, N, U]), any values. Raises ``Overflow``
    if a number could leave 62 bits.
    """
    value = constant.astype(np.int64)
    # invariant: value + sum_n coefficients[n] . v_n is at most the objective, at every point
    coefficients: dict[int, Ints] = {n: c.astype(np.int64) for n, c in objective.items()}
    outer_of: dict[int, Ints] = {}
    inner_of: dict[int, Ints] = {}
    magnitude = largest(value)

    def add(node: int, part: Ints) -> None:
        coefficients[node] = coefficients[node] + part if node in coefficients else part
        _safe(largest(coefficients[node]))

    for number in reversed(range(1, len(program.nodes))):
        outer = coefficients.pop(number, None)
        if outer is None:
            continue
        if number in program.affine:
            step = program.affine[number]
            part = exact_product(outer, step.offset)
            for source, pulled in zip(step.sources, step.adjoint(outer), strict=True):
                add(source, pulled)
        elif number in program.stairs:
            table = program.stairs[number]
            inner = slopes[number].astype(np.int64)
            block = stair_minimum(
                table, outer, inner, bounds.low[table.source], bounds.high[table.source]
            )
            _safe(largest(block) * block.shape[1])
            part = block.sum(axis=1)
            outer_of[number], inner_of[number] = outer, inner
            add(table.source, inner)
        else:
            part = _pool_part(program, bounds, number, outer, slopes, add)
        magnitude += largest(part)
        _safe(magnitude)
        value = value + part
    assert isinstance(program.nodes[0], Input)
    first = coefficients.pop(0, np.zeros_like(bounds.low[0]))
    _safe(
        largest(first) * max(largest(bounds.low[0]), largest(bounds.high[0])) * first.shape[1],
        magnitude,
    )
    value = value + np.minimum(first * bounds.low[0], first * bounds.high[0]).sum(axis=1)
    return DualValue(value, outer_of, inner_of, first)


def _pool_part(
    program: AnyProgram, bounds: Intervals, number: int, outer: Ints, slopes: Slopes, add: _Add
) -> Ints:
    source, index = program.pools[number]
    inner, gamma = slopes[number].astype(np.int64), slopes.get(-number)
    part = np.zeros(len(outer), dtype=np.int64)
    if gamma is not None and gamma.any():
        joint = program.joint[number]
        part = _joint_part(joint, bounds, outer, gamma.astype(np.int64))
        add(joint.node, joint.pulled(gamma.astype(np.int64)))
        outer = np.where(is_joint(gamma), 0, outer)
        inner = np.where(is_joint(gamma)[..., None], 0, inner)
    inner = np.where(index >= 0, inner, 0)
    low, high = (
        gather_windows(bounds.low[source], index),
        gather_windows(bounds.high[source], index),
    )
    size = max(largest(low), largest(high))
    _safe(largest(outer) * size, 2 * largest(inner) * size * index.shape[1])
    present = np.broadcast_to(index >= 0, inner.shape)
    settled = settled_windows(low, high, present)
    block, _, _ = pool_blocks(outer, inner, low, high, present, settled)
    add(source, scatter_windows(inner, index, program.sizes[source]))
    _safe(largest(block) * block.shape[1], largest(part))
    return np.asarray(part + block.sum(axis=1))


def _joint_part(joint: JointPool, bounds: Intervals, outer: Ints, gamma: Ints) -> Ints:
    """[R]: the sum of the blocks of windows that have a ``gamma`` [R, N, U]."""
    here = is_joint(gamma)
    windows = np.nonzero(here.any(axis=0))[0]
    blocks = WindowBlocks.of(joint, bounds, windows)
    own = np.ascontiguousarray(gamma[:, windows].transpose(1, 0, 2))
    mu = np.ascontiguousarray(np.where(here, outer, 0)[:, windows].T)
    beta = blocks.chords(mu)
    blocks.require_exact(mu, own, beta)

    def flat(values: Ints) -> Ints:
        return values.transpose(1, 0, 2).reshape(len(outer), -1)

    each = flat(np.broadcast_to(mu[..., None], beta.shape))
    bracket = stair_minimum(
        joint.rows(windows), each, flat(beta), flat(blocks.start), flat(blocks.stop)
    )
    ends = bracket.reshape(len(outer), len(windows), -1).transpose(1, 0, 2)
    # sums of integers below 2^53, whatever their order
    least, _ = blocks.least(
        *(np.ascontiguousarray(a, dtype=np.float64) for a in (mu, own, beta, ends))
    )
    block = np.where(here[:, windows].T, least, 0.0).astype(np.int64)
    _safe(largest(block) * len(block))
    return np.asarray(block.sum(axis=0))


def reduced_stairs(
    table: StairTable, outer: Ints, inner: Ints, low: Ints, high: Ints, slack: Ints
) -> tuple[Ints, Ints]:
    """Intervals [R, N] of the arguments whose block is within ``slack`` [R] (= -L >= 0) of its
    minimum.

    Whole levels are dropped from either end first; within the last level kept the block is linear,
    and is cut there.
    """
    costs, argument, _ = stair_costs(table, outer, inner, low, high)
    limit = costs.min(axis=2) + slack[:, None]
    kept = costs <= limit[..., None]
    reach = costs.shape[2]
    from_left = kept.argmax(axis=2)[..., None]
    from_right = (reach - 1 - kept[..., ::-1].argmax(axis=2))[..., None]
    start, _ = _stair_levels(table, table.late, low, high, np.zeros(low.shape, dtype=bool))
    stop, _ = _stair_levels(table, table.late, low, high, np.ones(low.shape, dtype=bool))
    new_low = np.take_along_axis(start, from_left, axis=2)[..., 0]
    new_high = np.take_along_axis(stop, from_right, axis=2)[..., 0]
    at_low = np.take_along_axis(costs + inner[..., None] * argument, from_left, axis=2)[..., 0]
    at_high = np.take_along_axis(costs + inner[..., None] * argument, from_right, axis=2)[..., 0]
    # in the level kept last, at - lambda a <= limit with at = mu S constant: divide, rounding
    # inwards
    divisor = np.where(inner == 0, 1, np.abs(inner))
    cut_low = -((limit - at_low) // divisor)
    cut_high = (limit - at_high) // divisor
    new_low = np.where(inner > 0, np.maximum(new_low, cut_low), new_low)
    new_high = np.where(inner < 0, np.minimum(new_high, cut_high), new_high)
    return np.maximum(new_low, low), np.minimum(new_high, high)


def reduced_input(coefficient: Ints, low: Ints, high: Ints, slack: Ints) -> tuple[Ints, Ints]:
    """Intervals [R, N] of the inputs whose term ``c x`` is within ``slack`` [R] of its minimum."""
    assert (slack >= 0).all(), "a row without slack is closed, not tightened"
    divisor = np.where(coefficient == 0, 1, np.abs(coefficient))
    room = slack[:, None] // divisor
    new_high = np.where(coefficient > 0, np.minimum(high, low + room), high)
    new_low = np.where(coefficient < 0, np.maximum(low, high - room), low)
    return new_low, new_high
