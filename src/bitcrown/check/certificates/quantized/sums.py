"""The checker's rules for sums of products: MatMul, Gemm, Conv and averages in float32.

**Verified, not derived.** A node of the certificate is ``a = W r + b`` in integers. The file
computes ``y = fl(sum w_j x_j + c)`` with ``x_j = v(r_j)``. For *any* rational ``unit``, ``s`` and
``z``

    y = unit a + offset + (rounding) + sum_j e_j (s r_j + z) + sum_j w_j (v(r_j) - s r_j - z),
    e_j = w_j - (unit / s) W_j,   offset = c - unit b + (unit / s) z sum_j W_j,

so a bound on the last two sums needs no knowledge of how W was found; a wrong W makes it large, and
no threshold then holds. Units are tried that make it small: the scales that the constants were
dequantized from.

**Rounding.** n terms t_j: each product and each of the additions, in whatever order, is rounded
once, and a partial sum is at most B, the larger one of the sums of all positive and of all negative
parts. Together at most ``(n B + sum |t_j|) u / (1 - (n + 2) u)``, u = 2^-24 (Higham, Accuracy and
Stability, section 4.2), and a smallest normal number for each that underflows. Where all terms are
multiples of 2^e and all sums below 2^(e + 24), nothing is rounded. The float64 arithmetic of this
file is covered by ``2^-47 sum |w_j| max |v|``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.quantized.candidates import (
    Candidate,
    conv_candidates,
    dense_candidates,
    result,
)
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    ChainLink,
    ChainTensor,
    NumpyArray,
)
from bitcrown.check.certificates.quantized.reading import FileReading, Operator, quantized_rule

_ROUNDOFF = 2.0**-24
_TINY = 2.0**-126


@dataclass(frozen=True, eq=False)
class Weights:
    """``floats``: [out, terms] float64; ``scales``: [out] of the integers behind them, if known;
    ``bias``: [out]."""

    floats: NumpyArray
    scales: NumpyArray | None
    bias: NumpyArray
    extra: int = 1
    """Roundings besides those of the products and the additions between them."""


@quantized_rule("MatMul", "Gemm")
def matrix_product(reading: FileReading, node: Operator) -> None:
    plain = all(node.attrs.get(k, 1.0) == 1.0 for k in ("alpha", "beta")) and not node.attrs.get(
        "transA", 0
    )
    weight = reading.constant(node, 1)
    need(plain and weight.ndim == 2, f"{node} is not one matrix times a tensor")
    scales = _scales(reading, node.inputs[1])
    if not (node.op == "Gemm" and node.attrs.get("transB", 0)):
        weight, scales = weight.T, scales.T if scales is not None else None
    bias = np.zeros(len(weight))
    if node.op == "Gemm" and node.has(2):
        given = reading.constant(node, 2).astype(np.float64)
        fits = given.size == 1 or given.shape[-1] == given.size == len(weight)
        need(fits, f"{node} has a bias of shape {given.shape}")
        bias = np.broadcast_to(given.reshape(-1), (len(weight),))
    weights = Weights(weight.astype(np.float64), _one_each(scales), bias)
    found = []
    for view in reading.views(node.inputs[0]):
        need(view.is_float and view.shape[-1] == weight.shape[1], f"{node} does not fit its input")
        shape = (*view.shape[:-1], len(weight))
        rows = view.size // weight.shape[1]
        for candidate in dense_candidates(reading, view, rows, len(weight)):
            step = float_sum(reading, view, _repeated(weights, rows), candidate)
            found += [result(candidate.number, shape, BINARY32, step)] if step is not None else []
    reading.bind(node, found)


def _repeated(weights: Weights, rows: int) -> Weights:
    """The weights of several rows of the input at once."""
    if rows == 1:
        return weights
    scales = np.tile(weights.scales, rows) if weights.scales is not None else None
    return Weights(
        np.kron(np.eye(rows), weights.floats), scales, np.tile(weights.bias, rows), weights.extra
    )


def _scales(reading: FileReading, name: str) -> NumpyArray | None:
    """The scales behind a constant, in its shape."""
    return reading.grids[name][1] if name in reading.grids else None


def _one_each(scales: NumpyArray | None) -> NumpyArray | None:
    """[out] if every output has one scale."""
    if scales is None:
        return None
    rows = scales.reshape(len(scales), -1)
    return rows[:, 0] if rows.size and bool((rows == rows[:, :1]).all()) else None


@quantized_rule("Conv")
def convolution(reading: FileReading, node: Operator) -> None:
    weight = reading.constant(node, 1)
    need(weight.ndim == 4, f"{node} is no convolution of images")
    bias = reading.constant(node, 2).astype(np.float64) if node.has(2) else np.zeros(len(weight))
    need(bias.shape == (len(weight),), f"{node} has a bias of shape {bias.shape}")
    floats = weight.astype(np.float64).reshape(len(weight), -1)
    weights = Weights(floats, _one_each(_scales(reading, node.inputs[1])), bias)
    _convolved(
        reading, node, weights, weight.shape[2:], weight.shape[1], int(node.attrs.get("group", 1))
    )


def _convolved(
    reading: FileReading,
    node: Operator,
    weights: Weights,
    kernel: tuple[int, ...],
    ins: int,
    groups: int,
) -> None:
    found = []
    for view in reading.views(node.inputs[0]):
        need(
            len(view.shape) == 4 and view.shape[1] == ins * groups, f"{node} does not fit its input"
        )
        outputs = len(weights.floats)
        for candidate in conv_candidates(reading, view, node, kernel, outputs, groups):
            plane = reading.net.nodes[candidate.number]["shape"]
            step = float_sum(reading, view, weights, candidate, plane[1] * plane[2])
            found += (
                [result(candidate.number, (1, *plane), BINARY32, step)] if step is not None else []
            )
    reading.bind(node, found)


@quantized_rule("ReduceMean")
def mean(reading: FileReading, node: Operator) -> None:
    """Of an image over its plane: a ``GlobalAveragePool``."""
    given = reading.constant(node, 1) if node.has(1) else node.attrs.get("axes", ())
    shape = reading.given(node.inputs[0])[0].shape
    axes = sorted(int(axis) % len(shape) for axis in np.asarray(given).reshape(-1))
    need(len(shape) == 4 and axes == [2, 3], f"{node} is no mean over the plane of an image")
    average(reading, replace(node, op="GlobalAveragePool", inputs=node.inputs[:1], attrs={}))
    if not node.attrs.get("keepdims", 1):
        index = np.arange(shape[0] * shape[1]).reshape(shape[:2])
        reading.bind(node, [t.moved(index) for t in reading.given(node.outputs[0])])


@quantized_rule("AveragePool", "GlobalAveragePool")
def average(reading: FileReading, node: Operator) -> None:
    """Sums with the weight 1 / count; the division, or the product with a rounded reciprocal, is
    two roundings more."""
    shape = reading.given(node.inputs[0])[0].shape
    need(len(shape) == 4, f"{node} does not work on images")
    if node.op == "GlobalAveragePool":
        node.attrs.clear()
    kernel = (
        tuple(shape[2:])
        if node.op == "GlobalAveragePool"
        else tuple(int(k) for k in node.attrs["kernel_shape"])
    )
    padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    )
    counted = not padded or bool(node.attrs.get("count_include_pad", 0))
    need(
        counted and not node.attrs.get("ceil_mode", 0),
        f"{node} leaves padding out of its count, or rounds sizes up",
    )
    need(list(node.attrs.get("dilations", (1, 1))) == [1, 1], f"{node} has dilations")
    count = kernel[0] * kernel[1]
    weights = Weights(
        np.full((shape[1], count), 1 / count), np.full(shape[1], 1 / count), np.zeros(shape[1]), 3
    )
    _convolved(reading, node, weights, kernel, 1, shape[1])


def float_sum(
    reading: FileReading, view: ChainTensor, weights: Weights, candidate: Candidate, copies: int = 1
) -> ChainLink | None:
    """The file's sum as a function of the node's integer; None where the two have nothing to do
    with each other.

    Each output stands for ``copies`` elements (the places of a convolution).
    """
    known = reading.table(view)
    if known is None or candidate.ints.shape != weights.floats.shape:
        return None
    first, values = known
    roots, v = first + np.arange(len(values), dtype=np.int64), values.astype(np.float64)
    ends = np.abs([reading.net.low[candidate.number], reading.net.high[candidate.number]])
    reaches = ends.max(axis=0).reshape(len(weights.floats), -1).max(axis=1).tolist()
    best: list[NumpyArray] = []
    for scale, zero in fits(view, roots, v):
        if scale == 0 or (candidate.is_padded and scale * candidate.pad + zero != 0):
            continue
        for units in _units(weights, candidate, scale):
            found = _spread_of(weights, candidate, (roots, v), (scale, zero), units, reaches)
            made = np.stack(found)
            size = made[2] / np.maximum(np.abs(made[0]), _TINY)
            best = (
                [np.where(size < best[1], made, best[0]), np.minimum(size, best[1])]
                if best
                else [made, size]
            )
    if not best or not np.isfinite(best[0]).all():
        return None
    unit, offset, error = (np.repeat(part, copies) for part in best[0])
    return ChainLink("sum", _spread, (unit, offset, error), widens=True)


def _spread(
    least: NumpyArray, greatest: NumpyArray, unit: NumpyArray, offset: NumpyArray, error: NumpyArray
) -> tuple[NumpyArray, NumpyArray]:
    """Rounding to float32 never moves a float32 number past another one, so the sum itself stays
    inside."""
    ends = unit * least + offset, unit * greatest + offset
    return (np.minimum(*ends) - error).astype(np.float32), (np.maximum(*ends) + error).astype(
        np.float32
    )


def fits(
    view: ChainTensor, roots: NumpyArray, v: NumpyArray
) -> Iterator[tuple[Fraction, Fraction]]:
    """Ways to see the values as about ``scale * r + zero``: by the file's own scale, or by the
    smallest step."""
    for step in view.chain[:1]:
        if step.name == "dequantize" and all(bool((p == p[0]).all()) for p in step.params):
            scale = Fraction(float(step.params[0][0]))
            yield scale, -int(step.params[1][0]) * scale
        elif step.name == "sign":
            scale = Fraction(float(step.params[0][0]))
            yield 2 * scale, -scale
    gaps = np.diff(v)
    gap = Fraction(float(np.abs(gaps[gaps != 0]).min())) if gaps.any() else Fraction(1)
    sign = -1 if v[-1] < v[0] else 1
    yield sign * gap, Fraction(0)
    yield sign * gap, Fraction(float(v[0])) - sign * gap * int(roots[0])
    if len(v) > 1 and v[-1] != v[0]:
        slope = (Fraction(float(v[-1])) - Fraction(float(v[0]))) / (len(v) - 1)
        yield slope, Fraction(float(v[0])) - slope * int(roots[0])


def _units(weights: Weights, candidate: Candidate, scale: Fraction) -> Iterator[list[Fraction]]:
    """For every output, a factor from integers to real numbers: by the scale behind the weights, or
    by the largest."""
    place = np.abs(candidate.ints).argmax(axis=1)
    rows = np.arange(len(place))
    largest = [
        (float(w), int(i))
        for w, i in zip(weights.floats[rows, place], candidate.ints[rows, place], strict=True)
    ]
    by_weight = [scale * Fraction(w) / i if i else scale for w, i in largest]
    yield by_weight
    if weights.scales is not None:
        known = []
        for (w, i), s in zip(largest, weights.scales.tolist(), strict=True):
            # integers may be the file's times a common factor: that of the largest one, rounded
            ratio = round(w / s) if s else 0
            known.append(
                scale * Fraction(s) * Fraction(ratio, i) if i and ratio else scale * Fraction(s)
            )
        yield known


def _spread_of(
    weights: Weights,
    candidate: Candidate,
    table: tuple[NumpyArray, NumpyArray],
    fit: tuple[Fraction, Fraction],
    units: list[Fraction],
    reaches: list[int],
) -> tuple[NumpyArray, NumpyArray, NumpyArray]:
    """Unit, offset and error of every output: [out] each; the inequality of the module's docstring.

    ``reaches``: [out] the largest size of the node's integers.
    """
    roots, v = table
    scale, zero = fit
    w, ints = weights.floats, candidate.ints
    # v(r) is s r + z up to the deviation; the blur is float64's own error in s r + z
    line = float(scale) * roots + float(zero)
    blur = 2.0**-50 * (abs(float(scale)) * float(np.abs(roots).max()) + abs(float(zero)))
    distance = float(np.abs(v - line).max())
    deviation, reach = distance + blur, float(np.abs(line).max()) + blur
    # sum |e_j| |s r_j + z| + sum |w_j| |v(r_j) - s r_j - z|
    omega = [u / scale for u in units]
    gap = np.abs(w - np.array([float(o) for o in omega])[:, None] * ints)
    size = np.abs(w).sum(axis=1)
    off = gap.sum(axis=1) * reach + size * deviation
    # offset = c - unit b + (unit / s) z sum W
    sums = [int(row.sum()) for row in ints]
    offsets = [
        Fraction(float(c)) - u * int(b) + o * zero * total
        for c, u, b, o, total in zip(weights.bias, units, candidate.bias, omega, sums, strict=True)
    ]
    unit, shift = np.array([float(u) for u in units]), np.array([float(o) for o in offsets])
    absolute = size * float(np.abs(v).max()) + np.abs(weights.bias)
    is_exact = (
        distance == 0.0
        and not gap.any()
        and _is_never_rounded(w, v, weights.bias, absolute)
        and [scale * r + zero for r in roots.tolist()] == v.tolist()
        and all(map(_is_computed_exactly, omega, np.abs(ints).max(axis=1).tolist()))
        and all(map(_is_computed_exactly, units, reaches, offsets))
    )
    if is_exact:
        return unit, shift, np.zeros(len(unit))
    # the file's own rounding: (n B + sum |t_j|) u / (1 - (n + 2) u)
    count = (w != 0).sum(axis=1) + weights.extra
    ends = w[:, :, None] * np.array([v.min(), v.max()])
    above = np.maximum(ends.max(axis=2), 0).sum(axis=1) + np.maximum(weights.bias, 0)
    below = np.maximum(-ends.min(axis=2), 0).sum(axis=1) + np.maximum(-weights.bias, 0)
    rounding = count * np.maximum(above, below) + absolute
    rounding *= _ROUNDOFF / (1 - (count + 2) * _ROUNDOFF)
    # float64's error here, and in ``unit a + offset``
    own = 2.0**-47 * absolute + 2.0**-50 * (np.abs(unit) * np.array(reaches, float) + np.abs(shift))
    return unit, shift, (rounding + off) * (1 + 2.0**-30) + own + count * _TINY


def _is_computed_exactly(factor: Fraction, most: int, addend: Fraction = Fraction(0)) -> bool:
    """Whether float64 has ``factor k + addend`` for all integers ``|k| <= most``: both, and so all
    results, are multiples of a power of two and below 2^53 of it."""
    grain = min((_grain(part) for part in (factor, addend) if part), default=Fraction(1))
    is_held = Fraction(float(factor)) == factor and Fraction(float(addend)) == addend
    return is_held and abs(factor) * most + abs(addend) < grain * 2**53


def _is_never_rounded(w: NumpyArray, v: NumpyArray, bias: NumpyArray, absolute: NumpyArray) -> bool:
    """Whether all products, and so all sums, are multiples of a power of two that float32
    resolves."""
    unit = _lowest(w) * _lowest(v)
    unit = min(unit, _lowest(bias)) if bias.any() else unit
    return unit >= 2.0**-120 and float(absolute.max()) < unit * 2.0**24


def _lowest(values: NumpyArray) -> float:
    """The largest power of two of which all values are multiples; 1 if all are 0."""
    grains = (_grain(Fraction(float(value))) for value in np.unique(np.abs(values)) if value)
    return float(min(grains, default=Fraction(1)))


def _grain(value: Fraction) -> Fraction:
    """The largest power of two that divides a float; of other fractions, no more than that."""
    return Fraction(value.numerator & -value.numerator, value.denominator)
