"""``Einsum``: products over shared axes, brought into the form of a batched matrix product.

The letters of two operands fall into four kinds: in both operands and the result (batch), in both
but not the result (summed), and in one operand and the result (rows, columns). Axes in the order
``batch, rows, summed`` and ``batch, summed, columns`` make one ``MatMul``; letters of one operand
alone that the result lacks are summed beforehand. More operands are taken in from the left.
"""

from __future__ import annotations

import math
import string

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.weights import multiplied


@lowers("Einsum")
def einsum(b: Builder, node: OnnxNode) -> None:
    terms, result = _letters(node, [len(_shape(b, tensor)) for tensor in node.inputs])
    operands = [
        b.constants[tensor].astype(np.float64) if b.is_constant(tensor) else b.node_of(tensor)
        for tensor in node.inputs
    ]
    value, letters = _diagonal(node, operands[0], terms[0]), terms[0]
    for i in range(1, len(operands)):
        later = set(result).union(*terms[i + 1 :])
        other = _diagonal(node, operands[i], terms[i])
        value, letters = _pair(b, value, letters, other, terms[i], later)
    value, letters = _summed(b, value, letters, set(result))
    value = b.known(value) if isinstance(value, np.ndarray) else value
    order = [letters.index(letter) for letter in result]
    b.bind(node, value if order == list(range(len(order))) else b.transposed(value, order))


def _shape(b: Builder, tensor: str) -> tuple[int, ...]:
    return b.constants[tensor].shape if b.is_constant(tensor) else b.shape(b.node_of(tensor))


def _letters(node: OnnxNode, ranks: list[int]) -> tuple[list[str], str]:
    """Letters of every operand and of the result; ``...`` becomes letters of its own."""
    equation = node.attrs["equation"].replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ModelError(f"node {node.name!r}: {equation!r} does not fit {len(ranks)} operands")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    most = max(
        [
            rank - len(t.replace("...", ""))
            for t, rank in zip(terms, ranks, strict=True)
            if "..." in t
        ],
        default=0,
    )
    dots = "".join(free[:most])
    for i, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        room = rank - len(term.replace("...", ""))
        terms[i] = term.replace("...", dots[len(dots) - room :] if room else "")
        if len(terms[i]) != rank:
            raise ModelError(
                f"node {node.name!r}: {equation!r} does not fit a tensor of rank {rank}"
            )
    if arrow:
        return terms, result.replace("...", dots)
    once = sorted(x for x in set("".join(terms)) - set(dots) if "".join(terms).count(x) == 1)
    return terms, dots + "".join(once)


def _diagonal(node: OnnxNode, value: str | np.ndarray, letters: str) -> str | np.ndarray:
    if len(set(letters)) != len(letters):
        raise UnsupportedError(f"node {node.name!r}: Einsum with a letter twice in one operand")
    return value


def _summed(
    b: Builder, value: str | np.ndarray, letters: str, wanted: set[str]
) -> tuple[str | np.ndarray, str]:
    """Sum over the letters that nobody wants any more."""
    axes = tuple(i for i, letter in enumerate(letters) if letter not in wanted)
    rest = "".join(letter for letter in letters if letter in wanted)
    if isinstance(value, np.ndarray):
        return value.sum(axis=axes), rest
    return b.summed(value, axes, False), rest


def _pair(
    b: Builder, x: str | np.ndarray, xs: str, y: str | np.ndarray, ys: str, later: set[str]
) -> tuple[str | np.ndarray, str]:
    """The product of two operands, summed over what neither the rest nor the result reads."""
    x, xs = _summed(b, x, xs, later | set(ys))
    y, ys = _summed(b, y, ys, later | set(xs))
    batch = "".join(c for c in xs if c in ys and c in later)
    inner = "".join(c for c in xs if c in ys and c not in later)
    rows = "".join(c for c in xs if c not in ys)
    columns = "".join(c for c in ys if c not in xs)
    extents = dict(zip(xs, _extents(b, x), strict=True))
    for letter, extent in zip(ys, _extents(b, y), strict=True):
        if extents.setdefault(letter, extent) != extent:
            raise UnsupportedError(f"node {b.source!r}: Einsum that broadcasts over {letter!r}")
    left = _arranged(b, x, xs, extents, (batch, rows, inner))
    right = _arranged(b, y, ys, extents, (batch, inner, columns))
    value: str | np.ndarray
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        value = left @ right
    else:
        value = multiplied(b, left, right)
    letters = batch + rows + columns
    shape = tuple(extents[c] for c in letters)
    if isinstance(value, np.ndarray):
        return value.reshape(shape), letters
    return b.reshaped(value, shape), letters


def _extents(b: Builder, value: str | np.ndarray) -> tuple[int, ...]:
    return value.shape if isinstance(value, np.ndarray) else b.shape(value)


def _arranged(
    b: Builder,
    value: str | np.ndarray,
    letters: str,
    extents: dict[str, int],
    groups: tuple[str, str, str],
) -> str | np.ndarray:
    """Axes sorted by group; the last two groups become one axis each, batch axes stay (none: rank
    2)."""
    order = [letters.index(c) for c in "".join(groups)]
    shape = (
        *(extents[c] for c in groups[0]),
        *(math.prod(extents[c] for c in group) for group in groups[1:]),
    )
    if isinstance(value, np.ndarray):
        return value.transpose(order).reshape(shape)
    if order != list(range(len(order))):
        value = b.transposed(value, order)
    return b.reshaped(value, shape)
