"""Certificates of float networks end to end: every kind of part and piecewise-linear operator, and
what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.certificates.files import check_certificate
from bitcrown.certificates.neurons import NeuronSearch
from bitcrown.certificates.writer import certificate_of
from bitcrown.check.certificates.floats.checker import check_float_proof, subject_of
from bitcrown.check.certificates.floats.format import ArrayStore, decoded, encoded
from bitcrown.check.certificates.floats.property import outward
from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.recorder import Hints
from bitcrown.settings import Settings
from tests.float_certificates import dense_subject, written
from tests.random_networks import box_property, dense_graph, save_onnx

CPU = Settings(device="cpu", threads=1)


def kinds(data: bytes) -> set[str]:
    return {part["kind"] for part in decoded(data)["parts"]}


def activated(
    path: Path, middle: list[Any], width: int, constants: dict[str, Any] | None = None
) -> Path:
    """``W2 f(W1 x + b)`` with the nodes ``middle`` from ``z`` to ``h``; ``width`` elements of
    ``h``."""
    random = np.random.default_rng(5)
    weights = {
        "w1": random.normal(size=(3, 8)).astype(np.float32),
        "b1": random.normal(size=8).astype(np.float32),
        "w2": random.normal(size=(width, 1)).astype(np.float32),
        **(constants or {}),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z"]),
        *middle,
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        str(path),
    )
    return path


POOL = [
    helper.make_node("Reshape", ["z", "image"], ["i"]),
    helper.make_node("MaxPool", ["i"], ["m"], kernel_shape=[2, 2], strides=[1, 2]),
    helper.make_node("Flatten", ["m"], ["h"]),
]
ACTIVATIONS: dict[str, tuple[list[Any], int, dict[str, Any]]] = {
    "Relu": ([helper.make_node("Relu", ["z"], ["h"])], 8, {}),
    "LeakyRelu": ([helper.make_node("LeakyRelu", ["z"], ["h"], alpha=0.1)], 8, {}),
    "Abs": ([helper.make_node("Abs", ["z"], ["h"])], 8, {}),
    "Clip": (
        [helper.make_node("Clip", ["z", "l", "u"], ["h"])],
        8,
        {"l": np.float32(-0.5), "u": np.float32(0.75)},
    ),
    "MaxPool": (POOL, 2, {"image": np.array([1, 1, 2, 4], dtype=np.int64)}),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_piecewise_linear_operator_is_covered(tmp_path: Path, name: str) -> None:
    middle, width, constants = ACTIVATIONS[name]
    onnx_path, prop = (
        activated(tmp_path / "net.onnx", middle, width, constants),
        tmp_path / "prop.vnnlib",
    )
    box = np.ones(3)
    prop.write_text(box_property(-box, box, 1, "(<= Y_0 -1000.0)"))
    points = np.random.default_rng(0).uniform(-1, 1, (5000, 3))
    network = subject_of(load(onnx_path, prop)).network
    lowest = float(network.values(points)[network.output].min())
    prop.write_text(box_property(-box, box, 1, f"(<= Y_0 {lowest - 0.5!r})"))
    problem = load(onnx_path, prop)
    verdict = bitcrown.verify(problem, CPU, seconds=60, want_certificate=True)
    assert verdict.status == "unsat"
    assert isinstance(verdict.certificate, bytes)
    assert check_float_proof(verdict.certificate, subject_of(problem)).accepted
    prop.write_text(box_property(-box, box, 1, f"(<= Y_0 {lowest + 1e-9!r})"))
    false = subject_of(load(onnx_path, prop))
    assert not check_float_proof(
        encoded({**decoded(verdict.certificate), **false.digests}), false
    ).accepted


def test_neurons_are_split_where_many_inputs_vary(tmp_path: Path) -> None:
    subject = dense_subject(tmp_path, 3, [20, 14, 10, 1], 0.25, "(<= Y_0 -0.45)")
    data = written(subject)
    part = decoded(data)["parts"][0]
    assert part["kind"] == "neurons" and len(part["relus"]) > 2
    assert check_float_proof(data, subject).accepted
    assert written(subject) == data, "the same proof is written again"


def test_rows_that_must_hold_together_and_several_boxes(tmp_path: Path) -> None:
    onnx_path, prop = tmp_path / "net.onnx", tmp_path / "prop.vnnlib"
    save_onnx(dense_graph(5, [20, 14, 2]), onnx_path)
    box = np.full(20, 0.5)
    both = "(or (and (<= Y_0 -0.51) (>= Y_1 1.0)) (and (<= Y_1 -30.0) (>= X_0 0.1)))"
    prop.write_text(box_property(-box, box, 2, both))
    subject = subject_of(load(onnx_path, prop))
    assert len(subject.groups) == 2
    data = written(subject)
    assert check_float_proof(data, subject).accepted
    content = decoded(data)
    for part in range(len(content["parts"])):
        less = encoded({**content, "parts": content["parts"][:part] + content["parts"][part + 1 :]})
        assert "is not refuted by any part" in check_float_proof(less, subject).message


def test_rows_over_an_affine_network_of_many_inputs(tmp_path: Path) -> None:
    subject = dense_subject(
        tmp_path, 3, [20, 2], 0.5, "(and (<= Y_0 -0.5) (<= Y_1 -0.5) (>= (+ Y_0 Y_1) -0.9))"
    )
    data = written(subject)
    assert kinds(data) == {"neurons"} and check_float_proof(data, subject).accepted


def test_the_search_leaves_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[int] = []
    plain = NeuronSearch.followed

    def spy(search: NeuronSearch, root: Any, hints: Hints, start: Any) -> Any:
        followed.append(len(hints))
        return plain(search, root, hints, start)

    monkeypatch.setattr(NeuronSearch, "followed", spy)
    onnx_path, prop = tmp_path / "net.onnx", tmp_path / "prop.vnnlib"
    save_onnx(dense_graph(3, [20, 14, 10, 1]), onnx_path)
    box = np.full(20, 0.25)
    prop.write_text(box_property(-box, box, 1, "(<= Y_0 -0.45)"))
    verdict = bitcrown.verify(load(onnx_path, prop), CPU, seconds=60, want_certificate=True)
    assert verdict.status == "unsat" and isinstance(verdict.certificate, bytes)
    assert followed and followed[0] > 1
    certificate = tmp_path / "proof.gz"
    certificate.write_bytes(verdict.certificate)
    assert check_certificate(onnx_path, prop, certificate).accepted
    other = tmp_path / "other.vnnlib"
    other.write_text(box_property(-box, box, 1, "(<= Y_0 -0.5)"))
    assert "other files (property)" in check_certificate(onnx_path, other, certificate).message
    save_onnx(dense_graph(4, [20, 14, 10, 1]), onnx_path)
    assert "other files (networks)" in check_certificate(onnx_path, prop, certificate).message


def test_smooth_networks_say_why_there_is_none(tmp_path: Path) -> None:
    middle = [helper.make_node("Sigmoid", ["z"], ["h"])]
    onnx_path, prop = activated(tmp_path / "net.onnx", middle, 8), tmp_path / "prop.vnnlib"
    prop.write_text(box_property(-np.ones(3), np.ones(3), 1, "(<= Y_0 -1000.0)"))
    verdict = bitcrown.verify(load(onnx_path, prop), CPU, seconds=30, want_certificate=True)
    assert verdict.status == "unsat" and verdict.certificate is None
    assert "piecewise-linear networks" in verdict.counters["no_certificate"]


def test_a_property_without_cases_is_proved_by_nothing(tmp_path: Path) -> None:
    onnx_path, prop = tmp_path / "net.onnx", tmp_path / "prop.vnnlib"
    save_onnx(dense_graph(1, [2, 3, 1]), onnx_path)
    prop.write_text(box_property(np.ones(2), -np.ones(2), 1, "(<= Y_0 0.0)"))
    verdict = bitcrown.verify(load(onnx_path, prop), CPU, seconds=30, want_certificate=True)
    assert verdict.status == "unsat" and isinstance(verdict.certificate, bytes)
    assert check_float_proof(verdict.certificate, subject_of(load(onnx_path, prop))).accepted


def test_time_that_is_up_costs_the_certificate_only(tmp_path: Path) -> None:
    subject = dense_subject(tmp_path, 3, [20, 14, 10, 1], 0.25, "(<= Y_0 -0.45)")
    with pytest.raises(BudgetExpired):
        certificate_of(subject, Budget.of_seconds(0.0, 1 << 30))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "text", ["0.1", "-0.1", "16777217", "0.30000001", "65519.99", "1e-46", "3.5e38", "0"]
)
def test_boxes_contain_every_reading_of_a_bound(dtype: Any, text: str) -> None:
    value = Fraction(text)
    high, low = outward(value, np.dtype(dtype)), -outward(-value, np.dtype(dtype))
    with np.errstate(over="ignore"):
        readings = [float(kind(float(value))) for kind in (dtype, np.float32)]
    assert Fraction(low) <= value <= Fraction(high)
    assert all(low <= reading <= high for reading in readings if np.isfinite(reading))


def test_equal_arrays_are_stored_once() -> None:
    store = ArrayStore()
    first = store.put(np.array([1.0, 2.0]))
    assert store.put(np.array([[1.0, 2.0]])) != first
    assert store.put(np.array([1.0, 2.0])) == first
    assert store.content[first]["hex"] == "3ff00000000000004000000000000000"
