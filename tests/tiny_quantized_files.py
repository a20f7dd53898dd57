"""Random quantized ONNX files with inputs few enough to try them all, and properties that are close
calls on them.

Every form that the integer readers know: QDQ, QLinear operators, integer operators, whole numbers
in float tensors, QONNX; with two branches that are added or joined, per-channel scales, images, and
outputs that are integers or float32 values of them. ``truth`` asks onnxruntime for every input of
the box (one representative for every integer input).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitcrown.model.file import QONNX_DOMAINS
from bitcrown.model.standard_form import standard_form
from tests.quant_models import UINT8, Writer, run

FORMS = (
    "qdq",
    "qdq image",
    "branches",
    "float output",
    "qlinear",
    "qlinear image",
    "integer",
    "whole",
    "qonnx",
)
MOST_POINTS = 400


@dataclass
class TinyFile:
    """``writer`` and the name of the output; ``grid``: scale and zero point of the quantizer at the
    input, if any."""

    writer: Writer
    output: str
    size: int
    grid: tuple[np.float32, int] | None = None


def scale_of(rng: np.random.Generator, size: Any = None) -> Any:
    """Powers of two and others."""
    exponent = rng.integers(-5, 1, size)
    return np.float32(np.exp2(exponent) * (1.0 if rng.integers(2) else rng.uniform(0.6, 1.4, size)))


def act(rng: np.random.Generator) -> tuple[Any, int, int]:
    return [(np.uint8, 0, 255), (np.int8, -128, 127)][int(rng.integers(2))]


def entered(
    rng: np.random.Generator, shape: list[int]
) -> tuple[Writer, str, tuple[np.float32, int] | None]:
    """A dequantized input: of integers, or of real numbers that the file quantizes."""
    scale = scale_of(rng)
    if rng.integers(2):
        w = Writer(shape, UINT8)
        x = w.add(
            "DequantizeLinear",
            "x",
            w.constant(scale),
            w.constant(int(rng.integers(0, 200)), np.uint8),
        )
        return w, x, None
    w = Writer(shape)
    zero = int(rng.integers(100, 156))
    return w, w.quantized("x", scale, zero, np.uint8), (scale, zero)


def requantized(w: Writer, rng: np.random.Generator, y: str, reach: float) -> str:
    """A value of size ``reach`` to 8 bits and back, some of it saturated; often few of the 256
    levels are used."""
    dtype, low, high = act(rng)
    scale = np.float32(reach / rng.choice([3, 8, 30, 150]) * rng.uniform(0.7, 1.4))
    if rng.random() < 0.3:
        scale = np.float32(2.0 ** np.round(np.log2(scale)))
    return w.quantized(y, scale, int(rng.integers(max(low, -40), min(high, 160))), dtype)


def activated(w: Writer, rng: np.random.Generator, y: str) -> str:
    kind = int(rng.integers(5))
    if kind == 0:
        return w.add("Relu", y)
    if kind == 1:
        return w.add("LeakyRelu", y, alpha=0.25)
    if kind == 2:
        return w.add("Clip", y, w.constant(np.float32(-1.5)), w.constant(np.float32(2.25)))
    if kind == 3:
        return w.add("Neg", y)
    return y


def dense(w: Writer, rng: np.random.Generator, x: str, inputs: int, outputs: int) -> str:
    ints = rng.integers(-128, 128, (inputs, outputs))
    if rng.integers(2):
        matrix = w.weight(ints, scale_of(rng, outputs) / 32, axis=1)
    else:
        matrix = w.weight(ints, scale_of(rng) / 32, int(rng.integers(-3, 4)))
    y = w.add("MatMul", x, matrix)
    return w.add("Add", y, w.constant(rng.normal(size=outputs))) if rng.integers(2) else y


def qdq_file(rng: np.random.Generator, form: str) -> TinyFile:
    size = int(rng.integers(2, 4))
    w, x, grid = entered(rng, [1, size])
    y, width = x, size
    for _ in range(int(rng.integers(1, 3))):
        out = int(rng.integers(2, 4))
        y = requantized(w, rng, activated(w, rng, dense(w, rng, y, width, out)), 8.0)
        width = out
    if form == "branches":
        other = requantized(w, rng, dense(w, rng, x, size, width), 6.0)
        y = joined(w, rng, y, other)
        y = requantized(w, rng, dense(w, rng, y, width, 2), 10.0)
    last = y if form == "float output" or rng.integers(2) else w.nodes[-1].input[0]
    return TinyFile(w, last, size, grid)


def joined(w: Writer, rng: np.random.Generator, one: str, other: str) -> str:
    """The sum, difference or QLinearAdd of two dequantized tensors, to 8 bits and back."""
    if rng.random() < 0.5:
        return requantized(
            w, rng, activated(w, rng, w.add(str(rng.choice(["Add", "Sub"])), one, other)), 12.0
        )
    parts = [next(node for node in w.nodes if node.output[0] == name) for name in (one, other)]
    kinds = [next(t for t in w.tensors if t.name == part.input[2]).data_type for part in parts]
    if kinds[0] != kinds[1]:
        return requantized(w, rng, w.add("Add", one, other), 9.0)
    scale = w.constant(np.float32(9.0 / rng.choice([6, 20, 100])))
    zero = w.constant(int(rng.integers(0, 90)), np.uint8 if kinds[0] == UINT8 else np.int8)
    y = w.add("QLinearAdd", *parts[0].input, *parts[1].input, scale, zero, domain="com.microsoft")
    return w.add("DequantizeLinear", y, scale, zero)


def image_file(rng: np.random.Generator) -> TinyFile:
    w, x, grid = entered(rng, [1, 1, 2, 2])
    kernel = w.weight(rng.integers(-128, 128, (2, 1, 2, 2)), scale_of(rng, 2) / 32, axis=0)
    y = w.add("Conv", x, kernel, pads=[int(p) for p in rng.integers(0, 2, 4)])
    y = requantized(w, rng, activated(w, rng, y), 8.0)
    kind = int(rng.integers(3))
    if kind == 0:
        y = requantized(w, rng, w.add("GlobalAveragePool", y), 4.0)
    elif kind == 1:
        y = w.add("MaxPool", y, kernel_shape=[1, 1], strides=[1, 1])
    y = w.add("Flatten", y)
    values = np.zeros((1, 4), np.uint8 if grid is None else np.float32)
    width = outputs_at(w, y, values).shape[1]
    y = requantized(w, rng, dense(w, rng, y, width, 2), 10.0)
    return TinyFile(w, y if rng.integers(2) else w.nodes[-1].input[0], 4, grid)


def qlinear_file(rng: np.random.Generator, is_image: bool) -> TinyFile:
    shape = [1, 1, 2, 2] if is_image else [1, int(rng.integers(2, 4))]
    size = int(np.prod(shape))
    w = Writer(shape, UINT8)

    def params() -> tuple[str, str]:
        return w.constant(scale_of(rng)), w.constant(int(rng.integers(0, 256)), np.uint8)

    first, second, last = params(), params(), params()
    if is_image:
        kernel = w.constant(rng.integers(-128, 128, (2, 1, 2, 2)), np.int8)
        scale = w.constant(scale_of(rng, 2) / 32), w.constant([0, 0], np.int8)
        y = w.add(
            "QLinearConv",
            "x",
            *first,
            kernel,
            *scale,
            *second,
            w.constant(rng.integers(-900, 900, 2), np.int32),
        )
        y = w.add("Reshape", y, w.constant([1, 2], np.int64))
    else:
        matrix = w.constant(rng.integers(-128, 128, (size, 2)), np.int8)
        y = w.add(
            "QLinearMatMul",
            "x",
            *first,
            matrix,
            w.constant(scale_of(rng) / 32),
            w.constant(0, np.int8),
            *second,
        )
        matrix = w.constant(rng.integers(-128, 128, (size, 2)), np.int8)
        z = w.add(
            "QLinearMatMul",
            "x",
            *first,
            matrix,
            w.constant(scale_of(rng) / 32),
            w.constant(2, np.int8),
            *second,
        )
        y = w.add("QLinearAdd", y, *second, z, *second, *last, domain="com.microsoft")
        second = last
    matrix = w.constant(rng.integers(-128, 128, (2, 2)), np.int8)
    y = w.add(
        "QLinearMatMul",
        y,
        *second,
        matrix,
        w.constant(scale_of(rng) / 8),
        w.constant(0, np.int8),
        *params(),
    )
    return TinyFile(w, y, size)


def integer_file(rng: np.random.Generator) -> TinyFile:
    size = int(rng.integers(2, 4))
    w = Writer([1, size], UINT8, opset=18)
    y = w.add(
        "MatMulInteger",
        "x",
        w.constant(rng.integers(-128, 128, (size, 3)), np.int8),
        w.constant(90, np.uint8),
    )
    y = w.add("Add", y, w.constant(rng.integers(-9000, 9000, 3), np.int32))
    y = w.add(
        "Clip", y, w.constant(0, np.int32), w.constant(int(rng.integers(200, 40000)), np.int32)
    )
    y = w.add(
        "Cast",
        w.add("BitShift", w.add("Cast", y, to=12), w.constant(6, np.uint32), direction="RIGHT"),
        to=6,
    )
    y = w.add("Clip", y, w.constant(0, np.int32), w.constant(255, np.int32))
    y = w.add(
        "MatMulInteger",
        w.add("Cast", y, to=UINT8),
        w.constant(rng.integers(0, 20, (3, 2)), np.uint8),
    )
    return TinyFile(w, w.add("Sub", w.constant(rng.integers(-50, 50, 2), np.int32), y), size)


def whole_file(rng: np.random.Generator) -> TinyFile:
    size = int(rng.integers(2, 4))
    w = Writer([1, size])
    y = w.add("Clip", w.add("Round", "x"), w.constant(0.0), w.constant(31.0))
    y = w.add("MatMul", y, w.constant(rng.integers(-32, 32, (size, 3))))
    y = w.add(
        "Add", w.add("Mul", y, w.constant(0.03125)), w.constant(rng.integers(-32, 32, 3) / 16)
    )
    y = w.add("Clip", w.add("Floor", y), w.constant(0.0), w.constant(float(rng.integers(1, 20))))
    y = w.add(
        "MatMul", w.add("Mul", y, w.constant(0.25)), w.constant(rng.integers(-32, 32, (3, 2)) / 32)
    )
    y = w.add("Round", w.add("Mul", y, w.constant(-2.5)))
    y = w.add(
        "QuantizeLinear", y, w.constant(np.float32(rng.integers(1, 4))), w.constant(5, np.int8)
    )
    return TinyFile(w, y, size, (np.float32(1.0), 0))


def qonnx_file(rng: np.random.Generator) -> TinyFile:
    size, domain = int(rng.integers(2, 4)), "qonnx.custom_op.general"
    w = Writer([1, size], opset=13)
    zero, bits = w.constant(0.0), w.constant(5.0)
    x = w.add("Quant", "x", w.constant(0.25), zero, bits, domain=domain, signed=1, narrow=0)
    floats = w.constant(rng.normal(size=(size, 3)))
    matrix = w.add(
        "Quant", floats, w.constant(0.125), zero, w.constant(4.0), domain=domain, signed=1, narrow=1
    )
    y = w.add("MatMul", x, matrix)
    parameters = [w.constant(rng.normal(size=3)) for _ in range(3)]
    y = w.add("BatchNormalization", y, *parameters, w.constant(np.exp(rng.normal(size=3))))
    y = w.add(
        "Quant",
        y,
        w.constant(0.25),
        zero,
        w.constant(4.0),
        domain=domain,
        signed=0,
        rounding_mode="FLOOR",
    )
    matrix = w.add(
        "BipolarQuant", w.constant(rng.normal(size=(3, 2))), w.constant(0.5), domain=domain
    )
    return TinyFile(w, w.add("MatMul", y, matrix), size, (np.float32(0.25), 0))


def random_file(rng: np.random.Generator, form: str) -> TinyFile:
    if form in ("qdq image", "qlinear", "qlinear image", "integer", "whole", "qonnx"):
        made = {
            "qdq image": image_file,
            "integer": integer_file,
            "whole": whole_file,
            "qonnx": qonnx_file,
        }
        return made[form](rng) if form in made else qlinear_file(rng, form.endswith("image"))
    return qdq_file(rng, form)


def box_and_points(rng: np.random.Generator, file: TinyFile) -> tuple[Any, Any, Any]:
    """[N] float64 ends of a box, and [P, N] inputs, one for every integer input that the box can
    become."""
    choices, lower, upper = [], [], []
    most = max(2, int(MOST_POINTS ** (1 / file.size)))
    for _ in range(file.size):
        first, count = int(rng.integers(0, 250)), int(rng.integers(2, most + 1))
        if file.grid is None:
            levels = list(range(first, min(first + count, 256)))
            ends = [float(levels[0]), float(levels[-1])]
        else:
            scale, zero = file.grid
            middle = zero + int(rng.integers(-8, 8)) if zero else int(rng.integers(-12, 20))
            ends = sorted(
                float(np.float32(scale * (middle + shift - zero))) for shift in (0.3, count - 1.2)
            )
            inner = [np.float32(scale * (middle + k - zero)) for k in range(count)]
            levels = [
                np.float32(ends[0]),
                *[v for v in inner if ends[0] < v < ends[1]],
                np.float32(ends[1]),
            ]
        choices.append(levels)
        lower.append(ends[0])
        upper.append(ends[1])
    dtype = np.uint8 if file.grid is None else np.float32
    return lower, upper, np.array(list(product(*choices)), dtype=dtype)


def outputs_at(w: Writer, output: str, values: Any) -> Any:
    """[P, M] by onnxruntime, QONNX in its standard form."""
    model = w.model(output)
    if any(node.domain in QONNX_DOMAINS for node in model.graph.node):
        model = standard_form(model, QONNX_DOMAINS)
    return run_model(model, values)


def run_model(model: Any, values: Any) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return run(path, values)


@dataclass
class Property:
    """``cases``: ORed lists of (coefficients by output, bound, strict) that are ANDed."""

    lower: list[float]
    upper: list[float]
    cases: list[list[tuple[dict[int, int], Fraction, bool]]]

    def holds_at(self, row: list[float]) -> bool:
        y = [Fraction(v) for v in row]
        return any(
            all(satisfied(sum(c * y[i] for i, c in t.items()), b, s) for t, b, s in case)
            for case in self.cases
        )

    def text(self, outputs: int) -> str:
        lines = [f"(declare-const X_{i} Real)" for i in range(len(self.lower))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
        for i, (a, b) in enumerate(zip(self.lower, self.upper, strict=True)):
            lines += [f"(assert (>= X_{i} {Decimal(a):f}))", f"(assert (<= X_{i} {Decimal(b):f}))"]
        cases = [" ".join(written(rule) for rule in case) for case in self.cases]
        return (
            "\n".join([*lines, f"(assert (or {' '.join(f'(and {case})' for case in cases)}))"])
            + "\n"
        )


def satisfied(total: Any, bound: Fraction, strict: bool) -> bool:
    return bool(total < bound if strict else total <= bound)


def written(rule: tuple[dict[int, int], Fraction, bool]) -> str:
    terms, bound, strict = rule
    left = " ".join(f"(* {float(c)} Y_{i})" for i, c in terms.items())
    number = Decimal(bound.numerator) / Decimal(bound.denominator)
    return f"({'<' if strict else '<='} (+ {left} 0.0) {number:f})"


def random_property(rng: np.random.Generator, box: tuple[Any, Any], outputs: Any) -> Property:
    """Cases whose bounds are at, or a step beside, what the best input attains."""
    values = np.asarray(outputs, dtype=np.float64)
    cases = []
    for _ in range(int(rng.integers(1, 3))):
        case = []
        for _ in range(int(rng.integers(1, 3))):
            used = rng.permutation(values.shape[1])[: int(rng.integers(1, 3))]
            terms = {int(i): int(rng.choice([-2, -1, 1, 2])) for i in used}
            totals = sum(c * values[:, i] for i, c in terms.items())
            bound = Fraction(
                float(np.quantile(totals, rng.choice([0.0, 0.0, 0.3]), method="lower"))
            )
            bound += Fraction(int(rng.choice([-1, 0, 0])), int(rng.choice([1, 64, 2**20])))
            case.append((terms, bound, bool(rng.integers(2))))
        cases.append(case)
    return Property(*box, cases)
