"""Building an integer network node by node, with the exact range of every element over the whole
input range.

Ranges are interval arithmetic in integers: a matrix is split into its positive and negative part. A
first look in float64 refuses accumulators beyond 62 bits before any integer could wrap. Ranges say
over which accumulators a staircase has to be compiled, and that 32-bit accumulators of a runtime
cannot overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bitcrown.quant.network.graph import (
    WIDTH_LIMIT,
    Conv,
    Dense,
    Gather,
    Input,
    IntegerNode,
    Ints,
    MaxPool,
    QuantError,
    Stairs,
    WeightedSum,
    forward,
    sources_of,
    steps,
)
from bitcrown.quant.network.thresholds import StepFunction, bisected_rows

_LARGEST_NODE = 1 << 26
_MOST_COMPARED = 1 << 22


@dataclass
class Assembly:
    """Nodes so far; ``low``/``high``: [N] of each node."""

    nodes: list[IntegerNode] = field(default_factory=list)
    low: list[Ints] = field(default_factory=list)
    high: list[Ints] = field(default_factory=list)

    def add(self, node: IntegerNode) -> int:
        low, high = node_range(node, self.low, self.high)
        if low.size > _LARGEST_NODE:
            raise QuantError(f"a tensor of {low.size} elements is more than {_LARGEST_NODE}")
        self.nodes.append(node)
        self.low.append(low)
        self.high.append(high)
        return len(self.nodes) - 1

    def gather(self, sources: tuple[int, ...], index: Ints, shape: tuple[int, ...]) -> int:
        """Rearranged elements; the source itself where nothing moves."""
        size = sum(len(self.low[source]) for source in sources)
        if len(sources) == 1 and len(index) == size and bool((index == np.arange(size)).all()):
            return sources[0]
        return self.add(Gather(shape, sources, index))

    def negated(self, source: int, mask: Ints) -> int:
        """The source with the elements of ``mask`` ([N], 0 or 1) times -1."""
        node = self.nodes[source]
        sign = 1 - 2 * mask
        if isinstance(node, Dense):
            return self.add(
                replace(node, weight=node.weight * sign[:, None], bias=node.bias * sign)
            )
        if isinstance(node, Conv):
            by_channel = sign.reshape(len(node.weight), -1)
            if (by_channel == by_channel[:, :1]).all():
                flip = by_channel[:, 0]
                return self.add(
                    replace(
                        node, weight=node.weight * flip[:, None, None, None], bias=node.bias * flip
                    )
                )
        opposite = self.add(WeightedSum(node.shape, (source,), (-1,), np.zeros(1, dtype=np.int64)))
        if mask.all():
            return opposite
        index = np.arange(len(mask), dtype=np.int64) + len(mask) * mask
        return self.add(Gather(node.shape, (source, opposite), index))

    def staircase(self, source: int, channels: int, levels: StepFunction, note: str) -> int:
        """The step that ``levels`` is; per channel falling ones act on the negated accumulator. [C,
        K] -> [C, K].

        A step after a step becomes one step of the accumulator.
        """
        inner = self.nodes[source]
        if (
            isinstance(inner, Stairs)
            and max(channels, len(inner.base)) % min(channels, len(inner.base)) == 0
        ):
            channels, levels = _composed(inner, channels, levels)
            source = inner.source
        low = self.low[source].reshape(channels, -1).min(axis=1)
        high = self.high[source].reshape(channels, -1).max(axis=1)
        # a step that falls is one that rises in the negated accumulator
        falls = levels(low[:, None])[0][:, 0] > levels(high[:, None])[0][:, 0]
        falls |= levels(low[:, None])[1][:, 0] > levels(high[:, None])[1][:, 0]
        sign = np.where(falls, -1, 1).astype(np.int64)[:, None]
        if falls.any():
            source = self.negated(
                source, np.repeat(falls.astype(np.int64), len(self.low[source]) // channels)
            )
            low, high = np.where(falls, -high, low), np.where(falls, -low, high)
        base, early, late = bisected_rows(lambda a: levels(a * sign), low, high)
        return self.add(Stairs(self.nodes[source].shape, source, base, early, late, note))

    def is_identity(self, source: int, channels: int, levels: StepFunction) -> bool:
        """Whether ``levels`` changes no value that the source can have."""
        low, high = int(self.low[source].min()), int(self.high[source].max())
        if (high - low + 1) * channels > _MOST_COMPARED:
            return False
        q = np.broadcast_to(np.arange(low, high + 1, dtype=np.int64), (channels, high - low + 1))
        return all(bool((end == q).all()) for end in levels(q))

    def table(self, source: int, first: int, values: Ints, note: str) -> int:
        """The nondecreasing function that maps ``first + k`` to ``values[k]`` ([K]) in every
        element."""

        def levels(a: Ints) -> tuple[Ints, Ints]:
            found = values[np.clip(a - first, 0, len(values) - 1)]
            return found, found

        return self.staircase(source, 1, levels, note)

    def finished(self, output: int) -> tuple[tuple[IntegerNode, ...], dict[int, int]]:
        """What the output needs, renumbered, and the new number of each old one."""
        needed, open_ = {0}, [output]
        while open_:
            number = open_.pop()
            if number not in needed:
                needed.add(number)
                open_ += sources_of(self.nodes[number])
        number_of = {old: new for new, old in enumerate(sorted(needed))}
        return tuple(_renumbered(self.nodes[old], number_of) for old in sorted(needed)), number_of


def _composed(inner: Stairs, channels: int, levels: StepFunction) -> tuple[int, StepFunction]:
    """Channels and levels of "``inner``, then ``levels``" as a function of the accumulator of
    ``inner``."""
    count = max(channels, len(inner.base))
    own = count // len(inner.base)

    def both(a: Ints) -> tuple[Ints, Ints]:
        # least of the least and greatest of the greatest over both ends of the inner step: holds
        # whether ``levels`` rises or falls
        ends = []
        for rows in (inner.late,) if inner.early is inner.late else (inner.late, inner.early):
            middle = np.stack(
                [
                    inner.base[c // own] + np.searchsorted(rows[c // own], a[c], side="right")
                    for c in range(count)
                ]
            )
            # a channel of ``levels`` may serve several of ``inner``: they become columns of one
            # evaluation
            least, greatest = levels(middle.reshape(channels, -1))
            first = least.reshape(middle.shape)
            ends.append((first, first if greatest is least else greatest.reshape(middle.shape)))
        if len(ends) == 1:
            return ends[0]
        return np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])

    return count, both


def _renumbered(node: IntegerNode, number_of: dict[int, int]) -> IntegerNode:
    if isinstance(node, Input):
        return node
    if isinstance(node, WeightedSum | Gather):
        return replace(node, sources=tuple(number_of[source] for source in node.sources))
    return replace(node, source=number_of[node.source])


def _check_width(node: Dense | Conv | WeightedSum, low: list[Ints], high: list[Ints]) -> None:
    """In float64, relative error far below the factor 2 that WIDTH_LIMIT leaves to int64."""
    if isinstance(node, WeightedSum):
        widest = sum(
            abs(f) * max(abs(int(low[s].min())), abs(int(high[s].max())))
            for f, s in zip(node.factors, node.sources, strict=True)
        )
        total = float(widest + np.abs(node.bias).max(initial=0))
    else:
        reach = max(abs(int(low[node.source].min())), abs(int(high[node.source].max())))
        pad = abs(node.pad_value) if isinstance(node, Conv) else 0
        rows = np.abs(node.weight.reshape(len(node.weight), -1).astype(np.float64)).sum(axis=1)
        total = float(
            (rows * max(reach, pad) + np.abs(node.bias.astype(np.float64))).max(initial=0)
        )
    if total >= WIDTH_LIMIT / 2:
        raise QuantError(
            "an accumulator could need more than 62 bits; the weights are too fine for integers"
        )


def node_range(node: IntegerNode, low: list[Ints], high: list[Ints]) -> tuple[Ints, Ints]:
    """[N] least and greatest value of each element, given those of all earlier nodes."""
    if isinstance(node, Input):
        return node.low, node.high
    if isinstance(node, Dense | Conv | WeightedSum):
        _check_width(node, low, high)
    if isinstance(node, WeightedSum):
        ends = [
            (f * low[s], f * high[s]) if f >= 0 else (f * high[s], f * low[s])
            for f, s in zip(node.factors, node.sources, strict=True)
        ]
        return np.sum([e[0] for e in ends], axis=0) + node.bias, np.sum(
            [e[1] for e in ends], axis=0
        ) + node.bias
    if isinstance(node, Dense | Conv) and (low[node.source] == high[node.source]).all():
        value = _one(node, low)
        return value, value
    if isinstance(node, Dense | Conv):
        parts = (
            replace(node, weight=np.maximum(node.weight, 0)),
            replace(node, weight=np.minimum(node.weight, 0), bias=np.zeros_like(node.bias)),
        )
        return tuple(  # type: ignore[return-value]
            _one(parts[0], first) + _one(parts[1], second)
            for first, second in ((low, high), (high, low))
        )
    if isinstance(node, Stairs):
        return (
            steps(node, low[node.source][None], node.late)[0],
            steps(node, high[node.source][None], node.early)[0],
        )
    return _one(node, low), _one(node, high)


def _one(node: Dense | Conv | MaxPool | Gather, values: list[Ints]) -> Ints:
    wrapped: Any = {source: values[source][None] for source in sources_of(node)}
    value: Ints = forward(node, wrapped, np.empty((1, 0), dtype=np.int64))[0]
    return value
