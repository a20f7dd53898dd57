"""A question about an integer network as one bit-vector formula: satisfiable exactly when the
property is violated.

The question: is there an integer x with ``low <= x <= high`` such that some case holds, a case
being a conjunction of rows ``sum_m c_m o_m <= b`` over the output integers o? Three ways of writing
it (``Style``):

* ``baseline``: two's complement, widths for every input the format allows, every product a
  multiplier (TACAS 2020);
* ``published``: the same with dead branches, minimal widths and shared products from the box (AAAI
  2021);
* ``improved``: unsigned offsets of just enough bits (``offset_bits``); neurons that the box fixes
  become constants, staircases keep the steps they can reach; a row of the property that intervals
  decide vanishes with everything only it needs; ``c o <= b`` of one neuron is a threshold on its
  accumulator, without the staircase; outputs that are affine are combined into one accumulator, so
  that what they share cancels.

All three are exact for networks whose rounding is pinned down, and they share no arithmetic: two of
them disagreeing is a bug. Where a staircase has two threshold rows the neuron is a free variable
between the two staircases; the formula then covers every network that the file may mean, ``unsat``
is a proof for all of them, and a model is a candidate.

Elements are encoded in topological order, those the property needs and no others; nothing recurses
over the depth of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.network.affine_rows import (
    AffineRow,
    AffineRows,
    Leaf,
    RowRanges,
    channel_of,
)
from bitcrown.quant.network.graph import Input, IntegerNetwork, Ints, MaxPool, QuantError, Stairs
from bitcrown.quant.smt.integer_bits import Accumulator, Arithmetic, Number, Parts, reachable_steps
from bitcrown.quant.smt.offset_bits import OffsetArithmetic
from bitcrown.quant.smt.property_rows import DenseCase, PropertyRows
from bitcrown.quant.smt.signed_bits import SignedArithmetic
from bitcrown.quant.smt.terms import BitvectorFormula, Coordinate, TermBuilder


class Style(StrEnum):
    """How a question is written down."""

    BASELINE = "baseline"
    PUBLISHED = "published"
    IMPROVED = "improved"


def encode(
    network: IntegerNetwork,
    low: Ints,
    high: Ints,
    cases: tuple[DenseCase, ...],
    style: Style | str = Style.IMPROVED,
    budget: Budget | None = None,
) -> BitvectorFormula:
    """The violation of a property on the box ``low <= x <= high`` ([N] each, within the input
    node's range).

    Raises QuantError for arguments that do not fit the network, BudgetExpired when ``budget`` ends
    first.
    """
    try:
        chosen = Style(style)
    except ValueError:
        known = ", ".join(Style)
        raise QuantError(
            f"there is no bit-vector encoding {style!r}; choose one of {known}"
        ) from None
    _check(network, low, high, cases)
    return _Encoder(network, low.tolist(), high.tolist(), chosen, budget).formula(cases)


def _check(network: IntegerNetwork, low: Ints, high: Ints, cases: tuple[DenseCase, ...]) -> None:
    entry = network.nodes[0]
    if not isinstance(entry, Input):
        raise QuantError("node 0 of an integer network must be its Input")
    if low.shape != entry.low.shape or high.shape != entry.low.shape:
        raise QuantError(
            f"the box has shapes {low.shape} and {high.shape}; the network takes {entry.low.shape}"
        )
    outside = np.flatnonzero((low < entry.low) | (high > entry.high) | (low > high))
    if len(outside):
        n = int(outside[0])
        raise QuantError(
            f"the box is empty or leaves the input format at element {n}: {low[n]} .. {high[n]} of "
            f"{entry.low[n]} .. {entry.high[n]}"
        )
    outputs = int(np.prod(network.nodes[network.output].shape, dtype=np.int64))
    for case in cases:
        for coefficients, _ in case:
            if len(coefficients) != outputs:
                raise QuantError(
                    f"a row has {len(coefficients)} coefficients; the network has {outputs} outputs"
                )


class _Encoder:
    """One encoding: rows and ranges of the network, the numbers made so far, and the assertions
    about them."""

    def __init__(
        self,
        network: IntegerNetwork,
        low: list[int],
        high: list[int],
        style: Style,
        budget: Budget | None,
    ) -> None:
        self._network = network
        self._style = style
        self._low, self._high = low, high
        self._budget = budget
        self._rows = AffineRows(network)
        entry = network.nodes[0]
        assert isinstance(entry, Input)
        whole = style is Style.BASELINE
        self._ranges = RowRanges(
            self._rows, entry.low.tolist() if whole else low, entry.high.tolist() if whole else high
        )
        self._build = TermBuilder()
        self._arithmetic: Arithmetic = (
            OffsetArithmetic(self._build)
            if style is Style.IMPROVED
            else SignedArithmetic(self._build, is_reduced=style is Style.PUBLISHED)
        )
        self._numbers: dict[Leaf, Number] = {}
        self._coordinates: list[Coordinate] = []
        self._assertions: list[int] = []

    def formula(self, cases: tuple[DenseCase, ...]) -> BitvectorFormula:
        rows = PropertyRows(self._network, self._rows, self._ranges, self._poll)
        if self._style is Style.BASELINE:
            bounded = [rows.plain(case) for case in cases]
        else:
            bounded = list(rows.left_open(cases, self._style is Style.IMPROVED))
        if self._style is Style.IMPROVED:
            roots = [row for case in bounded for row, _ in case]
        else:
            size = self._rows.sizes[self._network.output]
            roots = [self._rows.row(self._network.output, m) for m in range(size)]
        for leaf in self._needed(roots):
            self._poll()
            self._numbers[leaf] = self._number(*leaf)
        violated = self._build.disjunction(
            [
                self._build.conjunction([self._at_most(row, bound) for row, bound in case])
                for case in bounded
            ]
        )
        self._assertions.append(violated)
        return BitvectorFormula(
            terms=tuple(self._build.terms),
            assertions=tuple(self._assertions),
            coordinates=tuple(self._coordinates),
            fixed=tuple(self._low),
            style=str(self._style),
            is_exact=self._network.is_exact(),
        )

    def _poll(self) -> None:
        if self._budget is not None:
            self._budget.check()

    def _needed(self, roots: Iterable[AffineRow]) -> list[Leaf]:
        """Leaves under ``roots`` that are not constant over the box, in topological order."""
        found = self._reached(roots, keep_constant=True)
        for leaf in found:
            self._poll()
            self._ranges.of(*leaf)
        return self._reached(roots, keep_constant=False)

    def _reached(self, roots: Iterable[AffineRow], keep_constant: bool) -> list[Leaf]:
        seen: set[Leaf] = set()
        waiting = list(roots)
        while waiting:
            self._poll()
            for leaf, _ in waiting.pop().parts:
                if leaf in seen:
                    continue
                if not keep_constant:
                    least, greatest = self._ranges.of(*leaf)
                    if least == greatest:
                        continue
                seen.add(leaf)
                waiting.extend(self._below(*leaf))
        return sorted(seen)

    def _below(self, number: int, element: int) -> Sequence[AffineRow]:
        node = self._network.nodes[number]
        if isinstance(node, Stairs):
            return [self._rows.row(node.source, element)]
        if isinstance(node, MaxPool):
            return [self._rows.row(*source) for source in self._rows.window(node, element)]
        return []

    def _number(self, number: int, element: int) -> Number:
        node = self._network.nodes[number]
        if isinstance(node, Stairs):
            return self._staircase(number, node, element)
        if isinstance(node, MaxPool):
            return self._maximum(node, element)
        return self._input(element)

    def _input(self, element: int) -> Number:
        low, high = self._ranges.of(0, element)
        number, limits = self._arithmetic.variable(f"x{element}", low, high)
        self._assertions += limits
        assert number.term is not None
        is_signed = self._style is not Style.IMPROVED
        self._coordinates.append(Coordinate(element, number.term, number.origin, is_signed))
        if (low, high) != (self._low[element], self._high[element]):
            # the baseline sizes everything for the whole format; the box is said by comparisons
            self._assertions.append(self._arithmetic.at_most([(number, 1)], self._high[element]))
            self._assertions.append(self._arithmetic.at_most([(number, -1)], -self._low[element]))
        return number

    def _staircase(self, number: int, node: Stairs, element: int) -> Number:
        accumulator = self._accumulator(self._rows.row(node.source, element))
        channel = channel_of(node, element, self._rows.sizes[number])
        base = int(node.base[channel])
        late = self._stepped(accumulator, base, node.late[channel])
        if node.is_exact() or (node.early[channel] == node.late[channel]).all():
            return late
        early = self._stepped(accumulator, base, node.early[channel])
        free, limits = self._arithmetic.variable(f"r{number}_{element}", late.low, early.high)
        self._assertions += limits
        self._assertions.append(self._arithmetic.at_most([(late, 1), (free, -1)], 0))
        self._assertions.append(self._arithmetic.at_most([(free, 1), (early, -1)], 0))
        return free

    def _stepped(self, accumulator: Accumulator, base: int, thresholds: Ints) -> Number:
        steps = reachable_steps(base, thresholds, accumulator.low, accumulator.high)
        if not steps.at:
            return Number.of(steps.base)
        return self._arithmetic.staircase(accumulator, steps)

    def _maximum(self, node: MaxPool, element: int) -> Number:
        """The maximum of those in the window that can be the maximum."""
        window = self._rows.window(node, element)
        floor = max(self._ranges.of(*source)[0] for source in window)
        numbers = [self._value(source) for source in window if self._ranges.of(*source)[1] > floor]
        while len(numbers) > 1:
            paired = [self._larger(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=False)]
            numbers = paired + numbers[len(numbers) & ~1 :]
        return numbers[0] if numbers[0].low >= floor else self._larger(numbers[0], Number.of(floor))

    def _larger(self, a: Number, b: Number) -> Number:
        if a.low >= b.high:
            return a
        if b.low >= a.high:
            return b
        return self._arithmetic.larger(a, b)

    def _value(self, leaf: Leaf) -> Number:
        """The number of any element. Leaves that the property needs were made before, in
        topological order; an affine element (what a maximum looks at, say) is written down as a sum
        of them when it is first asked for."""
        known = self._numbers.get(leaf)
        if known is None:
            row = self._rows.row(*leaf)
            if row.is_leaf() and row.parts[0][0] != leaf:
                known = self._value(row.parts[0][0])
            else:
                least, greatest = self._ranges.of(*leaf)
                constant = least == greatest
                known = (
                    Number.of(least) if constant else self._arithmetic.total(self._accumulator(row))
                )
            self._numbers[leaf] = known
        return known

    def _accumulator(self, row: AffineRow) -> Accumulator:
        return Accumulator(self._parts(row), row.constant, *self._ranges.of_row(row))

    def _parts(self, row: AffineRow) -> Parts:
        return [(self._value(leaf), factor) for leaf, factor in row.parts]

    def _at_most(self, row: AffineRow, bound: int) -> int:
        return self._arithmetic.at_most(self._parts(row), bound - row.constant)
