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

Legend: ``R`` rows, ``N`` elements, ``T`` constraints of a case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bitcrown.quant.bounds.relaxation import TINIEST, Reals, RelaxedPoint, StaircaseRelaxation
from bitcrown.quant.bounds.staircase_dual import Slopes, gather_windows
from bitcrown.quant.network.graph import Numbers

_FINAL_LENGTH = 0.02
"""Length of the last step, as a part of the first one's."""
_PATIENCE, _CUT = 20, 0.3
"""After so many steps without a better bound, a row goes back and steps this much shorter."""
_DONE = 0.2
"""A larger share of rows at their goal is left behind."""
_OVERSHOOT = 0.02
"""Of the way up to 0: so much further goes a row with blocks of windows, because floats look at a
few corners of each staircase, and an ascent finds those that are missing."""
_PATCH_LENGTH = 0.3
"""Steps of multipliers on patches, many of which move together, are this much shorter."""
_FIRST_DECAY, _SECOND_DECAY = 0.8, 0.95
_LEAST_SHARE = 0.04
"""Share of the newest minimiser in the running averages, once there are 25 of them."""


@dataclass(eq=False)
class AscentState:
    """Where the ascent stands: ``best`` [R] float bound, its ``slopes`` and ``tau`` [R, T], and
    what ``best`` was ``halfway``; averages of the minimisers.

    ``mean_input``: [R, N_0]; ``mean_argument``/``mean_value``/``outer``: [R, N] by staircase.
    """

    best: Reals
    slopes: Slopes
    tau: Reals
    halfway: Reals
    mean_input: Reals = field(default_factory=lambda: np.zeros(0))
    mean_argument: dict[int, Reals] = field(default_factory=dict)
    mean_value: dict[int, Reals] = field(default_factory=dict)
    outer: dict[int, Reals] = field(default_factory=dict)

    def keep_better(self, value: Reals, slopes: Slopes, tau: Reals) -> Numbers:
        """Remember the rows whose bound ``value`` [R] is their best so far; which those are [R]."""
        better = value > self.best
        self.best = np.where(better, value, self.best)
        for n in slopes:
            self.slopes[n][better] = slopes[n][better]
        self.tau[better] = tau[better]
        return better

    def rows(self, rows: Numbers) -> AscentState:
        """A copy of some rows."""
        dicts = (self.mean_argument, self.mean_value, self.outer)
        return AscentState(
            self.best[rows],
            {n: s[rows] for n, s in self.slopes.items()},
            self.tau[rows],
            self.halfway[rows],
            self.mean_input[rows],
            *({n: a[rows] for n, a in values.items()} for values in dicts),
        )

    def put(self, rows: Numbers, part: AscentState) -> None:
        """Enter ``part`` at ``rows``, in place."""
        self.best[rows], self.tau[rows], self.mean_input[rows] = (
            part.best,
            part.tau,
            part.mean_input,
        )
        for name in ("slopes", "mean_argument", "mean_value", "outer"):
            whole = getattr(self, name)
            for n, values in getattr(part, name).items():
                whole[n][rows] = values

    def average(self, point: RelaxedPoint, share: float) -> None:
        """Let ``point`` count with ``share`` in the averages; the whole share begins them."""
        if share == 1.0:
            self.mean_input = point.chosen[0].copy()
            self.mean_argument = {n: a.copy() for n, a in point.argument.items()}
            self.mean_value = {n: point.chosen[n].copy() for n in point.argument}
            self.outer = {n: point.shown[n].copy() for n in point.argument}
            return
        self.mean_input += share * (point.chosen[0] - self.mean_input)
        for n in point.argument:
            self.mean_argument[n] += share * (point.argument[n] - self.mean_argument[n])
            self.mean_value[n] += share * (point.chosen[n] - self.mean_value[n])
            self.outer[n] += share * (point.shown[n] - self.outer[n])


def ascend_slopes(
    relaxation: StaircaseRelaxation,
    slopes: Slopes | None,
    tau: Reals | None,
    steps: int,
    length: float | Reals,
    is_late: Callable[[int], bool],
    goal: Reals | None = None,
) -> AscentState:
    """``steps`` Adam steps from ``slopes`` (chords if ``None``), until ``is_late`` says so after a
    step, or every row's bound is above ``goal`` [R]; rows that are there are left behind."""
    used = relaxation.objective.used
    tau = used / np.maximum(used.sum(axis=1, keepdims=True), 1) if tau is None else tau
    if slopes is None:
        slopes = relaxation.chord_slopes(tau)
    slopes = {
        n: s.astype(np.float32 if n < 0 else np.float64)
        for n, s in slopes.items()
        if n in relaxation.multipliers()
    }
    never = np.full(len(used), -np.inf)
    state = AscentState(never, {n: s.copy() for n, s in slopes.items()}, tau.copy(), never.copy())
    goal = np.full(len(used), np.inf) if goal is None else goal
    rows = np.arange(len(used))
    climb = _Climb(relaxation, slopes, tau.astype(np.float64), state, length)
    for step in range(steps):
        point = climb.evaluate(step)
        if step == 0 and relaxation.blocks:
            goal = goal + _OVERSHOOT * np.maximum(-state.best, 0.0)
        is_done = climb.state.best > goal[rows]
        if step == steps // 2:
            state.halfway[rows] = climb.state.best
        if is_late(step) or step + 1 == steps or is_done.all():
            break
        climb.step(point, step, steps)
        if step % _PATIENCE == _PATIENCE - 1 and is_done.mean() > _DONE:
            if climb.state is not state:
                state.put(rows, climb.state)
            climb, rows = climb.narrowed(~is_done), rows[~is_done]
    if climb.state is not state:
        state.put(rows, climb.state)
    return state


class _Climb:
    """The rows that are still on their way: where they stand, and with what momentum."""

    def __init__(
        self,
        relaxation: StaircaseRelaxation,
        slopes: Slopes,
        tau: Reals,
        state: AscentState,
        length: float | Reals,
    ) -> None:
        self.relaxation, self.slopes, self.tau, self.state = relaxation, slopes, tau, state
        self.moments = _Moments.at(slopes)
        self.lengths, self.improved = np.zeros(len(tau)) + length, np.zeros(len(tau), dtype=bool)
        self.several = bool((relaxation.objective.used.sum(axis=1) > 1).any())

    def narrowed(self, rows: Numbers) -> _Climb:
        """The rows [R] that are true, from where they are."""
        slopes = {n: s[rows] for n, s in self.slopes.items()}
        relaxation = self.relaxation.narrowed(np.nonzero(rows)[0])
        climb = _Climb(
            relaxation, slopes, self.tau[rows], self.state.rows(rows), self.lengths[rows]
        )
        climb.moments = self.moments.rows(rows)
        return climb

    def evaluate(self, step: int) -> RelaxedPoint:
        point = self.relaxation.evaluate(self.tau, self.slopes)
        self.improved |= self.state.keep_better(point.value, self.slopes, self.tau)
        self.state.average(point, max(1.0 / (step + 1), _LEAST_SHARE))
        return point

    def step(self, point: RelaxedPoint, step: int, steps: int) -> None:
        """Step number ``step`` of ``steps``, from ``point``."""
        relaxation, slopes = self.relaxation, self.slopes
        images = relaxation.images(point.chosen)
        if step % _PATIENCE == _PATIENCE - 1:
            _step_back(self.state, slopes, self.moments, ~self.improved)
            self.lengths = np.where(self.improved, self.lengths, _CUT * self.lengths)
            self.improved[:] = False
        rate = self.lengths * _FINAL_LENGTH ** (step / steps)
        _adam_step(relaxation, point, images, slopes, self.moments, rate, step + 1)
        if relaxation.pinned is not None:
            node = relaxation.pinned.node
            slopes[node] = relaxation.pinned.project(slopes[node])
        if self.several:
            output = images[relaxation.objective.node]
            assert output is not None
            self.tau = _simplex_step(relaxation, output, self.tau, rate)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Adam's decaying means of the subgradient and of its square, shaped like the slopes."""

    first: dict[int, Numbers]
    second: dict[int, Numbers]

    @classmethod
    def at(cls, slopes: Slopes) -> _Moments:
        return cls(*({n: np.zeros_like(s) for n, s in slopes.items()} for _ in range(2)))

    def rows(self, rows: Numbers) -> _Moments:
        return _Moments(*({n: s[rows] for n, s in m.items()} for m in (self.first, self.second)))


def _step_back(state: AscentState, slopes: Slopes, moments: _Moments, rows: Numbers) -> None:
    """Rows that have not improved for a while go on from their best slopes, without momentum."""
    for n in slopes:
        slopes[n] = np.where(_columns(rows, slopes[n]), state.slopes[n], slopes[n])
        moments.first[n] = np.where(_columns(rows, slopes[n]), 0.0, moments.first[n])


def _columns(values: Numbers, like: Numbers) -> Numbers:
    """[R] -> [R, 1, ...] for broadcasting against ``like``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _adam_step(
    relaxation: StaircaseRelaxation,
    point: RelaxedPoint,
    images: list[Numbers | None],
    slopes: Slopes,
    moments: _Moments,
    rate: Reals,
    count: int,
) -> None:
    """Step number ``count``, in place, each slope in its own unit."""
    for n in slopes:
        # patches have many elements: theirs are float32, and stay so
        unit, gradient = (
            a.astype(slopes[n].dtype, copy=False)
            for a in _unit_and_gradient(relaxation, point, images, n)
        )
        first = _FIRST_DECAY * moments.first[n] + (1 - _FIRST_DECAY) * gradient
        second = _SECOND_DECAY * moments.second[n] + (1 - _SECOND_DECAY) * gradient * gradient
        moments.first[n], moments.second[n] = first, second
        # the means began at 0: dividing by the weight they have gathered takes that bias out
        mean = first / (1 - _FIRST_DECAY**count)
        spread = np.sqrt(second / (1 - _SECOND_DECAY**count))
        step = _columns(rate, unit).astype(unit.dtype) * unit
        slopes[n] = slopes[n] + step * mean / (spread + TINIEST)


def _unit_and_gradient(
    relaxation: StaircaseRelaxation, point: RelaxedPoint, images: list[Numbers | None], n: int
) -> tuple[Numbers, Numbers]:
    """The unit of the slopes of node ``n``, ``(|mu| + mean |mu|) / 2 * rise / width`` (about what
    the chord would be), and the subgradient in that unit's direction."""
    if n < 0:
        return _joint_unit_and_gradient(relaxation, point, images, -n)
    is_pool = n in relaxation.window
    source = relaxation.program.pools[n][0] if is_pool else relaxation.program.stairs[n].source
    image = images[source]
    assert image is not None
    outer = np.abs(point.outer[n])
    count = np.maximum((outer > 0).sum(axis=1, keepdims=True), 1)
    unit = np.where(outer > 0, 0.5 * outer + 0.5 * outer.sum(axis=1, keepdims=True) / count, 0.0)
    if is_pool:
        index = relaxation.program.pools[n][1]
        gradient = np.where(index >= 0, gather_windows(image, index) - point.argument[n], 0.0)
        if n in relaxation.blocks:
            windows = relaxation.blocks[n]
            row, place = np.nonzero(windows.latest[0].is_joint.T)
            gradient[row, windows.blocks.windows[place]] = 0.0
        return np.broadcast_to(unit[..., None], gradient.shape), gradient
    gradient = (image - point.argument[n]) / relaxation.width[n]
    unit = unit * np.maximum(relaxation.chord[n], 1.0 / relaxation.width[n])
    pinned = relaxation.pinned
    if pinned is not None and pinned.node == n:
        unit = np.where(pinned.rows[:, None], pinned.unit, unit)
    return unit, gradient


def _joint_unit_and_gradient(
    relaxation: StaircaseRelaxation, point: RelaxedPoint, images: list[Numbers | None], n: int
) -> tuple[Numbers, Numbers]:
    """The same for the ``gamma`` of pool ``n``; its blocks say which patches they have chosen."""
    joint = relaxation.joint[n]
    image, outer = images[joint.node], np.abs(point.outer[n])
    gradient = np.zeros((*outer.shape, joint.patch.shape[1]), dtype=np.float32)
    if n not in relaxation.blocks or image is None:
        return gradient, gradient
    corners = relaxation.blocks[n]
    windows, latest = corners.blocks.windows, corners.latest[0]
    count = np.maximum((outer > 0).sum(axis=1, keepdims=True), 1)
    unit = np.where(outer > 0, 0.5 * outer + 0.5 * outer.sum(axis=1, keepdims=True) / count, 0.0)
    chord = np.where(joint.index >= 0, joint.members(relaxation.chord[joint.stairs]), 0.0)
    unit = _PATCH_LENGTH * unit * chord.max(axis=2)
    away = image.astype(np.float32)[:, joint.patch[windows]] - latest.patch.transpose(1, 0, 2)
    gradient[:, windows] = np.where(latest.is_joint.T[..., None], away, np.float32(0))
    return unit.astype(np.float32)[..., None] * joint.heaviest, gradient


def _simplex_step(
    relaxation: StaircaseRelaxation, output: Numbers, tau: Reals, rate: Reals
) -> Reals:
    """Multiplicative step of the constraint multipliers towards the constraints that the minimiser
    breaks; the result is again >= 0 with sum 1."""
    used = relaxation.objective.used
    broken = np.where(
        used, np.einsum("rtn,rn->rt", relaxation.matrix, output) - relaxation.limit, 0.0
    )
    scale = np.abs(broken).max(axis=1, keepdims=True) + TINIEST
    # a constraint that fell to 0 would stay there: every used one keeps a little
    fresh = tau * np.exp(rate[:, None] * broken / scale) + 1e-4 * used
    return np.asarray(fresh * used / np.maximum((fresh * used).sum(axis=1, keepdims=True), TINIEST))
