"""One random instance generator for every ONNX operator that bitcrown's reader accepts.

``GENERATORS`` is compared with the reader's own tables by ``test_operators.py``: an operator added
to the reader fails that test until it has a row here or a reason in ``WITHOUT``. Operators that a
generator needs on the way (a ``Reshape`` before a ``Conv``) are part of the network like all
others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitcrown.model.lowering import LOWERINGS
from bitcrown.model.lowering.quantization import QUANTIZERS
from tests.fuzz.graphs import Generator, Net, Unfit

WITHOUT = {
    **dict.fromkeys(
        sorted(QUANTIZERS | {"com.microsoft.DequantizeLinear", "com.microsoft.QuantizeLinear"}),
        "makes a network quantized: the integer family and test_quantization build these",
    ),
    **dict.fromkeys(
        sorted({op for op in LOWERINGS if op.startswith("com.microsoft.")} - QUANTIZERS),
        "onnxruntime's own: test_chosen_operators and test_dynamic_quantization build these",
    ),
    "RMSNormalization": "needs opset 23",
    "SimplifiedLayerNormalization": "onnxruntime's own, of no opset",
    **dict.fromkeys(
        sorted(op for op in LOWERINGS if op.startswith("ai.onnx.ml.")),
        "of another domain: test_classical builds these",
    ),
    **dict.fromkeys(("IsNaN", "IsInf"), "false of every number"),
    "Scatter": "the old name of ScatterElements",
}
"""Operators of the reader that have no generator here, and why."""


def unary(op: str, limit: float = 0.0) -> Generator:
    return lambda net, x: net.add(op, net.tamed(x, limit) if limit else x)


def guarded(op: str) -> Generator:
    """Operators that are defined for positive numbers only."""
    return lambda net, x: net.add(op, net.positive(x) if net.rng.random() < 0.95 else x)


def shaped(op: str, **ranges: tuple[float, float]) -> Generator:
    """Activations with attributes, which are sometimes left out."""

    def build(net: Net, x: str) -> str:
        attrs = {k: float(net.rng.uniform(*r)) for k, r in ranges.items() if net.rng.random() < 0.8}
        return net.add(op, x, **attrs)

    return build


def operand(net: Net, x: str, positive: bool = False) -> str:
    """A second operand that broadcasts with ``x``: an earlier tensor, a row of constants or one
    constant."""
    shape = net.shape(x)
    same = [
        name for name in net.values if net.shape(name) == shape and net.kind(name) == net.kind(x)
    ]
    if net.rng.random() < 0.6:
        other = (
            str(net.rng.choice(same))
            if net.rng.random() < 0.5
            else net.reshaped(net.dense(x, net.size(x)), *shape)
        )
        return net.positive(other) if positive else other
    extents = [e if net.rng.random() < 0.7 else 1 for e in shape][
        int(net.rng.integers(0, len(shape) + 1)) :
    ]
    value = net.weights(*extents) if extents else net.weights(1)
    return net.constant(np.abs(value) + 0.1 if positive else value, net.kind(x))


def arithmetic(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        other = operand(net, x, positive=op == "Div" and net.rng.random() < 0.95)
        if net.rng.random() < 0.5 or op == "Div" and net.rng.random() < 0.5:
            return net.add(op, x, other)
        return net.add(op, other, net.positive(x) if op == "Div" else x)

    return build


def variadic(op: str) -> Generator:
    return lambda net, x: net.add(
        op, x, *(operand(net, x) for _ in range(int(net.rng.integers(0, 3))))
    )


def power(net: Net, x: str) -> str:
    exponent = float(net.rng.choice([1, 2, 2, 3, 4, 0.5, -1]))
    x = net.positive(x) if exponent in (0.5, -1) else net.tamed(x, 20.0)
    return net.add("Pow", x, net.constant(exponent if net.rng.random() < 0.5 else [exponent]))


def clip(net: Net, x: str) -> str:
    low, high = sorted(float(v) for v in net.rng.normal(size=2) * max(net.largest(x), 1e-3) / 2)
    if net.opset < 11:
        return net.add("Clip", x, min=low, max=high)
    ends = [net.constant(v, net.kind(x)) if net.rng.random() < 0.8 else "" for v in (low, high)]
    return net.add("Clip", x, *ends)


def parametric(net: Net, x: str) -> str:
    shape = net.shape(x)
    extents = [] if net.opset < 9 else [e if net.rng.random() < 0.6 else 1 for e in shape[1:]]
    return net.add("PRelu", x, net.constant(net.weights(*(extents or [1]))))


def gemm(net: Net, x: str) -> str:
    x = net.flat(x)
    n, m = net.size(x), int(net.rng.integers(1, 6))
    if net.rng.random() < 0.2:  # the constant on the left
        column = net.reshaped(x, n, 1)
        return net.flat(
            net.add(
                "Gemm", net.constant(net.weights(m, n)), column, net.constant(net.weights(m, 1))
            )
        )
    turned = int(net.rng.integers(2))
    attrs = {
        "alpha": float(net.rng.choice([1.0, 0.5, -1.25])),
        "beta": float(net.rng.choice([1.0, 0.5])),
    }
    bias = (
        [net.constant(net.weights(*((1, m) if net.rng.random() < 0.5 else (m,))))]
        if net.rng.random() < 0.9
        else []
    )
    weight = net.weights(m, n) if turned else net.weights(n, m)
    return net.add("Gemm", x, net.constant(weight / np.sqrt(n)), *bias, transB=turned, **attrs)


def matmul(net: Net, x: str) -> str:
    kind = net.rng.random()
    if kind < 0.25:  # two tensors that depend on the input
        k = int(net.rng.integers(1, 4))
        left = net.reshaped(net.dense(x, 2 * k), 1, 2, k)
        right = net.reshaped(net.dense(x, 2 * k), 1, k, 2)
        return net.add("MatMul", left, right)
    x = net.flat(x)
    n, m = net.size(x), int(net.rng.integers(1, 6))
    if kind < 0.4:
        return net.add("MatMul", net.constant(net.weights(m, n)), net.reshaped(x, n, 1))
    return net.add("MatMul", x, net.constant(net.weights(n, m) / np.sqrt(n)))


def windows(net: Net, rank: int) -> dict[str, Any]:
    kernel = [int(k) for k in net.rng.integers(1, 4, rank)]
    attrs: dict[str, Any] = {"kernel_shape": kernel}
    if net.rng.random() < 0.7:
        attrs["strides"] = [int(s) for s in net.rng.integers(1, 3, rank)]
    if net.rng.random() < 0.5:
        attrs["pads"] = [int(net.rng.integers(0, k)) for k in kernel * 2]
    elif net.rng.random() < 0.3:
        attrs["auto_pad"] = str(net.rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    return attrs


def convolution(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        x = net.image(x)
        rank, channels = len(net.shape(x)) - 2, net.shape(x)[1]
        attrs = windows(net, rank)
        group = channels if net.rng.random() < 0.2 else 1
        filters = group * int(net.rng.integers(1, 3))
        first, second = (
            (filters, channels // group) if op == "Conv" else (channels, filters // group)
        )
        if net.rng.random() < 0.2:
            attrs["dilations"] = [int(d) for d in net.rng.integers(1, 3, rank)]
        bias = [net.constant(net.weights(filters))] if net.rng.random() < 0.7 else []
        weight = net.weights(first, second, *attrs["kernel_shape"]) * 0.5
        return net.add(op, x, net.constant(weight), *bias, group=group, **attrs)

    return build


def pooling(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        x = net.image(x)
        if op.startswith("Global"):
            return net.add(op, x)
        attrs = windows(net, len(net.shape(x)) - 2)
        if net.opset >= 10 and net.rng.random() < 0.3:
            attrs["ceil_mode"] = 1
        if op == "AveragePool" and net.rng.random() < 0.5:
            attrs["count_include_pad"] = 1
        return net.add(op, x, **attrs)

    return build


def triangle(net: Net, x: str) -> str:
    if net.opset < 14:
        raise Unfit("Trilu is of opset 14")
    columns = 2 if net.size(x) % 2 == 0 else 1
    x = net.reshaped(x, net.size(x) // columns, columns)
    diagonal = net.constant(int(net.rng.integers(-1, 2)), np.int64)
    return net.add("Trilu", x, diagonal, upper=int(net.rng.integers(2)))


def turned(net: Net, x: str) -> str:
    if net.opset < 10:
        raise Unfit("ReverseSequence is of opset 10")
    columns = 2 if net.size(x) % 2 == 0 else 1
    x = net.reshaped(x, net.size(x) // columns, columns)
    lengths = net.rng.integers(1, columns + 1, net.size(x) // columns)
    rows = net.ints(*(int(length) for length in lengths))
    return net.add("ReverseSequence", x, rows, batch_axis=0, time_axis=1)


def normalisation(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        if op == "LayerNormalization":
            gain, shift = (net.constant(net.weights(net.shape(x)[-1])) for _ in range(2))
            return net.add(op, x, gain, shift, axis=-1, epsilon=float(net.rng.choice([1e-5, 1e-2])))
        x = net.image(x)
        channels = net.shape(x)[1]
        parameters = [net.constant(net.weights(channels)) for _ in range(2)]
        if op == "BatchNormalization":
            parameters += [
                net.constant(net.weights(channels)),
                net.constant(net.rng.uniform(0.1, 2, channels)),
            ]
        return net.add(op, x, *parameters, epsilon=1e-5)

    return build


def reduction(op: str) -> Generator:
    def build(net: Net, x: str) -> str:
        logs = op in ("ReduceLogSum", "ReduceLogSumExp")
        x = net.positive(x) if op == "ReduceLogSum" else net.tamed(x) if logs else x
        extra, attrs = net.axes(net.some_axes(x), 13 if op == "ReduceSum" else 18)
        return net.add(op, x, *extra, keepdims=int(net.rng.integers(2)), **attrs)

    return build


def soft(op: str) -> Generator:
    return lambda net, x: net.add(
        op, net.tamed(x, 20.0), axis=int(net.rng.integers(-1, len(net.shape(x))))
    )


def unit_length(net: Net, x: str) -> str:
    return net.add("LpNormalization", x, axis=-1, p=int(net.rng.integers(1, 3)))


def cumulative(net: Net, x: str) -> str:
    axis = net.constant(int(net.rng.integers(len(net.shape(x)))), np.int64)
    return net.add(
        "CumSum", x, axis, exclusive=int(net.rng.integers(2)), reverse=int(net.rng.integers(2))
    )


def hardened(op: str) -> Generator:
    return shaped(op, alpha=(0.05, 0.5), beta=(0.2, 0.8))


def gelu(net: Net, x: str) -> str:
    return net.add("Gelu", x, approximate=str(net.rng.choice(["none", "tanh"])))


def dropout(net: Net, x: str) -> str:
    return net.add("Dropout", x)


def cast(net: Net, x: str) -> str:
    return net.add(
        "Cast", net.add("Cast", x, to=11 if net.kind(x) == np.float32 else 1), to=int(_code(net))
    )


def _code(net: Net) -> int:
    return {"float16": 10, "float32": 1, "float64": 11}[net.dtype.name]


def dynamic_product(op: str) -> Generator:
    """``DynamicQuantizeLinear``, an integer product, and the two scales multiplied back."""

    def build(net: Net, x: str) -> str:
        if net.dtype != np.float32:
            raise Unfit("dynamic quantization is float32")
        x = net.image(x, 2) if op == "ConvInteger" else net.flat(x)
        q = net.add("DynamicQuantizeLinear", x, outputs=3)
        shape = (net.size(x), 3) if op == "MatMulInteger" else (2, net.shape(x)[1], 2, 2)
        weight = net.constant(net.rng.integers(-127, 128, shape), np.int8)
        product = net.add(op, q, weight, f"{q}.2", net.constant(0, np.int8))
        scale = net.add("Mul", f"{q}.1", net.constant(float(net.rng.uniform(0.001, 0.02))))
        return net.add("Mul", net.add("Cast", product, to=1), scale)

    return build


def activations() -> dict[str, Generator]:
    plain = [
        "Abs",
        "Atan",
        "Ceil",
        "Cos",
        "Erf",
        "Floor",
        "HardSwish",
        "Identity",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Tanh",
    ]
    return {
        **{op: unary(op) for op in plain},
        **{op: guarded(op) for op in ("Log", "Reciprocal", "Sqrt")},
        "Exp": unary("Exp", 8.0),
        "Celu": shaped("Celu", alpha=(0.2, 2.0)),
        "Elu": shaped("Elu", alpha=(-0.5, 2.0)),
        "Selu": shaped("Selu", alpha=(0.2, 2.0), gamma=(0.5, 2.0)),
        "LeakyRelu": shaped("LeakyRelu", alpha=(-0.5, 1.5)),
        "Swish": shaped("Swish", alpha=(0.2, 2.0)),
        "HardSigmoid": hardened("HardSigmoid"),
        "PRelu": parametric,
        "Clip": clip,
        "Gelu": gelu,
        "Dropout": dropout,
        "Cast": cast,
        "Pow": power,
        **{op: arithmetic(op) for op in ("Add", "Sub", "Mul", "Div")},
        **{op: variadic(op) for op in ("Sum", "Mean", "Max", "Min")},
    }


def layers() -> dict[str, Generator]:
    reductions = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Sum", "SumSquare"]
    return {
        "Gemm": gemm,
        "MatMul": matmul,
        **{op: convolution(op) for op in ("Conv", "ConvTranspose")},
        **{
            op: pooling(op)
            for op in ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
        },
        **{
            op: normalisation(f"{op}")
            for op in ("BatchNormalization", "LayerNormalization", "InstanceNormalization")
        },
        **{f"Reduce{op}": reduction(f"Reduce{op}") for op in reductions},
        **{op: soft(op) for op in ("Softmax", "LogSoftmax")},
        "LpNormalization": unit_length,
        "CumSum": cumulative,
        "Trilu": triangle,
        "ReverseSequence": turned,
        **{op: dynamic_product(op) for op in ("MatMulInteger", "ConvInteger")},
        "DynamicQuantizeLinear": dynamic_product("MatMulInteger"),
    }
