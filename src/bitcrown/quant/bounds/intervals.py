"""Integer intervals of every node, for many subproblems at once, and what they imply for each
other.

Three rules, each exact or outward: an affine step's interval follows from its sources' by the signs
of its weights; a staircase maps an interval to an interval, and back (``S(a) >= v`` iff
``a >= threshold[v]``); a constraint ``sum c_i o_i <= b`` leaves to one term what the smallest
values of the others leave over. One ``propagate`` is the forward rule in topological order, the
constraints once, and the backward rules in reverse order; the certificate checker repeats exactly
these. Legend: ``R`` rows (subproblems), ``N`` elements, ``K`` thresholds, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.joint_windows import JointPool
from bitcrown.quant.network.graph import (
    WIDTH_LIMIT,
    Conv,
    Dense,
    Gather,
    Input,
    IntegerNetwork,
    Ints,
    MaxPool,
    QuantError,
    Stairs,
    WeightedSum,
    forward,
    sources_of,
)
from bitcrown.quant.network.linear_steps import LinearStep, largest, window_index
from bitcrown.quant.query import ConstraintCase

_MAGNITUDE_LIMIT = float(2**61)


@dataclass(frozen=True, eq=False)
class StairTable:
    """A staircase ready for lookups: late and early thresholds [C, K]; ``channel``: [N], ascending;
    ``base``: [N].

    Thresholds beyond 62 bits are clipped: never, or always, passed.
    """

    source: int
    channel: Ints
    base: Ints
    late: Ints
    early: Ints
    is_exact: bool

    @classmethod
    def of(cls, node: Stairs) -> StairTable:
        size, channels = int(np.prod(node.shape)), len(node.base)
        channel = np.arange(size, dtype=np.int64) * channels // max(size, 1)
        late = np.clip(node.late, -WIDTH_LIMIT, WIDTH_LIMIT)
        early = late if node.is_exact() else np.clip(node.early, -WIDTH_LIMIT, WIDTH_LIMIT)
        return cls(node.source, channel, node.base[channel], late, early, node.is_exact())

    def sides(self) -> tuple[Ints, ...]:
        """The different threshold rows: one for an exact staircase, (late, early) otherwise."""
        return (self.late,) if self.is_exact else (self.late, self.early)

    def level(self, thresholds: Ints, argument: Ints) -> Ints:
        """``#{k : argument >= thresholds[c, k]}``; argument: [R, N] -> [R, N]."""
        out = np.empty(argument.shape, dtype=np.int64)
        starts = np.searchsorted(self.channel, np.arange(len(thresholds) + 1))
        for row, start, end in zip(thresholds, starts[:-1], starts[1:], strict=True):
            out[:, start:end] = np.searchsorted(row, argument[:, start:end], side="right")
        return out

    def image(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Interval of the output, given that of the source; [R, N] each."""
        return self.base + self.level(self.late, low), self.base + self.level(self.early, high)

    def preimage(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Interval of the source that an output interval leaves (+-WIDTH_LIMIT where it says
        nothing)."""
        # with m steps to be passed: output >= base + m possible only if argument >= early[m - 1];
        # output <= base + m possible only if argument < late[m]
        steps = self.late.shape[1]
        least, most = low - self.base, high - self.base
        lower = np.full(low.shape, -WIDTH_LIMIT, dtype=np.int64)
        upper = np.full(low.shape, WIDTH_LIMIT, dtype=np.int64)
        if steps:
            channel = np.broadcast_to(self.channel, low.shape)
            needed = self.early[channel, np.clip(least - 1, 0, steps - 1)]
            lower = np.where(least > 0, needed, lower)
            first_above = self.late[channel, np.clip(most, 0, steps - 1)] - 1
            upper = np.where(most < steps, first_above, upper)
        # more steps than there are, or fewer than none: the empty interval
        lower = np.where(least > steps, WIDTH_LIMIT + 1, lower)
        upper = np.where(most < 0, -WIDTH_LIMIT - 1, upper)
        return lower, upper


@dataclass(eq=False)
class Intervals:
    """``low[n]``/``high[n]``: [R, N_n] for every node; ``dirty``: nodes whose interval changed
    since ``propagate``."""

    low: list[Ints]
    high: list[Ints]
    dirty: set[int]

    def __len__(self) -> int:
        return len(self.low[0])

    def rows(self, index: Ints | list[int]) -> Intervals:
        """A copy of some rows."""
        return Intervals(
            [a[index] for a in self.low], [a[index] for a in self.high], set(self.dirty)
        )

    def intersect(self, node: int, low: Ints, high: Ints) -> bool:
        """Tighten one node; whether anything changed."""
        if not ((low > self.low[node]).any() or (high < self.high[node]).any()):
            return False
        self.low[node] = np.maximum(self.low[node], low)
        self.high[node] = np.minimum(self.high[node], high)
        self.dirty.add(node)
        return True

    def is_empty(self) -> np.ndarray:
        """[R]: rows in which some interval is empty (nothing is left to decide there)."""
        empty = np.zeros(len(self), dtype=bool)
        for low, high in zip(self.low, self.high, strict=True):
            empty |= (low > high).any(axis=1)
        return empty


def joined(parts: Iterable[Intervals]) -> Intervals:
    """Rows of several ``Intervals``, one after the other."""
    parts = list(parts)
    nodes = range(len(parts[0].low))
    dirty: set[int] = set().union(*(part.dirty for part in parts))
    return Intervals(
        [np.concatenate([p.low[n] for p in parts]) for n in nodes],
        [np.concatenate([p.high[n] for p in parts]) for n in nodes],
        dirty,
    )


class Program:
    """An integer network compiled for proofs: linear steps, staircase tables and pooling windows by
    node number."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.nodes = network.nodes
        self.output = network.output
        self.sizes = [int(np.prod(node.shape)) for node in network.nodes]
        self.sources = [sources_of(node) for node in network.nodes]
        self.affine: dict[int, LinearStep] = {}
        self.stairs: dict[int, StairTable] = {}
        self.pools: dict[int, tuple[int, Ints]] = {}
        for number, node in enumerate(network.nodes):
            if isinstance(node, Dense | Conv | WeightedSum | Gather):
                self.affine[number] = LinearStep(node, self.sizes)
            elif isinstance(node, Stairs):
                self.stairs[number] = StairTable.of(node)
            elif isinstance(node, MaxPool):
                self.pools[number] = (node.source, window_index(node))
        pools = {number: JointPool.of(self, number) for number in self.pools}
        self.joint = {number: pool for number, pool in pools.items() if pool is not None}
        self.readers: dict[int, list[int]] = {n: [] for n in range(len(self.nodes))}
        for number, table in self.stairs.items():
            self.readers[table.source].append(number)

    def root(self, low: Ints, high: Ints) -> Intervals:
        """One row: the box [N] at the input and what follows from it by the forward rule."""
        node = self.nodes[0]
        assert isinstance(node, Input)
        bounds = self._unknown(np.maximum(low, node.low)[None], np.minimum(high, node.high)[None])
        if not bounds.is_empty().any():
            self._forward(bounds)
            if max(largest(end) for end in (*bounds.low, *bounds.high)) > _MAGNITUDE_LIMIT:
                raise QuantError(
                    "an accumulator of the network could leave 61 bits; such widths are not "
                    "supported"
                )
        return bounds

    def images(self, points: Ints) -> Intervals:
        """Intervals of every node at single inputs [B, N] (of length 0 where the arithmetic is
        pinned down)."""
        bounds = self._unknown(points, points)
        self._forward(bounds)
        return bounds

    def _unknown(self, low: Ints, high: Ints) -> Intervals:
        """The box [R, N] at the input, and nothing known about any other node."""
        wide = [np.full((len(low), size), WIDTH_LIMIT, dtype=np.int64) for size in self.sizes[1:]]
        return Intervals([low.copy(), *(-end for end in wide)], [high.copy(), *wide], {0})

    def values(self, points: Ints) -> list[Ints]:
        """Value [B, N_node] of every node, like ``network.values`` but with the fast exact
        products."""
        out: list[Ints] = []
        for number, node in enumerate(self.nodes):
            step = self.affine.get(number)
            out.append(
                forward(node, out, points)
                if step is None
                else step.forward([out[s] for s in step.sources])
            )
        return out

    def propagate(self, bounds: Intervals, cases: list[ConstraintCase]) -> None:
        """Forward rule, constraints (``cases[r]`` of row r), backward rules; in place."""
        assert len(cases) == len(bounds), "one case a row"
        empty = bounds.is_empty()
        if empty.all():
            return
        self._forward(bounds)
        self._constrain(bounds, cases)
        self._backward(bounds)

    def _forward(self, bounds: Intervals) -> None:
        for number, node in enumerate(self.nodes):
            if isinstance(node, Input):
                continue
            sources = self.sources[number]
            if bounds.dirty.isdisjoint(sources):
                continue
            low, high = [bounds.low[s] for s in sources], [bounds.high[s] for s in sources]
            if number in self.affine:
                lower, upper = self.affine[number].interval(low, high)
            elif number in self.stairs:
                lower, upper = self.stairs[number].image(low[0], high[0])
            else:
                index = self.pools[number][1]
                lower, upper = _window_tops(low[0], index), _window_tops(high[0], index)
            bounds.intersect(number, lower, upper)
        bounds.dirty.clear()

    def _constrain(self, bounds: Intervals, cases: list[ConstraintCase]) -> None:
        low, high = bounds.low[self.output].copy(), bounds.high[self.output].copy()
        for row, case in enumerate(cases):
            for constraint in case:
                ends = [
                    c * int(low[row, i] if c > 0 else high[row, i]) for i, c in constraint.terms
                ]
                # c_i o_i <= b - sum of the least values of all other terms
                room = constraint.bound - sum(ends)
                for (i, c), end in zip(constraint.terms, ends, strict=True):
                    limit = (room + end) // c if c > 0 else -((room + end) // -c)
                    if c > 0:
                        high[row, i] = min(high[row, i], max(limit, -(2**62)))
                    else:
                        low[row, i] = max(low[row, i], min(limit, 2**62))
        bounds.intersect(self.output, low, high)

    def _backward(self, bounds: Intervals) -> None:
        for number in reversed(range(len(self.nodes))):
            if number not in bounds.dirty:
                continue
            node = self.nodes[number]
            if number in self.stairs:
                table = self.stairs[number]
                lower, upper = table.preimage(bounds.low[number], bounds.high[number])
                bounds.intersect(table.source, lower, upper)
            elif isinstance(node, Gather) and len(node.sources) == 1:
                source = node.sources[0]
                # several elements may show the same source: all their intervals hold for it
                lower, upper = bounds.low[source].copy(), bounds.high[source].copy()
                np.maximum.at(lower.T, node.index, bounds.low[number].T)
                np.minimum.at(upper.T, node.index, bounds.high[number].T)
                bounds.intersect(source, lower, upper)


def _window_tops(values: Ints, index: Ints) -> Ints:
    padded = np.concatenate([values, np.full((len(values), 1), -(2**62), dtype=np.int64)], axis=1)
    return np.asarray(padded[:, index].max(axis=2))


def box_points(low: Ints, high: Ints) -> Ints:
    """Every integer point of the box [N], row by row: [B, N]."""
    spans = (high - low + 1).tolist()
    total = int(np.prod(spans))
    # the number of a point is read as digits in the mixed base of the spans
    numbers = np.arange(total, dtype=np.int64)
    points = np.repeat(low[None], total, axis=0)
    for element in np.nonzero(high > low)[0]:
        numbers, digit = np.divmod(numbers, spans[element])
        points[:, element] += digit
    return points
