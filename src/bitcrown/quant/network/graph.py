"""An integer network: every tensor holds integers, every step is exact, nothing is implied.

Four kinds of steps are enough for every quantized format that bitcrown reads:

* ``Dense``, ``Conv``, ``WeightedSum``: accumulators, exact integer sums with integer weights (zero
  points folded into them);
* ``Stairs``: what rounding, clipping, saturation and ReLU do to an accumulator. A reader
  evaluates the format's own arithmetic (scale, zero point, bit width, rounding mode, ties,
  saturation, signedness) once, when it compiles the step into thresholds: the output is
  ``base + #{k : accumulator >= threshold[k]}``. Two different formats that compute the same
  function become the same thresholds, and no later code has to know a rounding mode;
* ``MaxPool``: a maximum over windows;
* ``Gather``: reshape, transpose, slice, concatenation: an index into the sources, one after the
  other.

**Arithmetic that is not pinned down.** Where a format computes in floating point and the order of
summation is not specified (a float convolution between dequantized tensors), the output is known
only up to a rounding error of the accumulator. Then a staircase has two threshold rows,
``early <= late``: the true output is some integer between the two staircases. Bounds that use the
outer one of the two are valid for every order of summation; a witness is evaluated by the runtime
itself. Where they are equal (all integer formats), evaluation is bit-exact.

Every per-sample tensor is flat in C order; the legend: ``B`` samples, ``N`` elements, ``C``
channels (the first per-sample axis), ``K`` steps of a staircase. All arrays are int64; readers
refuse a network in which an accumulator could leave 62 bits for some input in its declared range
(``assembly``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bitcrown.errors import ModelError

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]
"""Integers, or floats where a step is evaluated in both."""
WIDTH_LIMIT = 2**62


class QuantError(ModelError):
    """A quantized network, its weights or its parameters cannot be read; the message says what,
    where, what next."""


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """Node 0. ``low``/``high``: [N], the whole range that the format allows (not the box of a
    property)."""

    shape: tuple[int, ...]
    low: Ints
    high: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``weight @ x + bias``. ``weight``: [out, in], ``bias``: [out]."""

    shape: tuple[int, ...]
    source: int
    weight: Ints
    bias: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """2-D convolution of a (C, H, W) source, padded with the integer ``pad_value``.

    ``weight``: [out, in / groups, kh, kw], ``bias``: [out], ``padding``: (top, left, bottom,
    right); ``plane``: (H, W).
    """

    shape: tuple[int, ...]
    source: int
    plane: tuple[int, int]
    weight: Ints
    bias: Ints
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    pad_value: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSum:
    """``sum_k factors[k] * x_k + bias``; ``bias``: [N] (or [1])."""

    shape: tuple[int, ...]
    sources: tuple[int, ...]
    factors: tuple[int, ...]
    bias: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Stairs:
    """Nondecreasing steps: between ``base + #{k: x >= late[c, k]}`` and
    ``base + #{k: x >= early[c, k]}``.

    ``base``: [C], ``early``/``late``: [C, K], each row nondecreasing; C is 1 (all elements alike)
    or divides N, the element ``n`` then has channel ``n * C // N``. A threshold of +-WIDTH_LIMIT is
    never or always passed. Accumulators that cannot occur (between the attainable sums of two
    tensors) may be given no value at all: there, and only there, an early threshold may be later
    than the late one. ``note`` says in words what was compiled ("scale 0.012 zero 3, half to even,
    uint8").
    """

    shape: tuple[int, ...]
    source: int
    base: Ints
    early: Ints
    late: Ints
    note: str = ""

    def is_exact(self) -> bool:
        return self.early is self.late or bool((self.early == self.late).all())


@dataclass(frozen=True, slots=True, eq=False)
class MaxPool:
    """Maximum over windows of a (C, H, W) source; padding never wins. Fields as in ``Conv``."""

    shape: tuple[int, ...]
    source: int
    plane: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """``concatenate(sources)[index]``; ``index``: [N]."""

    shape: tuple[int, ...]
    sources: tuple[int, ...]
    index: Ints


IntegerNode = Input | Dense | Conv | WeightedSum | Stairs | MaxPool | Gather


class Entry(Protocol):
    """How the network input that a user sees (a float or integer tensor of the file) becomes the
    Input node."""

    def integers(self, values: npt.NDArray[Any]) -> Ints:
        """The Input node's value for ``values``: [B, N] of the file's input type -> [B, N]."""

    def box(self, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]) -> tuple[Ints, Ints]:
        """The smallest integer box that holds ``integers(v)`` of every representable v in the
        closed box."""

    def representative(
        self, integers: Ints, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]
    ) -> npt.NDArray[Any]:
        """[N] -> [N] of the file's input type: a point inside the closed box whose ``integers`` are
        these.

        Raises QuantError if an element has none (the integer lies outside ``box``).
        """


@dataclass(frozen=True, slots=True, eq=False)
class Exit:
    """What the file's output is, given the output node's integers: ``values[m][q - low[m]]`` for
    output m.

    ``values`` holds, for each output, the exact real number of every integer in its range,
    nondecreasing. Formats whose output is the integer itself have ``values`` equal to the integers.
    """

    low: Ints
    values: tuple[Sequence[Fraction], ...]


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Nodes in topological order, node 0 the input; ``output`` is the number of the output node.

    ``entry``/``exit`` translate between the file's tensors and integers. ``runtime`` evaluates the
    original file ([B, N] input values -> [B, M] output values) where one exists; ``notes`` are
    sentences for the user (for example that another optimiser level of onnxruntime computes
    something else).
    """

    nodes: tuple[IntegerNode, ...]
    output: int
    entry: Entry
    exit: Exit
    runtime: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def is_exact(self) -> bool:
        """Whether evaluation is pinned down to the bit (no staircase has two different threshold
        rows)."""
        return all(node.is_exact() for node in self.nodes if isinstance(node, Stairs))

    def evaluate(self, x: Ints) -> Ints:
        """[B, N] integers of the input node -> [B, M] integers of the output node (late
        thresholds)."""
        return self.values(x)[self.output]

    def values(self, x: Ints) -> list[Ints]:
        """[B, N] -> the value [B, N_node] of every node."""
        out: list[Ints] = []
        for node in self.nodes:
            out.append(forward(node, out, x))
        return out


def sources_of(node: IntegerNode) -> tuple[int, ...]:
    """Numbers of the nodes that it reads."""
    if isinstance(node, Input):
        return ()
    return node.sources if isinstance(node, WeightedSum | Gather) else (node.source,)


def forward(node: IntegerNode, values: list[Ints], x: Ints) -> Ints:
    """Value [B, N] of one node, given the values of all earlier ones and the input [B, N]."""
    if isinstance(node, Input):
        return np.ascontiguousarray(x, dtype=np.int64)
    if isinstance(node, Dense):
        return _exact_dot(values[node.source], node.weight.T) + node.bias
    if isinstance(node, Conv):
        return _conv(node, values[node.source])
    if isinstance(node, WeightedSum):
        total = sum(
            factor * values[source]
            for factor, source in zip(node.factors, node.sources, strict=True)
        )
        return np.asarray(total + node.bias, dtype=np.int64)
    if isinstance(node, Stairs):
        return steps(node, values[node.source], node.late)
    if isinstance(node, MaxPool):
        return _max_pool(node, values[node.source])
    return np.concatenate([values[source] for source in node.sources], axis=1)[:, node.index]


def steps(node: Stairs, accumulator: Ints, thresholds: Ints) -> Ints:
    """``base + #{k : accumulator >= thresholds[c, k]}`` per channel; accumulator: [B, N] -> [B,
    N]."""
    channels = len(node.base)
    split = accumulator.reshape(len(accumulator), channels, -1)
    out = np.empty_like(split)
    for c in range(channels):
        out[:, c] = node.base[c] + np.searchsorted(thresholds[c], split[:, c], side="right")
    return out.reshape(accumulator.shape)


def windows(
    image: Ints,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int] = (1, 1),
) -> Ints:
    """A view [B, C, H', W', kh, kw] of the windows of ``image`` [B, C, H, W] (already padded)."""
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(image, reach, axis=(2, 3))
    return view[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


def _padded(
    flat: Ints,
    channels: int,
    plane: tuple[int, ...],
    padding: tuple[int, int, int, int],
    value: int,
) -> Ints:
    top, left, bottom, right = padding
    image = flat.reshape(len(flat), channels, *plane)
    return np.pad(image, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)


def _exact_dot(left: Ints, right: Ints) -> Ints:
    """``left @ right``. Where every partial sum, in whatever order, is less than 2^53, float64
    holds it exactly, and its products are far faster than those of integers."""

    def reach(values: Ints) -> int:
        return max(int(values.max(initial=0)), -int(values.min(initial=0)))

    if left.shape[-1] * reach(left) * reach(right) >= 2**53:
        return np.asarray(left @ right)
    return np.asarray((left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64))


def _conv(node: Conv, flat: Ints) -> Ints:
    out_channels, per_group, *kernel = node.weight.shape
    channels = per_group * node.groups
    view = windows(
        _padded(flat, channels, node.plane, node.padding, node.pad_value),
        (kernel[0], kernel[1]),
        node.strides,
        node.dilations,
    )
    per_out = out_channels // node.groups
    terms = per_group * kernel[0] * kernel[1]
    patches = np.moveaxis(view, (4, 5), (2, 3)).reshape(len(flat), node.groups, terms, -1)
    weight = node.weight.reshape(node.groups, per_out, terms)
    parts = [_exact_dot(weight[g], patches[:, g]) for g in range(node.groups)]
    out = np.concatenate(parts, axis=1) + node.bias[:, None]
    return np.ascontiguousarray(out.reshape(len(flat), -1), dtype=np.int64)


def _max_pool(node: MaxPool, flat: Ints) -> Ints:
    channels = node.shape[0]
    padded = _padded(flat, channels, node.plane, node.padding, -WIDTH_LIMIT)
    tops = windows(padded, node.kernel, node.strides).max(axis=(4, 5))
    return np.ascontiguousarray(tops.reshape(len(flat), -1), dtype=np.int64)
