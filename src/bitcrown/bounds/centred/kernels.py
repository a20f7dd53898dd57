"""Adjoints of convolutions and of transposed ones as matrix products, one for each kernel offset.

Coefficients lie as ``[h, w, S, C]``, so what an offset shifts are whole matrices ``[S, C]``: there
are no copies of pixels, and Winograd's method cannot occur. Legend: ``S`` rows, ``C`` (``O``)
channels.
"""

from __future__ import annotations

from torch import Tensor

from bitcrown.bounds.centred.windows import Geometry

_NARROW = 12
"""Channels below which a product for each kernel offset is too narrow: one for all of them."""


def taps_adjoint(
    a: Tensor,
    weight: Tensor | None,
    geometry: Geometry,
    at: tuple[int, int],
    out: Tensor,
) -> Tensor:
    """Adds the adjoint of a convolution to ``out [h', w', S, C]``, for ``a [h, w, S, O]``.

    ``weight`` is ``[k, k', groups, O / groups, C / groups]``, None where every pixel of a kernel
    counts once (an average). Offset (0, 0) of pixel (0, 0) is pixel ``at`` of ``out``; what would
    lie outside of ``out`` is left out. One element is a sum of at most ``k k' O / groups``
    products.
    """
    together = None
    if weight is not None and weight.shape[2] == 1 and weight.shape[4] < _NARROW:
        together = _product(a, weight.permute(2, 3, 0, 1, 4).flatten(2))
        together = together.reshape(*a.shape[:3], *weight.shape[:2], weight.shape[4])
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            spans = [
                _span(
                    at[axis] + offset * geometry.dilations[axis],
                    geometry.strides[axis],
                    a.shape[axis],
                    out.shape[axis],
                )
                for axis, offset in enumerate((i, j))
            ]
            if spans[0] is not None and spans[1] is not None:
                (ys, yd), (xs, xd) = spans[0], spans[1]
                if together is not None:
                    out[yd, xd] += together[ys, xs, :, i, j]
                elif weight is None:
                    out[yd, xd] += a[ys, xs]
                else:  # whole lines: a matrix as they lie
                    out[yd, xd] += _product(a[ys], weight[i, j])[:, xs]
    return out


def turned_adjoint(
    a: Tensor,
    weight: Tensor,
    geometry: Geometry,
    starts: tuple[tuple[int, int], tuple[int, int]],
    out: Tensor,
) -> None:
    """Adds the adjoint of a transposed convolution to ``out [h', w', S, C]``, for
    ``a [h, w, S, O]``: pixel ``r`` of the operand gathers what stands at ``s r - p + d i``.

    ``weight`` is ``[k, k', 1, O, C]``; ``starts`` are the pixels at which ``out`` and ``a`` begin.
    """
    for i in range(geometry.kernel[0]):
        for j in range(geometry.kernel[1]):
            spans = [
                _span(
                    step * first - pad + offset * gap - begin,
                    step,
                    out.shape[axis],
                    a.shape[axis],
                )
                for axis, (offset, step, pad, gap, first, begin) in enumerate(
                    zip((i, j), *geometry[1:], *starts, strict=True)
                )
            ]
            if spans[0] is not None and spans[1] is not None:
                (yd, ys), (xd, xs) = spans[0], spans[1]
                out[yd, xd] += _product(a[ys][:, xs], weight[i, j])


def _span(first: int, stride: int, count: int, extent: int) -> tuple[slice, slice] | None:
    """Of positions ``first + stride k``, ``k < count``, those inside of ``extent``: which ``k``,
    and where."""
    low = max(0, -(first // stride))
    high = min(count, (extent - 1 - first) // stride + 1)
    if low >= high:
        return None
    start = first + stride * low
    return slice(low, high), slice(start, first + stride * (high - 1) + 1, stride)


def _product(a: Tensor, weight: Tensor) -> Tensor:
    """``a [h, w, S, O]`` times ``weight [groups, O / groups, C / groups]``."""
    groups, outputs, inputs = weight.shape
    if groups == 1:
        return (a.reshape(-1, outputs) @ weight[0]).reshape(*a.shape[:-1], inputs)
    parts = a.reshape(-1, groups, outputs).transpose(0, 1) @ weight
    return parts.transpose(0, 1).reshape(*a.shape[:-1], groups * inputs)
