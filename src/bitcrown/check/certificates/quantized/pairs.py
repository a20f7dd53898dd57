"""The checker's rules for two tensors that both depend on the input: their sum, their maximum over
windows.

The sum of two tensors with few values each is known on all pairs of values. The certificate's node
is ``a = f1 r1 + f2 r2 + c``; what the file makes of a pair, and which integer the node has for it,
is tabled, and thresholds have to hold on the integers that occur. QLinearAdd is tabled by
onnxruntime itself, whose fused or separate roundings it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.quantized.candidates import image_windows
from bitcrown.check.certificates.quantized.chain import (
    ChainLink,
    ChainTensor,
    NumpyArray,
    as_parameter,
    tabled,
    values_of,
)
from bitcrown.check.certificates.quantized.integer_sums import integer_view
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    quantized_rule,
)
from bitcrown.check.certificates.quantized.runtime import computed

_MOST_PAIRS = 1 << 20
_Sides = tuple[tuple[int, NumpyArray], tuple[int, NumpyArray]]


def sum_of_two(reading: FileReading, node: Operator) -> None:
    """``left + right`` or ``left - right``, in float32 or in integers."""
    need(node.op in ("Add", "Sub"), f"{node} of two tensors that depend on the input is not linear")
    sign = 1 if node.op == "Add" else -1
    found = []
    for one, other, number, factors in sums(reading, node.inputs):
        if one.is_float:
            sides = reading.table(one), reading.table(other)
            if sides[0] is not None and sides[1] is not None:
                values = np.add.outer(sides[0][1], sign * sides[1][1])
                found.append(pair_tensor(number, one, (sides[0], sides[1]), factors, values))
        elif integer_view(reading, one) == integer_view(reading, other) == (1, 0) and factors == (
            1,
            sign,
            0,
        ):
            size = one.size
            found.append(ChainTensor(np.full(size, number), np.arange(size), one.shape, one.dtype))
    reading.bind(node, found)


def sums(
    reading: FileReading, names: list[str]
) -> Iterator[tuple[ChainTensor, ChainTensor, int, tuple[int, int, int]]]:
    """Nodes ``f1 r1 + f2 r2 + c`` of the certificate over the integers of two tensors, alike in all
    elements."""
    for one in reading.views(names[0]):
        for other in reading.views(names[1]):
            need(one.shape == other.shape, "tensors of two shapes are combined")
            for number, node in enumerate(reading.net.nodes):
                if (
                    node["op"] != "sum"
                    or len(node["sources"]) != 2
                    or reading.net.sizes[number] != one.size
                ):
                    continue
                origins = [reading.origins[s] for s in node["sources"]]
                if not (origins[0].is_of(one) and origins[1].is_of(other)):
                    continue
                columns = np.stack([*(o.factor for o in origins), *(o.shift for o in origins)])
                if (columns != columns[:, :1]).any() or any(
                    b != node["bias"][0] for b in node["bias"]
                ):
                    continue
                f1, f2, c1, c2 = (int(v) for v in columns[:, 0])
                a, b = node["factors"]
                yield one, other, number, (a * f1, b * f2, a * c1 + b * c2 + node["bias"][0])


def pair_tensor(
    number: int, like: ChainTensor, sides: _Sides, factors: tuple[int, int, int], values: NumpyArray
) -> ChainTensor:
    """The sum as a function of the node's integer: between the least result at or behind it, and
    the greatest before.

    At an integer that occurs the true result lies between the two.
    """
    (first1, v1), (first2, v2) = sides
    need(
        values.shape == (len(v1), len(v2)) and values.size <= _MOST_PAIRS,
        "too many pairs of values",
    )
    need(
        all(abs(f) < 2**46 for f in factors), "a sum has weights too large for a quantized network"
    )
    keys = (
        factors[0] * (first1 + np.arange(len(v1)))[:, None]
        + factors[1] * (first2 + np.arange(len(v2)))[None]
    )
    # of all pairs with one integer, the least and the greatest result
    flat = (keys + factors[2]).reshape(-1)
    order = np.argsort(flat, kind="stable")
    known, start = np.unique(flat[order], return_index=True)
    least = np.minimum.reduceat(values.reshape(-1)[order], start)
    greatest = np.maximum.reduceat(values.reshape(-1)[order], start)
    # made to rise: the least result at an integer or behind it, the greatest at it or before it
    least = np.minimum.accumulate(least[::-1])[::-1]
    greatest = np.maximum.accumulate(greatest)

    def results(low: NumpyArray, high: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        first = np.searchsorted(known, low, side="right").clip(1) - 1
        last = np.searchsorted(known, high, side="right").clip(1) - 1
        return least[first], greatest[last]

    size = like.size
    name = tabled("pairs", known, least, greatest)
    step = ChainLink(name, results, whole=values.dtype.kind != "f", widens=True)
    return ChainTensor(
        np.full(size, number), np.arange(size), like.shape, like.dtype, (step,), known
    )


@quantized_rule("com.microsoft.QLinearAdd")
def qlinear_add(reading: FileReading, node: Operator) -> None:
    others = {k: reading.constant(node, k) for k in (1, 2, 4, 5, 6, 7)}
    need(all(v.size == 1 for v in others.values()), f"{node} has several scales")
    kind = others[7].dtype

    def results(a: NumpyArray, b: NumpyArray) -> NumpyArray:
        inputs: list[Any] = [
            a.astype(kind),
            others[1],
            others[2],
            b.astype(kind),
            *(others[k] for k in (4, 5, 6, 7)),
        ]
        return computed(node, inputs)[0].astype(np.int64)

    constants = [node.inputs[k] in reading.constants for k in (0, 3)]
    if any(constants):
        _with_known(reading, node, results, 3 * int(constants[0]), 3 * int(constants[1]))
        return
    found = []
    for one, other, number, factors in sums(reading, [node.inputs[0], node.inputs[3]]):
        sides = reading.table(one), reading.table(other)
        if sides[0] is None or sides[1] is None:
            continue
        grid = np.meshgrid(sides[0][1], sides[1][1], indexing="ij")
        need(grid[0].size <= _MOST_PAIRS, f"{node} has too many pairs of values")
        values = results(grid[0].reshape(-1), grid[1].reshape(-1)).reshape(grid[0].shape)
        found.append(
            replace(pair_tensor(number, one, (sides[0], sides[1]), factors, values), dtype=kind)
        )
    reading.bind(node, found)


def _with_known(reading: FileReading, node: Operator, results: Any, at: int, other: int) -> None:
    """One operand is known: a table over the values of the type, for every different number in
    it."""
    tensors = reading.given(node.inputs[at])
    known = reading.constants[node.inputs[other]].astype(np.int64)
    need(
        np.broadcast_shapes(tensors[0].shape, known.shape) == tensors[0].shape,
        f"{node} repeats its input",
    )
    low, high = int(np.iinfo(tensors[0].dtype).min), int(np.iinfo(tensors[0].dtype).max)
    need(high - low < 1 << 16, f"{node} takes {tensors[0].dtype}")
    span, values = np.arange(low, high + 1), np.unique(known)
    grid = np.meshgrid(values, span, indexing="ij")
    pair = (grid[1], grid[0]) if at == 0 else (grid[0], grid[1])
    table = results(pair[0].reshape(-1), pair[1].reshape(-1)).reshape(grid[0].shape)
    rises = bool((np.diff(table, axis=1) >= 0).all())
    need(rises, f"{node} falls where its input rises")
    place = as_parameter(np.searchsorted(values, known), tensors[0].shape)
    step = ChainLink(
        tabled(f"integers from {low}", table),
        lambda q, row: table[row, np.clip(q - low, 0, high - low)],
        (place,),
        whole=True,
    )
    reading.bind(node, [tensor.then(step, reading.constant(node, 7).dtype) for tensor in tensors])


@quantized_rule("MaxPool")
def max_pool(reading: FileReading, node: Operator) -> None:
    """A maximum commutes with a function that rises, and is the same all over a channel: it acts on
    the integers."""
    kernel = [int(k) for k in node.attrs["kernel_shape"]]
    one = len([o for o in node.outputs if o]) == 1 and not node.attrs.get("storage_order", 0)
    found = []
    for view in reading.views(node.inputs[0]):
        strides, dilations, pads, plane = map(list, image_windows(node, view.shape, kernel))
        plane = _rounded_up(node, view.shape, kernel, strides, pads, plane)
        need(one and dilations == [1, 1], f"{node} has dilations, or gives positions")
        channels, size = view.shape[1], view.shape[2] * view.shape[3]
        alike = all(
            p.size == 1
            or bool((p.reshape(channels, size) == p.reshape(channels, size)[:, :1]).all())
            for step in view.chain
            for p in step.params
        )
        low, high = reading.ends(view)
        ends = values_of(view.chain, np.stack([low, high], axis=1), np.arange(view.size))
        if not alike or any(bool((end[:, 0] > end[:, 1]).any()) for end in ends):
            continue
        for number, own in enumerate(reading.net.nodes):
            if own["op"] != "maxpool" or own["shape"] != [channels, *plane]:
                continue
            origin = reading.origins[own["source"]]
            same = (own["plane"], own["kernel"], own["strides"]) == (
                list(view.shape[2:]),
                kernel,
                strides,
            )
            plain = bool((origin.factor == 1).all() and (origin.shift == 0).all())
            if same and own["padding"][:2] == pads[:2] and plain and origin.is_of(view):
                count = plane[0] * plane[1]
                index = np.repeat(np.arange(channels) * size, count)
                chain = tuple(step.picked(index) for step in view.chain)
                total = channels * count
                shape = (1, channels, *plane)
                found.append(
                    ChainTensor(
                        np.full(total, number),
                        np.arange(total),
                        shape,
                        view.dtype,
                        chain,
                        view.keys,
                    )
                )
    reading.bind(node, found)


def _rounded_up(
    node: Operator,
    shape: tuple[int, ...],
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    plane: list[int],
) -> list[int]:
    """``ceil_mode`` is read only where it changes nothing."""
    room = [shape[2 + k] + pads[k] + pads[k + 2] - kernel[k] for k in (0, 1)]
    exact = not any(r % s for r, s in zip(room, strides, strict=True))
    need(not node.attrs.get("ceil_mode", 0) or exact, f"{node} rounds its size up")
    return plane
