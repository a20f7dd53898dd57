"""Affine maps and ReLU on flat vectors, in numpy float64: all that a piecewise-linear network
consists of.

Every node computes a flat vector from the flat vectors of its ``sources``. An affine node is
``z = A x + b``; it can apply ``A``, apply ``|A|`` (for magnitudes), and apply the transpose (for
backward substitution). Legend: ``R`` rows of a batch, sizes are numbers of elements.

**Rounding.** ``terms`` is the largest number of terms in any sum that a node forms in any of these
three ways, with room for a few roundings of a coefficient itself (a division, a square root): a
coefficient that is only known to a relative error of a few units in the last place is treated as
one more factor of each product. ``bounds`` turns ``terms`` into an error bound; nothing here
rounds outward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class InputNode:
    """The concatenated inputs."""

    size: int
    sources: tuple[int, ...] = ()
    terms: int = 1


@dataclass(frozen=True)
class ReluNode:
    """``max(x, 0)``, elementwise."""

    sources: tuple[int]
    size: int
    terms: int = 4


@dataclass(frozen=True)
class DenseNode:
    """``weight [m, k]`` applied to each of ``lead`` rows of ``k`` elements; ``bias [lead * m]``."""

    sources: tuple[int]
    weight: FloatArray
    bias: FloatArray
    lead: int = 1

    @property
    def size(self) -> int:
        return self.lead * len(self.weight)

    @property
    def terms(self) -> int:
        return max(self.size, len(self.weight), int(self.weight.shape[1]))

    @cached_property
    def magnitude(self) -> FloatArray:
        return np.abs(self.weight)

    def forward(self, values: Sequence[FloatArray], is_absolute: bool = False) -> FloatArray:
        """``A x [R, size]`` without the bias, or ``|A| x``."""
        weight = self.magnitude if is_absolute else self.weight
        x = values[0].reshape(-1, weight.shape[1])
        return (x @ weight.T).reshape(len(values[0]), self.size)

    def adjoint(self, a: FloatArray) -> list[FloatArray]:
        """``A^T a`` for ``a [R, size]``."""
        return [(a.reshape(-1, self.weight.shape[0]) @ self.weight).reshape(len(a), -1)]


@dataclass(frozen=True)
class CombineNode:
    """``sum_i factors[i] * x_i + bias``, elementwise; a factor is one number or one an element."""

    sources: tuple[int, ...]
    factors: tuple[FloatArray, ...]
    bias: FloatArray

    @property
    def size(self) -> int:
        return len(self.bias)

    @property
    def terms(self) -> int:
        return max(self.size, len(self.sources))

    def forward(self, values: Sequence[FloatArray], is_absolute: bool = False) -> FloatArray:
        total = np.zeros((len(values[0]), self.size))
        for factor, value in zip(self.factors, values, strict=True):
            total += (np.abs(factor) if is_absolute else factor) * value
        return total

    def adjoint(self, a: FloatArray) -> list[FloatArray]:
        return [a if factor.ndim == 0 and factor == 1.0 else a * factor for factor in self.factors]


@dataclass(frozen=True)
class GatherNode:
    """``z_i = x[index_i]``, or 0 where ``index_i`` is -1. An element may be used several times."""

    sources: tuple[int]
    index: np.ndarray[Any, np.dtype[np.int64]]
    source_size: int
    bias: FloatArray = field(default_factory=lambda: np.zeros(()))

    @property
    def size(self) -> int:
        return len(self.index)

    @property
    def terms(self) -> int:
        return self.size

    @cached_property
    def _places(self) -> tuple[bool, Any, Any]:
        used = np.nonzero(self.index >= 0)[0]
        return len(np.unique(self.index[used])) == len(used), used, self.index[used]

    def forward(self, values: Sequence[FloatArray], is_absolute: bool = False) -> FloatArray:
        _, used, index = self._places
        result = np.zeros((len(values[0]), self.size))
        result[:, used] = values[0][:, index]
        return result

    def adjoint(self, a: FloatArray) -> list[FloatArray]:
        is_unique, used, index = self._places
        result = np.zeros((len(a), self.source_size))
        if is_unique:
            result[:, index] = a[:, used]
        else:
            np.add.at(result.T, index, a[:, used].T)
        return [result]


@dataclass(frozen=True)
class ConvNode:
    """Convolution of ``[C, H, W]`` with ``weight [O, C / groups, h, w]`` to ``[O, *out]``;
    ``bias [O * H' * W']``.

    ``pads`` are those above and left of the plane; what is missing below and right is zero as well.
    """

    sources: tuple[int]
    weight: FloatArray
    bias: FloatArray
    plane: tuple[int, int]
    out: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    groups: int

    @property
    def size(self) -> int:
        return int(self.weight.shape[0]) * self.out[0] * self.out[1]

    @property
    def terms(self) -> int:
        return max(self.size, int(self.weight.size))

    @cached_property
    def _matrix(self) -> FloatArray:
        """``[groups, h * w * C / groups, O / groups]``: the weights with kernel places first."""
        o, c, h, w = self.weight.shape
        grouped = self.weight.reshape(self.groups, o // self.groups, c, h * w)
        return np.ascontiguousarray(grouped.transpose(0, 3, 2, 1)).reshape(
            self.groups, h * w * c, o // self.groups
        )

    @cached_property
    def _padded(self) -> tuple[int, int]:
        """Extents of a plane that holds every place a kernel looks at."""
        spans = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in self._axes]
        return tuple(
            max(span, p + n) for span, p, n in zip(spans, self.pads, self.plane, strict=True)
        )  # type: ignore

    @property
    def _axes(self) -> list[tuple[int, int, int, int]]:
        return list(zip(self.out, self.strides, self.weight.shape[2:], self.dilations, strict=True))

    def _windows(self) -> list[tuple[slice, slice]]:
        """For each kernel place the places of the padded plane that it meets."""
        rows, columns = (
            [slice(k * d, k * d + (o - 1) * s + 1, s) for k in range(kernel)]
            for o, s, kernel, d in self._axes
        )
        return [(row, column) for row in rows for column in columns]

    def forward(self, values: Sequence[FloatArray], is_absolute: bool = False) -> FloatArray:
        count, channels = len(values[0]), int(self.weight.shape[1])
        x = values[0].reshape(count, self.groups * channels, *self.plane)
        padded = np.zeros((count, self.groups * channels, *self._padded))
        (top, left), (height, width) = self.pads, self.plane
        padded[:, :, top : top + height, left : left + width] = x
        planes = padded.reshape(count, self.groups, channels, *self._padded)
        parts = [planes[:, :, :, row, column] for row, column in self._windows()]
        seen = np.stack(parts, axis=2).reshape(count, self.groups, len(parts) * channels, -1)
        matrix = np.abs(self._matrix) if is_absolute else self._matrix
        result: FloatArray = np.matmul(matrix.transpose(0, 2, 1), seen).reshape(count, self.size)
        return result

    def adjoint(self, a: FloatArray) -> list[FloatArray]:
        count, channels = len(a), int(self.weight.shape[1])
        windows, outs = self._windows(), self.out[0] * self.out[1]
        if self.groups == 1 and outs < channels:
            # small planes: one product for all rows; places in front of channels
            rows = np.ascontiguousarray(a.reshape(count, -1, outs).transpose(0, 2, 1))
            seen = (rows.reshape(count * outs, -1) @ self._matrix[0].T).reshape(
                count, *self.out, len(windows), channels
            )
            plane = np.zeros((count, *self._padded, channels))
            for place, (row, column) in enumerate(windows):
                plane[:, row, column] += seen[:, :, :, place]
            padded = plane.transpose(0, 3, 1, 2)
        else:
            seen = np.matmul(self._matrix, a.reshape(count, self.groups, -1, outs))
            seen = seen.reshape(count, self.groups, len(windows), channels, *self.out)
            padded = np.zeros((count, self.groups, channels, *self._padded))
            for place, (row, column) in enumerate(windows):
                padded[:, :, :, row, column] += seen[:, :, place]
        (top, left), (height, width) = self.pads, self.plane
        return [padded[..., top : top + height, left : left + width].reshape(count, -1)]


AffineMap = DenseNode | CombineNode | GatherNode | ConvNode
FloatNode = InputNode | ReluNode | AffineMap


@dataclass(frozen=True)
class FloatNetwork:
    """Nodes in the order of computation, the first of them the input. ``output`` is the
    concatenated output."""

    nodes: tuple[FloatNode, ...]
    output: int
    names: Mapping[str, int] = field(default_factory=dict)
    """The ReLU that computes a tensor of the file, by the tensor's name (files with one network
    only)."""

    @property
    def n_inputs(self) -> int:
        return self.nodes[0].size

    @property
    def n_outputs(self) -> int:
        return self.nodes[self.output].size

    @cached_property
    def relus(self) -> tuple[int, ...]:
        return tuple(k for k, node in enumerate(self.nodes) if isinstance(node, ReluNode))

    def values(self, x: FloatArray) -> list[FloatArray]:
        """Values ``[R, size]`` of all nodes at the points ``x [R, n]``, as float64 computes
        them."""
        found: list[FloatArray] = []
        for node in self.nodes:
            if isinstance(node, InputNode):
                found.append(x)
            elif isinstance(node, ReluNode):
                found.append(np.maximum(found[node.sources[0]], 0.0))
            else:
                found.append(node.forward([found[source] for source in node.sources]) + node.bias)
        return found
