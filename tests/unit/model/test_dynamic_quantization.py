"""Integers with a scale that depends on the input: the numbers of onnxruntime; a misuse of a scale
is not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tiny_models import run_graph, run_onnxruntime

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from tests.quant_models import Writer

MS = "com.microsoft"
RNG = np.random.default_rng(3)


def quantized(w: Writer, x: str) -> tuple[str, str, str]:
    """DynamicQuantizeLinear: integers, scale, zero point."""
    names = tuple(f"{x}_{part}" for part in ("q", "s", "z"))
    w.nodes.append(
        onnx.helper.make_node("DynamicQuantizeLinear", [x], list(names), name=f"quantize_{x}")
    )
    return names[0], names[1], names[2]


def floats(w: Writer, sums: str, scale: str, weight_scale: np.ndarray) -> str:
    cast = w.add("Cast", sums, to=TensorProto.FLOAT)
    return w.add("Mul", cast, w.add("Mul", scale, w.constant(weight_scale)))


def weights(
    w: Writer, shape: tuple[int, ...], dtype: type = np.int8, zero: int | np.ndarray = 0
) -> tuple[str, str]:
    limits = np.iinfo(dtype)
    ints = RNG.integers(limits.min, limits.max + 1, shape)
    return w.constant(ints, dtype), w.constant(zero, dtype)


def dense(w: Writer, x: str) -> str:
    q, s, z = quantized(w, x)
    return floats(
        w,
        w.add("MatMulInteger", q, weights(w, (3, 4), np.uint8, 130)[0], z, w.tensors[-1].name),
        s,
        0.01,
    )


def dense_by_column(w: Writer, x: str) -> str:
    q, s, z = quantized(w, x)
    weight, zero = weights(w, (3, 4), np.int8, np.array([3, -5, 0, 100]))
    return floats(
        w, w.add("MatMulInteger", q, weight, z, zero), s, np.array([0.01, 0.02, 0.005, 0.03])
    )


def dense_from_the_left(w: Writer, x: str) -> str:
    q, s, z = quantized(w, w.add("Transpose", x, perm=[1, 0]))
    weight, zero = weights(w, (2, 3), np.uint8, 120)
    return floats(w, w.add("MatMulInteger", weight, q, zero, z), s, 0.02)


def reshaped(w: Writer, x: str) -> str:
    q, s, z = quantized(w, x)
    q = w.add("Reshape", q, w.constant([3, 1], np.int64))
    weight, zero = weights(w, (1, 2))
    sums = w.add("MatMulInteger", q, weight, w.add("Identity", z), zero)
    return floats(w, w.add("Flatten", sums), w.add("Identity", s), 0.1)


def two_layers(w: Writer, x: str) -> str:
    hidden = w.add("Relu", w.add("Add", dense(w, x), w.constant([0.3, -0.2, 0.1, 0.0])))
    q, s, z = quantized(w, hidden)
    weight, zero = weights(w, (4, 2))
    return floats(w, w.add("MatMulInteger", q, weight, z, zero), s, 0.02)


def two_readers(w: Writer, x: str) -> str:
    """As query and key of an attention: the product of two layers of the same integers, quantized
    each."""
    q, s, z = quantized(w, x)
    sides = []
    for shape in ((3, 4), (3, 4)):
        weight, zero = weights(w, shape)
        sides.append(floats(w, w.add("MatMulInteger", q, weight, z, zero), s, 0.01))
    a, a_scale, a_zero = quantized(w, sides[0])
    b, b_scale, b_zero = quantized(w, w.add("Transpose", sides[1], perm=[1, 0]))
    sums = w.add("Cast", w.add("MatMulInteger", a, b, a_zero, b_zero), to=TensorProto.FLOAT)
    return w.add("Mul", sums, w.add("Mul", a_scale, b_scale))


def convolution(w: Writer, x: str) -> str:
    image = w.add(
        "Reshape",
        w.add("MatMul", x, w.constant(RNG.normal(size=(3, 50)))),
        w.constant([1, 2, 5, 5], np.int64),
    )
    q, s, z = quantized(w, image)
    weight, zero = weights(w, (4, 1, 3, 3), np.uint8, 100)
    sums = w.add("ConvInteger", q, weight, z, zero, group=2, pads=[1, 0, 1, 2], strides=[2, 1])
    return floats(w, sums, s, RNG.uniform(0.01, 0.02, (1, 4, 1, 1)))


def with_a_constant(w: Writer, x: str) -> str:
    """A second operand that is quantized as the network runs, though it never changes."""
    q, s, z = quantized(w, w.constant([[1.0, -2.0, 3.0]]))
    weight, zero = weights(w, (3, 4))
    known = floats(w, w.add("MatMulInteger", q, weight, z, zero), s, 0.1)
    return w.add("Add", dense(w, x), known)


def fused_product(w: Writer, x: str) -> str:
    """MatMulIntegerToFloat, then DynamicQuantizeMatMul."""
    q, s, z = quantized(w, x)
    weight, zero = weights(w, (3, 4), np.uint8, 130)
    bias = w.constant([0.1, -0.2, 0.3, 0.0])
    scale = w.constant(0.01)
    h = w.add("MatMulIntegerToFloat", q, weight, s, scale, z, zero, bias, domain=MS)
    weight, zero = weights(w, (4, 2), np.int8, [3, -4])
    scales = w.constant([0.02, 0.03])
    return w.add("DynamicQuantizeMatMul", h, weight, scales, zero, domain=MS)


def recurrent(w: Writer, x: str) -> str:
    """Two directions over three steps, every column with a scale of its own."""
    turned = w.add("Reshape", x, w.constant([3, 1, 1], np.int64))
    parts = []
    for inputs in (1, 2):
        weight, zero = weights(w, (2, inputs, 8), np.int8, np.zeros((2, 8)))
        parts.append((weight, w.constant(RNG.uniform(0.005, 0.02, (2, 8))), zero))
    bias = w.constant(RNG.normal(size=(2, 16)))
    names = [turned, parts[0][0], parts[1][0], bias, "", "", "", "", *parts[0][1:], *parts[1][1:]]
    attrs = {"hidden_size": 2, "direction": "bidirectional", "domain": MS}
    return w.add("DynamicQuantizeLSTM", *names, **attrs)


BUILDERS = (
    fused_product,
    recurrent,
    dense,
    with_a_constant,
    dense_by_column,
    dense_from_the_left,
    reshaped,
    two_layers,
    two_readers,
    convolution,
)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda f: f.__name__)
def test_values_are_those_of_onnxruntime(
    build: Callable[[Writer, str], str], tmp_path: Path
) -> None:
    w = Writer([1, 3])
    path = w.save(tmp_path, build(w, "x"))
    graph = read_graph(path)
    assert "DynamicQuantize" in {node.op for node in graph.nodes.values()}
    assert not NetworkFile(path).is_quantized
    assert crosscheck(graph, NetworkFile(path), 0) < 1e-5
    # Inputs of one sign, of both, and zero: the range of the integers always contains zero.
    for low, high in ((-2, 3), (0.5, 1), (-4, -1), (0, 0)):
        feed = {"x": np.random.default_rng(5).uniform(low, high, (1, 3)).astype(np.float32)}
        found, expected = run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def deep(w: Writer, layers: int = 12) -> str:
    value = w.add("MatMul", "x", w.constant(RNG.normal(size=(3, 60))))
    for _ in range(layers):
        q, s, z = quantized(w, value)
        weight, zero = weights(w, (60, 60))
        value = w.add("Relu", floats(w, w.add("MatMulInteger", q, weight, z, zero), s, 0.003))
    return value


def test_elements_that_round_to_the_other_side_are_no_misreading(tmp_path: Path) -> None:
    """Layers of it carry float32 noise across jumps, and every jump feeds the next layers."""
    w = Writer([1, 3])
    path = w.save(tmp_path, deep(w))
    assert crosscheck(read_graph(path), NetworkFile(path), 0) < 1e-5


@pytest.mark.parametrize("place", (0, 1))
def test_a_misread_layer_is_found_before_and_behind_a_jump(place: int, tmp_path: Path) -> None:
    w = Writer([1, 3])
    path = w.save(tmp_path, two_layers(w, "x"))
    graph = read_graph(path)
    layer = [node for node in graph.nodes.values() if node.op == "Linear"][place]
    params = {**layer.params, "weight": layer.params["weight"] * 1.02}
    misread = replace(graph, nodes={**graph.nodes, layer.name: replace(layer, params=params)})
    crosscheck(graph, NetworkFile(path), 0)
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        crosscheck(misread, NetworkFile(path), 0)


def test_a_misread_staircase_at_the_output_is_found(tmp_path: Path) -> None:
    """Its value is taken from the runtime, so only the elements that moved tell."""
    w = Writer([1, 3])
    path = w.save(tmp_path, w.add("Round", w.add("Mul", "x", w.constant([5.0, 7.0, 9.0]))))
    graph = read_graph(path)
    assert crosscheck(graph, NetworkFile(path), 0) == 0
    scale = next(node for node in graph.nodes.values() if node.op == "Scale")
    for factor in (1.5, np.nan):
        params = {"scale": scale.params["scale"] * factor}
        misread = replace(graph, nodes={**graph.nodes, scale.name: replace(scale, params=params)})
        with pytest.raises(ModelError, match="differs from onnxruntime"):
            crosscheck(misread, NetworkFile(path), 0)


def sums_of(w: Writer, x: str) -> tuple[str, str]:
    q, s, z = quantized(w, x)
    weight, zero = weights(w, (3, 4))
    return w.add("MatMulInteger", q, weight, z, zero), s


def unscaled(w: Writer) -> str:
    return w.add("Cast", sums_of(w, "x")[0], to=TensorProto.FLOAT)


def scaled_twice(w: Writer) -> str:
    sums, s = sums_of(w, "x")
    return w.add("Mul", floats(w, sums, s, np.array(0.1)), s)


def bias_before_scale(w: Writer) -> str:
    sums, s = sums_of(w, "x")
    return floats(w, w.add("Add", sums, w.constant([5, 6, 7, 8], np.int32)), s, np.array(0.1))


def scale_of_another(w: Writer) -> str:
    sums, _ = sums_of(w, "x")
    return floats(w, sums, quantized(w, w.add("Relu", "x"))[1], np.array(0.1))


def zero_point_of_another(w: Writer) -> str:
    q, s, _ = quantized(w, "x")
    weight, zero = weights(w, (3, 4))
    return floats(
        w,
        w.add("MatMulInteger", q, weight, quantized(w, w.add("Relu", "x"))[2], zero),
        s,
        np.array(0.1),
    )


def no_zero_point(w: Writer) -> str:
    q, s, _ = quantized(w, "x")
    return floats(w, w.add("MatMulInteger", q, weights(w, (3, 4))[0]), s, np.array(0.1))


def a_zero_point_of_its_own(w: Writer) -> str:
    q, s, _ = quantized(w, "x")
    weight, zero = weights(w, (3, 4))
    return floats(
        w, w.add("MatMulInteger", q, weight, w.constant(0, np.uint8), zero), s, np.array(0.1)
    )


def zero_point_as_weight(w: Writer) -> str:
    _, s, z = quantized(w, "x")
    q = w.add("Reshape", z, w.constant([1, 1], np.int64))
    return floats(w, w.add("MatMulInteger", q, weights(w, (1, 4))[0]), s, np.array(0.1))


def cast_integers(w: Writer) -> str:
    q, s, _ = quantized(w, "x")
    return floats(w, q, s, np.array(0.1))


def multiplied_integers(w: Writer) -> str:
    q, s, _ = quantized(w, "x")
    return w.add("Mul", w.add("Mul", q, s), w.constant(0.1))


def zero_points_by_channel(w: Writer) -> str:
    q, s, z = quantized(w, w.add("Reshape", "x", w.constant([1, 1, 1, 3], np.int64)))
    weight, zero = weights(w, (2, 1, 1, 1), np.int8, np.array([3, 4]))
    return floats(w, w.add("ConvInteger", q, weight, z, zero), s, np.array(0.1))


def long_sums(w: Writer) -> str:
    wide = w.add("MatMul", "x", w.constant(np.ones((3, 70_000))))
    q, s, z = quantized(w, wide)
    weight = w.constant(np.full((70_000, 1), 127), np.int8)
    return floats(w, w.add("MatMulInteger", q, weight, z), s, np.array(0.1))


REFUSED = {
    unscaled: "never multiplied by the scale",
    scaled_twice: "never multiplied by the scale",
    bias_before_scale: "Add .* of integers whose scale depends on the input",
    scale_of_another: "never multiplied by the scale",
    zero_point_of_another: "zero point of 'x_q' is not its own",
    no_zero_point: "zero point of 'x_q' is not its own",
    a_zero_point_of_its_own: "zero point of 'x_q' is not its own",
    zero_point_as_weight: "zero point of .* is not its own",
    cast_integers: "casts integers whose zero point",
    multiplied_integers: "multiplies integers whose zero point",
    zero_points_by_channel: "several zero points",
    long_sums: "may not fit into 32 bits",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda f: f.__name__)
def test_what_is_no_layer_of_real_numbers_is_refused(
    build: Callable[[Writer], str], tmp_path: Path
) -> None:
    """Read without units, some of these would be another function of the input than the file's."""
    w = Writer([1, 3])
    with pytest.raises(UnsupportedError, match=REFUSED[build]):
        read_graph(w.save(tmp_path, build(w)))
