"""Files that onnxruntime refuses, or dies of, are told apart from those that it runs, without harm
to this process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Save
from onnx import TensorProto, helper, numpy_helper

from bitcrown.cli import main as cli
from bitcrown.errors import BitcrownError
from bitcrown.model import runtime_trial
from bitcrown.model.file import NetworkFile
from bitcrown.model.runtime_trial import require_runtime
from bitcrown.quant.formats import agreement
from bitcrown.quant.formats.onnx_file import read_onnx

DATA = Path(__file__).parents[2] / "data"
SENTENCE = (
    "onnxruntime cannot load .*: .*Type parameter .T. of Optype .Gemm. bound to different types"
)


def gemm(save: Save, dtype: type[np.generic]) -> Path:
    weight = np.ones((2, 3), dtype=dtype)
    return save([helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": (1, 2)}, {"w": weight})


def test_a_network_that_runs_is_accepted(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = gemm(save, np.float32)
    require_runtime(NetworkFile(path))
    assert cli.main(["inspect", str(path)]) == 0
    assert not capsys.readouterr().err


def test_types_that_do_not_match_are_said(save: Save, capsys: pytest.CaptureFixture[str]) -> None:
    path = gemm(save, np.float64)
    with pytest.raises(BitcrownError, match=SENTENCE):
        require_runtime(NetworkFile(path))
    assert cli.main(["inspect", str(path)]) == 2
    shown = capsys.readouterr()
    assert (
        "output y" in shown.out and len(shown.err.splitlines()) == 1 and "cannot load" in shown.err
    )


def test_what_fails_only_when_it_runs_is_said(save: Save) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["w", "s"], ["y"]),
    ]
    path = save(nodes, {"x": ("batch", 2)}, {"w": np.ones(5, np.float32)})
    with pytest.raises(BitcrownError, match="onnxruntime cannot run"):
        require_runtime(NetworkFile(path))


def test_a_crash_is_a_sentence(
    save: Save, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = gemm(save, np.float32)
    monkeypatch.setattr(runtime_trial, "_trial", lambda content, name: os.abort())
    assert cli.main(["inspect", str(path)]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"bitcrown: the process that runs {path} in onnxruntime crashed, so the file is damaged"
    ]


def test_the_optimiser_may_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note is not worth a process: what ends the optimiser ends a child."""
    plain = agreement.session

    def session(content: bytes, name: str, optimised: bool = False) -> object:
        return os.abort() if optimised else plain(content, name)

    monkeypatch.setattr(agreement, "session", session)
    notes = read_onnx(DATA / "quant" / "made_mnist_conv_int8_qop.onnx").notes
    assert [
        note
        for note in notes
        if "does not run this file with graph optimisations" in note and "crashed" in note
    ]


@pytest.mark.parametrize(
    "extents", [(2**62, 2), (2**63 - 1, 2**63 - 1), (2**32, 2**32), (2**20, 2**20)]
)
@pytest.mark.parametrize(
    "kind", [TensorProto.UINT8, TensorProto.INT64, TensorProto.UINT64, TensorProto.FLOAT]
)
def test_extents_beyond_64_bits_are_refused(
    tmp_path: Path, extents: tuple[int, int], kind: int
) -> None:
    scale = [
        numpy_helper.from_array(np.float32(0.5), "s"),
        numpy_helper.from_array(np.uint8(1), "z"),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=1),
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", kind, extents)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, scale))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BitcrownError):
        read_onnx(tmp_path / "a.onnx")


def test_the_file_of_a_fuzzer_is_refused() -> None:
    """An extent of 2**62 times 2: a product in 64 bits is negative."""
    model = onnx.load(DATA / "parsers" / "extents.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2**62
    with pytest.raises(BitcrownError, match="is too large"):
        read_onnx(DATA / "parsers" / "extents.onnx")
