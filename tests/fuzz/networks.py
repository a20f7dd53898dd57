"""Random networks: chains of the operators in ``GENERATORS``, and piecewise linear ones for
``exact``."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.graphs import DENSE, OPSETS, Array, Net, Unfit
from tests.fuzz.moves import GENERATORS

SPLITS = ("Relu", "LeakyRelu", "Abs", "MaxPool", "Clip", "Max")
"""Operators whose neurons can be split: without them the search goes other ways."""
UNBOUNDED = (
    "Div",
    "Exp",
    "Softmax",
    "ReduceSumSquare",
    "LpNormalization",
    "Reciprocal",
    "Log",
    "LayerNormalization",
)
"""Operators whose scale no bound limits: rows of several kinds are mixed with errors that may be no
numbers."""
TRIES = 40
CODES = {"float16": 10, "float32": 1, "float64": 11}


def random_network(
    rng: np.random.Generator, samples: list[Array], scale: float
) -> tuple[Any, list[str]]:
    """A model with an output of one to five entries, and the operators that make it up. Raises
    ``Unfit``."""
    kind = samples[0].dtype
    net = Net(rng, samples, int(rng.choice(OPSETS)), kind if kind.kind == "f" else np.float32)
    x = "x"
    if kind.kind != "f":
        x = net.add("Cast", x, to=CODES[net.dtype.name])
    if scale != 1.0 and rng.random() < 0.5:
        x = net.add("Mul", x, net.constant([1.0 / scale]))
    names = list(GENERATORS)
    favoured = [
        name
        for name in (SPLITS if rng.random() < 0.6 else ())
        + (UNBOUNDED if rng.random() < 0.6 else ())
    ]
    wanted, tries = int(rng.integers(1, 7)), 0
    while wanted and tries < TRIES:
        tries += 1
        if net.size(x) > DENSE or not net.shape(x):
            x = net.dense(x, int(rng.integers(2, 9)))
        draw = rng.random()
        if draw < 0.25:
            name = "Gemm"
        elif draw < 0.45 and favoured:
            name = str(rng.choice(favoured))
        else:
            name = str(rng.choice(names))
        count = len(net.nodes)
        try:
            x = GENERATORS[name](net, x)
            wanted -= 1
        except Unfit:
            del net.nodes[count:]
    if net.size(x) > 5 or rng.random() < 0.5:
        x = net.dense(
            x, int(rng.integers(1, 4)), scale if scale != 1.0 and rng.random() < 0.5 else 1.0
        )
    if rng.random() < 0.9:
        x = net.flat(x)
    return net.model(x), [node.op_type for node in net.nodes]


def piecewise_linear(
    rng: np.random.Generator, samples: list[Array], scale: float
) -> tuple[Any, list[str]]:
    """Dense layers, some without neurons, with residual sums; weights of any magnitude."""
    net = Net(rng, samples, int(rng.choice([13, 17, 22])), samples[0].dtype)
    x = "x"
    is_first_only = rng.random() < 0.5  # then all outputs are about as large as the first layer
    for layer in range(int(rng.integers(1, 4))):
        own = scale ** float(layer == 0 if is_first_only else rng.choice([0.0, 1.0, -1.0, 0.5]))
        before, x = x, net.dense(x, int(rng.integers(1, 5)), own)
        if rng.random() < 0.85:
            op = str(rng.choice(["Relu", "Relu", "Relu", "Abs", "LeakyRelu"]))
            x = net.add(
                op, x, **({"alpha": float(rng.uniform(-0.5, 1.2))} if op == "LeakyRelu" else {})
            )
        if net.shape(before) == net.shape(x) and rng.random() < 0.5:
            x = net.add(str(rng.choice(["Add", "Sub"])), x, before)
    if rng.random() < 0.7:
        x = net.dense(
            x, int(rng.integers(1, 3)), 1.0 if is_first_only or rng.random() < 0.5 else 1.0 / scale
        )
    return net.model(x), [node.op_type for node in net.nodes]
