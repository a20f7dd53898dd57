"""Which nodes of a certificate's network may be the sum that an operator of the file computes.

A candidate is a dense node or a convolution on just the integers that the operator's tensor is
known by, with the operator's shape and geometry; its weights are carried over to roots. Whether it
computes the operator's sum is for the rules to verify (``sums``, ``integer_sums``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.onnx_files import Windows, windows_over
from bitcrown.check.certificates.quantized.chain import (
    INTEGER_LIMIT,
    ChainLink,
    ChainTensor,
    NumpyArray,
)
from bitcrown.check.certificates.quantized.reading import FileReading, Operator, Origin

_MOST_EXACT = 1 << 40


@dataclass(frozen=True, eq=False)
class Candidate:
    """A node of the certificate, as a sum over roots: ``ints``: [out, terms], ``bias``: [out];
    ``pad`` as a root."""

    number: int
    ints: NumpyArray
    bias: NumpyArray
    pad: Fraction
    is_padded: bool


def _is_root(reading: FileReading, number: int) -> bool:
    return bool((reading.origins[number].nodes == number).all())


def dense_candidates(
    reading: FileReading, view: ChainTensor, rows: int, outputs: int
) -> Iterator[Candidate]:
    """Dense nodes on just these integers."""
    for number, node in enumerate(reading.net.nodes):
        if (
            node["op"] != "dense"
            or reading.net.sizes[number] != rows * outputs
            or not _is_root(reading, number)
        ):
            continue
        origin = reading.origins[node["source"]]
        if not origin.is_of(view):
            continue
        weight = exact_array([[*row, *[0] * (view.size - len(row))] for row in node["weight"]])
        bias = exact_array(node["bias"])
        _require_small(weight, origin)
        ints = weight * origin.factor
        yield Candidate(number, ints, bias + weight @ origin.shift, Fraction(0), False)


def exact_array(values: Any) -> NumpyArray:
    """int64 of numbers so small that sums of products of them stay exact. Raises ``Reject``."""
    found = np.array(values, dtype=object)
    need(bool((np.abs(found) < _MOST_EXACT).all()), "a weight is too large for a quantized network")
    return found.astype(np.int64)


def _require_small(weight: NumpyArray, origin: Origin) -> None:
    """No sum over roots, nor any part of one, leaves int64. Raises ``Reject``."""
    widest = int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max(initial=0))
    largest = max(int(np.abs(part).max(initial=0)) for part in (origin.factor, origin.shift))
    need(widest * largest < INTEGER_LIMIT, "a weight is too large for a quantized network")


def conv_candidates(
    reading: FileReading,
    view: ChainTensor,
    node: Operator,
    kernel: tuple[int, ...],
    outputs: int,
    groups: int,
) -> Iterator[Candidate]:
    """Convolutions of the certificate with the geometry of the operator, on just these integers."""
    strides, dilations, pads, plane = map(list, image_windows(node, view.shape, kernel))
    for number, own in enumerate(reading.net.nodes):
        if (
            own["op"] != "conv"
            or own["shape"] != [outputs, *plane]
            or not _is_root(reading, number)
        ):
            continue
        same = (own["strides"], own["dilations"], own["plane"], own["groups"]) == (
            strides,
            dilations,
            list(view.shape[2:]),
            groups,
        )
        origin = reading.origins[own["source"]]
        if (
            not same
            or own["padding"][:2] != pads[:2]
            or not origin.is_of(view)
            or not _is_uniform(origin)
        ):
            continue
        factor, shift = int(origin.factor[0]), int(origin.shift[0])
        weight = exact_array(own["weight"])
        if weight.shape[2:] != tuple(kernel):
            continue  # as many weights, but over windows of another form
        _require_small(weight, origin)
        total = weight.reshape(len(weight), -1).sum(axis=1)
        bias = exact_array(own["bias"]) + shift * total
        pad = Fraction(own["pad_value"] - shift, factor)
        yield Candidate(number, (weight * factor).reshape(len(weight), -1), bias, pad, any(pads))


def _is_uniform(origin: Origin) -> bool:
    return all(bool((v == v[0]).all()) for v in (origin.factor, origin.shift))


def image_windows(node: Operator, shape: tuple[int, ...], kernel: Sequence[int]) -> Windows:
    """The windows of an operator over one image [1, C, H, W]; pads are top, left, bottom, right."""
    is_image = len(shape) == 4 and shape[0] == 1 and len(kernel) == 2
    need(is_image, f"{node} does not work on one image")
    return windows_over(node.attrs, shape[2:], kernel)


def result(number: int, shape: tuple[int, ...], dtype: Any, *steps: ChainLink) -> ChainTensor:
    size = int(np.prod(shape))
    return ChainTensor(np.full(size, number), np.arange(size), shape, np.dtype(dtype), steps)
