"""What a tensor of a quantized file is, as the checker reads it: a monotone function of the
integers of one node.

Element n of a tensor is ``chain_n(q)`` for the integer q of one element of one node of the
certificate's network. A chain is a list of elementwise steps with constants, each a single
correctly rounded float32 operation (or an exact one on integers), hence monotone, rising or
falling. A sum in float32 whose order of summation is left open widens a value to an interval; a
step maps the ends of it.

The checker compiles nothing. It is given thresholds and verifies that they enclose the chain, which
takes two evaluations per threshold, because both sides are steps that never fall (``encloses``).

Legend: N elements of a tensor, G groups of elements with equal parameters, K points.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitcrown.check.certificates.documents import Reject, need
from bitcrown.check.certificates.integers.nodes import StepNode

NumpyArray = npt.NDArray[Any]
BINARY32 = np.dtype(np.float32)
INTEGER_LIMIT = 1 << 62
_MOST_CELLS = 1 << 21
INPUT = -1
"""The node that stands for the file's own real input, before a step has made integers of it."""


class WrappedNumber(Reject):
    """A number so large that a kernel does not saturate, but wraps around."""


@dataclass(frozen=True, eq=False)
class ChainLink:
    """``function(values, *params)``; params are [1] or [N]. ``whole``: gives whole numbers;
    ``keeps``: if given them.

    ``widens``: ``function(least, greatest, *params)`` gives both ends. Name and parameters say all
    about the function: steps that agree in both compute the same (``tabled``).
    """

    name: str
    function: Callable[..., Any]
    params: tuple[NumpyArray, ...] = ()
    whole: bool = False
    keeps: bool = False
    widens: bool = False

    def picked(self, index: NumpyArray) -> ChainLink:
        return replace(self, params=tuple(p if p.size == 1 else p[index] for p in self.params))

    def is_same(self, other: ChainLink) -> bool:
        return (
            self.name == other.name
            and len(self.params) == len(other.params)
            and all(bool((a == b).all()) for a, b in zip(self.params, other.params, strict=True))
        )


def tabled(name: str, *tables: NumpyArray) -> str:
    """The name of a step whose function holds ``tables``: other tables, another name."""
    content = hashlib.sha256()
    for table in tables:
        content.update(
            f"{table.dtype} {table.shape} ".encode() + np.ascontiguousarray(table).tobytes()
        )
    return f"{name} {content.hexdigest()}"


Chain = tuple[ChainLink, ...]


def _as_float(values: NumpyArray) -> NumpyArray:
    return np.asarray(values).astype(np.float32)


TO_FLOAT = ChainLink("to float32", _as_float, keeps=True)


@dataclass(frozen=True, eq=False)
class ChainTensor:
    """``nodes``, ``elements``: [N], where the integer of each element comes from; ``dtype``: the
    file's type.

    ``keys``: the only integers that occur, if fewer than the node's range (sums of two tensors).
    """

    nodes: NumpyArray
    elements: NumpyArray
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chain: Chain = ()
    keys: NumpyArray | None = None

    @property
    def size(self) -> int:
        return len(self.nodes)

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    def then(self, step: ChainLink, dtype: Any = None) -> ChainTensor:
        return replace(
            self,
            chain=(*self.chain, step),
            dtype=np.dtype(dtype) if dtype is not None else self.dtype,
        )

    def picked(self, rows: list[list[int]]) -> NumpyArray:
        """[N] the integer of every element, out of those of all nodes."""
        pairs = zip(self.nodes.tolist(), self.elements.tolist(), strict=True)
        return np.array([rows[n][e] for n, e in pairs])

    def moved(self, index: NumpyArray) -> ChainTensor:
        """The tensor of ``index.shape`` whose elements are those of this one at ``index``."""
        flat = np.asarray(index, dtype=np.int64).reshape(-1)
        chain = tuple(step.picked(flat) for step in self.chain)
        return replace(
            self,
            nodes=self.nodes[flat],
            elements=self.elements[flat],
            shape=tuple(index.shape),
            chain=chain,
        )

    def whole_prefixes(self) -> list[int]:
        """Lengths of the first parts of the chain that give whole numbers, the longest one
        first."""
        found, is_whole = [], self.nodes.size > 0 and int(self.nodes[0]) != INPUT
        for length, step in enumerate(self.chain, 1):
            is_whole = step.whole or (step.keeps and is_whole)
            if is_whole and not (length == 1 and step is TO_FLOAT):
                found.append(length)
        return found[::-1]

    def is_uniform(self) -> bool:
        return all(
            p.size == 1 or bool((p == p[0]).all()) for step in self.chain for p in step.params
        )


def as_parameter(value: Any, shape: tuple[int, ...]) -> NumpyArray:
    """A constant as a parameter of a tensor of that shape: [1] or [N]."""
    value = np.asarray(value)
    return value.reshape(1) if value.size == 1 else np.broadcast_to(value, shape).reshape(-1)


def farthest(chain: Chain, sign: int, size: int) -> tuple[NumpyArray, NumpyArray]:
    """A number of the file's real input from which on every element is saturated, as far as nothing
    wraps around, and what becomes of it: two [N]. It is the largest float32, or a power of two."""

    def levels(number: float) -> NumpyArray:
        reach = np.full((size, 1), number, np.float32)
        return values_of(chain, reach, np.arange(size))[0][:, 0]

    most = float(np.finfo(np.float32).max)
    for far in (most, *(2.0**power for power in range(127, -40, -1))):
        with suppress(WrappedNumber):
            found = levels(sign * far)
            # the same number from far / 1024 on is the last one, or the only one
            is_same = np.array_equal(found, levels(sign * far / 1024))
            if far < most and not (is_same and (found != levels(-sign * far)).all()):
                break
            return np.full(size, far, np.float32), found
    raise Reject("the file's input is made integers in steps of very different size")


def values_of(chain: Chain, q: NumpyArray, index: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Least and greatest value at q: [G, K], for the parameters of the elements ``index``: [G].
    Raises ``Reject``."""
    least = greatest = q
    with np.errstate(all="ignore"):
        for step in chain:
            params = [p[:1, None] if p.size == 1 else p[index][:, None] for p in step.params]
            if step.widens:
                least, greatest = step.function(least, greatest, *params)
                continue
            first = np.asarray(step.function(least, *params))
            second = first if least is greatest else np.asarray(step.function(greatest, *params))
            pinned = least is greatest
            least, greatest = (
                (first, first) if pinned else (np.minimum(first, second), np.maximum(first, second))
            )
    if least.dtype.kind == "f":
        need(
            bool(np.isfinite(least).all() and np.isfinite(greatest).all()),
            "a value of the file leaves float32",
        )
    return least, greatest


def parameter_groups(tensor: ChainTensor, *more: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Elements that stand for all: [G] positions of one of each group, and the group of each
    element [N].

    Elements of a group have equal parameters, and equal entries in every array of ``more`` ([N]
    each).
    """
    params = [p for s in tensor.chain for p in s.params if p.size == tensor.size > 1]
    columns = [np.asarray(column, dtype=np.float64) for column in (*params, *more)]
    # beyond 2^53 two different integers may be one float64, and two groups one
    fits = all(c.dtype.kind == "f" or bool((np.abs(c) <= 1 << 53).all()) for c in (*params, *more))
    need(fits, "a parameter is out of proportion")
    if not columns:
        return np.zeros(1, dtype=np.int64), np.zeros(tensor.size, dtype=np.int64)
    _, first, group = np.unique(
        np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first, group.reshape(-1)


def encloses(
    stairs: StepNode,
    tensor: ChainTensor,
    length: int,
    sign: NumpyArray,
    shift: NumpyArray,
    ends: tuple[NumpyArray, NumpyArray],
) -> bool:
    """Whether the first ``length`` steps of the tensor stay between the staircase's two ends,
    wherever they are used.

    The tensor's integer is ``sign * (a - shift)`` ([N] each, sign 1 or -1) for the staircase's
    accumulator a in ``ends``: [N] each. The claim ``base + #{late <= a} <= least(a)`` is needed for
    all a of a range; the left side is constant between thresholds and the right side never falls,
    so the low end and the thresholds decide. Likewise from above, the high end and the places
    before the thresholds. Where only some integers occur, those are tried instead.
    """
    part = replace(tensor, chain=tensor.chain[:length])
    rows = (np.array([id(row) for row in side]) for side in (stairs.late, stairs.early))
    first, group = parameter_groups(part, *rows, np.array(stairs.base, dtype=object), sign, shift)
    low, high = np.full(len(first), INTEGER_LIMIT), np.full(len(first), -INTEGER_LIMIT)
    np.minimum.at(low, group, ends[0])
    np.maximum.at(high, group, ends[1])
    most = (
        max(len(stairs.late[n]) for n in first.tolist()) + 1
        if tensor.keys is None
        else len(tensor.keys)
    )
    size = max(1, _MOST_CELLS // most)
    return all(
        _encloses(stairs, part, first[start : start + size], sign, shift, low[start:], high[start:])
        for start in range(0, len(first), size)
    )


def _encloses(
    stairs: StepNode,
    part: ChainTensor,
    first: NumpyArray,
    sign: NumpyArray,
    shift: NumpyArray,
    low: NumpyArray,
    high: NumpyArray,
) -> bool:
    """``encloses`` for the groups whose elements ``first`` [G] stand for them; low, high: [G,
    ..]."""
    low, high = low[: len(first), None], high[: len(first), None]
    s, t = sign[first][:, None], shift[first][:, None]

    def chain_at(points: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        return values_of(part.chain, s * (points - t), first)

    late, early = (
        _padded([side[n] for n in first.tolist()]) for side in (stairs.late, stairs.early)
    )
    base = np.array([[stairs.base[n]] for n in first.tolist()], dtype=np.int64)
    if part.keys is not None:
        points = s * part.keys[None] + t
        unused = (points < low) | (points > high)
        least, greatest = values_of(
            part.chain, np.broadcast_to(part.keys[None], points.shape), first
        )
        fits = (least >= base + _counts(late, points)) & (greatest <= base + _counts(early, points))
        return bool((fits | unused).all())
    below, above = (
        np.clip(np.hstack([late, low]), low, high),
        np.clip(np.hstack([early - 1, high]), low, high),
    )
    if any((end[:, 0] > end[:, 1]).any() for end in chain_at(np.hstack([low, high]))):
        return False
    least, greatest = chain_at(below)[0], chain_at(above)[1]
    return bool(
        (least >= base + _counts(late, below)).all()
        and (greatest <= base + _counts(early, above)).all()
    )


def _padded(rows: list[list[int]]) -> NumpyArray:
    """[G, K] thresholds, cut to +-LIMIT (accumulators are smaller), filled up with ones that are
    never passed."""
    most = max(map(len, rows))
    cut = [
        [
            *(max(-INTEGER_LIMIT, min(INTEGER_LIMIT, t)) for t in row),
            *[INTEGER_LIMIT] * (most - len(row)),
        ]
        for row in rows
    ]
    return np.array(cut, dtype=np.int64).reshape(len(rows), most)


def _counts(thresholds: NumpyArray, points: NumpyArray) -> NumpyArray:
    """[G, P] how many of the row's thresholds each point has passed."""
    return np.stack(
        [np.searchsorted(row, p, side="right") for row, p in zip(thresholds, points, strict=True)]
    )
