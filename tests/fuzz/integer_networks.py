"""Random quantized networks on one to three inputs: QDQ, QOperator, integer arithmetic, and
mixtures of them.

A network goes from integer tensor to integer tensor; each has a scale and a zero point. Every layer
below is one of the forms that bitcrown's reader of quantized networks accepts; scales follow the
values on the samples, so that levels are neither all the same nor all at the ends. (QONNX is left
out: onnxruntime has no such operators, so nothing can replay a witness on such a file.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz.graphs import Array, Net, Unfit

OPSETS = (13, 17, 20, 21)


@dataclass(frozen=True)
class Quantized:
    """An integer tensor, and the constants that say what its integers stand for."""

    name: str
    scale: str
    zero: str


class IntegerNet(Net):
    """A ``Net`` with what all quantized layers need."""

    def int_kind(self) -> Any:
        return np.dtype(str(self.rng.choice(["int8", "uint8"])))

    def scale(self, reach: float, levels: float) -> str:
        value = max(reach, 1e-3) / levels
        if self.rng.random() < 0.4:  # a power of two: sums are exact, and ties happen
            value = 2.0 ** np.round(np.log2(value))
        return self.constant(value, np.float32)

    def quantized(self, x: str) -> Quantized:
        """QuantizeLinear of a float tensor, with few or many levels in use."""
        kind = self.int_kind()
        scale = self.scale(self.largest(x), float(self.rng.choice([3.0, 10.0, 60.0, 200.0])))
        middle = 0 if kind == np.int8 else int(self.rng.choice([0, 128]))
        zero = self.constant(np.clip(middle + self.rng.integers(-9, 10), *_range(kind)), kind)
        return Quantized(self.add("QuantizeLinear", x, scale, zero), scale, zero)

    def dequantized(self, q: Quantized) -> str:
        return self.add("DequantizeLinear", q.name, q.scale, q.zero)

    def weight(self, *shape: int, axis: int = -1) -> str:
        """DequantizeLinear of constant integers; with ``axis``, sometimes a scale for each of its
        indices."""
        kind = np.dtype(np.int8)
        ints = self.constant(self.rng.integers(-9, 10, shape), kind)
        if axis >= 0 and self.rng.random() < 0.4:
            scale = self.constant(self.rng.choice([0.25, 0.1, 0.37], shape[axis]), np.float32)
            return self.add(
                "DequantizeLinear",
                ints,
                scale,
                self.constant(np.zeros(shape[axis]), kind),
                axis=axis,
            )
        scale = self.constant(float(self.rng.choice([0.25, 0.1, 0.37])), np.float32)
        return self.add(
            "DequantizeLinear", ints, scale, self.constant(int(self.rng.choice([0, 0, 2])), kind)
        )

    def image(self, x: str, rank: int = 2) -> str:
        """The entries of ``x`` on a plane."""
        size = self.size(x)
        for tall in (2, 3):
            if size % tall == 0:
                return self.reshaped(x, 1, 1, tall, size // tall)
        return self.reshaped(x, 1, 1, 1, size)


def _range(kind: Any) -> tuple[int, int]:
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


def activation(net: IntegerNet, x: str) -> str:
    """A float operator between the sum and the next rounding, or none."""
    some = float(net.rng.normal())
    makers: list[Callable[[], str]] = [
        lambda: x,
        lambda: net.add("Relu", x),
        lambda: net.add("Relu", x),
        lambda: net.add("LeakyRelu", x, alpha=float(net.rng.choice([0.25, 0.1]))),
        lambda: net.add("Clip", x, net.constant(min(some, 0.0)), net.constant(abs(some) + 1)),
        lambda: net.add("Max", x, net.constant([some])),
        lambda: net.add("Min", x, net.constant([some])),
        lambda: net.add("Add", x, net.constant(net.weights(net.shape(x)[-1]))),
        lambda: net.add("Mul", x, net.constant([float(net.rng.choice([0.5, 2.0, -1.0, 0.3]))])),
        lambda: net.add("Neg", x),
        lambda: net.add("Sub", net.constant([some]), x),
        lambda: net.add(str(net.rng.choice(["Floor", "Ceil", "Round", "Sign"])), x),
    ]
    return makers[int(net.rng.integers(len(makers)))]()


def dense(net: IntegerNet, q: Quantized) -> Quantized:
    x = net.flat(net.dequantized(q))
    n, m = net.size(x), int(net.rng.integers(1, 4))
    if net.rng.random() < 0.4:
        bias = net.constant(net.weights(m)) if net.rng.random() < 0.5 else net.weight(m)
        y = net.add("Gemm", x, net.weight(m, n, axis=0), bias, transB=1)
    else:
        y = net.add("MatMul", x, net.weight(n, m, axis=1))
    return net.quantized(activation(net, y))


def convolution(net: IntegerNet, q: Quantized) -> Quantized:
    x = net.image(net.dequantized(q))
    kernel = [int(net.rng.integers(1, e + 1)) for e in net.shape(x)[2:]]
    filters = int(net.rng.integers(1, 3))
    attrs: dict[str, Any] = (
        {"pads": [int(p) for p in net.rng.integers(0, 2, 4)]} if net.rng.random() < 0.3 else {}
    )
    y = net.add("Conv", x, net.weight(filters, 1, *kernel, axis=0), **attrs)
    if net.rng.random() < 0.3:
        parameters = [net.constant(net.rng.uniform(0.5, 1.5, filters)) for _ in range(4)]
        y = net.add("BatchNormalization", y, *parameters)
    return net.quantized(activation(net, y))


def residual(net: IntegerNet, q: Quantized) -> Quantized:
    other = net.dequantized(q)
    n = net.size(other)
    y = net.add("MatMul", net.flat(other), net.weight(n, n, axis=1))
    inner = net.quantized(activation(net, y))
    total = net.add(
        str(net.rng.choice(["Add", "Sub"])),
        net.flat(net.dequantized(q)),
        net.flat(net.dequantized(inner)),
    )
    return net.quantized(activation(net, total))


def added(net: IntegerNet, q: Quantized) -> Quantized:
    """QLinearAdd of two integer tensors of one type."""
    if net.kind(q.name) != net.int_kind():
        raise Unfit("both operands have one type")
    other = dense(net, q) if net.rng.random() < 0.7 else q
    if net.shape(other.name) != net.shape(q.name) or net.kind(other.name) != net.kind(q.name):
        raise Unfit("both operands have one shape and type")
    scale, zero = (
        net.scale(100.0, float(net.rng.choice([50.0, 300.0]))),
        net.constant(3, net.kind(q.name)),
    )
    operands = (q.name, q.scale, q.zero, other.name, other.scale, other.zero)
    y = net.add("QLinearAdd", *operands, scale, zero, domain="com.microsoft")
    return Quantized(y, scale, zero)


def fused_dense(net: IntegerNet, q: Quantized) -> Quantized:
    """QLinearMatMul."""
    x = net.flat(q.name)
    n, m = net.size(x), int(net.rng.integers(1, 4))
    weight = (
        net.constant(net.rng.integers(-9, 10, (n, m)), np.int8),
        net.constant(0.25, np.float32),
    )
    zero_w, zero = (
        net.constant(int(net.rng.choice([0, 1])), np.int8),
        net.constant(2, net.kind(q.name)),
    )
    scale = net.constant(float(net.rng.choice([0.5, 1.0, 0.33])), np.float32)
    return Quantized(
        net.add("QLinearMatMul", x, q.scale, q.zero, *weight, zero_w, scale, zero), scale, zero
    )


def fused_convolution(net: IntegerNet, q: Quantized) -> Quantized:
    """QLinearConv."""
    x = net.image(q.name)
    filters = int(net.rng.integers(1, 3))
    kernel = (filters, 1, 1, int(net.rng.integers(1, net.shape(x)[3] + 1)))
    weight = (
        net.constant(net.rng.integers(-9, 10, kernel), np.int8),
        net.constant(0.25, np.float32),
    )
    zero_w, zero = net.constant(0, np.int8), net.constant(2, net.kind(q.name))
    scale = net.constant(float(net.rng.choice([0.5, 1.0, 0.33])), np.float32)
    bias = (
        [net.constant(net.rng.integers(-30, 31, filters), np.int32)]
        if net.rng.random() < 0.5
        else []
    )
    return Quantized(
        net.add("QLinearConv", x, q.scale, q.zero, *weight, zero_w, scale, zero, *bias), scale, zero
    )


def integer_arithmetic(net: IntegerNet, q: Quantized) -> Quantized:
    """MatMulInteger, a cast, a scale, and rounding back."""
    x = net.flat(q.name)
    n, m = net.size(x), int(net.rng.integers(1, 4))
    weight = net.constant(net.rng.integers(-9, 10, (n, m)), np.int8)
    total = net.add(
        "MatMulInteger", x, weight, q.zero, net.constant(int(net.rng.choice([0, 1])), np.int8)
    )
    value = net.add(
        "Mul", net.add("Cast", total, to=1), net.constant(float(net.rng.choice([0.125, 0.3])))
    )
    return net.quantized(activation(net, value))


def largest_of(net: IntegerNet, q: Quantized) -> Quantized:
    x = net.image(q.name)
    kernel = [int(net.rng.integers(1, e + 1)) for e in net.shape(x)[2:]]
    return Quantized(net.add("MaxPool", x, kernel_shape=kernel), q.scale, q.zero)


def average_of(net: IntegerNet, q: Quantized) -> Quantized:
    x = net.image(net.dequantized(q))
    if net.rng.random() < 0.5:
        return net.quantized(net.add("GlobalAveragePool", x))
    return net.quantized(
        net.add("AveragePool", x, kernel_shape=[1, int(net.rng.integers(1, net.shape(x)[3] + 1))])
    )


def moved(net: IntegerNet, q: Quantized) -> Quantized:
    x = net.image(q.name)
    if net.rng.random() < 0.5:
        return Quantized(net.add("Transpose", x, perm=[0, 1, 3, 2]), q.scale, q.zero)
    return Quantized(net.add("Concat", x, x, axis=int(net.rng.integers(1, 4))), q.scale, q.zero)


LAYERS = (
    dense,
    dense,
    convolution,
    residual,
    added,
    fused_dense,
    fused_convolution,
    integer_arithmetic,
    largest_of,
    average_of,
    moved,
)


def random_quantized(rng: np.random.Generator, samples: list[Array]) -> tuple[Any, list[str]]:
    """A model and its operators. Raises ``Unfit``."""
    net = IntegerNet(rng, samples, int(rng.choice(OPSETS)), np.float32)
    kind = samples[0].dtype
    if kind.kind == "f":
        q = net.quantized("x")
    else:
        zero = net.constant(np.clip(rng.integers(-3, 130), *_range(kind)), kind)
        q = Quantized("x", net.scale(10.0, float(rng.choice([10.0, 80.0]))), zero)
    wanted, tries = int(rng.integers(1, 4)), 0
    while wanted and tries < 20:
        tries += 1
        count = len(net.nodes)
        try:
            q = LAYERS[int(rng.integers(len(LAYERS)))](net, q)
            wanted -= 1
        except Unfit:
            del net.nodes[count:]
    last = q.name if rng.random() < 0.5 else net.dequantized(q)
    return net.model(net.flat(last)), [node.op_type for node in net.nodes]
