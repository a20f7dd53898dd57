"""Networks with quantizers among floats, from file to verdict; truth by enumeration of what
onnxruntime computes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import bitcrown
from bitcrown.check.result_file import check_result
from bitcrown.check.witness import format_witness
from bitcrown.errors import PropertyError
from bitcrown.model.execute import Network
from bitcrown.model.file import QONNX_DOMAINS, NetworkFile
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.twins import attack_networks
from tests.quant_models import Writer


def box(outputs: int) -> str:
    text = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1"))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(outputs))
    return text + "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(2))


def qonnx_network(folder: Path) -> Path:
    """Quant, a sigmoid that stays in floats, Trunc: 16 x 16 different inputs."""
    w = Writer([1, 2], opset=13)
    domain = QONNX_DOMAINS[2]
    attrs = {"domain": domain, "signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    scale, zero, bits = w.constant(0.125), w.constant(0.0), w.constant(4.0)
    x = w.add("Quant", "x", scale, zero, bits, **attrs)
    h = w.add("Sigmoid", w.add("MatMul", x, w.constant([[1.5, -2.0, 0.5], [-1.0, 1.0, 3.0]])))
    four, two = w.constant(6.0), w.constant(4.0)
    t = w.add("Trunc", h, w.constant(1 / 32), zero, four, two, domain=domain)
    return w.save(folder, w.add("MatMul", t, w.constant([[1.0], [-2.0], [1.5]])))


def greatest(path: Path) -> float:
    session = NetworkFile(path).session
    steps = np.arange(-8, 8) / 8
    points = np.array([[a, b] for a in steps for b in steps], np.float32)
    return max(float(session.run(None, {"x": p[None]})[0].item()) for p in points)


@pytest.mark.parametrize("is_sat", [False, True])
def test_qonnx_with_floats_inside_is_decided(is_sat: bool, tmp_path: Path) -> None:
    path = qonnx_network(tmp_path)
    limit = greatest(path) + (-0.0625 if is_sat else 0.0625)
    question = tmp_path / "p.vnnlib"
    question.write_text(box(1) + f"(assert (>= Y_0 {limit:.9f}))")
    problem = bitcrown.load(path, question)
    verdict = bitcrown.verify(problem, cpu_seconds=60)
    assert verdict.status == ("sat" if is_sat else "unsat"), verdict
    if is_sat:
        assert verdict.witness is not None
        result = tmp_path / "result.txt"
        result.write_text(format_witness(problem.query, verdict.witness))
        assert check_result(result, str(path), question).accepted


def two_outputs(folder: Path) -> Path:
    """Quantized, of one number, and a file's second output of two."""
    w = Writer([1, 2], opset=13)
    x = w.quantized("x", 0.125, 8, np.uint8)
    first = w.add("Sigmoid", w.add("MatMul", x, w.constant([[1.0], [-1.0]])))
    second = w.add("MatMul", x, w.constant([[3.0, 1.0], [2.0, 0.0]]))
    model = w.model(first)
    model.graph.output.append(onnx.ValueInfoProto(name=second))
    for info, extents in zip(model.graph.output, ((1, 1), (1, 2)), strict=True):
        kind = onnx.TensorProto.FLOAT
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, extents))
    onnx.save(model, folder / "two.onnx")
    return folder / "two.onnx"


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_property_may_be_about_the_first_outputs(outputs: int, tmp_path: Path) -> None:
    path, question = two_outputs(tmp_path), tmp_path / "p.vnnlib"
    reached = 1 / (1 + np.exp(-2.0))
    for limit, word in ((reached + 1e-3, "unsat"), (reached - 1e-3, "sat")):
        question.write_text(box(outputs) + f"(assert (>= Y_0 {limit:.9f}))")
        verdict = bitcrown.verify(bitcrown.load(path, question), cpu_seconds=60)
        assert verdict.status == word
        if verdict.witness is not None:
            assert sum(value.size for value in verdict.witness.outputs.values()) == outputs


def test_a_property_about_no_prefix_of_the_outputs_is_refused(tmp_path: Path) -> None:
    path, question = two_outputs(tmp_path), tmp_path / "p.vnnlib"
    question.write_text(box(2) + "(assert (>= Y_0 0))")
    with pytest.raises(PropertyError, match="declare what the network computes|use the network"):
        bitcrown.verify(bitcrown.load(path, question), cpu_seconds=60)


def test_a_level_that_only_a_rounded_bound_reaches_hides_no_witness(tmp_path: Path) -> None:
    """The first input reaches level 1 only at a number just outside the box, to which a reader of
    the bound may round it; the second reaches its level inside."""
    scale = np.float32(0.1)
    step = np.float32(0.05)
    while np.rint(step / scale) < 1:
        step = np.nextafter(step, np.float32(1))
    while np.rint(np.nextafter(step, np.float32(0)) / scale) >= 1:
        step = np.nextafter(step, np.float32(0))
    below = Fraction(float(step)) - Fraction(float(np.spacing(step))) / 4
    w = Writer([1, 2], opset=13)
    path = w.save(tmp_path, w.quantized("x", scale, 0, np.uint8))
    question = tmp_path / "p.vnnlib"
    names = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1"))
    limits = f"(assert (>= X_0 0))(assert (<= X_0 {float(below):.60f}))"
    limits += "(assert (>= X_1 0))(assert (<= X_1 1))"
    violation = "(assert (or (and (>= Y_0 0.05)) (and (<= Y_0 0.0) (>= Y_1 0.95))))"
    question.write_text(names + limits + violation)
    verdict = bitcrown.verify(bitcrown.load(path, question), cpu_seconds=60)
    assert verdict.status == "sat"


def test_the_twin_is_the_network_that_rounds_nothing(tmp_path: Path) -> None:
    w = Writer([1, 2], opset=13)
    h = w.add("MatMul", w.quantized("x", 0.125, 128, np.uint8), w.constant([[1.0], [-0.5]]))
    path = w.save(tmp_path, w.quantized(h, 0.25, 128, np.uint8))
    network, twin = attack_networks(Network(read_graph(path), torch.float64))
    assert not any(node.op == "Round" for node in twin.graph.nodes.values())
    x = torch.rand(50, 2, dtype=torch.float64) * 4 - 2
    torch.testing.assert_close(twin(x)[:, 0], x[:, 0] - 0.5 * x[:, 1])
    assert not torch.allclose(network(x), twin(x))
    assert len(attack_networks(twin)) == 1
