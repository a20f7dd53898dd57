"""The staircase bound in floats, ready to be evaluated again and again for changing slopes.

For slopes ``lambda`` and coefficients ``mu`` the bound of ``staircase_dual`` is a sum of minima,
one for each block (a staircase, a pool, the input box). Floats may miss by rounding, and a few
corners may stand for all levels of a staircase, because nothing here is a claim: the slopes found
are rounded to integers, and ``staircase_dual`` evaluates those exactly.

Legend: ``R`` rows, ``N`` elements, ``V`` corners, ``W`` window size, ``T`` constraints
of a case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitcrown.quant.bounds.intervals import Intervals
from bitcrown.quant.bounds.joint_windows import JointPool, WindowBlocks, is_joint
from bitcrown.quant.bounds.staircase_corners import corners
from bitcrown.quant.bounds.staircase_dual import (
    Slopes,
    gather_windows,
    pool_blocks,
    scatter_windows,
    settled_windows,
)
from bitcrown.quant.bounds.subprogram import AnyProgram
from bitcrown.quant.network.graph import Ints, Numbers

Reals = npt.NDArray[np.float64]
TINIEST = 1e-12
"""Added to divisors that can be 0, and below this a sum of shares counts as 0."""


@dataclass(frozen=True, eq=False)
class DualObjective:
    """Minimise ``sum_t tau_t (matrix[t] . v_node - bound[t])`` over the simplex of tau; rows
    differ.

    ``matrix``: [R, T, N_node] and ``bound``: [R, T]; unused constraints of a row have ``used`` [R,
    T] false.
    """

    node: int
    matrix: Ints
    bound: Ints
    used: npt.NDArray[np.bool_]

    def narrowed(self, rows: Ints) -> DualObjective:
        """The same for some rows."""
        return DualObjective(self.node, self.matrix[rows], self.bound[rows], self.used[rows])


@dataclass(frozen=True, eq=False)
class Pinned:
    """Rows whose constraints hold by the output intervals alone: what is left to refute is that
    those are reached.

    The bound is then homogeneous in the slopes (it can be 0, or anything), so the slopes of the
    output staircase are kept at a total of one unit. ``rows``: [R]; ``raised``/``lowered``: [R, N],
    whether the lower/upper end of the argument is tighter than the box alone makes it (only then
    can a negative/positive slope help); ``start``: [R, N], the slopes to begin with; ``unit``: [R,
    N], a slope of ordinary size.
    """

    node: int
    rows: npt.NDArray[np.bool_]
    raised: npt.NDArray[np.bool_]
    lowered: npt.NDArray[np.bool_]
    start: Reals
    unit: Reals

    def narrowed(self, rows: Ints) -> Pinned:
        """The same for some rows."""
        signs = self.rows[rows], self.raised[rows], self.lowered[rows]
        return Pinned(self.node, *signs, self.start[rows], self.unit[rows])

    def project(self, slopes: Numbers) -> Numbers:
        """[R, N] -> [R, N]: useless signs to zero, then scaled to a total of one unit; other rows
        unchanged."""
        share = slopes / self.unit
        share = np.where(((share < 0) & self.raised) | ((share > 0) & self.lowered), share, 0.0)
        total = np.abs(share).sum(axis=1, keepdims=True)
        share = np.where(total > TINIEST, share / np.maximum(total, TINIEST), self.start)
        return np.where(self.rows[:, None], share * self.unit, slopes)


@dataclass(frozen=True, eq=False)
class RelaxedPoint:
    """One evaluation. ``value``: [R], the bound; by node: ``outer`` [R, N] (mu, the coefficients on
    its output), ``chosen`` [R, N] (by how much its block grows with mu: the value that it takes at
    the minimum; node 0: the input) and ``argument`` ([R, N], pools [R, N, W]: where the block takes
    it). ``shown`` is ``outer``, with windows that are one block showing their coefficient at every
    member."""

    value: Reals
    outer: dict[int, Numbers]
    chosen: dict[int, Numbers]
    argument: dict[int, Numbers]
    shown: dict[int, Numbers]


class StaircaseRelaxation:
    """A program over one set of intervals, ready for repeated float evaluation."""

    def __init__(
        self,
        program: AnyProgram,
        bounds: Intervals,
        objective: DualObjective,
        pinned: Pinned | None = None,
    ) -> None:
        self.program, self.objective, self.pinned = program, objective, pinned
        self.low, self.high = bounds.low[0].astype(np.float64), bounds.high[0].astype(np.float64)
        self.matrix = objective.matrix.astype(np.float64)
        self.limit = objective.bound.astype(np.float64)
        self.reached = reached_nodes(program, objective.node)
        self.stairs = [n for n in program.stairs if n in self.reached]
        self.pools = [n for n in program.pools if n in self.reached]
        self.corner: dict[int, tuple[Reals, Reals]] = {}
        self.width: dict[int, Reals] = {}
        self.chord: dict[int, Reals] = {}
        for n in self.stairs:
            table = program.stairs[n]
            low, high = bounds.low[table.source], bounds.high[table.source]
            self.corner[n] = corners(table, low, high)
            self.width[n] = np.maximum((high - low).astype(np.float64), 1.0)
            values = self.corner[n][1]  # (no staircase falls)
            self.chord[n] = (values.max(axis=0) - values.min(axis=0)) / self.width[n]
        self.window: dict[int, tuple[Reals, Reals]] = {}
        self.settled: dict[int, tuple[Ints, Numbers]] = {}
        for n in self.pools:
            source, index = program.pools[n]
            lows, highs = (
                gather_windows(ends[source], index) for ends in (bounds.low, bounds.high)
            )
            self.window[n] = (lows.astype(np.float64), highs.astype(np.float64))
            self.settled[n] = settled_windows(lows, highs, np.broadcast_to(index >= 0, lows.shape))
        self.bounds = bounds
        self.joint = {n: program.joint[n] for n in self.pools if n in program.joint}
        self.contested = {n: pool.contested(bounds) for n, pool in self.joint.items()}
        self.blocks = {
            n: JointCorners.of(n, pool, bounds, self.contested[n])
            for n, pool in self.joint.items()
            if self.contested[n].any()
        }

    def multipliers(self) -> set[int]:
        """Nodes that have some; those of windows that are one block count as ``-n``."""
        return {*self.stairs, *self.pools, *(-n for n in self.joint)}

    def narrowed(self, rows: Ints) -> StaircaseRelaxation:
        """The same for some rows."""
        pinned = None if self.pinned is None else self.pinned.narrowed(rows)
        return StaircaseRelaxation(
            self.program, self.bounds.rows(rows), self.objective.narrowed(rows), pinned
        )

    def chord_slopes(self, tau: Reals) -> Slopes:
        """A start: each slope is the coefficient times the chord of the staircase; a pool passes on
        to its top end."""
        slopes: Slopes = {}
        self.evaluate(tau, slopes, fill=True)
        return slopes

    def evaluate(self, tau: Reals, slopes: Slopes, fill: bool = False) -> RelaxedPoint:
        """The bound for ``tau`` [R, T] and ``slopes``; ``fill`` writes the missing slopes of the
        chords into ``slopes`` on the way."""
        program = self.program
        coefficients: dict[int, Numbers] = {
            self.objective.node: np.einsum("rt,rtn->rn", tau, self.matrix)
        }
        value = -(tau * self.limit).sum(axis=1)
        point = RelaxedPoint(value, {}, {}, {}, {})
        # invariant: value + sum_n coefficients[n] . v_n bounds the objective from below
        for number in reversed(range(1, self.objective.node + 1)):
            outer = coefficients.pop(number, None)
            if outer is None:
                continue
            if number in program.affine:
                # mu (A v + offset) = (A^T mu) v + mu offset
                step = program.affine[number]
                value = value + outer @ step.offset.astype(np.float64)
                pulled = list(zip(step.sources, step.adjoint(outer), strict=True))
            else:
                if fill:
                    slopes[number] = self._chord(number, outer)
                    if number in self.joint:
                        joint = self.joint[number]
                        slopes[-number] = np.zeros((*outer.shape, joint.patch.shape[1]))
                pulled, alone = [], outer
                if number in self.blocks:
                    here = self._take_sides(number, outer, slopes)
                    value = value + self.blocks[number].least(outer, slopes[-number], here)
                    alone = np.where(here, 0.0, outer)
                    joint = self.joint[number]
                    pulled = [(joint.node, joint.pulled(slopes[-number]))]
                block = self._stairs if number in program.stairs else self._pool
                least, source, part = block(number, alone, slopes[number], point)
                value = value + least
                pulled.append((source, part))
            point.outer[number] = outer
            point.shown.setdefault(number, outer)
            for source, part in pulled:
                coefficients[source] = (
                    coefficients[source] + part if source in coefficients else part
                )
        # what is left is a linear function of the input box, least at one of its corners
        first = coefficients.pop(0, np.zeros_like(self.low))
        point.chosen[0] = np.where(first > 0, self.low, self.high)
        value = value + (first * point.chosen[0]).sum(axis=1)
        for windows in self.blocks.values():
            windows.show(point)
        return replace(point, value=value)

    def _chord(self, number: int, outer: Numbers) -> Numbers:
        if number in self.program.stairs:
            slopes = outer * self.chord[number]
            if self.pinned is not None and number == self.pinned.node:
                slopes = self.pinned.project(np.where(self.pinned.rows[:, None], 0.0, slopes))
            return np.asarray(slopes)
        low, high = self.window[number]
        present = self.program.pools[number][1] >= 0
        top = np.where(present, low + high, -np.inf).argmax(axis=2)[..., None]
        slopes = np.zeros(low.shape)
        np.put_along_axis(slopes, top, outer[..., None], axis=2)
        return slopes

    def _take_sides(self, number: int, outer: Numbers, slopes: Slopes) -> npt.NDArray[np.bool_]:
        """[R, N]: the windows that are one block, because somebody contests them and their maximum
        counts from above. In place: the multipliers of the other kind, and of the staircases that
        nothing asks for any more, become 0; those that are missing begin at the chord."""
        joint, contested = self.joint[number], self.contested[number]
        here = contested & (outer < 0)
        slopes[-number][~here] = 0.0
        slopes[number][here] = 0.0
        apart = contested & (outer > 0) & ~slopes[number].any(axis=2)
        fresh = here & ~is_joint(slopes[-number])
        if apart.any() or fresh.any():
            top = self._chord(number, np.ones(outer.shape))
            slopes[number][apart] = (outer[..., None] * top)[apart]
            windows = np.nonzero(fresh.any(axis=0))[0]
            chord = joint.members(self.chord[joint.stairs], windows)
            lines = joint.chord_lines(outer[:, windows], top[:, windows], chord, windows)
            some = fresh[:, windows]
            row, place = np.nonzero(some)
            slopes[-number][row, windows[place]] = lines[row, place]
        return here

    def _stairs(
        self, number: int, outer: Numbers, slopes: Numbers, point: RelaxedPoint
    ) -> tuple[Reals, int, Numbers]:
        """``sum_i min_a mu_i S(a) - lambda_i a`` [R] over the corners; the rest, ``lambda a``, goes
        to the source."""
        if any(number == joint.stairs for joint in self.joint.values()):
            # what is left where the window has become a block
            slopes[outer == 0] = 0.0
        places, heights = self.corner[number]
        cost = outer * heights - slopes * places
        which = cost.argmin(axis=0)[None]
        point.chosen[number] = np.take_along_axis(heights, which, axis=0)[0]
        point.argument[number] = np.take_along_axis(places, which, axis=0)[0]
        least = np.take_along_axis(cost, which, axis=0)[0].sum(axis=1)
        return least, self.program.stairs[number].source, slopes

    def _pool(
        self, number: int, outer: Numbers, slopes: Numbers, point: RelaxedPoint
    ) -> tuple[Reals, int, Numbers]:
        source, index = self.program.pools[number]
        low, high = self.window[number]
        present = np.broadcast_to(index >= 0, low.shape)
        inner = np.where(present, slopes, 0.0)
        block, point.chosen[number], point.argument[number] = pool_blocks(
            outer, inner, low, high, present, self.settled[number]
        )
        return block.sum(axis=1), source, scatter_windows(inner, index, self.program.sizes[source])

    def images(self, chosen: dict[int, Numbers]) -> list[Numbers | None]:
        """Every reached node's value if the blocks take the ``chosen`` values: affine steps are
        applied to them."""
        values: list[Numbers | None] = [None] * len(self.program.nodes)
        for number in sorted(self.reached):
            if number in self.program.affine:
                step = self.program.affine[number]
                values[number] = step.forward(
                    [v for s in step.sources if (v := values[s]) is not None]
                )
            else:
                values[number] = chosen[number]
        return values


class LatestBlocks(NamedTuple):
    """Where the blocks of the last evaluation were attained: which windows [K, R] are blocks, mu
    [K, R], the patches [K, R, U], the members' sums [K, R, W], the maxima [K, R]."""

    is_joint: npt.NDArray[np.bool_]
    outer: Numbers
    patch: Reals
    arguments: Reals
    tops: Reals


@dataclass(frozen=True, eq=False)
class JointCorners:
    """Contested windows of one pool, in floats. ``places`` and ``heights``: [V, K, R, W], corners
    of the staircases above the floor; the rest counts for ``show`` only."""

    number: int
    pool: JointPool
    blocks: WindowBlocks
    places: Reals
    heights: Reals
    least_value: Reals
    most_value: Reals
    latest: list[LatestBlocks]

    @classmethod
    def of(
        cls, number: int, pool: JointPool, bounds: Intervals, contested: Numbers
    ) -> JointCorners:
        windows = np.nonzero(contested.any(axis=0))[0]
        blocks = WindowBlocks.of(pool, bounds, windows, np.float32)
        count, rows, width = blocks.start.shape
        table = pool.rows(windows)
        ends = (a.transpose(1, 0, 2).reshape(rows, -1) for a in (blocks.start, blocks.stop))
        places, heights = (
            np.ascontiguousarray(a.reshape(-1, rows, count, width).transpose(0, 2, 1, 3))
            for a in corners(table, *ends)
        )
        least, most = (
            pool.members(e[pool.stairs], windows).transpose(1, 0, 2).astype(np.float64)
            for e in (bounds.low, bounds.high)
        )
        return cls(number, pool, blocks, places, heights, least, most, [])

    def least(self, outer: Numbers, gamma: Numbers, is_joint: Numbers) -> Reals:
        """[R]: the sum of the blocks of the windows ``is_joint`` [R, N]; ``outer``: [R, N],
        ``gamma``: [R, N, U]."""
        blocks, windows = self.blocks, self.blocks.windows
        here = is_joint[:, windows].T
        mu = np.where(here, outer[:, windows].T, 0.0)
        own = np.ascontiguousarray(gamma[:, windows].transpose(1, 0, 2), dtype=np.float32)
        beta = blocks.chords(mu)
        cost = mu[..., None] * self.heights - beta * self.places
        which = cost.argmin(axis=0)[None]
        bracket = np.take_along_axis(cost, which, axis=0)[0]
        least, winner = blocks.least(mu, own, beta, bracket)
        won_at = np.take_along_axis(self.places, which, axis=0)[0]
        patch, arguments, further = blocks.points(winner, own, beta, won_at)
        # how the block grows with mu: the value at which the winner's staircase was met, and on
        # along its chord, or the floor
        tops = np.take_along_axis(self.heights, which, axis=0)[0]
        tops = np.concatenate([tops, blocks.floor[..., None]], axis=2)
        tops = np.take_along_axis(tops, winner[..., None], axis=2)[..., 0] + further
        self.latest[:] = [LatestBlocks(here, mu, patch, arguments, tops)]
        return np.asarray(np.where(here, least, 0.0).sum(axis=0))

    def show(self, point: RelaxedPoint) -> None:
        """Enter where the blocks of the last evaluation were attained: at the pool, and at the
        members' staircases, on which branching looks."""
        blocks, pool = self.blocks, self.pool
        number, (is_joint, mu, _, arguments, tops) = self.number, self.latest[0]
        row, place = np.nonzero(is_joint.T)
        window = blocks.windows[place]
        point.chosen[number][row, window] = tops[place, row]
        # a staircase is nearly straight from the floor on, and level beyond its ends
        slope = blocks.rise / np.maximum(blocks.run, 1)
        values = blocks.level + (arguments - blocks.start) * slope
        values = np.clip(values, self.least_value, self.most_value)
        here = blocks.open & is_joint[..., None]
        window, row, member = np.nonzero(here)
        element = pool.index[blocks.windows[window], member]
        shown = point.outer[pool.stairs].copy()
        alone = shown[row, element] == 0
        row, element, window, member = (a[alone] for a in (row, element, window, member))
        shown[row, element] = mu[window, row]
        point.shown[pool.stairs] = shown
        point.argument[pool.stairs][row, element] = arguments[window, row, member]
        point.chosen[pool.stairs][row, element] = values[window, row, member]


def reached_nodes(program: AnyProgram, node: int) -> set[int]:
    """The node and everything it is computed from."""
    reached, stack = set(), [node]
    while stack:
        number = stack.pop()
        if number not in reached:
            reached.add(number)
            stack.extend(program.sources[number])
    return reached
