"""Networks with quantizers among floats: every value that onnxruntime computes lies in the
bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import interval_bounds
from bitcrown.errors import UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph

Array = np.ndarray
MS = "com.microsoft"


class Writer:
    """Nodes and weights of one file; every method returns the name of what it added."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.opset = shape, 17
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(5)

    def weight(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attrs))
        return name

    def levels(self, *shape: int, kind: type = np.int8) -> str:
        return self.weight(self.random.integers(-100, 100, shape).astype(kind))

    def quantized(self, x: str, scale: float, zero: int = 0, kind: type = np.uint8) -> str:
        """``x`` in integers."""
        return self.add(
            "QuantizeLinear", x, self.weight(np.float32(scale)), self.weight(kind(zero))
        )

    def rounded(self, x: str, scale: float, zero: int = 0, kind: type = np.uint8) -> str:
        """``x`` through a quantizer and back."""
        s, z = self.weight(np.float32(scale)), self.weight(kind(zero))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, s, z), s, z)

    def saved(self, output: str, path: Path) -> Path:
        entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        end = onnx.ValueInfoProto(name=output)
        graph = helper.make_graph(self.nodes, "g", [entry], [end], self.weights)
        versions = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=10), path)
        return path


def gates(w: Writer) -> str:
    """A dense layer with a hard swish and a sigmoid gate between quantizers."""
    x = w.rounded("x", 1 / 64, 128)
    weights = w.add(
        "DequantizeLinear", w.levels(6, 8), w.weight(np.float32(0.01)), w.weight(np.int8(3))
    )
    h = w.add("HardSwish", w.add("Gemm", x, weights))
    g = w.rounded(w.add("Sigmoid", w.rounded(h, 0.05, 10)), 1 / 256)
    return w.rounded(w.add("Mul", w.rounded(h, 0.05, 10), g), 0.03, 100)


def attention(w: Writer) -> str:
    """Products of two activations and a softmax between quantizers."""
    x = w.rounded(w.add("Reshape", "x", w.weight(np.array([2, 3]))), 1 / 50, 120)
    scores = w.add("MatMul", x, w.add("Transpose", x, perm=[1, 0]))
    shares = w.rounded(w.add("Softmax", w.rounded(scores, 0.04, 60), axis=-1), 1 / 255)
    return w.rounded(w.add("MatMul", shares, x), 1 / 50, 128)


def channels(w: Writer) -> str:
    """A zero point and a scale for each channel of the activations."""
    x = w.add("Reshape", "x", w.weight(np.array([1, 3, 2])))
    s, z = w.weight(np.float32([0.01, 0.02, 0.03])), w.weight(np.uint8([100, 128, 130]))
    q = w.add("QuantizeLinear", x, s, z, axis=1)
    return w.add("DequantizeLinear", q, s, z, axis=1)


def convolutions(w: Writer) -> str:
    """QLinearConv with a scale for each channel, average, addition and activations on integers."""
    image = w.add("Reshape", "x", w.weight(np.array([1, 1, 2, 3])))
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(125))
    q = w.add("QuantizeLinear", image, s, z)
    ws, wz = w.weight(np.float32([0.01, 0.02, 0.015])), w.weight(np.int8([0, 0, 0]))
    ys, yz = w.weight(np.float32(0.05)), w.weight(np.uint8(110))
    bias = w.weight(np.array([500, -300, 20], np.int32))
    conv = w.add("QLinearConv", q, s, z, w.levels(3, 1, 2, 2), ws, wz, ys, yz, bias)
    leaky = w.add("QLinearLeakyRelu", conv, ys, yz, ys, yz, domain=MS, alpha=0.2)
    gate = w.add(
        "QLinearSigmoid",
        conv,
        ys,
        yz,
        w.weight(np.float32(1 / 256)),
        w.weight(np.uint8(0)),
        domain=MS,
    )
    both = w.add(
        "QLinearMul",
        leaky,
        ys,
        yz,
        gate,
        w.weight(np.float32(1 / 256)),
        w.weight(np.uint8(0)),
        ys,
        yz,
        domain=MS,
    )
    total = w.add(
        "QLinearAdd", both, ys, yz, conv, ys, yz, w.weight(np.float32(0.07)), yz, domain=MS
    )
    pooled = w.add(
        "QLinearGlobalAveragePool", total, w.weight(np.float32(0.07)), yz, ys, yz, domain=MS
    )
    return w.add("DequantizeLinear", pooled, ys, yz)


def products(w: Writer) -> str:
    """QGemm and QLinearMatMul of integers."""
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(125))
    q = w.add("QuantizeLinear", w.add("Reshape", "x", w.weight(np.array([1, 6]))), s, z)
    ws, wz = w.weight(np.float32(0.02)), w.weight(np.int8(2))
    ys, yz = w.weight(np.float32(0.04)), w.weight(np.uint8(90))
    bias = w.weight(np.array([100, -100, 0, 40], np.int32))
    gemm = w.add("QGemm", q, s, z, w.levels(4, 6), ws, wz, bias, ys, yz, domain=MS, transB=1)
    again = w.add("QLinearMatMul", gemm, ys, yz, w.levels(4, 3), ws, wz, ys, yz)
    joined = w.add("QLinearConcat", ys, yz, again, ys, yz, gemm, ys, yz, domain=MS, axis=1)
    return w.add("DequantizeLinear", joined, ys, yz)


def dynamic_products(w: Writer) -> str:
    """QLinearMatMul of two tensors that both depend on the input."""
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(125))
    q = w.add("QuantizeLinear", w.add("Reshape", "x", w.weight(np.array([2, 3]))), s, z)
    turned = w.add("Transpose", q, perm=[1, 0])
    ys, yz = w.weight(np.float32(0.05)), w.weight(np.uint8(60))
    return w.add("DequantizeLinear", w.add("QLinearMatMul", q, s, z, turned, s, z, ys, yz), ys, yz)


def pools(w: Writer) -> str:
    """Average and selection on integers."""
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(125))
    wide = w.add("Reshape", "x", w.weight(np.array([1, 1, 2, 3])))
    q = w.add("QuantizeLinear", wide, s, z)
    window = {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}
    ms = w.weight(np.float32(1 / 71))
    mean = w.add("QLinearAveragePool", q, s, z, ms, z, domain=MS, **window)
    mask = w.weight(np.array([[[[True, False, True], [False, True, True]]]]))
    ys = w.weight(np.float32(1 / 57))
    both = w.add("QLinearWhere", mask, mean, ms, z, q, s, z, ys, z, domain=MS)
    return w.add("DequantizeLinear", both, ys, z)


def normalised(w: Writer) -> str:
    """Normalisations and a recurrent layer between quantizers."""
    x = w.add("Reshape", w.rounded("x", 1 / 64, 128), w.weight(np.array([2, 1, 3])))
    gain, shift = w.weight(np.float32([1, 0.5, 2])), w.weight(np.float32([0, 0.25, -1]))
    h = w.rounded(w.add("LayerNormalization", x, gain, shift, axis=-1), 1 / 40, 128)
    h = w.add("SkipLayerNormalization", h, x, gain, shift, shift, domain=MS, epsilon=1e-5)
    h = w.rounded(h, 1 / 40, 128)
    parts = [w.random.normal(size=(1, 12, 3)).astype(np.float32) for _ in range(2)]
    return w.rounded(w.add("LSTM", h, *map(w.weight, parts), hidden_size=3), 1 / 128, 128)


def heads(w: Writer) -> str:
    """QAttention of two tokens and two heads, whose products of integers have a scale a column."""
    x = w.add("Reshape", "x", w.weight(np.array([1, 2, 3])))
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(120))
    scales = w.weight(np.linspace(0.01, 0.03, 12).astype(np.float32))
    bias = w.weight(w.random.normal(size=12).astype(np.float32))
    given = w.add("QuantizeLinear", x, s, z), w.levels(3, 12), bias, s, scales, "", z
    zero = w.weight(np.zeros(12, np.int8))
    return w.add("QAttention", *given, zero, domain=MS, num_heads=2)


def halves(w: Writer, has_zeros: bool = True) -> str:
    """MatMulNBits with two blocks, the second of which is half empty, and a bias."""
    x = w.add("Concat", *["x"] * 4, axis=1)
    packed = w.weight(w.random.integers(0, 256, (3, 2, 8)).astype(np.uint8))
    scales = w.weight(w.random.uniform(0.01, 0.2, 6).astype(np.float32))
    zeros = w.weight(w.random.integers(0, 256, 3).astype(np.uint8)) if has_zeros else ""
    bias = w.weight(np.float32([0.5, -1, 2]))
    given = w.add("Mul", x, w.weight(np.linspace(-2, 2, 24).astype(np.float32))), packed, scales
    return w.add(
        "MatMulNBits", *given, zeros, "", bias, domain=MS, K=24, N=3, bits=4, block_size=16
    )


def plain_halves(w: Writer) -> str:
    return halves(w, has_zeros=False)


def blocks(w: Writer) -> str:
    """Weights with a scale for each block of an axis, the last of which is cut off."""
    w.opset = 21
    scales = w.weight(w.random.uniform(0.01, 0.1, (2, 3)).astype(np.float32))
    zeros = w.weight(w.random.integers(-9, 9, (2, 3)).astype(np.int8))
    weight = w.add("DequantizeLinear", w.levels(6, 3), scales, zeros, axis=0, block_size=4)
    return w.rounded(w.add("MatMul", w.rounded("x", 1 / 60, 120), weight), 0.05, 100)


def casts(w: Writer) -> str:
    """Integers cast to their own type before they are dequantized, as torch exports write it, and
    a real number cut to eight bits."""
    s, z = w.weight(np.float32(1 / 60)), w.weight(np.uint8(120))
    q = w.add("Cast", w.add("QuantizeLinear", "x", s, z), to=TensorProto.UINT8)
    scaled = w.add("Mul", w.add("DequantizeLinear", q, s, z), w.weight(np.float32(40)))
    cut = w.add("Cast", scaled, to=TensorProto.INT8)
    return w.add("DequantizeLinear", cut, w.weight(np.float32(0.1)), w.weight(np.int8(3)))


def resized(w: Writer) -> str:
    """A linear enlargement by two, as decoders have it."""
    x = w.add("Reshape", w.rounded("x", 1 / 60, 120), w.weight(np.array([1, 1, 2, 3])))
    scales = w.weight(np.float32([1, 1, 2, 2]))
    return w.rounded(w.add("Resize", x, "", scales, mode="linear"), 1 / 47, 120)


BUILDERS = [
    heads,
    halves,
    plain_halves,
    blocks,
    casts,
    resized,
    pools,
    normalised,
    gates,
    attention,
    channels,
    convolutions,
    products,
    dynamic_products,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_values_of_the_runtime_lie_inside(tmp_path: Path, build: Callable[[Writer], str]) -> None:
    w = Writer((1, 6))
    path = w.saved(build(w), tmp_path / "net.onnx")
    graph = read_graph(path, "runtime")
    crosscheck(graph, NetworkFile(path), 0)
    network = Network(graph, torch.float64)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    for width in (0.0, 0.0, 0.0, 0.01, 0.3):
        centre = random.uniform(-1.5, 1.5, (1, 6)).astype(np.float32)
        if width == 0.0:  # on the edges of the first quantizer
            centre = ((np.rint(centre * 64) + 0.5) / 64).astype(np.float32)
        low, high = centre.astype(np.float64) - width, centre.astype(np.float64) + width
        with torch.no_grad():
            found = LayerBounder(network, 1 << 28).run(network.tensor(low), network.tensor(high))
        least, most = (part[0].numpy() for part in found.bounds[graph.outputs[0]])
        assert np.isfinite(least).all()
        assert np.isfinite(most).all()
        for _ in range(30):
            x = np.clip(random.uniform(low, high).astype(np.float32), low, high).astype(np.float32)
            value = session.run(None, {"x": x})[0]
            assert (value >= least).all()
            assert (value <= most).all()


def test_integers_are_added_before_their_zero_points_are_subtracted(tmp_path: Path) -> None:
    """``-0.45950 - 13 * 0.04276`` is 160.49997 steps of the result; the kernel, whose terms are 72
    times as large, makes 161 of it."""
    w = Writer((1, 1))
    scales = (0.45950430631637573, 105), (0.04276052862405777, 172), (0.006326436530798674, 231)
    first, second, last = ((w.weight(np.float32(s)), w.weight(np.uint8(z))) for s, z in scales)
    parts = [w.add("QuantizeLinear", "x", *one) for one in (first, second)]
    y = w.add("QLinearAdd", parts[0], *first, parts[1], *second, *last, domain=MS)
    path = w.saved(w.add("DequantizeLinear", y, *last), tmp_path / "net.onnx")
    graph = read_graph(path)
    network, x = Network(graph, torch.float64), np.array([[-0.5748791]], np.float32)
    point = network.tensor(x.astype(np.float64))
    low, high = (float(end) for end in interval_bounds(network, point, point)[graph.outputs[0]])
    value = float(NetworkFile(path).session.run(None, {"x": x})[0].item())
    assert value == pytest.approx(-161 * 0.006326436530798674)
    assert low <= value <= high


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [({"accuracy_level": 4}, "accuracy level 4"), ({"bits": 8}, "8 bits")],
)
def test_products_that_a_kernel_may_form_of_integers_are_refused(
    attrs: dict[str, int], reason: str, tmp_path: Path
) -> None:
    w = Writer((1, 16))
    size = attrs.get("bits", 4) * 2
    packed = w.weight(np.zeros((2, 1, size), np.uint8))
    given = {"K": 16, "N": 2, "bits": 4, "block_size": 16} | attrs
    y = w.add("MatMulNBits", "x", packed, w.weight(np.ones(2, np.float32)), domain=MS, **given)
    with pytest.raises(UnsupportedError, match=reason):
        read_graph(w.saved(y, tmp_path / "net.onnx"), "runtime")


def test_attention_that_hides_tokens_is_refused(tmp_path: Path) -> None:
    w = Writer((1, 2, 4))
    s, z = w.weight(np.float32(0.1)), w.weight(np.uint8(3))
    q, bias = w.add("QuantizeLinear", "x", s, z), w.weight(np.zeros(12, np.float32))
    y = w.add(
        *("QAttention", q, w.levels(4, 12), bias, s, s, "", z),
        domain=MS,
        num_heads=2,
        unidirectional=1,
    )
    with pytest.raises(UnsupportedError, match="order of its tokens"):
        read_graph(w.saved(y, tmp_path / "net.onnx"))


@pytest.mark.parametrize("scale", [1.5, 1.3])
def test_places_that_float32_rounds_are_no_known_weights(scale: float, tmp_path: Path) -> None:
    w = Writer((1, 1, 2, 3))
    scales = w.weight(np.float32([1, 1, 1, scale]))
    path = w.saved(w.add("Resize", "x", "", scales, mode="linear"), tmp_path / "net.onnx")
    read_graph(path)
    with pytest.raises(UnsupportedError, match="how onnxruntime rounds is not known"):
        read_graph(path, "runtime")


def test_edges_that_many_values_meet_are_no_misreading(tmp_path: Path) -> None:
    """Products of two scales lie on edges of a third one, and float32 moves a tenth of them."""
    w = Writer((1, 3, 4, 4))
    slope = w.add(
        "DequantizeLinear", w.levels(3, 1, 1), w.weight(np.float32(0.002)), w.weight(np.int8(0))
    )
    y = w.rounded(w.add("PRelu", w.rounded("x", 0.02, 128), slope), 0.02, 128)
    path = w.saved(y, tmp_path / "net.onnx")
    crosscheck(read_graph(path), NetworkFile(path), 0)


def test_four_bits_between_quantizers_are_compared_at_the_outputs(tmp_path: Path) -> None:
    """onnxruntime hands out no tensor of four bits."""
    w = Writer((1, 6))
    w.opset = 21
    four = helper.make_tensor("four", TensorProto.UINT4, [], [3])
    w.weights.append(four)
    s = w.weight(np.float32(0.2))
    x = w.add("DequantizeLinear", w.add("QuantizeLinear", "x", s, "four"), s, "four")
    weight = w.add(
        "DequantizeLinear", w.levels(6, 3), w.weight(np.float32(0.01)), w.weight(np.int8(3))
    )
    path = w.saved(w.add("MatMul", x, weight), tmp_path / "net.onnx")
    crosscheck(read_graph(path), NetworkFile(path), 0)


def test_what_is_quantized_in_blocks_is_refused(tmp_path: Path) -> None:
    w = Writer((1, 6))
    s = w.weight(np.full((1, 3), 0.1, np.float32))
    q = w.add("QuantizeLinear", "x", s, w.weight(np.zeros((1, 3), np.uint8)), axis=1, block_size=2)
    with pytest.raises(UnsupportedError, match="blocks"):
        read_graph(w.saved(w.add("DequantizeLinear", q, s), tmp_path / "net.onnx"))
