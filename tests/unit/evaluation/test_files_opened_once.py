"""Each file is opened once in a run, and once more by ``check``, which reads for itself: counted at
``open`` and at onnxruntime's sessions."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_classifier import blobs, train, write_classifier

import bitcrown
from bitcrown.evaluation.data.sets import ImageSet, unit_pixels
from bitcrown.evaluation.plan import PGD, Plan
from bitcrown.evaluation.runs import evaluate_runs
from bitcrown.model.file import NetworkFile
from bitcrown.settings import Settings
from bitcrown.verdict import Status
from tests.quant_models import Writer

SETTINGS = Settings(device="cpu", memory_gib=1.0)


class Counts:
    """How often the files were opened in this process, and what sessions of their networks were
    made from: ``path`` (``check``) or ``bytes``. Models of one folded operator do not count."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = {str(path) for path in paths}
        self.sizes = {len(onnx.load(path).graph.node) for path in paths}
        self.opened: dict[str, int] = dict.fromkeys(map(str, paths), 0)
        self.sessions: list[str] = []

    def open(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def counted(file: Any, *rest: Any, **named: Any) -> Any:
            if str(file) in self.opened:
                self.opened[str(file)] += 1
            return plain(file, *rest, **named)

        return counted

    def session(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def counted(model: str | bytes, *rest: Any, **named: Any) -> Any:
            if isinstance(model, str):
                assert model in self.paths
                self.sessions.append("path")
            elif len(onnx.ModelProto.FromString(model).graph.node) in self.sizes:
                self.sessions.append("bytes")
            return plain(model, *rest, **named)

        return counted


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counts]:
    def start(*paths: Path) -> Counts:
        counts = Counts(paths)
        counted = counts.open(builtins.open)
        monkeypatch.setattr(builtins, "open", counted)
        monkeypatch.setattr(io, "open", counted)
        session = counts.session(onnxruntime.InferenceSession)
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        return counts

    return start


def hat(path: Path, peak: float) -> Path:
    """``y = relu(x_0) + relu(-x_0) + relu(x_1) + peak``: interval bounds do not decide it."""
    weight = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], transB=1),
    ]
    weights = {"w": weight, "v": np.ones((1, 3), np.float32), "b": np.float32([peak])}
    graph = helper.make_graph(
        nodes,
        "hat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


BOX = "".join(
    f"(declare-const X_{i} Real)(assert (<= X_{i} 1))(assert (>= X_{i} -1))" for i in range(2)
)


def test_a_float_network_is_opened_once(tmp_path: Path, counting: Callable[..., Counts]) -> None:
    path, asked = hat(tmp_path / "hat.onnx", 0.5), tmp_path / "p.vnnlib"
    asked.write_text(BOX + "(declare-const Y_0 Real)(assert (<= Y_0 0.4))")
    counts = counting(path)
    assert bitcrown.verify(bitcrown.load(path, asked), SETTINGS).status is Status.UNSAT
    assert counts.opened == {str(path): 2}
    assert sorted(counts.sessions) == ["bytes", "path"]


def test_a_quantized_network_is_opened_once(
    tmp_path: Path, counting: Callable[..., Counts]
) -> None:
    writer, asked = Writer([1, 2]), tmp_path / "p.vnnlib"
    value = writer.quantized("x", 0.5, 0, np.int8)
    matrix = writer.weight([[1, -2], [3, 1]], 0.25)
    value = writer.add(
        "Relu", writer.quantized(writer.add("MatMul", value, matrix), 0.5, 0, np.int8)
    )
    path = writer.save(tmp_path, writer.quantized(value, 0.5, 0, np.int8))
    asked.write_text(
        BOX + "(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (<= Y_0 -0.25))"
    )
    counts = counting(path)
    verdict = bitcrown.verify(bitcrown.load(path, asked), SETTINGS)
    assert verdict.status is Status.UNSAT and verdict.decided_by.startswith("integers")
    assert counts.opened == {str(path): 2}
    assert sorted(counts.sessions) == ["bytes", "path"]


def test_each_file_of_a_pair_is_opened_once(
    tmp_path: Path, counting: Callable[..., Counts]
) -> None:
    one, other = hat(tmp_path / "one.onnx", 0.5), hat(tmp_path / "other.onnx", 1.0)
    asked = tmp_path / "p.vnnlib"
    names = (("f", "X", "Y"), ("g", "U", "V"))
    declared = "".join(
        f"(declare-network {f} (declare-input {x} real [1,2]) (declare-output {y} real [1,1]))"
        for f, x, y in names
    )
    box = "".join(
        f"(assert (<= {x}[0,{i}] 1.0))(assert (>= {x}[0,{i}] -1.0))"
        for _, x, _ in names
        for i in range(2)
    )
    tied = "".join(f"(assert (== X[0,{i}] U[0,{i}]))" for i in range(2))
    asked.write_text(f"(vnnlib-version <2.0>){declared}{box}{tied}(assert (>= Y[0,0] V[0,0]))")
    counts = counting(one, other)
    verdict = bitcrown.verify(bitcrown.load({"f": one, "g": other}, asked), SETTINGS)
    assert verdict.status is Status.UNSAT
    assert counts.opened == {str(one): 2, str(other): 2}
    assert sorted(counts.sessions) == ["bytes", "bytes", "path", "path"]


def test_an_evaluation_opens_its_network_once(
    tmp_path: Path, counting: Callable[..., Counts]
) -> None:
    """Three images at two radii: one is broken by the attack, two are left to the search."""
    path = write_classifier(tmp_path / "net.onnx", train(*blobs(200), 150))
    images, labels = (part[[2, 6, 9]] for part in blobs(12, seed=7))
    radii = [Fraction(4, 255), Fraction(16, 255)]
    plan = Plan(
        path,
        radii[0],
        (Fraction("0.25"),),
        (Fraction("0.5"),),
        steps=2,
        restarts=1,
        levels=("crown", "alpha", "bab"),
        counts_cpu=True,
        settings=SETTINGS,
        attack=PGD,
    )
    data = ImageSet("blobs", unit_pixels(images), labels)
    counts = counting(path)
    found = evaluate_runs(plan, radii, [""], data, tmp_path / "out")
    first, second, third = found.outcomes[1]
    assert {first.proved_by, second.proved_by} <= {"alpha", "bab"} and third.broken_by == PGD
    assert counts.opened == {str(path): 2}
    assert sorted(counts.sessions) == ["bytes", "path"]


def test_a_copy_for_another_process_takes_the_bytes_along(
    tmp_path: Path, counting: Callable[..., Counts]
) -> None:
    path = hat(tmp_path / "hat.onnx", 0.5)
    counts = counting(path)
    file = NetworkFile(path)
    make, given = file.__reduce__()
    assert make(*given).proto.graph.name == "hat" and file.proto.graph.name == "hat"
    assert counts.opened == {str(path): 1}
