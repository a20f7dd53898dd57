"""Generators of the operators that move, cut, repeat or choose entries, and of those that only
compute constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.choices import CHOICES
from tests.fuzz.graphs import Generator, Net, Unfit
from tests.fuzz.operators import activations, layers, operand


def reshape(net: Net, x: str) -> str:
    size = net.size(x)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    first = int(net.rng.choice(divisors))
    shape = [[first, size // first], [1, first, -1], [-1], [1, size // first, first]][
        int(net.rng.integers(4))
    ]
    return net.add("Reshape", x, net.ints(*shape))


def flatten(net: Net, x: str) -> str:
    return net.add("Flatten", x, axis=int(net.rng.integers(0, len(net.shape(x)) + 1)))


def squeeze(net: Net, x: str) -> str:
    ones = [axis for axis, extent in enumerate(net.shape(x)) if extent == 1]
    if not ones:
        raise Unfit("nothing to squeeze")
    extra, attrs = net.axes([int(net.rng.choice(ones))], 13)
    return net.add("Squeeze", x, *extra, **attrs)


def unsqueeze(net: Net, x: str) -> str:
    extra, attrs = net.axes([int(net.rng.integers(0, len(net.shape(x)) + 1))], 13)
    return net.add("Unsqueeze", x, *extra, **attrs)


def transpose(net: Net, x: str) -> str:
    x = net.image(x) if net.rng.random() < 0.5 else x
    perm = [int(a) for a in net.rng.permutation(len(net.shape(x)))]
    return net.add("Transpose", x, **({"perm": perm} if net.rng.random() < 0.8 else {}))


def concat(net: Net, x: str) -> str:
    rank = len(net.shape(x))
    parts = [x, x] + [operand(net, x) for _ in range(int(net.rng.integers(0, 2)))]
    return net.add(
        "Concat",
        *(str(p) for p in net.rng.permutation(parts)),
        axis=int(net.rng.integers(-rank, rank)),
    )


def cut(net: Net, x: str) -> str:
    axis = int(net.rng.integers(len(net.shape(x))))
    extent = net.shape(x)[axis]
    if net.opset < 10:
        return net.add("Slice", x, axes=[axis], starts=[extent // 3], ends=[extent])
    step = int(net.rng.choice([1, 2, -1, -2]))
    start, end = (extent // 3, 1 << 31) if step > 0 else (-1, -(1 << 31))
    return net.add("Slice", x, net.ints(start), net.ints(end), net.ints(axis), net.ints(step))


def split(net: Net, x: str) -> str:
    x = net.flat(x)
    n = net.size(x)
    if n < 2:
        raise Unfit("nothing to split")
    first = int(net.rng.integers(1, n))
    extra: tuple[str, ...] = (net.ints(first, n - first),) if net.opset >= 13 else ()
    attrs: dict[str, Any] = {} if net.opset >= 13 else {"split": [first, n - first]}
    base = net.add("Split", x, *extra, outputs=2, axis=1, **attrs)
    return str(net.rng.choice([base, f"{base}.1"]))


def gather(net: Net, x: str) -> str:
    axis = int(net.rng.integers(len(net.shape(x))))
    extent = net.shape(x)[axis]
    shape = [(3,), (2, 2), ()][int(net.rng.integers(3))]
    return net.add(
        "Gather", x, net.constant(net.rng.integers(-extent, extent, shape), np.int64), axis=axis
    )


def pad(net: Net, x: str) -> str:
    mode = str(net.rng.choice(["constant", "constant", "edge", "reflect"]))
    pads = [int(p) for p in net.rng.integers(0, 2, 2 * len(net.shape(x)))]
    if mode == "reflect":
        pads = [min(p, e - 1) for p, e in zip(pads, net.shape(x) * 2, strict=True)]
    if net.opset < 11:
        return net.add("Pad", x, mode=mode, pads=pads)
    value = (
        [net.constant(float(net.rng.normal()))]
        if mode == "constant" and net.rng.random() < 0.5
        else []
    )
    return net.add("Pad", x, net.ints(*pads), *value, mode=mode)


def expand(net: Net, x: str) -> str:
    shape = [e if e > 1 else int(net.rng.integers(1, 3)) for e in net.shape(x)]
    return net.add("Expand", x, net.ints(*([2] if net.rng.random() < 0.3 else []), *shape))


def tile(net: Net, x: str) -> str:
    return net.add(
        "Tile", x, net.ints(*(int(r) for r in net.rng.integers(1, 3, len(net.shape(x)))))
    )


def depth_to_space(net: Net, x: str) -> str:
    return net.add("DepthToSpace", net.reshaped(net.dense(x, 16), 1, 4, 2, 2), blocksize=2)


def space_to_depth(net: Net, x: str) -> str:
    return net.add("SpaceToDepth", net.reshaped(net.dense(x, 16), 1, 1, 4, 4), blocksize=2)


def where(net: Net, x: str) -> str:
    mask = net.constant(net.rng.random(net.shape(x)) < 0.5, np.bool_)
    return net.add("Where", mask, *(str(p) for p in net.rng.permutation([x, operand(net, x)])))


def resize(net: Net, x: str) -> str:
    x = net.image(x, 2)
    if net.opset < 13:
        raise Unfit("Resize has other inputs there")
    mode = str(net.rng.choice(["nearest", "linear"]))
    rule = str(net.rng.choice(["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]))
    attrs = {"mode": mode, "coordinate_transformation_mode": rule}
    if mode == "nearest":
        attrs["nearest_mode"] = str(
            net.rng.choice(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        )
    if net.rng.random() < 0.5:
        scales = net.constant([1.0, 1.0, *net.rng.choice([0.5, 1.0, 1.5, 2.0], 2)], np.float32)
        return net.add("Resize", x, "", scales, **attrs)
    sizes = [*net.shape(x)[:2], *(int(s) for s in net.rng.integers(1, 6, 2))]
    return net.add("Resize", x, "", "", net.ints(*sizes), **attrs)


def upsample(net: Net, x: str) -> str:
    if net.opset != 9:
        raise Unfit("Upsample ended with opset 9")
    return net.add(
        "Upsample", net.image(x, 2), net.constant([1, 1, 2, 2], np.float32), mode="nearest"
    )


def constant(net: Net, x: str) -> str:
    """A constant that the file computes: the reader folds it."""
    n = net.shape(x)[-1]
    makers = {
        "Constant": lambda: net.add("Constant", value_float=0.75) if net.opset >= 12 else _absent(),
        "Shape": lambda: _product(net, net.add("Shape", x)),
        "Size": lambda: net.add("Cast", net.add("Size", x), to=1),
        "ConstantOfShape": lambda: net.add("ConstantOfShape", net.ints(n)),
        "Range": lambda: net.add("Range", *(net.constant(v, np.float32) for v in (0, n, 1))),
        "NonZero": lambda: _product(
            net, net.add("NonZero", net.constant([0.0, 1.0, 2.0], np.float32))
        ),
        "ReduceProd": lambda: net.add(
            "ReduceProd", net.constant([1.5, -0.5], np.float32), keepdims=1
        ),
    }
    value = makers[str(net.rng.choice(list(makers)))]()
    if net.kind(value) != net.kind(x):
        value = net.add(
            "Cast", value, to={"float16": 10, "float32": 1, "float64": 11}[net.kind(x).name]
        )
    return net.add("Add", x, value)


def _product(net: Net, x: str) -> str:
    return net.add("ReduceProd", net.add("Cast", x, to=1), keepdims=0)


def _absent() -> str:
    raise Unfit("no such attribute in this opset")


def comparison(net: Net, x: str) -> str:
    """A mask that is computed from constants, as exporters write causal masks."""
    n = net.shape(x)[-1]
    left, right = net.constant(net.rng.integers(0, 3, n), np.float32), net.constant(1, np.float32)
    since = {"Less": 9, "Greater": 9, "LessOrEqual": 12, "GreaterOrEqual": 12, "Equal": 11}
    op = str(net.rng.choice([op for op, first in since.items() if first <= net.opset]))
    mask = net.add(op, left, right)
    if net.rng.random() < 0.5:
        mask = net.add(str(net.rng.choice(["And", "Or"])), mask, net.add("Not", mask))
    return net.add("Where", mask, x, net.constant(net.weights(n)))


FOLDED = [
    "Constant",
    "Shape",
    "Size",
    "ConstantOfShape",
    "Range",
    "NonZero",
    "ReduceProd",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "Not",
    "And",
    "Or",
]
"""Operators that the reader computes: ``constant`` and ``comparison`` build them."""
MOVES: dict[str, Generator] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Concat": concat,
    "Slice": cut,
    "Split": split,
    "Gather": gather,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Where": where,
    "Resize": resize,
    "Upsample": upsample,
}
GENERATORS: dict[str, Generator] = {
    **activations(),
    **layers(),
    **MOVES,
    **dict.fromkeys(FOLDED[:7], constant),
    **dict.fromkeys(FOLDED[7:], comparison),
    **CHOICES,
}
