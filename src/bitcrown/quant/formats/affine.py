"""Float tensors as integers times a scale, and the rounding error of their sums.

An activation x between quantized layers takes few values: x = v(q), and v(q) is close to
``scale * (gain * q - zero)``. Weights are close to ``ints * scale``. So a sum of products is
``unit * accumulator + offset`` with an exact integer accumulator, up to

* the deviation of the stored floats from those products: ``sum |W| dx + |x| dW``;
* the rounding of the runtime's sum of n terms t_i. Each product is rounded at most once, an error
  of u |t_i| with u = 2^-24, and each of the at most n additions once, whatever the order and
  whether fused or not. A partial sum is the sum of some of the terms, so its size is at most B, the
  larger one of the sum of all positive parts and the sum of all negative parts, and its rounding
  error at most u B. Together ``(n B + sum |t_i|) u``, times 1 / (1 - (n + 2) u) for the errors of
  errors (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2). An absolute term of
  one smallest normal number per operation covers underflow. Matrix products by other formulas
  (Strassen, Winograd) are outside this bound; the runtime in question uses none for these
  operators.

If all stored floats are exactly on their grids and every product and partial sum is a multiple of
2^e below 2^(e+24), nothing is ever rounded: the error is zero and early and late thresholds
coincide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcrown.quant.formats.lattice import (
    CAST,
    FLOAT32,
    ChainStep,
    Lattice,
    chain_values,
    dequantized,
)
from bitcrown.quant.formats.rule_table import Grid, NoRule, Reading
from bitcrown.quant.network.graph import Ints, Numbers

_UNIT_ROUNDOFF = 2.0**-24
_TINY = 2.0**-126
_MOST_VALUES = 1 << 16
_MOST_TERMS = 1 << 20
_CLOSE = 2.0**-18
_WIDENED = 1 + 2.0**-20
"""Factor on bounds that are themselves computed in float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A float tensor whose element is ``values[q - first]``, about ``scale * (gain * q - zero)``, q
    of ``node``.

    ``deviation``: largest difference between the two; ``values``: float32 [K].
    """

    node: int
    shape: tuple[int, ...]
    scale: float
    gain: int
    zero: int
    first: int
    values: Numbers
    deviation: float

    @property
    def magnitude(self) -> float:
        return float(np.abs(self.values).max(initial=0.0))


def affine(reading: Reading, lattice: Lattice, user: str) -> Affine:
    """Read a tensor as integers times a scale; ``user`` names the operator that needs it."""
    if not lattice.is_float:
        raise NoRule(f"{user} takes integers where float numbers are expected")
    lattice = reading.whole(lattice)
    if lattice.node < 0 or any(step.spread for step in lattice.chain):
        raise NoRule(f"{user} takes a real number that was not quantized before")
    if any(p.size > 1 and bool((p != p[0]).any()) for step in lattice.chain for p in step.params):
        raise NoRule(f"{user} takes a tensor whose scale or zero point differs between elements")
    first = int(reading.assembly.low[lattice.node].min())
    last = int(reading.assembly.high[lattice.node].max())
    if last - first >= _MOST_VALUES:
        raise NoRule(f"{user} takes a tensor with {last - first + 1} values, not a quantized one")
    q = np.arange(first, last + 1, dtype=np.int64)
    values = chain_values(lattice.chain, q[None], np.zeros(1, dtype=np.int64))[0][0]
    if values.dtype != FLOAT32:
        raise NoRule(f"{user} takes numbers of type {values.dtype}")
    return _fitted(reading, lattice, first, q, values, user)


def _fitted(
    reading: Reading, lattice: Lattice, first: int, q: Ints, values: Numbers, user: str
) -> Affine:
    exact = values.astype(np.float64)
    head = lattice.chain[0]
    if head.function is dequantized:
        scale, zero, gain = (np.asarray(p).reshape(-1)[0].item() for p in head.params)
    else:
        gaps = np.diff(exact)
        scale, zero, gain = float(np.abs(gaps[gaps != 0]).min(initial=np.inf)), 0, 1
        scale = 1.0 if lattice.chain == (CAST,) or not np.isfinite(scale) else scale
    if not scale > 0:
        raise NoRule(f"{user} takes a tensor with the scale {scale}; scales are positive")
    node, ints = lattice.node, gain * q - zero
    if len(lattice.chain) > 1:
        ints = np.rint(exact / scale).astype(np.int64)
    deviation = float(np.abs(exact - scale * ints).max(initial=0.0))
    if deviation > _CLOSE * max(float(np.abs(exact).max(initial=0.0)), scale):
        raise NoRule(f"{user} takes a tensor whose values are not multiples of one scale")
    gaps = np.diff(ints)
    if (gaps < 0).any():
        raise NoRule(f"{user} takes a tensor that falls while its integers rise")
    if len(lattice.chain) > 1 and len(set(gaps.tolist())) == 1 and gaps[0] > 0:
        gain, zero = int(gaps[0]), int(gaps[0]) * first - int(ints[0])
    elif len(lattice.chain) > 1:
        node = reading.assembly.table(
            node, first, ints, ", ".join(step.name for step in lattice.chain)
        )
        known, at = np.unique(ints, return_index=True)
        reached = np.searchsorted(known, np.arange(known[0], known[-1] + 1))
        values, first, gain, zero = values[at][reached], int(known[0]), 1, 0
    return Affine(node, lattice.shape, scale, gain, zero, first, values, deviation)


def grid_of(reading: Reading, name: str) -> Grid:
    """The integers behind a constant; plain floats are multiples of a power of two."""
    if name in reading.grids:
        return reading.grids[name]
    value = reading.constants[name].astype(np.float64)
    lsb = _lowest_bit(value)
    ints = value / lsb
    if np.abs(ints).max(initial=0.0) >= 2.0**40:
        raise NoRule(
            f"constant {name!r} has weights of very different size and no common scale; quantize it"
        )
    return Grid(ints.astype(np.int64), np.full(value.shape, lsb))


def _lowest_bit(values: Numbers) -> float:
    """The largest power of two of which all ``values`` are multiples (1 if all are zero)."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64).reshape(-1))
    whole = (np.abs(mantissa) * 2.0**53).astype(np.int64)
    used = whole != 0
    if not used.any():
        return 1.0
    low = whole[used] & -whole[used]
    return float(np.ldexp(1.0, int((np.log2(low.astype(np.float64)) + exponent[used] - 53).min())))


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The weights of a sum of products, one row an output: ``floats``, ``ints``: [out, terms],
    ``unit``: [out]."""

    floats: Numbers
    ints: Ints
    scale: Numbers


def products(weight: Numbers, grid: Grid, user: str) -> Products:
    """``weight`` and its grid as [out, terms]; every row has to have one scale."""
    rows = len(weight)
    scale = grid.scale.reshape(rows, -1)
    if (scale != scale[:, :1]).any():
        raise NoRule(
            f"{user} has weights whose scale differs inside an output; use one scale per output "
            "channel"
        )
    if not (scale > 0).all() or not np.isfinite(weight).all():
        raise NoRule(f"{user} has weights or scales that are not finite and positive")
    return Products(
        weight.reshape(rows, -1).astype(np.float64), grid.ints.reshape(rows, -1), scale[:, 0]
    )


def sum_step(x: Affine, w: Products, bias: Numbers, copies: int) -> tuple[ChainStep, bool]:
    """The float32 value of ``sum w x + bias`` as a function of the accumulator, and whether it is
    exact.

    ``bias``: float64 [out]; each output stands for ``copies`` elements (the positions of a
    convolution).
    """
    # sum w x = unit * sum ints q + offset, up to rounding and to what is off the grids
    unit = x.scale * w.scale
    absolute = np.abs(w.floats).sum(axis=1) * x.magnitude + np.abs(bias)
    lsb = min(
        _lowest_bit(x.values) * _lowest_bit(w.floats), _lowest_bit(bias) if bias.any() else np.inf
    )
    on_grid = (
        x.deviation == 0.0
        and float(np.float32(x.scale)) == x.scale
        and bool((w.floats == w.scale[:, None] * w.ints).all())
    )
    exact = on_grid and lsb >= 2.0**-120 and float(absolute.max()) < lsb * 2.0**24
    # exact: every product and partial sum is a multiple of lsb below lsb * 2^24, a float32 number
    error = np.zeros(len(unit))
    if not exact:
        count = (w.floats != 0).sum(axis=1) + 4  # the bias, and what an average does after its sum
        if count.max() > _MOST_TERMS:
            raise NoRule(
                f"a sum of {count.max()} terms is longer than {_MOST_TERMS}, too long for an error "
                "bound"
            )
        # B of the module: the larger one of the positive and the negative parts, at the worst x
        parts = (
            w.floats[:, :, None]
            * x.values.astype(np.float64)[[x.values.argmin(), x.values.argmax()]]
        )
        above = np.maximum(parts.max(axis=2), 0).sum(axis=1) + np.maximum(bias, 0)
        below = np.maximum(-parts.min(axis=2), 0).sum(axis=1) + np.maximum(-bias, 0)
        rounding = count * np.maximum(above, below) + absolute
        rounding = rounding * _UNIT_ROUNDOFF / (1 - (count + 2) * _UNIT_ROUNDOFF)
        # sum |W - scale * ints| |x| + |W| dx
        off_grid = np.abs(w.floats - w.scale[:, None] * w.ints).sum(axis=1) * (
            x.magnitude + x.deviation
        )
        off_grid = off_grid + np.abs(w.floats).sum(axis=1) * x.deviation
        error = (rounding + off_grid + 2.0**-46 * absolute) * _WIDENED + count * _TINY
    params = tuple(np.repeat(p, copies) for p in (unit, bias, error))
    return ChainStep("sum in float32", spread_sum, params, spread=True), exact


def spread_sum(
    least: Numbers, greatest: Numbers, unit: Numbers, offset: Numbers, error: Numbers
) -> tuple[Numbers, Numbers]:
    """``unit * a + offset -+ error``; every operation is monotone in a, and float32 rounding moves
    no float32 number.

    The rounding of these float64 operations is part of the error; in the exact case there is none.
    """
    low, high = (unit * least + offset) - error, (unit * greatest + offset) + error
    return low.astype(np.float32), high.astype(np.float32)
