"""A maximum over a window, its staircases and the sums that they read, as one block of the bound.

One after the other, a window costs ``min mu max(x) - lambda x`` over a box of staircase values and
then ``min lambda x - alpha a`` over a box of sums, as if neighbouring sums had nothing in common.
But they read the same patch ``v`` of the layer before. A block trades the maximum for a line over
that patch, with a multiplier ``gamma_u`` for every element of it. For ``mu <= 0`` the outermost
minimum is one over the members of the window:

    min mu max_k S(a_k(v)) - gamma v
        >=  min over j of  min { mu S(a) - beta_j a : S(a) > floor }
                         + min { beta_j a_j(v) - gamma v : v in its box },

next to ``mu floor - max gamma v``, where ``floor`` is the largest lower end among the members:
where nobody exceeds it, the maximum is the floor, and otherwise somebody does, and is the maximum
(a disjunction over the winner). Every step holds for any ``gamma`` and ``beta``, and for ``mu > 0``
as well, where it is no good. ``beta_j`` is ``mu`` times the staircase's chord.

With ``gamma`` free the best of these bounds is the hull of the window over the box of its patch
(Anderson et al., Strong mixed-integer programming formulations for trained neural networks, 2020,
section 4; De Palma et al., Scaling the convex barrier with active sets, 2021, find multipliers for
one neuron in this way). A ``gamma`` that combines the sums, ``sum_k alpha_k w_k``, is weaker:
the linear relaxation of the sums, which forgets at which end of its box each ``v_u`` was.

Multipliers of the node ``-n`` are the ``gamma`` of pool ``n``, [R, N, U]; a window all of whose
``gamma`` are 0 is bounded in the ordinary way, and its multipliers of node ``n`` count. Legend:
``R`` rows, ``N`` windows, ``K`` those looked at, ``W`` window size, ``U`` patch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.network.linear_steps import FLOAT_EXACT, Overflow, largest

if TYPE_CHECKING:
    from bitcrown.quant.bounds.intervals import Intervals, Program, StairTable

_Reals = npt.NDArray[np.float64]
_MOST_ENTRIES = 1 << 22
"""Weights of all windows of a pool, dense over their patches."""


@dataclass(frozen=True, eq=False)
class JointPool:
    """A pool over a staircase over one affine step. ``index``: [N, W] members, -1 for none;
    ``patch``: [N, U] elements of ``node`` (of ``size`` elements) that they read; ``weight``: [N, W,
    U], ``offset``: [N, W]; ``heaviest``: [N, U], the largest ``|weight|`` of each element;
    ``table``: the staircase of member ``(n, w)`` at place ``n W + w``."""

    stairs: int
    sums: int
    node: int
    size: int
    index: Ints
    patch: Ints
    weight: _Reals
    offset: _Reals
    heaviest: npt.NDArray[np.float32]
    table: StairTable

    @classmethod
    def of(cls, program: Program, pool: int) -> JointPool | None:
        """``None`` where the pool does not read staircases of one affine step, or is too large."""
        stairs, index = program.pools[pool]
        table = program.stairs.get(stairs)
        step = None if table is None else program.affine.get(table.source)
        if table is None or step is None or len(step.sources) != 1:
            return None
        count, width = index.shape
        # places without a member repeat another one of the window, with weight 0
        member = np.where(index >= 0, index, index.max(axis=1, keepdims=True))
        columns, values = step.entries(member.reshape(-1))[0]
        columns = columns.reshape(count, -1)
        values = np.where(columns >= 0, np.asarray(values).reshape(count, -1), 0)
        # the different elements of each patch in ascending order, and where each term stands there
        order = np.argsort(columns, axis=1, kind="stable")
        ranked = np.take_along_axis(columns, order, axis=1)
        fresh = np.concatenate([np.zeros((count, 1), bool), ranked[:, 1:] > ranked[:, :-1]], axis=1)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.cumsum(fresh, axis=1), axis=1)
        size = int(place.max(initial=0)) + 1
        if count * width * size > _MOST_ENTRIES:
            return None
        patch = np.zeros((count, size), dtype=np.int64)
        patch[np.arange(count)[:, None], place] = np.maximum(columns, 0)
        weight = np.zeros((count, width, size))
        window, term = np.arange(count)[:, None], np.arange(columns.shape[1])
        owner = term // (columns.shape[1] // width)
        np.add.at(weight, (window, owner[None], place), values)
        weight[index < 0] = 0.0
        flat = member.reshape(-1)
        if (np.diff(table.channel[flat]) < 0).any():
            return None
        whole = replace(table, channel=table.channel[flat], base=table.base[flat])
        offset = step.offset[member].astype(np.float64)
        node = step.sources[0]
        heaviest = np.abs(weight).max(axis=1).astype(np.float32)
        sizes = node, program.sizes[node]
        return cls(stairs, table.source, *sizes, index, patch, weight, offset, heaviest, whole)

    def contested(self, bounds: Intervals) -> npt.NDArray[np.bool_]:
        """[R, N]: whether two members at least may exceed the floor."""
        low, high = self.members(bounds.low[self.stairs]), self.members(bounds.high[self.stairs])
        floor = np.where(self.index >= 0, low, low.min(initial=0)).max(axis=2, keepdims=True)
        return np.asarray(((high > floor) & (self.index >= 0)).sum(axis=2) > 1)

    def chord_lines(
        self, outer: Numbers, shares: Numbers, chord: Numbers, windows: Ints
    ) -> Numbers:
        """[R, K, U]: ``gamma`` to begin with at ``windows`` [K]: ``outer`` [R, K] times the chords
        [R, K, W] of the members, by ``shares`` [R, K, W]."""
        lines = np.asarray(outer[..., None] * shares * chord).swapaxes(0, 1) @ self.weight[windows]
        return np.asarray(lines.swapaxes(0, 1))

    def pulled(self, gamma: Numbers) -> Numbers:
        """[R, N, U] -> [R, size]: what the blocks' lines add up to on ``node``."""
        if gamma.dtype == np.int64 and largest(gamma) * len(gamma[0]) >= FLOAT_EXACT:
            raise Overflow("lines of blocks could leave 53 bits")
        places = self.patch.reshape(-1)
        rows = [np.bincount(places, row.reshape(-1), minlength=self.size) for row in gamma]
        return np.array(rows).reshape(len(gamma), self.size).astype(gamma.dtype)

    def rows(self, windows: Ints) -> StairTable:
        """The staircases of the members of ``windows`` [K], one after the other."""
        places = self.index.shape[1]
        flat = (windows[:, None] * places + np.arange(places)).reshape(-1)
        whole = self.table
        return replace(whole, channel=whole.channel[flat], base=whole.base[flat])

    def members(self, values: Numbers, windows: Ints | slice = slice(None)) -> Numbers:
        """[R, size of the staircase] -> [R, K, W]."""
        return values[:, np.maximum(self.index[windows], 0)]


def is_joint(gamma: Numbers) -> npt.NDArray[np.bool_]:
    """[R, N, U] -> [R, N]: the windows that are bounded as one block."""
    return np.asarray(gamma.any(axis=2))


@dataclass(frozen=True, eq=False)
class WindowBlocks:
    """Windows of a pool on some intervals, ready for changing multipliers. ``floor`` [K, R];
    ``start``/``stop`` [K, R, W], where member j may exceed it (nowhere: ``open`` is false);
    ``level``: the value of a member at ``start``; ``rise``/``run``: of its chord; ``total`` and
    ``width`` [K, R, U], sum and difference of the ends of the patch."""

    windows: Ints
    floor: Ints
    start: Ints
    stop: Ints
    open: npt.NDArray[np.bool_]
    level: Ints
    rise: Ints
    run: Ints
    weight: _Reals
    offset: _Reals
    total: _Reals
    width: _Reals
    centre: _Reals
    """[K, R, W]: ``total`` times the weights of each member."""

    @classmethod
    def of(
        cls, pool: JointPool, bounds: Intervals, windows: Ints, dtype: type = np.float64
    ) -> WindowBlocks:
        """The blocks of ``windows`` [K] in every row of ``bounds``; with ``dtype`` float32 they are
        good enough for an ascent."""
        count, places = len(windows), pool.index.shape[1]
        present = (pool.index[windows] >= 0)[None]
        low, high = (pool.members(e[pool.stairs], windows) for e in (bounds.low, bounds.high))
        floor = np.where(present, low, low.min(initial=0)).max(axis=2)[..., None]
        first, stop = (pool.members(e[pool.sums], windows) for e in (bounds.low, bounds.high))
        table = pool.rows(windows)
        base, steps = table.base.reshape(count, places), table.early.shape[1]
        # S(a) > floor from the threshold of the level above it on
        needed = floor - base
        channel = np.broadcast_to(table.channel.reshape(count, places), needed.shape)
        edges = table.early if steps else np.zeros((len(table.early), 1), dtype=np.int64)
        edge = edges[channel, np.clip(needed, 0, max(steps - 1, 0))]
        start = np.where(needed >= 0, np.maximum(first, edge), first)
        can = present & (high > floor) & (needed < steps) & (start <= stop)
        start = np.where(can, start, stop)
        flat = len(low), count * places
        begin = table.level(table.early, start.reshape(flat)).reshape(start.shape)
        last = table.level(table.early, stop.reshape(flat)).reshape(start.shape)
        run = edges[channel, np.clip(last - 1, 0, max(steps - 1, 0))] - start
        rise = np.where(can & (last > begin) & (run > 0), last - begin, 0)
        arrays = (floor[..., 0], start, stop, can, base + begin, rise, run)
        turned: list[Any] = [np.ascontiguousarray(np.swapaxes(a, 0, 1)) for a in arrays]
        patch = pool.patch[windows]
        ends: list[_Reals] = [
            np.ascontiguousarray(e[pool.node][:, patch].transpose(1, 0, 2), dtype=dtype)
            for e in (bounds.low, bounds.high)
        ]
        total, width = ends[0] + ends[1], ends[1] - ends[0]
        weight: _Reals = pool.weight[windows].astype(dtype, copy=False)
        offset, centre = pool.offset[windows][:, None], total @ weight.transpose(0, 2, 1)
        turned += [weight, offset, total, width, centre]
        return cls(windows, *turned)

    def chords(self, outer: Numbers) -> Numbers:
        """``beta`` [K, R, W] for ``outer`` [K, R]: integers for integers, rounded down."""
        run = np.maximum(self.run, 1)
        if outer.dtype == np.int64:
            return np.asarray(outer[..., None] * self.rise // run)
        return np.asarray(outer[..., None] * (self.rise / run))

    def least(
        self, outer: Numbers, gamma: Numbers, beta: Numbers, bracket: Numbers
    ) -> tuple[_Reals, Ints]:
        """(the blocks [K, R], the member that wins each, W for the floor); ``gamma`` [K, R, U],
        ``bracket`` [K, R, W]: the least ``mu S(a) - beta a``.

        In float64, sums of integers below 2^53 are exact.
        """
        pulled = gamma.astype(self.weight.dtype, copy=False)
        middle = np.einsum("kru,kru->kr", pulled, self.total)
        reach = np.einsum("kru,kru->kr", np.abs(pulled), self.width)
        best = outer * self.floor - (middle + reach) / 2
        winner = np.full(best.shape, self.weight.shape[1], dtype=np.int64)
        for j in range(self.weight.shape[1]):
            some = np.nonzero(self.open[..., j].any(axis=1))[0]
            if not len(some):
                continue
            own = beta[some, :, j]
            line = own[..., None].astype(pulled.dtype) * self.weight[some, None, j]
            line -= pulled[some]
            reach = np.einsum("kru,kru->kr", np.abs(line, out=line), self.width[some])
            twice = own * self.centre[some, :, j] - middle[some] - reach
            value = bracket[some, :, j] + own * self.offset[some, :, j] + twice / 2
            better = self.open[some, :, j] & (value < best[some])
            best[some] = np.where(better, value, best[some])
            winner[some] = np.where(better, j, winner[some])
        return best, winner

    def points(
        self, winner: Ints, gamma: Numbers, beta: Numbers, won_at: Numbers
    ) -> tuple[_Reals, _Reals, _Reals]:
        """(the patches [K, R, U] at which the blocks of ``least`` are attained; the sums of the
        members there [K, R, W], the winner's where its bracket is: ``won_at`` [K, R, W]; and by how
        much the winner's own sum is larger, times its chord [K, R])."""
        places = self.weight.shape[1]
        won = np.minimum(winner, places - 1)
        own = np.take_along_axis(beta, won[..., None], axis=2)[..., 0]
        own = np.where(winner < places, own, 0).astype(self.weight.dtype)
        line = self.weight[np.arange(len(won))[:, None], won] * own[..., None]
        line -= gamma
        point = (np.where(line > 0, -self.width, self.width) + self.total) / 2
        sums = point @ self.weight.transpose(0, 2, 1) + self.offset
        is_winner = winner[..., None] == np.arange(places)
        chord = self.rise / np.maximum(self.run, 1)
        further = np.where(is_winner, chord * (sums - won_at), 0.0).sum(axis=2)
        return point, np.where(is_winner, won_at, sums), further

    def require_exact(self, outer: Ints, gamma: Ints, beta: Ints) -> None:
        """Raises ``Overflow`` if a sum of ``least`` could leave 53 bits."""
        ends = largest(self.total) + largest(self.width)
        size = np.abs(self.weight).sum(axis=2).max(initial=0) * ends + largest(self.offset)
        lines = float(np.abs(gamma.astype(np.float64)).sum(axis=2).max(initial=0)) * ends
        levels = largest(self.floor) + largest(self.level) + largest(self.rise)
        brackets = largest(beta) * max(largest(self.start), largest(self.stop))
        if 4 * (lines + size * largest(beta)) + largest(outer) * levels + brackets >= FLOAT_EXACT:
            raise Overflow("a block of windows could leave 53 bits")
