"""A program cut to what some elements of one node depend on: bounds on a few accumulators at the
price of a few.

An accumulator of a convolution sees a small window of the layer before, which sees a slightly
larger one of the layer before that. A row of multipliers for it is zero everywhere else, so that
evaluating it on the whole network wastes nearly all of the work. ``SubProgram`` keeps, node by
node, the elements that reach the targets and vary over the box; affine steps become the dense
matrices between those, what does not vary goes into their offsets. It reads like a ``Program``, so
that the ascent and the exact evaluation take either; its bounds are those of the whole network with
slopes that are zero outside of the part. Legend: ``R`` rows, ``N`` elements, ``E`` kept elements of
a node, ``W`` window size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitcrown.quant.bounds.intervals import Intervals, Program, StairTable
from bitcrown.quant.bounds.joint_windows import JointPool
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.network.linear_steps import Matrix

_MOST_ENTRIES = 1 << 23
"""Of one matrix of a part: where windows cover everything, convolutions are cheaper than dense
matrices."""


class _DenseStep:
    """An affine step between kept elements: ``matrices[k]``: [E, E_k] on source node k, ``offset``:
    [E]."""

    def __init__(self, matrices: dict[int, Ints], offset: Ints) -> None:
        self.sources, self.offset = tuple(matrices), offset
        self.matrices = [Matrix.of(matrix) for matrix in matrices.values()]
        self.adjoints = [matrix.transposed() for matrix in self.matrices]

    def forward(self, values: list[Numbers]) -> Numbers:
        """Source values [R, E_k] each -> [R, E]; dtype of the values."""
        total = sum(
            matrix.times(value.T).T for matrix, value in zip(self.matrices, values, strict=True)
        )
        return np.ascontiguousarray(total + self.offset[None])

    def adjoint(self, coefficients: Numbers) -> list[Numbers]:
        """Coefficients [R, E] on the output -> coefficients [R, E_k] on each source."""
        return [np.ascontiguousarray(matrix.times(coefficients.T).T) for matrix in self.adjoints]


class SubProgram:
    """``kept[n]``: sorted elements of node n; ``sizes``, ``affine``, ``stairs``, ``pools`` count in
    places of those.

    Holds for the one row of ``bounds`` only.
    """

    def __init__(self, program: Program, bounds: Intervals, kept: dict[int, Ints]) -> None:
        assert len(bounds) == 1, "what varies is decided for one row of intervals"
        self.nodes, self.kept = program.nodes, kept
        self.sizes = [len(kept[n]) if n in kept else 0 for n in range(len(program.nodes))]
        self.sources = [program.sources[n] if n in kept else () for n in range(len(program.nodes))]
        self.affine: dict[int, _DenseStep] = {}
        self.stairs: dict[int, StairTable] = {}
        self.pools: dict[int, tuple[int, Ints]] = {}
        self.joint: dict[int, JointPool] = {}
        for number, elements in kept.items():
            if number in program.affine:
                step = program.affine[number]
                matrices: dict[int, Ints] = {}
                offset = step.offset[elements]
                for source, (columns, values) in zip(
                    step.sources, step.entries(elements), strict=True
                ):
                    # A v + offset with what varies in the matrix and what is fixed in the offset
                    varies = _varies(program, bounds, source, columns) & (values != 0)
                    if source in kept:
                        more = _matrix(columns, np.where(varies, values, 0), kept[source])
                        matrices[source] = matrices.get(source, 0) + more
                    is_fixed = ~varies & (columns >= 0)
                    offset = offset + np.where(
                        is_fixed, values * bounds.low[source][0, columns], 0
                    ).sum(axis=1)
                self.affine[number] = _DenseStep(matrices, offset)
                self.sources[number] = tuple(matrices)
            elif number in program.stairs:
                table = program.stairs[number]
                self.stairs[number] = replace(
                    table, channel=table.channel[elements], base=table.base[elements]
                )
            elif number in program.pools:
                source, index = program.pools[number]
                index = _contenders(bounds, source, index[elements])
                self.pools[number] = (
                    source,
                    np.where(index >= 0, np.searchsorted(kept[source], index), -1),
                )

    @staticmethod
    def seen(
        program: Program, bounds: Intervals, node: int, elements: Ints
    ) -> dict[int, Ints] | None:
        """``kept`` for ``elements`` (sorted) of ``node``; ``None`` where a matrix would exceed
        ``_MOST_ENTRIES``."""
        kept = {node: elements}
        for number in range(node, 0, -1):
            if number not in kept:
                continue
            for reader in program.readers[
                number
            ]:  # staircases take their sources' elements one by one
                if reader in kept:
                    kept[reader] = kept[number]
            if number in program.affine:
                step = program.affine[number]
                entries = step.entries(kept[number])
                sources = step.sources
                needed = [
                    columns[_varies(program, bounds, source, columns) & (values != 0)]
                    for source, (columns, values) in zip(sources, entries, strict=True)
                ]
            elif number in program.stairs:
                needed, sources = [kept[number]], (program.stairs[number].source,)
            else:
                source, index = program.pools[number]
                index = _contenders(bounds, source, index[kept[number]])
                needed, sources = [index[index >= 0]], (source,)
            for source, part in zip(sources, needed, strict=True):
                if len(part):
                    kept[source] = np.union1d(kept.get(source, part[:0]), part)
                if (
                    number in program.affine
                    and len(kept[number]) * len(kept.get(source, part)) > _MOST_ENTRIES
                ):
                    return None
        return dict(sorted(kept.items()))

    def cut(self, bounds: Intervals) -> Intervals:
        """``bounds`` of the whole network, without the elements that are not kept: node n has [R,
        E_n], a node of which nothing is kept has [R, 0]."""
        none = np.zeros(0, dtype=np.int64)
        places = [self.kept.get(n, none) for n in range(len(self.nodes))]
        low = [a[:, p] for a, p in zip(bounds.low, places, strict=True)]
        high = [a[:, p] for a, p in zip(bounds.high, places, strict=True)]
        return Intervals(low, high, set())

    def named(self, multipliers: list[list[Any]]) -> list[list[Any]]:
        """Sparse multipliers (``proof.tree.sparse``) of the part by the element numbers of the
        whole network."""
        return [
            [n, [[int(self.kept[n][entry[0]]), *entry[1:]] for entry in part]]
            for n, part in multipliers
        ]


AnyProgram = Program | SubProgram


def by_position(shape: tuple[int, ...], elements: Ints) -> list[Ints]:
    """``elements`` of a node of ``shape``: the channels of one position of a plane see the same;
    each group sorted."""
    if len(shape) != 3:
        return [elements] if len(elements) else []
    position = elements % (shape[1] * shape[2])
    return [elements[position == p] for p in np.unique(position)]


def _varies(
    program: Program, bounds: Intervals, node: int, elements: Ints
) -> npt.NDArray[np.bool_]:
    """Whether each of ``elements`` (-1: padding) varies; affine nodes pass on what arrives at them
    in any case."""
    fixed = (bounds.low[node][0] == bounds.high[node][0]) & (node not in program.affine)
    return np.asarray((elements >= 0) & ~fixed[elements])


def _contenders(bounds: Intervals, source: int, index: Ints) -> Ints:
    """Windows [E, W] without the elements that another one always reaches (-1), as long as
    something is left."""
    # the maximum is at least the largest lower end: who cannot exceed it never matters, but for one
    # that holds the floor itself
    low = np.where(index >= 0, bounds.low[source][0, index], np.iinfo(np.int64).min)
    floor = low.max(axis=1, keepdims=True)
    first = low.argmax(axis=1)[:, None] == np.arange(index.shape[1])
    return np.where(first | (bounds.high[source][0, index] > floor), index, -1)


def _matrix(columns: Ints, values: Ints, kept: Ints) -> Ints:
    """[E, E_k] of entries [E, T]; zeros may name elements that are not kept."""
    used = values != 0
    total = np.zeros((len(columns), len(kept)), dtype=np.int64)
    rows, _ = np.nonzero(used)
    np.add.at(total, (rows, np.searchsorted(kept, columns[used])), values[used])
    return total
