"""Good multipliers by subgradient ascent, in floats: they only propose, ``staircase_dual`` proves.

The bound is concave in the slopes. Where its inner minima are attained at arguments ``a*`` and
block values ``s*``, a subgradient in the slope of element i is ``A(s*)_i - a*_i``: how far the
separately chosen arguments are from being the affine image of the chosen values. The ascent
measures slopes in units of ``1 / width of the argument's interval``, in which subgradients have
about the same size everywhere, and takes Adam steps (Kingma and Ba, arXiv:1412.6980) of falling
length; a row that has not improved for a while goes back to its best slopes with shorter steps;
constraint multipliers stay on the simplex. The running average of ``x*``, ``a*``, ``s*`` tends to a
solution of the linear relaxation (Sherali and Choi 1996): where it is fractional is where to
branch, and its input is a candidate.

The convex hull of a staircase with equal steps has its corners at the ends of the interval and at
the ends of the first two and last two levels in reach, so these eight points stand for the
staircase here. Legend: ``R`` rows, ``N`` elements, ``V`` corners, ``T`` constraints of a case,
``M`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitcrown.quant.bounds.intervals import Intervals, StairTable
from bitcrown.quant.bounds.staircase_dual import (
    Slopes,
    gather_windows,
    pool_minimum,
    scatter_windows,
)
from bitcrown.quant.bounds.subprogram import AnyProgram
from bitcrown.quant.network.graph import Ints, Numbers

Reals = npt.NDArray[np.float64]
_FINAL_LENGTH, _WINDOW, _CUT = 0.02, 20, 0.3
_FIRST_DECAY, _SECOND_DECAY, _TINY = 0.8, 0.95, 1e-12


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

    def project(self, slopes: Numbers) -> Numbers:
        """[R, N] -> [R, N]: useless signs to zero, then scaled to a total of one unit; other rows
        unchanged."""
        share = slopes / self.unit
        share = np.where(((share < 0) & self.raised) | ((share > 0) & self.lowered), share, 0.0)
        total = np.abs(share).sum(axis=1, keepdims=True)
        share = np.where(total > _TINY, share / np.maximum(total, _TINY), self.start)
        return np.where(self.rows[:, None], share * self.unit, slopes)


@dataclass(eq=False)
class AscentState:
    """Where the ascent stands: ``best`` [R] float bound, its ``slopes`` and ``tau`` [R, T];
    averages of the minimisers.

    ``mean_input``: [R, N_0]; ``mean_argument``/``mean_value``/``outer``: [R, N] by staircase.
    """

    best: Reals
    slopes: Slopes
    tau: Reals
    mean_input: Reals
    mean_argument: dict[int, Reals] = field(default_factory=dict)
    mean_value: dict[int, Reals] = field(default_factory=dict)
    outer: dict[int, Reals] = field(default_factory=dict)


def corners(table: StairTable, low: Ints, high: Ints) -> tuple[Reals, Reals]:
    """(arguments, output values), [V, R, N] each: the ends of the first two and last two levels of
    ``[low, high]``."""
    arguments, values = [], []
    for thresholds in table.sides():
        steps = thresholds.shape[1]
        first, last = table.level(thresholds, low), table.level(thresholds, high)
        channel = np.broadcast_to(table.channel, low.shape)
        for level in (first, np.minimum(first + 1, last), np.maximum(last - 1, first), last):
            if steps:
                start = np.maximum(thresholds[channel, np.maximum(level - 1, 0)], low)
                end = np.minimum(thresholds[channel, np.minimum(level, steps - 1)] - 1, high)
                start = np.where(level == first, low, start)
                end = np.where(level == last, high, end)
            else:
                start, end = low, high
            for argument in (start, end):
                arguments.append(argument)
                values.append(table.base + level)
    return np.array(arguments, dtype=np.float64), np.array(values, dtype=np.float64)


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
            values = self.corner[n][1]
            self.chord[n] = (values[-1] - values[0]) / self.width[n]
        self.window: dict[int, tuple[Reals, Reals]] = {}
        for n in self.pools:
            source, index = program.pools[n]
            lows, highs = (
                gather_windows(bounds.low[source], index),
                gather_windows(bounds.high[source], index),
            )
            self.window[n] = (lows.astype(np.float64), highs.astype(np.float64))

    def chord_slopes(self, tau: Reals) -> Slopes:
        """A start: each slope is the coefficient times the chord of the staircase; a pool passes on
        to its top end."""
        slopes: Slopes = {}
        self.evaluate(tau, slopes, fill=True)
        return slopes

    def evaluate(
        self, tau: Reals, slopes: Slopes, fill: bool = False
    ) -> tuple[Reals, dict[int, Numbers], dict[int, Numbers], dict[int, Numbers], Reals]:
        """(bound [R], mu by node, minimiser of every block by node, its argument by node, input
        coefficients)."""
        program = self.program
        coefficients: dict[int, Numbers] = {
            self.objective.node: np.einsum("rt,rtn->rn", tau, self.matrix)
        }
        value = -(tau * self.limit).sum(axis=1)
        outers: dict[int, Numbers] = {}
        chosen: dict[int, Numbers] = {}
        argument: dict[int, Numbers] = {}
        for number in reversed(range(1, self.objective.node + 1)):
            outer = coefficients.pop(number, None)
            if outer is None:
                continue
            if number in program.affine:
                step = program.affine[number]
                value = value + outer @ step.offset.astype(np.float64)
                pulled = list(zip(step.sources, step.adjoint(outer), strict=True))
            elif number in program.stairs:
                if fill:
                    slopes[number] = outer * self.chord[number]
                    if self.pinned is not None and number == self.pinned.node:
                        slopes[number] = self.pinned.project(
                            np.where(self.pinned.rows[:, None], 0.0, slopes[number])
                        )
                places, heights = self.corner[number]
                cost = outer * heights - slopes[number] * places
                which = cost.argmin(axis=0)[None]
                value = value + np.take_along_axis(cost, which, axis=0)[0].sum(axis=1)
                chosen[number] = np.take_along_axis(heights, which, axis=0)[0]
                argument[number] = np.take_along_axis(places, which, axis=0)[0]
                pulled = [(program.stairs[number].source, slopes[number])]
            else:
                block, pulled = self._pool(number, outer, slopes, fill, chosen, argument)
                value = value + block
            outers[number] = outer
            for source, part in pulled:
                coefficients[source] = (
                    coefficients[source] + part if source in coefficients else part
                )
        first = coefficients.pop(0, np.zeros_like(self.low))
        chosen[0] = np.where(first > 0, self.low, self.high)
        value = value + (first * chosen[0]).sum(axis=1)
        return value, outers, chosen, argument, first

    def _pool(
        self,
        number: int,
        outer: Numbers,
        slopes: Slopes,
        fill: bool,
        chosen: dict[int, Numbers],
        argument: dict[int, Numbers],
    ) -> tuple[Reals, list[tuple[int, Numbers]]]:
        source, index = self.program.pools[number]
        low, high = self.window[number]
        present = np.broadcast_to(index >= 0, low.shape)
        if fill:
            top = np.where(present, low + high, -np.inf).argmax(axis=2)[..., None]
            slopes[number] = np.zeros(low.shape)
            np.put_along_axis(slopes[number], top, outer[..., None], axis=2)
        inner = np.where(present, slopes[number], 0.0)
        block, chosen[number], argument[number] = pool_minimum(outer, inner, low, high, present)
        return block.sum(axis=1), [
            (source, scatter_windows(inner, index, self.program.sizes[source]))
        ]

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


def reached_nodes(program: AnyProgram, node: int) -> set[int]:
    """The node and everything it is computed from."""
    reached, stack = set(), [node]
    while stack:
        number = stack.pop()
        if number in reached:
            continue
        reached.add(number)
        if number in program.affine:
            stack.extend(program.affine[number].sources)
        elif number in program.stairs:
            stack.append(program.stairs[number].source)
        elif number in program.pools:
            stack.append(program.pools[number][0])
    return reached


def ascend_slopes(
    relaxation: StaircaseRelaxation,
    slopes: Slopes | None,
    tau: Reals | None,
    steps: int,
    length: float,
    stop: Callable[[AscentState, int], bool] | None = None,
) -> AscentState:
    """``steps`` Adam steps from ``slopes`` (chords if ``None``); ``stop`` is asked after every
    step."""
    used = relaxation.objective.used
    if tau is None:
        tau = used / np.maximum(used.sum(axis=1, keepdims=True), 1)
    pinned = relaxation.pinned
    if slopes is None:
        slopes = relaxation.chord_slopes(tau)
    slopes = {
        n: slopes[n].astype(np.float64)
        for n in (*relaxation.stairs, *relaxation.pools)
        if n in slopes
    }
    tau = tau.astype(np.float64)
    rows = len(used)
    state = AscentState(
        np.full(rows, -np.inf), {n: s.copy() for n, s in slopes.items()}, tau.copy(), np.zeros(0)
    )
    first: dict[int, Numbers] = {n: np.zeros_like(s) for n, s in slopes.items()}
    second = {n: np.zeros_like(s) for n, s in slopes.items()}
    several = bool((used.sum(axis=1) > 1).any())
    weight = 0.0
    own, improved = np.full(rows, length), np.zeros(rows, dtype=bool)
    for step in range(steps):
        value, outers, chosen, argument, _ = relaxation.evaluate(tau, slopes)
        better = value > state.best
        state.best = np.where(better, value, state.best)
        for n in slopes:
            state.slopes[n][better] = slopes[n][better]
        state.tau[better] = tau[better]
        fresh = max(1.0 / (step + 1), 0.04)
        weight = _average(state, chosen, argument, outers, fresh, weight)
        if stop is not None and stop(state, step):
            break
        if step + 1 == steps:
            break
        images = relaxation.images(chosen)
        improved |= better
        if step % _WINDOW == _WINDOW - 1:
            _step_back(state, slopes, first, ~improved)
            own = np.where(improved, own, _CUT * own)
            improved[:] = False
        rate = own * _FINAL_LENGTH ** (step / steps)
        _adam(relaxation, images, argument, outers, slopes, first, second, rate, step + 1)
        if pinned is not None:
            slopes[pinned.node] = pinned.project(slopes[pinned.node])
        if several:
            output = images[relaxation.objective.node]
            assert output is not None
            tau = _simplex_step(relaxation, output, tau, rate)
    return state


def _step_back(
    state: AscentState, slopes: Slopes, first: dict[int, Numbers], rows: Numbers
) -> None:
    """Rows that have not improved for a while go on from their best slopes, without momentum."""
    for n in slopes:
        slopes[n] = np.where(_columns(rows, slopes[n]), state.slopes[n], slopes[n])
        first[n] = np.where(_columns(rows, first[n]), 0.0, first[n])


def _columns(values: Numbers, like: Numbers) -> Numbers:
    """[R] -> [R, 1, ...] for broadcasting against ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _average(
    state: AscentState,
    chosen: dict[int, Numbers],
    argument: dict[int, Numbers],
    outers: dict[int, Numbers],
    fresh: float,
    weight: float,
) -> float:
    if not weight:
        state.mean_input = chosen[0].copy()
        state.mean_argument = {n: a.copy() for n, a in argument.items()}
        state.mean_value = {n: chosen[n].copy() for n in argument}
        state.outer = {n: outers[n].copy() for n in argument}
        return 1.0
    state.mean_input += fresh * (chosen[0] - state.mean_input)
    for n in argument:
        state.mean_argument[n] += fresh * (argument[n] - state.mean_argument[n])
        state.mean_value[n] += fresh * (chosen[n] - state.mean_value[n])
        state.outer[n] += fresh * (outers[n] - state.outer[n])
    return 1.0


def _adam(
    relaxation: StaircaseRelaxation,
    images: list[Numbers | None],
    argument: dict[int, Numbers],
    outers: dict[int, Numbers],
    slopes: Slopes,
    first: dict[int, Numbers],
    second: dict[int, Numbers],
    rate: Reals,
    count: int,
) -> None:
    """One step, in place. The unit of a slope is ``(|mu| + mean |mu|) * rise / width``: what the
    chord would be."""
    for n in slopes:
        is_pool = n in relaxation.window
        source = relaxation.program.pools[n][0] if is_pool else relaxation.program.stairs[n].source
        image = images[source]
        assert image is not None
        outer = np.abs(outers[n])
        count_used = np.maximum((outer > 0).sum(axis=1, keepdims=True), 1)
        unit = np.where(
            outer > 0, 0.5 * outer + 0.5 * outer.sum(axis=1, keepdims=True) / count_used, 0.0
        )
        if is_pool:
            index = relaxation.program.pools[n][1]
            gradient = np.where(index >= 0, gather_windows(image, index) - argument[n], 0.0)
            unit = np.broadcast_to(unit[..., None], gradient.shape)
        else:
            gradient = (image - argument[n]) / relaxation.width[n]
            unit = unit * np.maximum(relaxation.chord[n], 1.0 / relaxation.width[n])
            if relaxation.pinned is not None and relaxation.pinned.node == n:
                unit = np.where(relaxation.pinned.rows[:, None], relaxation.pinned.unit, unit)
        first[n] = _FIRST_DECAY * first[n] + (1 - _FIRST_DECAY) * gradient
        second[n] = _SECOND_DECAY * second[n] + (1 - _SECOND_DECAY) * gradient * gradient
        mean = first[n] / (1 - _FIRST_DECAY**count)
        spread = np.sqrt(second[n] / (1 - _SECOND_DECAY**count))
        slopes[n] = slopes[n] + _columns(rate, unit) * unit * mean / (spread + _TINY)


def _simplex_step(
    relaxation: StaircaseRelaxation, output: Numbers, tau: Reals, rate: Reals
) -> Reals:
    """Multiplicative step of the constraint multipliers towards the constraints that the minimiser
    breaks."""
    used = relaxation.objective.used
    broken = np.where(
        used, np.einsum("rtn,rn->rt", relaxation.matrix, output) - relaxation.limit, 0.0
    )
    scale = np.abs(broken).max(axis=1, keepdims=True) + _TINY
    fresh = tau * np.exp(rate[:, None] * broken / scale) + 1e-4 * used
    return np.asarray(fresh * used / np.maximum((fresh * used).sum(axis=1, keepdims=True), _TINY))
