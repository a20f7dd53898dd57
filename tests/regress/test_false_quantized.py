"""Quantized files of which onnxruntime computes what the readers had excluded: values that are no
numbers, that are far away, or that are a little off next to the edge of a step."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from bitcrown.bounds.interval import interval_bounds
from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.quantized.file import integer_box, read_file
from bitcrown.errors import UnsupportedError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import QuantError
from tests.quant_models import Writer, run

MS = "com.microsoft"
Array = np.ndarray[Any, Any]


def are_inside(path: Path, points: Array) -> bool:
    """Whether the bounds of each of ``points [B, n]`` alone hold what onnxruntime computes."""
    network = Network(read_graph(path), torch.float64)
    given = torch.tensor(points.reshape(len(points), -1), dtype=torch.float64)
    with torch.no_grad():
        ends = interval_bounds(network, given, given)[network.graph.outputs[0]]
    low, up = (end.numpy().reshape(len(points), -1) for end in ends)
    found = run(path, points).astype(np.float64)
    assert np.isfinite(found).all()
    return bool(((low <= found) & (found <= up)).all())


def seven(w: Writer, x: str) -> str:
    """``x`` and -7, side by side."""
    return w.add("Concat", x, w.constant([[-7.0, -7.0]]), axis=1)


def widest(w: Writer, x: str) -> str:
    image = w.add("Unsqueeze", seven(w, x), w.constant([0], np.int64))
    return w.add("Squeeze", w.add("MaxPool", image, kernel_shape=[3]), w.constant([0], np.int64))


def tails(w: Writer, x: str, op: str) -> str:
    if op == "QuantizeLinear":
        return w.quantized(x, 0.1, 100, np.uint8)
    if op == "DynamicQuantizeMatMul":
        weight = w.constant(np.eye(2), np.int8), w.constant(1.0)
        return w.add(op, w.add("Add", x, w.constant(2.0)), *weight, domain=MS)
    if op == "MaxPool":
        return widest(w, x)
    if op == "Shrink":
        return w.add(op, w.add("Add", x, w.constant(2.0)), lambd=1.0)
    sign = x if op == "ReduceMax" else w.add("Neg", x)
    return w.add(op, w.add("Concat", w.constant([[-7.0, -7.0]]), sign, axis=1), axes=[1])


@pytest.mark.parametrize("function", ["Sqrt", "Log"])
@pytest.mark.parametrize(
    "op",
    ["DynamicQuantizeMatMul", "MaxPool", "QuantizeLinear", "ReduceMax", "ReduceMin", "Shrink"],
)
def test_what_is_no_number_becomes_one(function: str, op: str, tmp_path: Path) -> None:
    """The root of -5 is no number, its quantized value the least integer, and a maximum passes over
    it; the root had been 0 on negative numbers."""
    w = Writer([1, 2])
    x = w.add("Add", "x", w.constant(4.0))
    path = w.save(tmp_path, tails(w, w.add(function, x), op))
    found = run(path, np.full((1, 2), -9.0, np.float32))
    assert np.isfinite(found).any()
    with pytest.raises(UnsupportedError, match="no numbers"):
        read_graph(path)


def test_a_root_that_is_a_number_is_quantized(tmp_path: Path) -> None:
    w = Writer([1, 2])
    square = w.add("Add", w.add("Mul", "x", "x"), w.constant(0.1))
    path = w.save(tmp_path, w.quantized(w.add("Sqrt", square), 0.1, 0, np.uint8))
    assert are_inside(path, np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32))


def dynamic(w: Writer, x: str, weight: Array, scale: float) -> str:
    """A layer as ``quantize_dynamic`` writes it."""
    quantized = w.add("DynamicQuantizeLinear", x)
    outputs = [f"{quantized}_{k}" for k in ("s", "z")]
    w.nodes[-1].output.extend(outputs)
    sums = w.add("MatMulInteger", quantized, w.constant(weight, np.int8), outputs[1])
    unit = w.add("Mul", outputs[0], w.constant(scale))
    return w.add("Mul", w.add("Cast", sums, to=TensorProto.FLOAT), unit)


def test_dynamic_scales_of_what_was_rounded(tmp_path: Path) -> None:
    """What a layer gives is off by the rounding of float32, so the next one may take another step;
    such networks were read as real functions."""
    rng = np.random.default_rng(3)
    w = Writer([1, 2])
    x = dynamic(w, "x", rng.integers(-127, 128, (2, 6)), 0.01)
    x = w.add("Sub", w.add("Add", x, w.constant(100.0)), w.constant(100.0))
    path = w.save(tmp_path, dynamic(w, x, np.eye(6), 1.0))
    assert are_inside(path, rng.normal(size=(60, 2)).astype(np.float32))


def test_a_scale_behind_integers_is_rounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = Writer([1, 8], TensorProto.UINT8)
    sums = w.add("MatMulInteger", "x", w.constant(rng.integers(-127, 128, (8, 4)), np.int8))
    path = w.save(
        tmp_path, w.add("Mul", w.add("Cast", sums, to=TensorProto.FLOAT), w.constant(0.3))
    )
    assert are_inside(path, rng.integers(0, 256, (20, 8)).astype(np.uint8))


def four_bits(kind: str, tmp_path: Path, factor: float | None) -> Path:
    """Quantized to four bits, zero point at the end from which the kernel wraps around."""
    w = Writer([1, 3], opset=21)
    x = "x" if factor is None else w.quantized("x", 0.1, 0, np.int8)
    x = x if factor is None else w.add("Mul", x, w.constant(factor))
    zero = -1 if kind == "int4" else 3
    return w.save(tmp_path, w.quantized(x, 0.5, zero, getattr(ml_dtypes, kind)))


@pytest.mark.parametrize(("kind", "far"), [("int4", -3e9), ("uint4", 3e9)])
def test_four_bits_wrap_around(kind: str, far: float, tmp_path: Path) -> None:
    """``int(x / s) + z`` in 32 bits: the least integer minus one is the greatest. (Kernels do so at
    the last of an odd number of elements.)"""
    path = four_bits(kind, tmp_path, None)
    points = np.float32([[far, 1.0, 1.0], [1.0, far, far], [far, far, far]])
    wrapped = run(path, points)[2]
    assert (wrapped[2] > 0) == (far < 0)
    assert are_inside(path, points)
    entry = read_onnx(path).entry
    near, ends = (Fraction(1),) * 3, (Fraction(far),) * 3
    assert (entry.box(near, near)[0] <= entry.box(near, near)[1]).all()
    with pytest.raises(QuantError, match="wraps around"):
        entry.box(min(near, ends), max(near, ends))
    with pytest.raises(QuantError, match="wraps around"):
        read_onnx(four_bits(kind, tmp_path, far))


@pytest.mark.parametrize(("kind", "far"), [("int4", -3e9), ("uint4", 3e9)])
def test_a_certificate_of_four_bits_ends_where_they_wrap_around(
    kind: str, far: float, tmp_path: Path
) -> None:
    low = -8 if kind == "int4" else 0
    node = {"op": "input", "shape": [3], "low": [low] * 3, "high": [low + 15] * 3}
    form = {"format": "bitcrown-integer-network-1", "nodes": [node], "output": 0}
    read = read_file(onnx.load(four_bits(kind, tmp_path, None)), IntegerCircuit(form))
    near, ends = (Fraction(1),) * 3, (Fraction(far),) * 3
    assert integer_box(read, near, near)[0] == integer_box(read, near, near)[1]
    with pytest.raises(Reject, match="wraps around"):
        integer_box(read, min(near, ends), max(near, ends))


def test_four_bits_of_very_different_scales(tmp_path: Path) -> None:
    """Where one element wraps around, another one may not have left its first step."""
    w = Writer([1, 2], opset=21)
    parameters = np.float32([1e-10, 1e10]), [3, 3], ml_dtypes.uint4
    path = w.save(tmp_path, w.quantized("x", *parameters, axis=1))
    node = {"op": "input", "shape": [2], "low": [0, 3], "high": [15, 3]}
    form = {"format": "bitcrown-integer-network-1", "nodes": [node], "output": 0}
    with pytest.raises(Reject, match="very different"):
        read_file(onnx.load(path), IntegerCircuit(form))
    with pytest.raises(QuantError, match="very different"):
        read_onnx(path)


def test_scales_that_float32_does_not_hold_combined(tmp_path: Path) -> None:
    """Their product overflows, and 0 times it is no number, which saturates; in float64 the
    quotient is a number and the sum 0."""
    w = Writer([1, 2])
    one = w.constant(1e30), w.constant(0, np.int8)
    last = w.constant(1e30), w.constant(0, np.int8)
    q = w.add("QuantizeLinear", "x", *one)
    weight = w.constant([[1], [1]], np.int8)
    y = w.add("QLinearMatMul", q, *one, weight, *one, *last)
    path = w.save(tmp_path, w.add("DequantizeLinear", y, *last))
    assert (run(path, np.float32([[1e30, -1e30]])) != 0).all()
    with pytest.raises(UnsupportedError, match="combined"):
        read_graph(path)
    with pytest.raises(QuantError, match="quotient"):
        read_onnx(path)
