"""What an ONNX tensor is while a quantized file is read: a known function of the integers of one
node.

Element n of the tensor is ``f_n(q_n)``, where q are the integers of a node of the integer network
and ``f_n`` a **chain** of elementwise steps, each computed in the type and precision of the file:
dequantize, add a constant, ReLU, quantize. Every step is monotone, rising or falling, in each
element, because it is a correctly rounded operation (or minimum, maximum, rounding, cast) with
constants. So a chain has an order, and two evaluations describe it: where a step is not pinned down
to the bit (a sum of floats in unspecified order) it widens a value to an interval [least,
greatest], and all later steps map the ends of that interval.

Legend: N elements of the tensor, C channels of the node (as in ``Stairs``), K columns of a
table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitcrown.quant.network.graph import Ints, Numbers, QuantError

FLOAT32 = np.dtype(np.float32)
RAW = -1
"""Number of the node that stands for the file's real input until a step quantizes it."""


@dataclass(frozen=True, slots=True, eq=False)
class ChainStep:
    """``function(values, *params)``; ``params``: each [N], or [1] if it is the same for all
    elements.

    ``whole``: the result is a whole number; ``keeps_whole``: it is one if the argument is. A
    ``spread`` step gets (least, greatest, *params) and returns both; any other one is a monotone
    function of one number.
    """

    name: str
    function: Callable[..., Any]
    params: tuple[Numbers, ...] = ()
    whole: bool = False
    keeps_whole: bool = False
    spread: bool = False

    def apply(
        self, least: Numbers, greatest: Numbers, params: tuple[Numbers, ...]
    ) -> tuple[Numbers, Numbers]:
        if self.spread:
            pair: tuple[Numbers, Numbers] = self.function(least, greatest, *params)
            return pair
        first = np.asarray(self.function(least, *params))
        if least is greatest:
            return first, first
        second = np.asarray(self.function(greatest, *params))
        return np.minimum(first, second), np.maximum(first, second)


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """``shape``: the ONNX shape, leading axes of extent 1 included; ``dtype``: the file's element
    type.

    ``order``: [N] position in the network input of each element, for a tensor made of the raw input
    only.
    """

    node: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chain: tuple[ChainStep, ...] = ()
    order: Ints | None = None

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Without the batch axis."""
        return self.shape[1:] if len(self.shape) > 1 and self.shape[0] == 1 else (self.size,)

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    def then(self, step: ChainStep, dtype: np.dtype[Any] | None = None) -> Lattice:
        return Lattice(self.node, self.shape, dtype or self.dtype, (*self.chain, step), self.order)

    def on(self, node: int, chain: tuple[ChainStep, ...] = ()) -> Lattice:
        """The same tensor as a function of another node's integers."""
        return Lattice(node, self.shape, self.dtype, chain)


def spread_over(value: Numbers, shape: tuple[int, ...]) -> Numbers:
    """A constant as a step parameter for a tensor of ``shape``: [1] or [N]."""
    value = np.asarray(value)
    return value.reshape(1) if value.size == 1 else np.broadcast_to(value, shape).reshape(-1)


def picked(chain: tuple[ChainStep, ...], index: Ints) -> tuple[ChainStep, ...]:
    """The chain of a tensor whose elements are ``index`` of this one's."""
    return tuple(
        replace(step, params=tuple(_pick(p, index) for p in step.params)) if step.params else step
        for step in chain
    )


def _pick(param: Numbers, index: Ints) -> Numbers:
    return param if param.size == 1 else param[index]


def is_same_chain(one: tuple[ChainStep, ...], other: tuple[ChainStep, ...]) -> bool:
    """Whether both compute the same function, as far as names and parameters tell."""
    return len(one) == len(other) and all(
        a.name == b.name
        and not a.spread
        and len(a.params) == len(b.params)
        and all(
            p.shape == r.shape and bool((p == r).all())
            for p, r in zip(a.params, b.params, strict=True)
        )
        for a, b in zip(one, other, strict=True)
    )


def chain_values(chain: tuple[ChainStep, ...], q: Numbers, index: Ints) -> tuple[Numbers, Numbers]:
    """Least and greatest value: q: [C, K] with parameters of the elements ``index``: [C] -> two [C,
    K]."""
    least = greatest = q
    with np.errstate(all="ignore"):
        for step in chain:
            least, greatest = step.apply(
                least, greatest, tuple(_pick(p, index)[:, None] for p in step.params)
            )
    if least.dtype.kind == "f" and not (np.isfinite(least).all() and np.isfinite(greatest).all()):
        names = ", ".join(step.name for step in chain)
        raise QuantError(f"a value leaves the range of float32 in {names}; scale the weights down")
    return least, greatest


def channels_of(chain: tuple[ChainStep, ...], size: int, shape: tuple[int, ...]) -> int:
    """The smallest C among 1, ``shape[0]`` and N for which every parameter is the same all over a
    channel."""
    candidates = [1] + [c for c in shape[:1] if 1 < c < size]
    for count in candidates:
        blocks = (p.reshape(count, -1) for step in chain for p in step.params if p.size > 1)
        if all(bool((block == block[:, :1]).all()) for block in blocks):
            return count
    return size


def _as_float(values: Numbers) -> Numbers:
    """Cast of integers to float32, rounding to nearest above 2^24."""
    return values.astype(np.float32)


def dequantized(q: Numbers, scale: Numbers, zero: Numbers, gain: Numbers) -> Numbers:
    """``float32(gain * q - zero) * scale``; the gain is 1 but for two-valued numbers (q in {0, 1}
    means -1, 1)."""
    return np.asarray((gain * q - zero).astype(np.float32) * scale)


def dequantize_step(scale: Numbers, zero: Numbers, gain: int = 1) -> ChainStep:
    """``scale``: float32, ``zero``: int64, each [1] or [N]."""
    return ChainStep(
        "DequantizeLinear", dequantized, (scale, zero, np.array([gain], dtype=np.int64))
    )


CAST = ChainStep("Cast", _as_float, whole=True, keeps_whole=True)
