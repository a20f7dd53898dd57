"""The intervals that a proof about an integer network shrinks, and how they follow from each other.

Forward, every node maps the intervals of its sources; a case limits each term of its constraints by
what the others leave over; backward, staircases and gathers of one source map intervals back.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitcrown.check.certificates.integers.affine import Integers
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import StepNode
from bitcrown.check.certificates.integers.property import IntegerConstraint


class State:
    """``low[n][e]``/``high[n][e]``; lists are replaced, never changed, so that a copy is cheap.

    ``dirty``: nodes whose intervals have shrunk since the last pass forward.
    """

    def __init__(self, low: list[Integers], high: list[Integers], dirty: set[int]) -> None:
        self.low, self.high, self.dirty = low, high, dirty

    def copy(self) -> State:
        return State(list(self.low), list(self.high), set(self.dirty))

    def meet(self, node: int, low: Integers, high: Integers) -> None:
        old = self.low[node], self.high[node]
        new = (
            [max(a, b) for a, b in zip(old[0], low, strict=True)],
            [min(a, b) for a, b in zip(old[1], high, strict=True)],
        )
        if new != old:
            self.low[node], self.high[node] = new
            self.dirty.add(node)

    def narrow(self, node: int, element: int, low: int | None, high: int | None) -> None:
        """One interval cut at either end; ``None`` leaves an end as it is."""
        lows, highs = list(self.low[node]), list(self.high[node])
        lows[element] = lows[element] if low is None else max(lows[element], low)
        highs[element] = highs[element] if high is None else min(highs[element], high)
        self.low[node], self.high[node] = lows, highs
        self.dirty.add(node)

    def is_empty(self) -> bool:
        return any(
            a > b
            for lows, highs in zip(self.low, self.high, strict=True)
            for a, b in zip(lows, highs, strict=True)
        )

    def forward(self, net: IntegerCircuit) -> None:
        for number, step in net.compiled.items():
            if not self.dirty.isdisjoint(step.sources):
                self.meet(number, *step.image(self.low, self.high))
        self.dirty.clear()

    def constrain(self, net: IntegerCircuit, case: Sequence[IntegerConstraint]) -> None:
        """``c_i o_i <= bound - sum_(j != i) min c_j o_j`` for every term of every constraint."""
        low, high = list(self.low[net.output]), list(self.high[net.output])
        for terms, bound in case:
            ends = {i: c * (low[i] if c > 0 else high[i]) for i, c in terms.items()}
            room = bound - sum(ends.values())
            for i, c in terms.items():
                if c > 0:
                    high[i] = min(high[i], (room + ends[i]) // c)
                elif c < 0:
                    low[i] = max(low[i], -((room + ends[i]) // -c))
        self.meet(net.output, low, high)

    def backward(self, net: IntegerCircuit) -> None:
        for number, step in reversed(net.compiled.items()):
            node = net.nodes[number]
            if number not in self.dirty:
                continue
            if isinstance(step, StepNode):
                source = step.source
                ends = self.low[number], self.high[number], self.low[source], self.high[source]
                self.meet(source, *step.preimage(*ends))
            elif node["op"] == "gather" and len(node["sources"]) == 1:
                source = node["sources"][0]
                low, high = list(self.low[source]), list(self.high[source])
                for i, e in enumerate(node["index"]):
                    low[e] = max(low[e], self.low[number][i])
                    high[e] = min(high[e], self.high[number][i])
                self.meet(source, low, high)
