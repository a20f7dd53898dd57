"""Networks with quantizers among floats: is a point excluded that onnxruntime reaches?

Every instance has a violation. Small networks of quantizers, smooth functions and operators on
integers are run by onnxruntime at the ends, in the middle, at random and at the edges of the first
quantizer, a few numbers to either side; the greatest value found, exactly, is the threshold. So
``unsat`` is false whatever the property; half of the instances have attacks switched off, so that
only proofs speak.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.fuzz.float_family import only_proofs
from tests.quant_models import Writer

MS = "com.microsoft"
SECONDS = 1.5
Array = np.ndarray[Any, Any]


class Network:
    """A random network on ``[1, n]``; ``edges`` are the scale and zero point of its first
    quantizer, if that is what its input meets."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.n = rng, int(rng.integers(1, 4))
        self.w = Writer([1, self.n], opset=17)
        self.edges: tuple[np.float32, int] | None = None
        self.width = self.n

    def scale(self) -> np.float32:
        return np.float32(10 ** self.rng.uniform(-2, -0.3))

    def ends(self, kind: Any) -> int:
        limits = np.iinfo(kind)
        return int(self.rng.integers(limits.min // 2, limits.max // 2 + 1))

    def kind(self) -> Any:
        return self.rng.choice([np.uint8, np.int8])

    def rounded(self, x: str) -> str:
        kind, zero = self.kind(), None
        zero, scale = self.ends(kind), self.scale()
        if x == "x":
            self.edges = scale, zero
        if self.rng.random() < 0.15 and self.width > 1 and x != "x":
            scales = np.array([self.scale() for _ in range(self.width)])
            zeros = [self.ends(kind) for _ in range(self.width)]
            return self.w.quantized(x, scales, zeros, kind, axis=1)
        return self.w.quantized(x, scale, zero, kind)

    def dense(self, x: str) -> str:
        out = int(self.rng.integers(1, 5))
        ints = self.rng.integers(-100, 101, (self.width, out))
        weight = self.w.weight(ints, np.float32(self.rng.uniform(0.005, 0.05)))
        bias = self.w.constant(self.rng.normal(size=out))
        self.width = out
        return self.w.add("Add", self.w.add("MatMul", x, weight), bias)

    def smooth(self, x: str) -> str:
        w, rng = self.w, self.rng
        op = str(rng.choice(["Sigmoid", "Tanh", "Relu", "HardSwish", "Elu", "Softmax", "LayerNorm",
                             "Gelu", "Swish", "LeakyRelu", "Recurrent"]))  # fmt: skip
        if op == "LayerNorm":
            gain, shift = (w.constant(rng.normal(size=self.width)) for _ in range(2))
            return w.add("LayerNormalization", x, gain, shift, axis=-1)
        if op == "Gelu":
            return w.add("Gelu", x, domain=MS)
        if op == "Swish":
            return w.add("Mul", x, w.add("Sigmoid", x))
        if op == "Recurrent":
            cell = str(rng.choice(["GRU", "LSTM", "RNN"]))
            gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[cell] * 2
            steps = w.add("Reshape", x, w.constant([self.width, 1, 1], np.int64))
            parts = [w.constant(rng.normal(size=(1, gates, k))) for k in (1, 2)]
            rows = w.add(cell, steps, *parts, hidden_size=2)
            self.width *= 2
            return w.add("Reshape", rows, w.constant([1, self.width], np.int64))
        return w.add(op, x, **({"axis": -1} if op == "Softmax" else {}))

    def integers(self, x: str) -> str:
        """An operator on integers between a quantizer and its inverse."""
        w, rng, kind = self.w, self.rng, self.kind()
        pair = w.constant(self.scale()), w.constant(self.ends(kind), kind)
        last = w.constant(self.scale()), w.constant(self.ends(kind), kind)
        q = w.add("QuantizeLinear", x, *pair)
        op = str(rng.choice(["QLinearSigmoid", "QLinearLeakyRelu", "QLinearAdd", "QGemm"]))
        if op == "QLinearSigmoid":
            y = w.add(op, q, *pair, *last, domain=MS)
        elif op == "QLinearLeakyRelu":
            y = w.add(op, q, *pair, *last, domain=MS, alpha=0.1)
        elif op == "QLinearAdd":
            y = w.add(op, q, *pair, q, *pair, *last, domain=MS)
        else:
            ints = rng.integers(-100, 101, (self.width, 3))
            weight = w.constant(ints, np.int8), w.constant(0.02), w.constant(0, np.int8)
            bias = w.constant(rng.integers(-500, 500, 3), np.int32)
            y = w.add(op, q, *pair, *weight, bias, *last, domain=MS)
            self.width = 3
        return w.add("DequantizeLinear", y, *last)

    def built(self) -> Any:
        x, rng = "x", self.rng
        if rng.random() < 0.8:
            x = self.rounded(x)
        for _ in range(int(rng.integers(1, 5))):
            before, width = x, self.width
            x = [self.dense, self.smooth, self.integers][int(rng.choice(3, p=[0.4, 0.4, 0.2]))](x)
            if rng.random() < 0.2 and self.width == width:
                x = self.w.add("Add", x, before)
            x = self.rounded(x) if rng.random() < 0.5 else x
        # without any quantizer a network is proved as a real function, which may round otherwise
        has_steps = any("Quant" in node.op_type for node in self.w.nodes)
        return self.w.model(x if has_steps else self.rounded(x))


def points(net: Network, rng: np.random.Generator, low: Array, high: Array) -> Array:
    """``[P, n]`` float32 in the box."""
    found = [low, high, (low + high) / 2, *rng.uniform(low, high, (60, net.n))]
    if net.edges is not None:
        scale, _ = net.edges
        for _ in range(60):
            x = rng.uniform(low, high).astype(np.float32)
            edge = ((np.floor(x / scale) + np.float32(0.5)) * scale).astype(np.float32)
            step = rng.integers(-2, 3, net.n) * np.spacing(np.abs(edge))
            found.append(np.where(rng.random(net.n) < 0.7, edge + step, x))
    return np.clip(np.array(found, dtype=np.float32), low, high)


def decimal(value: Fraction) -> str:
    """Exact: the denominator is a power of two."""
    digits = value.denominator.bit_length() - 1
    whole = value.numerator * 5**digits
    text = str(abs(whole)).rjust(digits + 1, "0")
    head, tail = (text[:-digits], text[-digits:]) if digits else (text, "0")
    return f"{'-' if whole < 0 else ''}{head}.{tail}"


def instance(seed: int, number: int) -> tuple[Any, str, bool, dict[str, Any]] | None:
    """Model, property, whether attacks stay on, facts; None where onnxruntime finds no number."""
    from bitcrown.check.replay import open_session

    rng = np.random.default_rng([seed, number])
    net = Network(rng)
    model = net.built()
    session = open_session(model.SerializeToString(), "the instance")
    centre = rng.normal(size=net.n) * 10 ** rng.uniform(-1, 0.7)
    radius = 10 ** rng.uniform(-4, 0, net.n) * (rng.random(net.n) < 0.9)
    low = (centre - radius).astype(np.float32)
    high = np.maximum((centre + radius).astype(np.float32), low)
    tried = points(net, rng, low, high)
    outputs = [session.run(None, {"x": x[None]})[0].reshape(-1) for x in tried]
    if not np.isfinite(outputs).all():
        return None
    m = len(outputs[0])
    i, j = int(rng.integers(m)), int(rng.integers(m))
    exact = [[Fraction(float(v)) for v in y] for y in outputs]
    values = [y[i] - (y[j] if j != i else 0) for y in exact]
    lines = [f"(declare-const X_{k} Real)" for k in range(net.n)]
    lines += [f"(declare-const Y_{k} Real)" for k in range(m)]
    for k in range(net.n):
        ends = [decimal(Fraction(float(end[k]))) for end in (low, high)]
        lines.append(f"(assert (>= X_{k} {ends[0]}))(assert (<= X_{k} {ends[1]}))")
    left = f"Y_{i}" if i == j else f"(- Y_{i} Y_{j})"
    lines.append(f"(assert (>= {left} {decimal(max(values))}))")
    ops = [node.op_type for node in model.graph.node]
    facts = {"ops": ops, "point": tried[int(np.argmax(values))].tolist()}
    return model, "\n".join(lines), bool(rng.random() < 0.5), facts


def trial(seed: int, number: int) -> dict[str, Any]:
    made = instance(seed, number)
    if made is None:
        return {"kind": "unfit"}
    model, text, has_attacks, facts = made
    import bitcrown
    from bitcrown.errors import BitcrownError

    with tempfile.TemporaryDirectory() as folder:
        network, question = Path(folder, "net.onnx"), Path(folder, "p.vnnlib")
        onnx.save(model, network)
        question.write_text(text)
        off = contextlib.nullcontext() if has_attacks else only_proofs()
        try:
            with off:
                verdict = bitcrown.verify(bitcrown.load(network, question), cpu_seconds=SECONDS)
        except BitcrownError as error:
            return {"kind": "refused", "reason": str(error)[:300]}
        except Exception as error:  # noqa: BLE001 (any other class is a finding)
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            return {"kind": "traceback", "signature": place, **facts}
    if verdict.status == "unsat":
        return {"kind": "false unsat", "signature": verdict.decided_by, **facts}
    return {"kind": str(verdict.status.value), "reason": verdict.detail[:200]}


def explained(seed: int, number: int, result: dict[str, Any], folder: Path) -> str:
    """The instance as files, which are small already; a line that says what it is."""
    made = instance(seed, number)
    assert made is not None
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(made[0], folder / "net.onnx")
    (folder / "prop.vnnlib").write_text(made[1])
    (folder / "result.json").write_text(json.dumps(result, default=str))
    return f"{result['kind']}: {result.get('signature')}; {' '.join(result['ops'])}"
