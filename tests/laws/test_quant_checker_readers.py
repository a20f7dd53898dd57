"""The checker's readers believe nobody: a network that is not the file's is refused, whatever the
prover read.

Networks are the prover's reading with one of their integers changed. What the checker then still
takes must enclose onnxruntime on every input tried: a threshold that came earlier in the early row,
say, only makes a weaker claim.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.property import Claim
from bitcrown.check.certificates.quantized.agreement import require_agreement
from bitcrown.check.certificates.quantized.chain import BINARY32, values_of
from bitcrown.check.certificates.quantized.file import Read, read_file
from bitcrown.check.qonnx import without_qonnx
from bitcrown.errors import UnsupportedError
from bitcrown.model.file import MCT_DOMAIN, QONNX_DOMAINS
from bitcrown.model.standard_form import standard_form
from bitcrown.quant.formats import qonnx
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import QuantError
from bitcrown.quant.proof.writer import network_form
from tests.quant_models import UINT8, Writer
from tests.tiny_quantized_files import FORMS, TinyFile, outputs_at, random_file

FIELDS = ("weight", "bias", "base", "early", "late", "factors", "index", "pad_value", "low", "high")


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to the integers that define a node's function."""
    if isinstance(node, dict):
        return [p for key in FIELDS if key in node for p in places(node[key], (key,))]
    if isinstance(node, list):
        return [p for k, value in enumerate(node) for p in places(value, (*path, k))]
    return [path]


def changed(rng: np.random.Generator, form: Any) -> Any:
    out = copy.deepcopy(form)
    node = out["nodes"][int(rng.integers(0 if rng.random() < 0.1 else 1, len(out["nodes"])))]
    options = places(node)
    if options:
        *way, last = options[int(rng.integers(len(options)))]
        holder = node
        for key in way:
            holder = holder[key]
        holder[last] += int(rng.choice([-30, -2, -1, 1, 2, 30]))
    return out


def points_of(rng: np.random.Generator, file: TinyFile, count: int) -> np.ndarray:
    if file.grid is None:
        return rng.integers(0, 256, (count, file.size)).astype(np.uint8)
    scale, zero = file.grid
    return (scale * (rng.integers(-40, 296, (count, file.size)) - zero)).astype(np.float32)


def is_enclosed(read: Read, points: np.ndarray, outputs: np.ndarray) -> bool:
    """Whether every output of onnxruntime lies between the ends of the network."""
    number = read.reading.net.output
    for point, found in zip(points, outputs, strict=True):
        x = point[:, None]
        if read.dtype == BINARY32:
            assert read.reading.entry is not None
            x = values_of(read.reading.entry, x, np.arange(len(x)))[0]
        integers = [int(v) for v in x[:, 0]]
        low, high = read.reading.net.enclosure(integers, integers)
        ends = zip(read.outputs, low[number], high[number], found, strict=True)
        if not all(values.of(a) <= float(y) <= values.of(b) for values, a, b, y in ends):
            return False
    return True


def reading_trial(seed: int, form: str, folder: Path, damages: int) -> tuple[int, int]:
    """How many damaged networks were refused, and how many taken; (0, 0) for a file that the prover
    refuses."""
    rng = np.random.default_rng([seed, FORMS.index(form), 1])
    file = random_file(rng, form)
    path = folder / f"{seed}.onnx"
    model = file.writer.model(file.output)
    onnx.save(model, path)
    try:
        right = network_form(read_onnx(path, samples=4))
    except QuantError:
        return 0, 0
    points = points_of(rng, file, 60)
    outputs = outputs_at(file.writer, file.output, points)
    read = read_file(model, IntegerCircuit(right))
    assert is_enclosed(read, points, outputs)
    require_agreement(
        read, Claim(read.reading.net.low[0], read.reading.net.high[0], [], [], []), str(seed)
    )
    refused = taken = 0
    for _ in range(damages):
        try:
            wrong = read_file(model, IntegerCircuit(changed(rng, right)))
        except Reject:
            refused += 1
            continue
        assert is_enclosed(wrong, points, outputs)
        taken += 1
    return refused, taken


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count, damages", [(2, 20), pytest.param(8, 40, marks=[pytest.mark.slow])])
def test_a_network_that_is_not_the_files_is_refused(
    form: str, count: int, damages: int, tmp_path: Path
) -> None:
    found = np.sum([reading_trial(seed, form, tmp_path, damages) for seed in range(count)], axis=0)
    assert found[0] > found[1]


def gemm_file(rng: np.random.Generator) -> tuple[Writer, str]:
    """QGemm: turned or not, a scale per column or one, an addend or none, integers or float32."""
    w = Writer([1, 5], UINT8)
    columns, is_turned = (4 if rng.integers(2) else None), bool(rng.integers(2))
    levels = rng.integers(-128, 128, (4, 5) if is_turned else (5, 4))
    inputs = ["x", w.constant(np.float32(0.03)), w.constant(int(rng.integers(256)), np.uint8)]
    inputs += [w.constant(levels, np.int8), w.constant(rng.uniform(0.01, 0.1, columns))]
    inputs += [w.constant(rng.integers(-9, 9, columns), np.int8)]
    inputs += [w.constant(rng.integers(-3000, 3000, 4), np.int32) if rng.integers(2) else ""]
    if rng.integers(3):
        inputs += [w.constant(rng.uniform(0.5, 3)), w.constant(int(rng.integers(256)), np.uint8)]
    alpha = float(np.float32(rng.uniform(0.5, 2)))
    return w, w.add("QGemm", *inputs, domain="com.microsoft", transB=int(is_turned), alpha=alpha)


def mean_file(rng: np.random.Generator) -> tuple[Writer, str]:
    w = Writer([1, 2, 3, 2])
    x = w.quantized("x", 0.05, int(rng.integers(256)), np.uint8)
    mean = w.add("ReduceMean", x, axes=[-2, -1], keepdims=int(rng.integers(2)))
    return w, w.quantized(mean, 0.02, int(rng.integers(256)), np.uint8)


@pytest.mark.parametrize("make", [gemm_file, mean_file])
@pytest.mark.parametrize("seed", range(6))
def test_products_and_means_are_taken_as_they_are_and_no_other_way(
    make: Any, seed: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    w, output = make(rng)
    path = w.save(tmp_path, output)
    right = network_form(read_onnx(path, samples=4))
    read = read_file(onnx.load(path), IntegerCircuit(right))
    net = read.reading.net
    require_agreement(read, Claim(net.low[0], net.high[0], [], [], []), str(seed))
    for _ in range(12):
        wrong = copy.deepcopy(right)
        node = next(n for n in wrong["nodes"] if n["op"] in ("dense", "conv"))
        name = str(rng.choice(["weight", "bias"]))
        *way, last = (p := places({name: node[name]}))[int(rng.integers(len(p)))]
        holder = node
        for key in way:
            holder = holder[key]
        holder[last] += int(rng.choice([-3000, 3000]))
        with pytest.raises(Reject):
            read_file(onnx.load(path), IntegerCircuit(wrong))


@pytest.mark.parametrize("mode", sorted(qonnx.ROUNDINGS))
@pytest.mark.parametrize("signed", [0, 1])
def test_every_rounding_of_qonnx_has_a_standard_form(mode: str, signed: int) -> None:
    """onnxruntime on the standard operators equals the prover's own arithmetic, ties and negative
    numbers included."""
    from tests.quant_models import Writer

    w = Writer([1, 64], opset=13)
    scale, zero = np.float32(0.25), 1.0
    parameters = w.constant(scale), w.constant(zero), w.constant(4.0)
    y = w.add(
        "Quant",
        "x",
        *parameters,
        domain=QONNX_DOMAINS[2],
        signed=signed,
        narrow=0,
        rounding_mode=mode,
    )
    values = (np.arange(64, dtype=np.float32) - 32) / 8
    ends = qonnx.bit_range(4, bool(signed), False)
    expected = (qonnx.quant_levels(mode, 1, ends)(values, scale) - 1).astype(np.float32) * scale
    from tests.tiny_quantized_files import run_model

    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, values[None])[0] == expected).all()


def truncated(values: np.ndarray, mode: str, is_late: bool) -> np.ndarray:
    """Five bits of a quarter of an integer each; the late version clips to three bits."""
    f = np.float32
    whole = np.rint(values / f(0.25) + f(2)) / f(4)
    kept = np.clip(whole, f(-4), f(3)) if is_late else whole
    kept = qonnx.ROUNDINGS[mode](kept) - (f(0.5) if is_late else f(2))
    return np.asarray(kept * (f(1.0) if is_late else f(0.25)), dtype=f)


@pytest.mark.parametrize("mode", ["ROUND", "FLOOR", "CEIL"])
@pytest.mark.parametrize("is_late", [False, True])
def test_trunc_of_qonnx_is_what_its_specification_says(mode: str, is_late: bool) -> None:
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    w = Writer([1, 64], opset=13)
    given = [0.25, 2.0, 5.0, *([1.0] if is_late else []), 3.0]
    names = [w.constant(np.float32(value)) for value in given]
    y = w.add("Trunc", "x", *names, domain=QONNX_DOMAINS[2], rounding_mode=mode)
    values = (np.arange(64, dtype=np.float32) - 32) / 8
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, values[None])[0] == truncated(values, mode, is_late)).all()


def few_bits(values: np.ndarray, scale: np.float32, most: float) -> np.ndarray:
    """The specification of FloatQuant with four bits of exponent, three of mantissa, bias 7."""
    ratio = values / scale
    exponent = np.floor(np.log2(np.abs(ratio).astype(np.float64) + 1e-300))
    step = np.exp2(np.maximum(exponent, 1.0 - 7) - 3)
    kept = np.clip(np.rint(ratio / step) * step, -most, most)
    return np.asarray(kept.astype(np.float32) * scale)


@pytest.mark.parametrize("most", [448.0, 480.0, 1.875])
def test_few_bits_of_qonnx_are_what_their_specification_says(most: float) -> None:
    """Ties of every range, both signs, what is below the least number, and what saturates."""
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    scale = np.float32(0.3)
    places = np.exp2(np.arange(-12, 11))[:, None] * np.arange(16, 32, 0.5) / 16
    values = (scale * np.concatenate([places, -places, np.zeros((1, 32))])).astype(np.float32)
    w = Writer([1, values.size], opset=13)
    given = [w.constant(v) for v in (scale, 4.0, 3.0, 7.0, most)]
    y = w.add(
        "FloatQuant", "x", *given, domain=QONNX_DOMAINS[0], saturation=1, rounding_mode="round"
    )
    expected = few_bits(values.reshape(-1), scale, most)
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, values.reshape(1, -1))[0] == expected).all()


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [0.0, -1.0, 3.3, 1e10, np.inf])
def test_other_numbers_of_few_bits_are_refused_or_read_alike(place: int, value: float) -> None:
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    given = [0.3, 4.0, 3.0, 7.0, 448.0]
    given[place] = value
    w = Writer([1, 64], opset=13)
    names = [w.constant(v) for v in given]
    y = w.add("FloatQuant", "x", *names, domain=QONNX_DOMAINS[0], saturation=1)
    values = np.linspace(-700, 700, 64, dtype=np.float32)[None]
    try:
        written = standard_form(w.model(y), QONNX_DOMAINS)
    except UnsupportedError:
        return
    np.testing.assert_array_equal(
        run_model(written, values), run_model(without_qonnx(w.model(y)), values)
    )


@pytest.mark.parametrize("signed", [0, 1])
def test_quantizers_of_mct_are_what_their_project_computes(signed: int) -> None:
    """A threshold that is no power of two, weights with one a channel; ties and both ends."""
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    w = Writer([1, 64], opset=13)
    attrs = {"num_bits": 4, "signed": signed, "threshold": 3.0}
    x = w.add("ActivationSymmetricQuantizer", "x", domain=MCT_DOMAIN, **attrs)
    weight = np.linspace(-1.2, 1.2, 192).reshape(64, 3)
    limits = np.array([0.5, 1.0, 0.3], np.float32)
    attrs = {"num_bits": 3, "per_channel": 1, "channel_axis": 1}
    q = w.add(
        "WeightsSymmetricQuantizer",
        w.constant(weight),
        w.constant(limits),
        domain=MCT_DOMAIN,
        **attrs,
    )
    y = w.add("MatMul", x, q)
    values = ((np.arange(64) - 32) / np.float32(8) * np.float32(0.75)).astype(np.float32)
    unit = np.float32(3.0 / (8 if signed else 16))
    kept = np.clip(values, -3.0 if signed else 0.0, np.float32(3.0) - unit)
    first = np.rint(kept / unit) * unit
    steps = limits / np.float32(4)
    second = np.rint(np.clip(weight.astype(np.float32), -limits, limits - steps) / steps) * steps
    expected = first.astype(np.float64) @ second.astype(np.float64)
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), (MCT_DOMAIN,))):
        np.testing.assert_allclose(run_model(written, values[None])[0], expected, rtol=1e-5)


def test_convolutions_with_channels_last_are_turned() -> None:
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    random, w = np.random.default_rng(0), Writer([1, 4, 5, 2], opset=13)
    weight = random.integers(-3, 4, (3, 2, 2, 2)).astype(np.float32)
    attrs = {"kernel_shape": [2, 2], "strides": [1, 2], "pads": [0, 0, 0, 0]}
    y = w.add("Conv", "x", w.constant(weight), domain=QONNX_DOMAINS[3], **attrs)
    x = random.integers(-3, 4, (4, 5, 2)).astype(np.float32)
    expected = np.zeros((3, 2, 3))
    for i, j, o in np.ndindex(expected.shape):
        expected[i, j, o] = (x[i : i + 2, 2 * j : 2 * j + 2] * weight[o]).sum()
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, x.reshape(1, -1))[0] == expected.reshape(-1)).all()


def test_largest_of_windows_with_channels_last() -> None:
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    w = Writer([1, 4, 6, 2], opset=13)
    y = w.add("MaxPool", "x", domain=QONNX_DOMAINS[3], kernel_shape=[2, 2], strides=[2, 2])
    x = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    expected = x.reshape(2, 2, 3, 2, 2).max(axis=(1, 3))
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, x.reshape(1, -1))[0] == expected.reshape(-1)).all()


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("shape", "rows", "layout"),
    [((3, 2, 2), 3, ""), ((2, 2, 3), 3, "NHWC"), ((4,), 4, "NC"), ((3, 2, 2), 1, "")],
)
def test_thresholds_are_counted(shape: tuple[int, ...], rows: int, layout: str, opset: int) -> None:
    """Values right at thresholds count."""
    from tests.quant_models import Writer
    from tests.tiny_quantized_files import run_model

    random, w = np.random.default_rng(0), Writer([1, *shape], opset=opset)
    limits = np.sort(random.integers(-4, 5, (rows, 7)), axis=1).astype(np.float32)
    attrs = {"data_layout": layout} if layout else {}
    y = w.add(
        "MultiThreshold",
        "x",
        w.constant(limits),
        domain=QONNX_DOMAINS[1],
        out_scale=2.0,
        out_bias=-3.0,
        **attrs,
    )
    x = random.integers(-5, 6, shape).astype(np.float32)
    along = limits if layout.endswith("C") else limits.reshape(rows, *[1] * (len(shape) - 1), 7)
    expected = 2 * (x[..., None] >= along).sum(axis=-1) - 3
    for written in (without_qonnx(w.model(y)), standard_form(w.model(y), QONNX_DOMAINS)):
        assert (run_model(written, x.reshape(1, -1))[0] == expected.reshape(-1)).all()


def test_checking_needs_no_code_of_the_prover() -> None:
    """Modules that are loaded to check a certificate that carries its forms: none of the prover's
    rooms, no torch."""
    script = (
        "import sys, bitcrown.certificates.files, bitcrown.api, bitcrown.check.certificates.files;"
        "from bitcrown.check.certificates.quantized import agreement, file;"
        "from bitcrown.check.certificates.integers import fixed_point_file;"
        "print(*sorted(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    ).stdout
    rooms = {
        name for name in loaded.split() if name.startswith("bitcrown.") and name.count(".") > 1
    }
    assert not {
        name
        for name in rooms
        if name.split(".")[1] in ("quant", "model", "bounds", "search", "attacks")
    }
    assert "torch" not in loaded.split()
