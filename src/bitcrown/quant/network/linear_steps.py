"""Affine steps as exact linear maps: forward, adjoint and interval, for integers and for floats
alike.

An affine step is ``v -> A v + offset`` over the concatenated sources. A bound needs ``A`` in three
ways: forward (a point), transposed (a row of coefficients pulled back to the sources) and split by
sign (an interval).

**Exactness.** A product of integer matrices is formed in float64 by the BLAS whenever
``inner size * max|a| * max|b|`` is below ``2**53`` (for the adjoint of a convolution: with the sums
over the kernel): every partial sum, in whatever order and with or without fused multiply-add, is
then an integer that float64 holds exactly. Between ``2**53`` and ``2**62`` the product is formed in
int64; above that ``Overflow`` is raised and the caller tries smaller multipliers. Legend: ``R``
rows (subproblems), ``N`` elements, ``P`` positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.graph import (
    Conv,
    Dense,
    Gather,
    Ints,
    MaxPool,
    Numbers,
    QuantError,
    WeightedSum,
    windows,
)

_AffineNode = Dense | Conv | WeightedSum | Gather
FLOAT_EXACT = float(2**53)
INT_EXACT = float(2**62)


class Overflow(ArithmeticError):
    """An exact product could leave 62 bits."""


def largest(values: Numbers) -> float:
    """Largest absolute value of an integer array, as a float (0 for an empty one)."""
    return max(abs(float(values.max())), abs(float(values.min()))) if values.size else 0.0


def exact_product(left: Numbers, right: Numbers) -> Numbers:
    """``left @ right``; exact if both are integer arrays (int64 result), a plain float product
    otherwise."""
    if left.dtype != np.int64 or right.dtype != np.int64:
        return np.asarray(left @ right)
    bound = left.shape[-1] * largest(left) * largest(right)
    if bound < FLOAT_EXACT:
        return np.asarray((left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64))
    if bound < INT_EXACT:
        return np.asarray(left @ right)
    raise Overflow("a product of integers could leave 62 bits")


@dataclass(frozen=True, eq=False)
class Matrix:
    """An integer matrix with its float64 copy, so that float work pays no conversion; ``value``:
    [n, m]."""

    value: Ints
    real: npt.NDArray[np.float64]
    size: float

    @classmethod
    def of(cls, value: Ints) -> Matrix:
        value = np.ascontiguousarray(value, dtype=np.int64)
        return cls(value, value.astype(np.float64), largest(value))

    def transposed(self) -> Matrix:
        return Matrix(self.value.T, self.real.T, self.size)

    def times(self, other: Numbers) -> Numbers:
        """``self @ other`` (other: [..., m, k])."""
        if other.dtype != np.int64:
            return np.asarray(self.real @ other)
        if self.value.shape[1] * self.size * largest(other) < FLOAT_EXACT:
            return np.asarray((self.real @ other.astype(np.float64)).astype(np.int64))
        return exact_product(self.value, other)


class LinearStep:
    """One affine node, ready for use. ``sources`` are node numbers, ``offset``: [N] is its value at
    zero."""

    def __init__(self, node: _AffineNode, widths: list[int]) -> None:
        self.node = node
        self.sources = (node.source,) if isinstance(node, Dense | Conv) else node.sources
        self.widths = [widths[source] for source in self.sources]
        self.size = int(np.prod(node.shape))
        self.forward_matrix: list[Matrix] = []
        if isinstance(node, Dense):
            self.forward_matrix = [Matrix.of(node.weight)]
        elif isinstance(node, Conv):
            per = node.weight.shape[0] // node.groups
            flat = node.weight.reshape(node.weight.shape[0], -1)
            self.forward_matrix = [
                Matrix.of(flat[g * per : (g + 1) * per]) for g in range(node.groups)
            ]
        self.parts = [
            (
                Matrix(np.maximum(m.value, 0), np.maximum(m.real, 0), m.size),
                Matrix(np.minimum(m.value, 0), np.minimum(m.real, 0), m.size),
            )
            for m in self.forward_matrix
        ]
        self.adjoint_matrix = [m.transposed() for m in self.forward_matrix]
        zeros = [np.zeros((1, width), dtype=np.int64) for width in self.widths]
        self.bias = self._bias()
        self.offset = self._linear(zeros, self.forward_matrix, self._pad())[0] + self.bias

    def _pad(self) -> int:
        return self.node.pad_value if isinstance(self.node, Conv) else 0

    def _bias(self) -> Ints:
        if isinstance(self.node, Gather):
            return np.zeros(self.size, dtype=np.int64)
        if isinstance(self.node, Conv):
            return np.repeat(self.node.bias, self.size // len(self.node.bias))
        return np.broadcast_to(self.node.bias, (self.size,)).astype(np.int64)

    def forward(self, values: list[Numbers]) -> Numbers:
        """Source values [R, N_k] each -> [R, N], bias included; dtype of the values."""
        return self._linear(values, self.forward_matrix, self._pad()) + self.bias

    def interval(self, low: list[Ints], high: list[Ints]) -> tuple[Ints, Ints]:
        """Exact range [R, N] over the box of the sources."""
        if isinstance(self.node, Gather):
            return self._linear(low, [], 0), self._linear(high, [], 0)
        if isinstance(self.node, WeightedSum):
            pairs = [
                (a, b) if f >= 0 else (b, a)
                for a, b, f in zip(low, high, self.node.factors, strict=True)
            ]
            return self.forward([p[0] for p in pairs]), self.forward([p[1] for p in pairs])
        plus, minus = [p[0] for p in self.parts], [p[1] for p in self.parts]
        pad = self._pad()
        lower = self._linear(low, plus, pad) + self._linear(high, minus, pad) + self.bias
        upper = self._linear(high, plus, pad) + self._linear(low, minus, pad) + self.bias
        return lower, upper

    def _linear(self, values: list[Numbers], matrices: list[Matrix], pad: int) -> Numbers:
        node = self.node
        if isinstance(node, Dense):
            return np.ascontiguousarray(matrices[0].times(values[0].T).T)
        if isinstance(node, Gather):
            return (
                np.concatenate(values, axis=1)[:, node.index]
                if len(values) > 1
                else values[0][:, node.index]
            )
        if isinstance(node, WeightedSum):
            total = np.zeros((len(values[0]), self.size), dtype=values[0].dtype)
            for factor, value in zip(node.factors, values, strict=True):
                total += factor * value
            return total
        # below 2^53 the patches are cut in float64 at once, which saves every product a conversion
        terms = matrices[0].value.shape[1] * max(m.size for m in matrices)
        flat, is_short = values[0], terms * max(largest(values[0]), abs(pad)) < FLOAT_EXACT
        columns = self._columns(flat.astype(np.float64, copy=False) if is_short else flat, pad)
        per = columns.shape[1] // node.groups
        parts = [m.times(columns[:, g * per : (g + 1) * per]) for g, m in enumerate(matrices)]
        return np.concatenate(parts, axis=1).reshape(len(flat), -1).astype(flat.dtype, copy=False)

    def _columns(self, flat: Numbers, pad: int) -> Numbers:
        """Patches [R, C * kh * kw, P] of a flat source [R, C * H * W]."""
        node = self.node
        assert isinstance(node, Conv)
        top, left, bottom, right = node.padding
        channels = node.weight.shape[1] * node.groups
        image = flat.reshape(len(flat), channels, *node.plane)
        image = np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad)
        view = windows(image, node.weight.shape[2:], node.strides, node.dilations)
        rows, _, height, width, kh, kw = view.shape
        return np.ascontiguousarray(view.transpose(0, 1, 4, 5, 2, 3)).reshape(
            rows, channels * kh * kw, height * width
        )

    def entries(self, elements: Ints) -> list[tuple[Ints, Ints]]:
        """Rows ``elements`` [E] of each source's matrix: (columns [E, T], -1 in the padding, and
        their values)."""
        node = self.node
        if isinstance(node, Dense):
            values = node.weight[elements]
            return [(np.broadcast_to(np.arange(values.shape[1]), values.shape), values)]
        if isinstance(node, WeightedSum):
            return [
                (elements[:, None], np.full((len(elements), 1), factor)) for factor in node.factors
            ]
        if isinstance(node, Gather):
            starts = np.cumsum([0, *self.widths])
            column = node.index[elements][:, None]
            ends = zip(starts[:-1], starts[1:], strict=True)
            return [
                (np.where((a <= column) & (column < b), column - a, -1), np.ones_like(column))
                for a, b in ends
            ]
        channel, position = np.divmod(elements, self.size // node.shape[0])
        group = channel // (node.shape[0] // node.groups)
        return [
            (self._numbers[group, :, position], node.weight.reshape(node.shape[0], -1)[channel])
        ]

    @cached_property
    def _numbers(self) -> Ints:
        """Source elements in the windows of a convolution: [groups, T, P], -1 in the padding."""
        assert isinstance(self.node, Conv)
        numbers = self._columns(np.arange(self.widths[0], dtype=np.int64)[None], -1)[0]
        return np.asarray(numbers.reshape(self.node.groups, -1, numbers.shape[1]))

    def adjoint(self, coefficients: Numbers) -> list[Numbers]:
        """Coefficients [R, N] on the output -> coefficients [R, N_k] on each source (the constant
        is ``offset``)."""
        node = self.node
        if isinstance(node, Dense):
            return [np.ascontiguousarray(self.adjoint_matrix[0].times(coefficients.T).T)]
        if isinstance(node, WeightedSum):
            return [factor * coefficients for factor in node.factors]
        if isinstance(node, Gather):
            total = np.zeros((sum(self.widths), len(coefficients)), dtype=coefficients.dtype)
            np.add.at(total, node.index, coefficients.T)
            return [
                np.ascontiguousarray(part.T)
                for part in np.split(total, np.cumsum(self.widths)[:-1])
            ]
        return [self._conv_adjoint(coefficients)]

    def _conv_adjoint(self, coefficients: Numbers) -> Numbers:
        node = self.node
        assert isinstance(node, Conv)
        rows, dtype = len(coefficients), coefficients.dtype
        outs, per, kh, kw = node.weight.shape
        terms = outs * kh * kw * max(m.size for m in self.adjoint_matrix)
        if terms * largest(coefficients) < FLOAT_EXACT:
            coefficients = coefficients.astype(np.float64, copy=False)
        planes = coefficients.reshape(rows, outs, -1)
        step = outs // node.groups
        parts = [
            m.times(planes[:, g * step : (g + 1) * step]) for g, m in enumerate(self.adjoint_matrix)
        ]
        top, left, bottom, right = node.padding
        height, width = node.plane
        _, out_h, out_w = node.shape
        # what each kernel place sends back to the pixel it read; pixels add up what they receive
        columns = np.concatenate(parts, axis=1).reshape(
            rows, per * node.groups, kh, kw, out_h, out_w
        )
        image = np.zeros(
            (rows, per * node.groups, height + top + bottom, width + left + right),
            dtype=coefficients.dtype,
        )
        for i in range(kh):
            for j in range(kw):
                y, x = i * node.dilations[0], j * node.dilations[1]
                image[
                    :, :, y : y + out_h * node.strides[0] : node.strides[0],
                    x : x + out_w * node.strides[1] : node.strides[1],
                ] += columns[:, :, i, j]  # fmt: skip
        image = image[:, :, top : top + height, left : left + width].reshape(rows, -1)
        return image.astype(dtype, copy=False)


def window_index(node: MaxPool) -> npt.NDArray[np.int64]:
    """[N, W]: source elements of each window; -1 where a window reaches into the padding."""
    channels = node.shape[0]
    top, left, bottom, right = node.padding
    numbers = np.arange(channels * node.plane[0] * node.plane[1], dtype=np.int64).reshape(
        1, channels, *node.plane
    )
    padded = np.pad(numbers, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-1)
    view = windows(padded, node.kernel, node.strides)
    index = np.ascontiguousarray(view).reshape(-1, node.kernel[0] * node.kernel[1])
    if (index < 0).all(axis=1).any():
        raise QuantError("a max-pool window lies in the padding entirely; use less padding")
    return index
