"""The ONNX reader: real files, what is refused and in which words, and the comparison with
onnxruntime itself."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitcrown.errors import ModelError
from bitcrown.model.file import NetworkFile
from bitcrown.quant.formats.agreement import check_agreement, exit_ends, node_enclosures
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import Dense, QuantError
from tests.quant_models import INT8, UINT8, Writer, run

DATA = Path(__file__).resolve().parents[3] / "data" / "quant"


def images(count: int) -> np.ndarray:
    """Strokes of a random walk: nothing like noise, so that hidden layers are not saturated."""
    random = np.random.default_rng(5)
    found = np.zeros((count, 28, 28), np.float32)
    for image in found:
        walk = np.clip(14 + np.cumsum(random.integers(-1, 2, (90, 2)), axis=0), 2, 25)
        for row, column in walk:
            image[row - 1 : row + 1, column - 1 : column + 1] = random.integers(128, 256)
    return found.reshape(count, -1)


def test_real_qoperator_network_is_bit_equal() -> None:
    path = DATA / "made_mnist_conv_int8_qop.onnx"
    network = read_onnx(path)
    values = images(30)
    assert network.is_exact() and NetworkFile(path).is_quantized
    q = network.evaluate(network.entry.integers(values))
    found = np.stack([exit_ends(network.exit, row, row)[0] for row in q])
    assert (found == run(path, values)).all() and len(np.unique(found.argmax(axis=1))) > 2


def test_real_qdq_network_encloses_the_runtime() -> None:
    path = DATA / "made_mnist_conv_int8_qdq_pc.onnx"
    network = read_onnx(path)
    values = images(20)
    found = run(path, values)
    assert not network.is_exact()  # its first sum is of products that float32 rounds
    for x, expected in zip(network.entry.integers(values), found, strict=True):
        low, high = node_enclosures(network, x)
        least, greatest = exit_ends(network.exit, low[-1], high[-1])
        assert ((least <= expected) & (expected <= greatest)).all()
    kinds = [type(node).__name__ for node in network.nodes]
    assert kinds == [
        "Input",
        "Conv",
        "Stairs",
        "MaxPool",
        "Conv",
        "Stairs",
        "MaxPool",
        "Dense",
        "Stairs",
    ]


def small(w: Writer, name: str = "x") -> str:
    """A quantized layer of 3 inputs and 2 outputs."""
    x = w.quantized(name, 0.5, 3, np.uint8)
    return w.quantized(
        w.add("MatMul", x, w.weight([[1, 2], [3, -4], [5, 6]], 0.25)), 2.0, 10, np.uint8
    )


def test_integers_are_cast_to_their_own_type_and_zero_points_are_filled_in(tmp_path: Path) -> None:
    """As torch exports a quantized layer: Cast behind every quantizer, ConstantOfShape for the
    zero points of the bias."""
    w = Writer([1, 3])
    s, z = w.constant(0.5), w.constant(3, np.uint8)
    q = w.add("Cast", w.add("QuantizeLinear", "x", s, z), to=UINT8)
    x = w.add("DequantizeLinear", q, s, z)
    zeros = w.add(
        "ConstantOfShape",
        w.constant([2], np.int64),
        value=onnx.numpy_helper.from_array(np.zeros(1, np.int32)),
    )
    bias = w.add(
        "DequantizeLinear", w.constant([7, -9], np.int32), w.constant([0.1, 0.2]), zeros, axis=0
    )
    sums = w.add("Gemm", x, w.weight([[1, 2], [3, -4], [5, 6]], 0.25), bias)
    path = w.save(tmp_path, w.quantized(sums, 2.0, 10, np.uint8))
    network = read_onnx(path)
    values = np.random.default_rng(0).uniform(-9, 30, (40, 3)).astype(np.float32)
    found = run(path, values)
    for value, expected in zip(values, found, strict=True):
        low, high = node_enclosures(network, network.entry.integers(value[None])[0])
        least, greatest = exit_ends(network.exit, low[-1], high[-1])
        assert ((least <= expected) & (expected <= greatest)).all()
    assert len(np.unique(found)) > 5


def test_input_quantized_after_arithmetic_keeps_float32_rounding(tmp_path: Path) -> None:
    w = Writer([1, 3])
    scaled = w.add("Sub", w.add("Mul", "x", w.constant(0.3)), w.constant([0.1, 0.2, 0.7]))
    path = w.save(tmp_path, small(w, scaled))
    network = read_onnx(path)
    single = (np.arange(-3000, 3000, dtype=np.float32) * np.float32(0.003)).astype(np.float32)
    values = np.stack([single, single[::-1], single], axis=1)
    q = network.evaluate(network.entry.integers(values))
    assert (
        np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == run(path, values)
    ).all()


def test_transposed_input_and_negative_factor(tmp_path: Path) -> None:
    w = Writer([1, 2, 3, 2])
    x = w.add("Transpose", w.add("Mul", "x", w.constant(-1.0)), perm=[0, 3, 1, 2])
    x = w.quantized(x, 0.5, 0, np.int8)
    y = w.add("Conv", x, w.weight(np.arange(-6, 6).reshape(3, 2, 1, 2), 0.5))
    y = w.quantized(
        w.add("Mul", y, w.constant(np.reshape([1.0, -2.0, 0.5], (3, 1, 1)))), 4.0, 0, np.int8
    )
    path = w.save(tmp_path, y)
    network = read_onnx(path)
    values = (np.random.default_rng(0).integers(-60, 60, (50, 12)) / 4).astype(np.float32)
    q = network.evaluate(network.entry.integers(values))
    assert network.is_exact()
    assert (
        np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == run(path, values)
    ).all()


def test_falling_output_has_rising_values(tmp_path: Path) -> None:
    w = Writer([1, 3])
    path = w.save(tmp_path, w.add("Mul", small(w), w.constant([2.0, -3.0])))
    network = read_onnx(path)
    assert all(list(row) == sorted(row) for row in network.exit.values)
    values = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32) * 40
    q = network.evaluate(network.entry.integers(values))
    assert (
        np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == run(path, values)
    ).all()


def two_branches(w: Writer, left_type: Any) -> str:
    """A convolution and an average of the same image, quantized differently, as four channels."""
    x = w.quantized("x", 0.5, 4, np.uint8)
    left = w.add("Conv", x, w.weight(np.arange(-9, 9).reshape(1, 2, 3, 3), 0.5), pads=[1] * 4)
    right = w.add(
        "AveragePool",
        x,
        kernel_shape=[2, 2],
        strides=[1, 1],
        pads=[0, 0, 1, 1],
        count_include_pad=1,
    )
    return w.add(
        "Concat", w.quantized(left, 3.0, 5, left_type), w.quantized(right, 0.7, 9, np.uint8), axis=1
    )


def test_concatenation_residual_sum_and_pooling(tmp_path: Path) -> None:
    w = Writer([1, 2, 4, 4])
    both = w.quantized(two_branches(w, np.uint8), 0.9, 0, np.uint8)
    total = w.add("Sub", both, w.quantized(w.add("Relu", both), 0.3, 40, np.uint8))
    path = w.save(tmp_path, w.quantized(total, 1.1, 100, np.uint8))
    network = read_onnx(path)
    values = np.random.default_rng(2).normal(size=(60, 32)).astype(np.float32) * 30
    q = network.evaluate(network.entry.integers(values))
    assert (
        np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == run(path, values)
    ).all()


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_elements_that_are_picked_and_both_domains(domain: str, tmp_path: Path) -> None:
    """Selections on integers and on what they stand for; the same numbers as onnxruntime's."""
    w = Writer([1, 4, 3, 3])
    scale, zero = w.constant(0.5), w.constant(9, np.uint8)
    q = w.add("QuantizeLinear", "x", scale, zero, domain=domain)
    ends = [w.constant(value, np.int64) for value in ([1], [9], [2])]
    cut = w.add("Slice", q, *ends)
    large = w.add("Resize", cut, "", w.constant([1, 1, 2, 2]), mode="nearest")
    real = w.add("DequantizeLinear", large, scale, zero, domain=domain)
    plane = w.add("DepthToSpace", real, blocksize=2)
    w.nodes.append(onnx.helper.make_node("Split", [plane], ["one", "two"], name="parts", axis=2))
    rows = w.add("Gather", "two", w.constant([2, 0, 2], np.int64), axis=3)
    rows = w.add("Tile", rows, w.constant([1, 1, 1, 4], np.int64))
    y = w.add("Sub", w.add("Relu", "one"), rows)
    path = w.save(tmp_path, w.quantized(y, 0.25, 100, np.uint8))
    network = read_onnx(path)
    values = np.random.default_rng(3).normal(size=(40, 36)).astype(np.float32) * 20
    found = network.evaluate(network.entry.integers(values))
    expected = run(path, values)
    rows_ = [exit_ends(network.exit, row, row)[0] for row in found]
    assert (np.stack(rows_) == expected).all()
    assert len(np.unique(expected)) > 50


def test_sum_of_tensors_with_two_scales_each_is_refused(tmp_path: Path) -> None:
    w = Writer([1, 2, 4, 4])
    both = two_branches(w, np.int8)
    path = w.save(tmp_path, w.add("Add", both, w.quantized(both, 0.9, 0, np.int8)))
    with pytest.raises(QuantError, match="scale or zero point differs"):
        read_onnx(path)


def refused() -> dict[str, tuple[Any, str]]:
    def softmax(w: Writer) -> str:
        return w.add("Softmax", w.add("Erf", small(w)))

    def dynamic(w: Writer) -> str:
        w.nodes.append(
            onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dyn")
        )
        return "q"

    def product(w: Writer) -> str:
        y = small(w)
        return w.add("Mul", y, y)

    def real(w: Writer) -> str:
        return w.add("MatMul", "x", w.constant(np.ones((3, 2))))

    def output(w: Writer) -> str:
        x = w.quantized("x", 0.3, 3, np.uint8)
        return w.add("MatMul", x, w.weight([[1, 2], [3, -4], [5, 6]], 0.1))

    def twice(w: Writer) -> str:
        return w.add("Add", w.quantized("x", 0.5, 3, np.uint8), w.quantized("x", 0.25, 3, np.uint8))

    def scale(w: Writer) -> str:
        return w.quantized("x", -1.0, 0, np.uint8)

    def wide(w: Writer) -> str:
        q = w.add("QuantizeLinear", "x", w.constant(1.0), w.constant(0, np.uint8))
        q = w.add("Cast", q, to=onnx.TensorProto.INT8)
        return w.add("DequantizeLinear", q, w.constant(1.0), w.constant(0, np.int8))

    def blurred(w: Writer) -> str:
        x = w.quantized("x", 0.1, 3, np.uint16)
        y = w.add("MatMul", x, w.weight([[1, 2], [3, -4], [5, 6]], 0.1))
        return w.quantized(w.add("Relu", w.quantized(y, 0.7, 10, np.uint16)), 1.0, 0, np.uint8)

    def pairs(w: Writer) -> str:
        x = w.quantized("x", 0.25, 3, np.uint16)
        return w.add("Add", x, w.quantized(w.add("Relu", x), 0.5, 3, np.uint16))

    def between(w: Writer) -> str:
        x = w.quantized(w.add("Reshape", "x", w.constant([1, 1, 1, 3], np.int64)), 0.5, 3, np.uint8)
        y = w.add("Resize", x, "", w.constant([1, 1, 1, 2]), mode="linear")
        return w.quantized(y, 0.5, 3, np.uint8)

    def endless(w: Writer) -> str:
        return w.add("MatMul", w.add("Floor", "x"), w.constant(np.ones((3, 2))))

    return {
        "endless": (endless, "rounded without limits"),
        "between": (between, "interpolates; mode nearest is supported"),
        "blurred": (blurred, "levels behind float32 sums in no specified order"),
        "pairs": (pairs, "combines [0-9]{10} pairs of values"),
        "unknown": (softmax, "Erf: Erf_6; Softmax: Softmax_7"),
        "dynamic": (dynamic, "scale depends on the input"),
        "product": (product, "both depend on the input"),
        "real": (real, "was not quantized before"),
        "output": (output, "order of summation; quantize the output"),
        "twice": (twice, "quantized in two different ways"),
        "scale": (scale, "not a positive float32"),
        "overflow": (wide, "can leave the range of int8"),
    }


@pytest.mark.parametrize("case", sorted(refused()))
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path: Path, case: str) -> None:
    build, message = refused()[case]
    w = Writer([1, 3])
    path = w.save(tmp_path, build(w))
    with pytest.raises(QuantError, match=message) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_sixteen_bits_are_read_where_sums_are_exact_or_the_output(tmp_path: Path) -> None:
    """The law beside ``blurred``: the same steps behind sums that nothing rounds, and at the end
    of a network, stay integers."""
    w = Writer([1, 3], opset=21)
    x = w.quantized("x", 0.5, 3, np.uint8)
    y = w.add("MatMul", x, w.weight([[1, 2], [3, -4], [5, 6]], 0.25))
    z = w.quantized(y, 0.125, 10, np.uint16)
    last = w.add("MatMul", z, w.weight([[1, 2], [3, -4]], 0.1))
    path = w.save(tmp_path, w.quantized(last, 0.7, 0, np.uint16))
    network, values = read_onnx(path), np.random.default_rng(0).normal(0, 60, (40, 3))
    for x_, expected in zip(
        network.entry.integers(values.astype(np.float32)),
        run(path, values.astype(np.float32)),
        strict=True,
    ):
        low, high = node_enclosures(network, x_)
        least, greatest = exit_ends(network.exit, low[-1], high[-1])
        assert ((least <= expected) & (expected <= greatest)).all()


def test_operators_and_input_type_tell_a_quantized_file(tmp_path: Path) -> None:
    w = Writer([1, 3])
    for model, is_quantized in (
        (w.model(w.add("Relu", "x")), False),
        (w.model(small(w)), True),
        (Writer([1, 3], UINT8).model("x"), True),
        (Writer([1, 3], INT8).model("x"), True),
    ):
        file = NetworkFile(tmp_path / "given.onnx", model.SerializeToString())
        assert file.is_quantized is is_quantized
    bad = NetworkFile(tmp_path / "bad.onnx", b"\xff\xff\xff")
    for function in (lambda file: file.is_quantized, read_onnx):
        with pytest.raises(ModelError):
            function(bad)


def test_disagreement_with_the_runtime_is_an_error(tmp_path: Path) -> None:
    w = Writer([1, 3])
    path = w.save(tmp_path, small(w))
    network = read_onnx(path)
    check_agreement(network, path.read_bytes(), 3, 8)
    changed = [
        replace(node, weight=node.weight + 1) if isinstance(node, Dense) else node
        for node in network.nodes
    ]
    with pytest.raises(QuantError, match="nothing can be proved"):
        check_agreement(replace(network, nodes=tuple(changed)), path.read_bytes(), 3, 8)


def test_an_optimiser_that_changes_the_function_is_reported(tmp_path: Path) -> None:
    """The fused integer operator takes the integers of the bias as if their scale were that of the
    accumulator."""
    random = np.random.default_rng(0)
    w = Writer([1, 40])
    x = w.quantized("x", 0.5, 3, np.uint8)
    bias = w.weight(random.integers(-1000, 1000, 30), 0.0625, 0, np.int32)
    y = w.add("Gemm", x, w.weight(random.integers(-128, 128, (40, 30)), 0.5), bias)
    path = w.save(tmp_path, w.quantized(y, 64.0, 100, np.uint8))
    assert (
        "with all graph optimisations onnxruntime computes something else"
        in read_onnx(path).notes[0]
    )


def test_whole_float_input_by_agreement(tmp_path: Path) -> None:
    w = Writer([1, 3])
    y = w.add("MatMul", "x", w.constant([[1, -2], [3, 4], [-5, 6]]))
    y = w.add("Floor", w.add("Mul", y, w.constant(2.0**-6)))
    path = w.save(tmp_path, w.add("Clip", y, w.constant(-8.0), w.constant(7.0)))
    with pytest.raises(QuantError, match="was not quantized before"):
        read_onnx(path)
    network = read_onnx(path, whole_input=(0, 255))
    x = np.random.default_rng(0).integers(0, 256, (50, 3))
    q = network.evaluate(network.entry.integers(x.astype(np.float32)))
    found = run(path, x.astype(np.float32))
    assert (np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == found).all()
    with pytest.raises(QuantError, match="whole numbers"):
        network.entry.integers(np.full((1, 3), 0.5))
    point = network.entry.representative(x[0], (Fraction(0),) * 3, (Fraction(255),) * 3)
    assert point.dtype == np.float32 and (point == x[0]).all()


@pytest.mark.parametrize("bits", ["int4", "uint4"])
def test_four_bit_weights_and_activations(tmp_path: Path, bits: str) -> None:
    import ml_dtypes

    dtype = getattr(ml_dtypes, bits)
    low = -8 if bits == "int4" else 0
    w = Writer([1, 3], opset=21)
    x = w.quantized("x", 0.5, low + 3, dtype)
    ints = np.random.default_rng(0).integers(low, low + 16, (3, 4))
    y = w.add("MatMul", x, w.weight(ints, 0.25, low + 2, dtype))
    path = w.save(tmp_path, w.quantized(y, 1.5, low + 5, dtype))
    network = read_onnx(path)
    values = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32) * 3
    q = network.evaluate(network.entry.integers(values))
    assert (
        np.stack([exit_ends(network.exit, row, row)[0] for row in q]) == run(path, values)
    ).all()
