"""Fixed-point networks as integer ONNX: equal in integers, in onnxruntime, and when read back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.qnn_robustness.integer_onnx import export_onnx, shift_form
from bitcrown.model.file import NetworkFile
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.formats.runtime import session
from bitcrown.quant.network.entry import WholeEntry
from bitcrown.quant.network.graph import (
    Conv,
    Dense,
    Exit,
    Input,
    IntegerNetwork,
    MaxPool,
    QuantError,
    Stairs,
)
from tests.exact_staircases import exact_rows
from tests.quant_models import run


def stairs(
    shape: tuple[int, ...], source: int, shift: int, low: int, levels: int, channels: int = 1
) -> Stairs:
    offsets = [Fraction(k, 3) for k in range(channels)]
    base, rows = exact_rows(
        [Fraction(1, 2**shift)] * channels, offsets, low, low + levels, "half_up"
    )
    return Stairs(shape, source, base, rows, rows, "shift")


def network() -> IntegerNetwork:
    random = np.random.default_rng(0)
    low, high = np.zeros(32, np.int64), np.full(32, 255)
    kernel = random.integers(-32, 32, (3, 2, 3, 3))
    nodes = (
        Input((2, 4, 4), low, high),
        Conv((3, 4, 4), 0, (4, 4), kernel, random.integers(-99, 99, 3), padding=(1, 1, 1, 1)),
        stairs((3, 4, 4), 1, 6, 0, 63, channels=3),
        MaxPool((3, 2, 2), 2, (4, 4), (2, 2), (2, 2)),
        Dense((5,), 3, random.integers(-32, 32, (5, 12)), random.integers(-99, 99, 5)),
        stairs((5,), 4, 5, -32, 63),
    )
    exit_ = Exit(np.full(5, -32), (tuple(Fraction(k) for k in range(-32, 32)),) * 5)
    return IntegerNetwork(nodes, 5, WholeEntry(np.dtype(np.uint8), low, high), exit_)


def test_exported_network_is_the_same_function(tmp_path: Path) -> None:
    original, path = network(), tmp_path / "net.onnx"
    flat = IntegerNetwork(original.nodes[:4], 3, original.entry, original.exit)
    onnx.save(export_onnx(flat), path)
    x = np.random.default_rng(1).integers(0, 256, (40, 32)).astype(np.uint8)
    assert NetworkFile(path).is_quantized and (run(path, x) == flat.evaluate(x)).all()
    onnx.save(export_onnx(original), path)
    onnx.checker.check_model(str(path))
    expected = original.evaluate(x)
    assert (run(path, x) == expected).all() and len(np.unique(expected)) > 10
    assert (read_onnx(path).evaluate(x) == expected).all()
    optimised = session(path.read_bytes(), "net", optimised=True)
    assert (
        np.stack([optimised.run(None, {"X": v.reshape(1, 2, 4, 4)})[0][0] for v in x]) == expected
    ).all()


def test_steps_that_are_no_shift_are_refused() -> None:
    base, rows = exact_rows([Fraction(1, 10)], [Fraction(0)], 0, 5, "half_up")
    with pytest.raises(QuantError, match="not a shift"):
        shift_form(Stairs((1,), 0, base, rows, rows, "tenths"))
    assert shift_form(stairs((1,), 0, 5, -32, 63))[0] == 5
