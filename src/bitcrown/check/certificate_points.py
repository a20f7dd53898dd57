"""Many inputs of an integer network at once, in numpy, and exactly.

int64 is used where it is proved to suffice: over the declared range of the input every partial sum of every row is
below 2^62 in size (``sum |w| max |v| + |b|``, in Python integers), and so is every level. Thresholds beyond that are
cut to it, which changes no comparison. Elsewhere the arrays hold Python integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitcrown.check.certificate_network import Affine, Network, Pool, Row, Stairs

Array = npt.NDArray[Any]
LIMIT = 1 << 62
MOST_CELLS = 1 << 22
"""Products held at once."""


class Points:
    """Evaluates ``network``; arrays are made once, so keep it for all points of a proof."""

    def __init__(self, network: Network) -> None:
        self.net = network
        self.dtype: Any = np.int64 if _fits(network) else object
        self.rows = {n: self._arrays(step) for n, step in enumerate(network.compiled) if isinstance(step, Affine)}

    def outputs(self, points: list[Row]) -> tuple[list[Row], list[Row]]:
        """Least and greatest outputs at ``points``, all of them in the declared range of the input."""
        size = max(1, MOST_CELLS // max(1, self.net.terms))
        low: list[Row] = []
        high: list[Row] = []
        for start in range(0, len(points), size):
            x = np.array(points[start : start + size], dtype=self.dtype)
            ends = self._run(x)
            low += ends[0].tolist()
            high += ends[1].tolist()
        return low, high

    def _run(self, x: Array) -> tuple[Array, Array]:
        low, high = [x], [x]
        for number, step in enumerate(self.net.compiled[1:], 1):
            if isinstance(step, Affine):
                ends = self._affine(number, low, high)
            elif isinstance(step, Stairs):
                ends = self._stairs(step, low[step.source], high[step.source])
            else:
                assert isinstance(step, Pool)
                a, b = low[step.source], high[step.source]
                ends = tuple(np.stack([v[:, m].max(axis=1) for m in step.members], axis=1) for v in (a, b))  # type: ignore[assignment]
            low.append(ends[0])
            high.append(ends[1])
        return low[self.net.output], high[self.net.output]

    def _arrays(self, step: Affine) -> tuple[list[int], Array, Array, Array, Array]:
        """Sources, and per term its column among them and its weight, where each row begins, and the bias."""
        sources = sorted(step.sources)
        start = dict(zip(sources, np.cumsum([0, *(self.net.sizes[s] for s in sources)]).tolist(), strict=False))
        rows = [row or [(sources[0], 0, 0)] for row in step.rows]  # a row without terms adds nothing
        columns = np.array([start[s] + e for row in rows for s, e, _ in row], dtype=np.int64)
        weights = np.array([w for row in rows for _, _, w in row], dtype=self.dtype)
        first = np.cumsum([0, *map(len, rows)])[:-1]
        return sources, columns, weights, first, np.array(step.bias, dtype=self.dtype)

    def _affine(self, number: int, low: list[Array], high: list[Array]) -> tuple[Array, Array]:
        sources, columns, weights, first, bias = self.rows[number]
        a = np.concatenate([low[s] for s in sources], axis=1)[:, columns]
        b = np.concatenate([high[s] for s in sources], axis=1)[:, columns]
        up = weights > 0
        least = np.add.reduceat(np.where(up, a, b) * weights, first, axis=1) + bias
        return least, np.add.reduceat(np.where(up, b, a) * weights, first, axis=1) + bias

    def _stairs(self, step: Stairs, low: Array, high: Array) -> tuple[Array, Array]:
        out = np.empty_like(low), np.empty_like(high)
        for e, base in enumerate(step.base):
            for end, value, rows in ((0, low, step.late), (1, high, step.early)):
                steps = rows[e] if self.dtype is object else [max(-LIMIT, min(LIMIT, t)) for t in rows[e]]
                found = np.searchsorted(np.array(steps, dtype=self.dtype), value[:, e], side="right")
                out[end][:, e] = base + (found.astype(object) if self.dtype is object else found)
        return out


def _fits(network: Network) -> bool:
    reach = [
        [max(abs(a), abs(b)) for a, b in zip(low, high, strict=True)]
        for low, high in zip(network.low, network.high, strict=True)
    ]
    if any(value >= LIMIT for row in reach for value in row):
        return False
    return all(
        abs(bias) + sum(abs(w) * reach[s][e] for s, e, w in row) < LIMIT and all(abs(w) < LIMIT for _, _, w in row)
        for step in network.compiled
        if isinstance(step, Affine)
        for row, bias in zip(step.rows, step.bias, strict=True)
    )
