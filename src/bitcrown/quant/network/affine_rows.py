"""What one accumulator is made of, and how far it can go: rows over leaves, and ranges over a box.

Dense, Conv, WeightedSum and Gather are affine, and so is any chain of them: every element is a
constant plus an integer combination of *leaves*, the elements of the Input, Stairs and MaxPool
nodes. ``AffineRows`` computes that combination for one element when it is asked for it; nothing is
done for elements that no one asks for. The range of a row over independent leaf ranges l_i <= q_i
<= h_i is the interval

    [const + sum_{c_i > 0} c_i l_i + sum_{c_i < 0} c_i h_i,  const + sum_{c_i > 0} c_i h_i +
    sum_{c_i < 0} c_i l_i],

which is exact when the leaves are inputs and an enclosure otherwise; a nondecreasing staircase maps
it by its ends. Python integers throughout: nothing here can overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

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
)

Leaf = tuple[int, int]
"""(node, element)."""


@dataclass(frozen=True, slots=True)
class AffineRow:
    """``constant + sum coefficient * leaf`` over distinct leaves, no zero coefficient."""

    parts: tuple[tuple[Leaf, int], ...]
    constant: int

    def is_leaf(self) -> bool:
        return self.constant == 0 and len(self.parts) == 1 and self.parts[0][1] == 1

    def negated(self) -> AffineRow:
        return AffineRow(tuple((leaf, -factor) for leaf, factor in self.parts), -self.constant)


class AffineRows:
    """The affine part of ``network``, one element at a time; answers are remembered."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.nodes = network.nodes
        self.sizes = [int(np.prod(node.shape, dtype=np.int64)) for node in network.nodes]
        self._rows: dict[Leaf, AffineRow] = {}
        self._starts: dict[int, Ints] = {}

    def row(self, node: int, element: int) -> AffineRow:
        """The row of one element of any node; a leaf's row is itself."""
        key = (node, element)
        known = self._rows.get(key)
        if known is None:
            known = self._rows[key] = self._make(node, element)
        return known

    def combined(self, row: AffineRow) -> AffineRow:
        """``row`` over elements of any nodes as a row over leaves."""
        return self._combine(
            [leaf for leaf, _ in row.parts], [factor for _, factor in row.parts], row.constant
        )

    def _make(self, number: int, element: int) -> AffineRow:
        node = self.nodes[number]
        if isinstance(node, Dense):
            weight = node.weight[element]
            used = np.flatnonzero(weight)
            sources = [(node.source, i) for i in used.tolist()]
            return self._combine(sources, weight[used].tolist(), int(node.bias[element]))
        if isinstance(node, Conv):
            return self._convolution(node, element)
        if isinstance(node, WeightedSum):
            bias = int(node.bias[element if len(node.bias) > 1 else 0])
            return self._combine(
                [(source, element) for source in node.sources], list(node.factors), bias
            )
        if isinstance(node, Gather):
            return self.row(*self._gathered(number, node, element))
        return AffineRow((((number, element), 1),), 0)

    def _combine(self, sources: list[Leaf], coefficients: list[int], constant: int) -> AffineRow:
        total: dict[Leaf, int] = {}
        for (node, element), coefficient in zip(sources, coefficients, strict=True):
            part = self.row(node, element)
            constant += coefficient * part.constant
            for leaf, factor in part.parts:
                total[leaf] = total.get(leaf, 0) + coefficient * factor
        return AffineRow(
            tuple((leaf, factor) for leaf, factor in total.items() if factor), constant
        )

    def _convolution(self, node: Conv, element: int) -> AffineRow:
        assert 0 <= element < np.prod(node.shape)
        channels, height, width = node.shape
        channel, y, x = np.unravel_index(element, (channels, height, width))
        kernel = node.weight[channel]
        per_group, rows, columns = kernel.shape
        first = int(channel) // (channels // node.groups) * per_group
        sources: list[Leaf] = []
        coefficients: list[int] = []
        constant = int(node.bias[channel])
        for c, i, j in product(range(per_group), range(rows), range(columns)):
            weight = int(kernel[c, i, j])
            if weight == 0:
                continue
            row = int(y) * node.strides[0] + i * node.dilations[0] - node.padding[0]
            column = int(x) * node.strides[1] + j * node.dilations[1] - node.padding[1]
            if 0 <= row < node.plane[0] and 0 <= column < node.plane[1]:
                sources.append(
                    (node.source, ((first + c) * node.plane[0] + row) * node.plane[1] + column)
                )
                coefficients.append(weight)
            else:
                constant += weight * node.pad_value
        return self._combine(sources, coefficients, constant)

    def _gathered(self, number: int, node: Gather, element: int) -> Leaf:
        starts = self._starts.get(number)
        if starts is None:
            starts = self._starts[number] = np.cumsum(
                [0] + [self.sizes[source] for source in node.sources]
            )
        position = int(node.index[element]) % int(starts[-1])
        which = int(np.searchsorted(starts, position, side="right")) - 1
        return node.sources[which], position - int(starts[which])

    def window(self, node: MaxPool, element: int) -> list[Leaf]:
        """The source elements over which one element of a MaxPool takes its maximum."""
        _, height, width = node.shape
        channel, y, x = (int(i) for i in np.unravel_index(element, (node.shape[0], height, width)))
        found: list[Leaf] = []
        for i, j in product(range(node.kernel[0]), range(node.kernel[1])):
            row = y * node.strides[0] + i - node.padding[0]
            column = x * node.strides[1] + j - node.padding[1]
            if 0 <= row < node.plane[0] and 0 <= column < node.plane[1]:
                found.append(
                    (node.source, (channel * node.plane[0] + row) * node.plane[1] + column)
                )
        if not found:
            raise QuantError(
                f"element {element} of a MaxPool sees padding only; its padding is wider than its "
                "kernel"
            )
        return found


def channel_of(node: Stairs, element: int, size: int) -> int:
    """The row of thresholds that belongs to one of ``size`` elements."""
    return element * len(node.base) // size


class RowRanges:
    """Enclosures of elements over the box ``low <= x <= high`` ([N] each); answers are
    remembered."""

    def __init__(self, rows: AffineRows, low: list[int], high: list[int]) -> None:
        self._rows = rows
        self._low = low
        self._high = high
        self._known: dict[Leaf, tuple[int, int]] = {}

    def of_row(self, row: AffineRow) -> tuple[int, int]:
        least = greatest = row.constant
        for leaf, coefficient in row.parts:
            low, high = self.of(*leaf)
            if coefficient < 0:
                low, high = high, low
            least += coefficient * low
            greatest += coefficient * high
        return least, greatest

    def without_constants(self, row: AffineRow) -> AffineRow:
        """The same row on the box, its constant leaves counted in the constant."""
        open_parts: list[tuple[Leaf, int]] = []
        constant = row.constant
        for leaf, coefficient in row.parts:
            low, high = self.of(*leaf)
            if low == high:
                constant += coefficient * low
            else:
                open_parts.append((leaf, coefficient))
        return AffineRow(tuple(open_parts), constant)

    def of(self, node: int, element: int) -> tuple[int, int]:
        key = (node, element)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(node, element)
        return known

    def _make(self, number: int, element: int) -> tuple[int, int]:
        node = self._rows.nodes[number]
        if isinstance(node, Input):
            return self._low[element], self._high[element]
        if isinstance(node, Stairs):
            least, greatest = self.of(node.source, element)
            channel = channel_of(node, element, self._rows.sizes[number])
            base = int(node.base[channel])
            return base + passed(node.late[channel], least), base + passed(
                node.early[channel], greatest
            )
        if isinstance(node, MaxPool):
            ends = [self.of(*leaf) for leaf in self._rows.window(node, element)]
            return max(low for low, _ in ends), max(high for _, high in ends)
        return self.of_row(self._rows.row(number, element))


def passed(thresholds: Ints, accumulator: int) -> int:
    """``#{k : accumulator >= thresholds[k]}``; thresholds: [K], nondecreasing.

    Accumulators stay within 62 bits by contract, so an enclosure that leaves them is cut:
    +-WIDTH_LIMIT keeps its meaning, never or always passed.
    """
    inside = np.int64(max(-WIDTH_LIMIT, min(WIDTH_LIMIT - 1, accumulator)))
    return int(np.searchsorted(thresholds, inside, side="right"))
