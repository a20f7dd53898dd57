"""Many inputs of an integer network at once, in numpy, and exactly.

int64 is used where it is proved to suffice: over the declared range of the input every sum of every
row, whatever part of it, is below 2^60 in size (``sum |w| max |v| + |b|``, in Python integers), and
so is every level. Thresholds beyond that are cut to it, which changes no comparison. Elsewhere the
arrays hold Python integers. A dense row whose sums are below 2^53 is multiplied in float64, whose
every partial result is then an integer that it holds exactly.

The inputs that a proof enumerates differ in few elements: of a sparse row, only what differs from
the first input is added up again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitcrown.check.certificates.integers.affine import Integers, LinearRows
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.nodes import Pool, StepNode

_Array = npt.NDArray[Any]
_LIMIT = 1 << 60
_FLOAT_LIMIT = 1 << 53
_MOST_CELLS = 1 << 22
"""Products held at once."""
_MOST_MATRIX = 1 << 24


class _Terms(NamedTuple):
    """An affine node: per term its column among the sources' elements, weight and row; where rows
    begin; the bias.

    ``matrix``: the same weights, [row, column], where float64 holds every sum.
    """

    sources: list[int]
    columns: _Array
    weights: _Array
    rows: _Array
    first: _Array
    bias: _Array
    matrix: _Array | None


class Points:
    """Evaluates ``network``; arrays are made once, so keep it for all points of a proof."""

    def __init__(self, network: IntegerCircuit) -> None:
        self.net = network
        reach = _reach(network)
        self.dtype: Any = np.int64 if reach < _LIMIT else object
        self.affine = {
            n: self._terms(step, reach < _FLOAT_LIMIT)
            for n, step in network.compiled.items()
            if isinstance(step, LinearRows)
        }
        self._thresholds: dict[int, _Array] = {}

    def outputs(self, points: list[Integers]) -> tuple[list[Integers], list[Integers]]:
        """Least and greatest outputs at ``points``, all of them in the declared range of the
        input."""
        size = max(1, _MOST_CELLS // max(1, self.net.terms // 8))
        low: list[Integers] = []
        high: list[Integers] = []
        for start in range(0, len(points), size):
            ends = self._run(np.array(points[start : start + size], dtype=self.dtype))
            low += ends[0].tolist()
            high += ends[1].tolist()
        return low, high

    def _run(self, x: _Array) -> tuple[_Array, _Array]:
        low, high = [x], [x]
        for number, step in self.net.compiled.items():
            if isinstance(step, LinearRows):
                terms = self.affine[number]
                a, b = (
                    np.concatenate([side[s] for s in terms.sources], axis=1) for side in (low, high)
                )
                least = self._product(terms, a, b)
                greatest = (
                    least
                    if all(low[s] is high[s] for s in terms.sources)
                    else self._product(terms, b, a)
                )
            elif isinstance(step, StepNode):
                least = self._steps(step.base, step.late, low[step.source])
                pinned = low[step.source] is high[step.source] and all(
                    one is two or one == two for one, two in zip(step.early, step.late, strict=True)
                )
                greatest = (
                    least if pinned else self._steps(step.base, step.early, high[step.source])
                )
            else:
                assert isinstance(step, Pool)
                a, b = low[step.source], high[step.source]
                least = np.stack([a[:, m].max(axis=1) for m in step.members], axis=1)
                greatest = (
                    least
                    if a is b
                    else np.stack([b[:, m].max(axis=1) for m in step.members], axis=1)
                )
            low.append(least)
            high.append(greatest)
        return low[self.net.output], high[self.net.output]

    def _terms(self, step: LinearRows, is_float_exact: bool) -> _Terms:
        sources = sorted(step.sources)
        start = dict(
            zip(
                sources,
                np.cumsum([0, *(self.net.sizes[s] for s in sources)]).tolist(),
                strict=False,
            )
        )
        width = sum(self.net.sizes[s] for s in sources)
        lines = [
            row or [(sources[0], 0, 0)] for row in step.rows
        ]  # a row without terms adds nothing
        columns = np.array([start[s] + e for line in lines for s, e, _ in line], dtype=np.int64)
        weights = np.array([w for line in lines for _, _, w in line], dtype=self.dtype)
        lengths = np.array([len(line) for line in lines])
        rows = np.repeat(np.arange(len(lines)), lengths)
        matrix = None
        if is_float_exact and len(lines) * width <= min(_MOST_MATRIX, 8 * len(columns)):
            matrix = np.zeros((len(lines), width))
            np.add.at(matrix, (rows, columns), weights.astype(np.float64))
        bias = np.array(step.bias, dtype=self.dtype)
        return _Terms(sources, columns, weights, rows, np.cumsum([0, *lengths])[:-1], bias, matrix)

    def _product(self, terms: _Terms, first: _Array, second: _Array) -> _Array:
        """[B, rows]: positive weights take ``first``, negative ones ``second``."""
        if terms.matrix is not None:
            up, down = np.maximum(terms.matrix, 0), np.minimum(terms.matrix, 0)
            total = first.astype(np.float64) @ up.T + second.astype(np.float64) @ down.T
            return np.asarray(total.astype(np.int64) + terms.bias)
        up = terms.weights > 0
        start = np.where(up, first[0, terms.columns], second[0, terms.columns])
        base = np.add.reduceat(start * terms.weights, terms.first) + terms.bias
        out = np.repeat(base[None], len(first), axis=0)
        moves = (first != first[0]).any(axis=0) | (second != second[0]).any(axis=0)
        used = np.flatnonzero(moves[terms.columns])
        if not len(used):
            return out
        rows = terms.rows[used]
        begin = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        size = max(1, _MOST_CELLS // len(used))
        for at in range(0, len(first), size):
            a, b = (side[at : at + size, terms.columns[used]] for side in (first, second))
            change = (np.where(up[used], a, b) - start[used]) * terms.weights[used]
            out[at : at + size, rows[begin]] += np.add.reduceat(change, begin, axis=1)
        return out

    def _steps(self, base: Integers, rows: list[Integers], accumulator: _Array) -> _Array:
        out = np.empty_like(accumulator)
        for e, (level, row) in enumerate(zip(base, rows, strict=True)):
            steps = self._thresholds.get(id(row))
            if steps is None:
                cut = row if self.dtype is object else [max(-_LIMIT, min(_LIMIT, t)) for t in row]
                steps = self._thresholds[id(row)] = np.array(cut, dtype=self.dtype)
            found = np.searchsorted(steps, accumulator[:, e], side="right")
            out[:, e] = level + (found.astype(object) if self.dtype is object else found)
        return out


def _reach(network: IntegerCircuit) -> int:
    """A bound on every weight, value and sum over the declared range, with a factor 2 for
    differences."""
    ends = [
        [max(abs(a), abs(b)) for a, b in zip(low, high, strict=True)]
        for low, high in zip(network.low, network.high, strict=True)
    ]
    largest = max(value for row in ends for value in row)
    for step in network.compiled.values():
        if isinstance(step, LinearRows):
            for row, bias in zip(step.rows, step.bias, strict=True):
                largest = max(
                    largest, abs(bias) + sum(abs(w) * max(1, ends[s][e]) for s, e, w in row)
                )
    return 2 * largest
