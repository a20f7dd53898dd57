"""Comparisons, truth values and choices that depend on the input: steps of differences.

Truth is 1, falsehood 0, and a comparison is a step: ``[a > b] = max(sign(a - b), 0)`` and
``[a >= b] = 1 - [b > a]``, both exact also where ``a = b``. What follows is affine in truth values,
or a ReLU of them, so that intervals stay within {0, 1} to [0, 1]: ``not p = 1 - p``,
``p and q = max(p + q - 1, 0)``, ``where(p, x, y) = y + p (x - y)``.

An entry is the largest if it wins all its comparisons: of ``n`` entries, ``[k is it] = max(sum_j
[x_k beats x_j] - (n - 2), 0)`` with ``n - 1`` terms in the sum. Ties go to the first entry (or the
last, where the file asks for it), so "beats" is ``>`` against earlier entries and ``>=`` against
later ones.
"""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.undefined import decides_on

_MOST_ENTRIES = 256
"""Entries among which the largest is found by comparing each with each."""
_MOST_PLACES = 1 << 18
"""Pairs of a position that is looked for and one where it may be."""

_MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Expand")


def _step(b: Builder, x: str) -> str:
    """``[x > 0]``."""
    return b.relu(b.emit("Sign", (x,)))


def _negation(b: Builder, p: str) -> str:
    return b.scaled(p, -1.0, 1.0)


def differs(b: Builder, d: str) -> str:
    """``[d != 0]``, as ``max(s, 0) + max(-s, 0)`` with ``s = sign(d)``: an interval of ``s`` that
    ends at 0 leaves one of the two terms."""
    sign = b.emit("Sign", (d,))
    return b.binary("Add", b.relu(sign), b.relu(b.scaled(sign, -1.0, None)))


def is_truth(b: Builder, name: str) -> bool:
    """Whether ``name`` holds steps ``p`` and ``1 - p`` alone, wherever they were put: 0 or 1."""
    node = b.nodes[name]
    while node.op in _MOVES and node.rounding is None:
        node = b.nodes[node.inputs[0]]
    if node.op == "Scale":
        gain, shift = (node.params.get(key, d) for key, d in (("scale", 1.0), ("shift", 0.0)))
        is_one = (np.equal(gain, 1) & np.equal(shift, 0)) | (
            np.equal(gain, -1) & np.equal(shift, 1)
        )
        return bool(np.all(is_one)) and node.rounding is None and is_truth(b, node.inputs[0])
    return node.op == "Relu" and b.nodes[node.inputs[0]].op == "Sign"


@lowers("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
def compare(b: Builder, node: OnnxNode) -> None:
    left, right = (b.node_of(tensor) for tensor in node.inputs)
    for operand in (left, right):
        decides_on(b, operand)
    if node.op in ("Less", "LessOrEqual"):
        left, right = right, left
    if node.op.startswith(("Greater", "Less")) and node.op.endswith("OrEqual"):
        b.bind(node, _negation(b, _step(b, b.binary("Sub", right, left))))
        return
    difference = b.binary("Sub", left, right)
    if node.op == "Equal":
        b.bind(node, _negation(b, differs(b, difference)))
    else:
        b.bind(node, _step(b, difference))


@lowers("IsNaN", "IsInf")
def is_no_number(b: Builder, node: OnnxNode) -> None:
    """Values of a real function are numbers, where it has one."""
    decides_on(b, b.node_of(node.inputs[0]))
    shape = b.shape(b.node_of(node.inputs[0]))
    b.constants[node.outputs[0]] = np.zeros(shape, dtype=bool)


@lowers("Not")
def negated(b: Builder, node: OnnxNode) -> None:
    b.bind(node, _negation(b, b.node_of(node.inputs[0])))


@lowers("And", "Or", "Xor")
def connect(b: Builder, node: OnnxNode) -> None:
    known = next((tensor for tensor in node.inputs if b.is_constant(tensor)), None)
    if known is not None and node.op != "Xor":
        _connect_known(b, node, known)
        return
    p, q = (b.node_of(tensor) for tensor in node.inputs)
    if node.op == "And":
        value = b.relu(b.scaled(b.binary("Add", p, q), None, -1.0))
    elif node.op == "Or":  # not (not p and not q) = 1 - max(1 - p - q, 0)
        value = _negation(b, b.relu(b.scaled(b.binary("Add", p, q), -1.0, 1.0)))
    else:
        value = b.absolute(b.binary("Sub", p, q))
    b.bind(node, value)


def _connect_known(b: Builder, node: OnnxNode, known: str) -> None:
    """One operand is a constant ``c``: ``p and c = c p``, ``p or c = c + (1 - c) p``, without a
    ReLU. Masks are that, and what asks for numbers that are none."""
    truth = b.constant(known, "the condition").astype(bool)
    p = b.node_of(next(tensor for tensor in node.inputs if tensor != known))
    shape = np.broadcast_shapes(b.shape(p), truth.shape)
    if bool((truth == (node.op == "Or")).all()):
        b.constants[node.outputs[0]] = np.full(shape, node.op == "Or")
        return
    p, c = b.expanded(p, shape), np.broadcast_to(truth, shape).astype(np.float64)
    b.bind(node, b.scaled(p, c, None) if node.op == "And" else b.scaled(p, 1.0 - c, c))


def chosen(b: Builder, condition: str, x: str, y: str) -> str:
    """``where(condition, x, y)`` of nodes; ``condition`` holds truth values."""
    return b.binary("Add", y, b.binary("Mul", condition, b.binary("Sub", x, y)))


def winners(b: Builder, x: str, axis: int, last: bool, smallest: bool = False) -> str:
    """1 at the largest (``smallest``: least) entry of every line along ``axis``, 0 elsewhere."""
    shape = b.shape(x)
    n = shape[axis]
    if n > _MOST_ENTRIES:
        raise UnsupportedError(f"node {b.source!r} finds the best of {n} entries")
    if n == 1:
        return b.known(np.ones(shape))
    decides_on(b, x)
    # axis: the entry, axis + 1: the one it is compared with
    full = (*shape[:axis], n, n, *shape[axis + 1 :])
    mine = b.expanded(b.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), full)
    other = b.expanded(b.reshaped(x, (*shape[:axis], 1, *shape[axis:])), full)
    if smallest:
        mine, other = other, mine
    order = np.arange(n)
    before = order[None, :] > order[:, None] if last else order[None, :] < order[:, None]
    strict = before.astype(np.float64).reshape(n, n, *([1] * (len(shape) - axis - 1)))
    weak = 1.0 - strict - np.eye(n).reshape(strict.shape)
    sign = b.emit("Sign", (b.emit("Sub", (mine, other)),))
    beats = b.relu(sign)
    # [x_k >= x_j] = 1 - max(-sign, 0)
    matches = _negation(b, b.relu(b.scaled(sign, -1.0, None)))
    won = b.binary("Add", b.scaled(beats, strict, None), b.scaled(matches, weak, None))
    return b.relu(b.scaled(b.summed(won, (axis + 1,), False), None, 2.0 - n))


@lowers("ArgMax", "ArgMin")
def index_of_best(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", 0)), len(shape))
    is_last = bool(node.attrs.get("select_last_index", 0))
    keep = bool(node.attrs.get("keepdims", 1))
    b.bind(node, _place_of_best(b, x, axis, is_last, node.op == "ArgMin", keep))


def _place_of_best(
    b: Builder, x: str, axis: int, last: bool, smallest: bool, keepdims: bool
) -> str:
    shape = b.shape(x)
    if shape[axis] == 2:
        return _second_of_two(b, x, axis, last, smallest, keepdims)
    best = winners(b, x, axis, last, smallest)
    number = np.arange(shape[axis], dtype=np.float64)
    weighted = b.scaled(best, number.reshape(-1, *([1] * (len(shape) - axis - 1))), None)
    return b.summed(weighted, (axis,), keepdims)


def _second_of_two(
    b: Builder, x: str, axis: int, last: bool, smallest: bool, keepdims: bool
) -> str:
    """Of two entries the index is one step: whether the second one wins."""
    decides_on(b, x)
    first, second = (b.sliced(x, axis, k, k + 1) for k in (0, 1))
    if smallest:
        first, second = second, first
    if last:  # which wins a tie
        index = _negation(b, _step(b, b.binary("Sub", first, second)))
    else:
        index = _step(b, b.binary("Sub", second, first))
    shape = b.shape(x)
    return index if keepdims else b.reshaped(index, (*shape[:axis], *shape[axis + 1 :]))


@lowers("Hardmax")
def hardmax(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", 1 if node.opset < 13 else -1)), len(shape))
    if node.opset < 13:  # everything from the axis on is one line
        flat = b.reshaped(x, (*shape[:axis], math.prod(shape[axis:])))
        b.bind(node, b.reshaped(winners(b, flat, axis, last=False), shape))
        return
    b.bind(node, winners(b, x, axis, last=False))


@lowers("OneHot")
def one_hot(b: Builder, node: OnnxNode) -> None:
    """``off + (on - off) [index = k]``, an index from the end counted from the front."""
    index = b.node_of(node.inputs[0])
    depth = b.integers(node.inputs[1], "the depth")[0]
    off, on = (float(v) for v in b.constant(node.inputs[2], "the values").astype(np.float64))
    axis = b.axis(int(node.attrs.get("axis", -1)), len(b.shape(index)) + 1)
    b.bind(node, b.scaled(positions(b, index, axis, depth), on - off, off))


def positions(b: Builder, index: str, axis: int, depth: int) -> str:
    """``[index = k]`` for ``k < depth`` along a new ``axis``; -1 is the last place."""
    shape = b.shape(index)
    if depth < 1 or depth * math.prod(shape) > _MOST_PLACES:
        raise UnsupportedError(f"node {b.source!r} looks for one of {depth} positions")
    full = (*shape[:axis], depth, *shape[axis:])
    wide = b.expanded(b.reshaped(index, (*shape[:axis], 1, *shape[axis:])), full)
    number = np.arange(depth, dtype=np.float64).reshape(-1, *([1] * (len(shape) - axis)))
    if is_truth(b, index):  # [p = 0] = 1 - p, [p = 1] = p
        return b.scaled(wide, (number == 1) - 1.0 * (number == 0), 1.0 * (number == 0))
    hits = [
        _negation(b, differs(b, b.scaled(wide, None, -number + wrap)))
        for wrap in (0.0, float(depth))
    ]
    return b.binary("Add", *hits)


@lowers("TopK")
def top_k(b: Builder, node: OnnxNode) -> None:
    """The ``k`` largest (or least) entries in order, by a sorting network (Batcher, 1968)."""
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    axis = b.axis(int(node.attrs.get("axis", -1)), len(shape))
    if len(node.inputs) > 1:
        k = b.integers(node.inputs[1], "k")[0]
    else:
        k = int(node.attrs.get("k", 0))
    n, largest = shape[axis], bool(node.attrs.get("largest", 1))
    if not 0 < k <= n:
        raise ModelError(f"node {node.name!r} takes {k} of {n} entries")
    if n > _MOST_ENTRIES:
        raise UnsupportedError(f"node {node.name!r} sorts {n} entries")
    if len(node.outputs) > 1 and node.outputs[1] and b.readers.get(node.outputs[1], 0):
        if k > 1:
            raise UnsupportedError(f"node {node.name!r}: positions of TopK that something reads")
        b.bind(node, _place_of_best(b, x, axis, False, not largest, True), 1)
    rows = [b.sliced(x, axis, i, i + 1) for i in range(n)]
    for i, j in _comparators(n):
        low, high = b.minimum(rows[i], rows[j]), b.maximum(rows[i], rows[j])
        rows[i], rows[j] = (high, low) if largest else (low, high)
    value = rows[0] if k == 1 else b.emit("Concat", tuple(rows[:k]), {"axis": axis})
    b.bind(node, value)


def _comparators(n: int) -> list[tuple[int, int]]:
    """Pairs ``i < j`` of an odd-even merge sort of ``n`` entries, in order."""
    found = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        found.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return found


@lowers("Shrink")
def shrink(b: Builder, node: OnnxNode) -> None:
    """``x - bias`` above ``lambd``, ``x + bias`` below ``-lambd``, 0 between: two ramps, each with
    a jump of ``lambd - bias``."""
    x = b.node_of(node.inputs[0])
    lambd, bias = node.real("lambd", 0.5), node.real("bias", 0.0)
    if lambd < 0:
        raise UnsupportedError(f"node {node.name!r}: Shrink with lambd {lambd}")
    sides = []
    for sign in (1.0, -1.0):
        beyond = b.scaled(x, sign, -lambd)
        side = b.relu(beyond)
        if lambd != bias:
            side = b.binary("Add", side, b.scaled(_step(b, beyond), lambd - bias, None))
        sides.append(side)
    b.bind(node, b.binary("Sub", *sides))
