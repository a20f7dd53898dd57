"""Generators of operators that compare, choose, sort, contract, scatter or repeat.

What they make of truth values and positions is cast back, so that the rest of a network goes on.
"""

from __future__ import annotations

import numpy as np

from tests.fuzz.graphs import Generator, Net

_CODES = {"float16": 10, "float32": 1, "float64": 11}


def as_floats(net: Net, x: str) -> str:
    return net.add("Cast", x, to=_CODES[net.dtype.name])


def truth(net: Net, x: str) -> str:
    """Truth values that depend on the input."""
    limit = net.constant(float(net.rng.normal()), net.kind(x))
    return net.add(str(net.rng.choice(["Greater", "Less"])), x, limit)


def decision(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        if op == "Not":
            return as_floats(net, net.add("Not", truth(net, x)))
        return as_floats(net, net.add(op, truth(net, x), truth(net, x)))

    return build


def best(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        axis, keep = int(net.rng.integers(len(net.shape(x)))), int(net.rng.integers(2))
        last = {"select_last_index": int(net.rng.integers(2))} if net.opset >= 12 else {}
        return as_floats(net, net.add(op, x, axis=axis, keepdims=keep, **last))

    return build


def hardmax(net: Net, x: str) -> str:
    return net.add("Hardmax", x, axis=int(net.rng.integers(len(net.shape(x)))))


def largest(net: Net, x: str) -> str:
    x = net.flat(x)
    count = net.ints(int(net.rng.integers(1, net.size(x) + 1)))
    attrs = {"largest": int(net.rng.integers(2))} if net.opset >= 11 else {}
    return net.add("TopK", x, count, outputs=2, axis=-1, **attrs)


def one_hot(net: Net, x: str) -> str:
    x = net.flat(x)
    place = net.add("ArgMax", x, axis=1, keepdims=0)
    depth = net.constant(net.size(x), np.int64)
    values = net.constant(net.weights(2), net.kind(x))
    return net.add("OneHot", place, depth, values, axis=-1)


def contraction(net: Net, x: str) -> str:
    k = int(net.rng.integers(1, 4))
    left = net.reshaped(net.dense(x, 2 * k), 2, k)
    if net.rng.random() < 0.5:
        right = net.constant(net.weights(k, 3))
        return net.add(
            "Einsum", left, right, equation=str(net.rng.choice(["ij,jk->ik", "ij,jk->ki"]))
        )
    right = net.reshaped(net.dense(x, 2 * k), 2, k)
    return net.add("Einsum", left, right, equation=str(net.rng.choice(["ij,kj->ik", "ij,ij->i"])))


def gathered(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        x = net.reshaped(net.dense(x, 6), 2, 3)
        if op == "GatherND":
            places = net.rng.integers(0, [2, 3], (4, 2))
            return net.add(op, x, net.constant(places, np.int64))
        places = net.rng.integers(-2, 2, (2, 3))
        return net.add(op, x, net.constant(places, np.int64), axis=0)

    return build


def scattered(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        data, updates = net.reshaped(net.dense(x, 6), 3, 2), net.dense(x, 2)
        if op == "ScatterND":
            places = net.constant(net.rng.permutation(3)[:1].reshape(1, 1), np.int64)
            return net.add(op, data, places, net.reshaped(updates, 1, 2))
        places = net.constant(net.rng.integers(0, 3, (1, 2)), np.int64)
        return net.add(op, data, places, net.reshaped(updates, 1, 2), axis=0)

    return build


def shrink(net: Net, x: str) -> str:
    return net.add(
        "Shrink", x, lambd=float(net.rng.uniform(0, 1)), bias=float(net.rng.uniform(-1, 1))
    )


def by_groups(net: Net, x: str) -> str:
    x = net.reshaped(net.dense(x, 8), 1, 4, 2)
    count = 4 if net.opset >= 21 else 2
    gain, shift = (net.constant(net.weights(count)) for _ in range(2))
    return net.add("GroupNormalization", x, gain, shift, num_groups=2, epsilon=1e-2)


def by_mean_and_variance(net: Net, x: str) -> str:
    return net.add("MeanVarianceNormalization", net.reshaped(net.dense(x, 8), 1, 2, 2, 2))


def recurrent(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        gates, size = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2
        sequence = net.reshaped(net.dense(x, 6), 3, 1, 2)
        both = bool(net.rng.integers(2))
        turns = 2 if both else 1
        weights = [
            net.constant(net.weights(*shape) / 2)
            for shape in ((turns, gates * size, 2), (turns, gates * size, size))
        ]
        bias = net.constant(net.weights(turns, 2 * gates * size) / 2)
        direction = "bidirectional" if both else str(net.rng.choice(["forward", "reverse"]))
        return net.add(op, sequence, *weights, bias, hidden_size=size, direction=direction)

    return build


CHOICES: dict[str, Generator] = {
    **{op: decision(op) for op in ("Not", "And", "Or", "Xor")},
    **{op: best(op) for op in ("ArgMax", "ArgMin")},
    "Hardmax": hardmax,
    "TopK": largest,
    "OneHot": one_hot,
    "Einsum": contraction,
    **{op: gathered(op) for op in ("GatherND", "GatherElements")},
    **{op: scattered(op) for op in ("ScatterND", "ScatterElements")},
    "Shrink": shrink,
    "GroupNormalization": by_groups,
    "MeanVarianceNormalization": by_mean_and_variance,
    **{op: recurrent(op) for op in ("LSTM", "GRU", "RNN")},
}
