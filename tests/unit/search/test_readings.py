"""Files that only the integer engine reads have words and bounds; refusals name both reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import bitcrown
from bitcrown.api import bound, network_in_words, outlook
from bitcrown.errors import UnsupportedError
from bitcrown.model.file import NetworkFile
from tests.quant_models import UINT8, Writer


def shifted(folder: Path) -> Path:
    """``clip((W x + b) >> 2, 0, 63)``: a shift has no rule among floats."""
    w = Writer([1, 2], UINT8)
    sums = w.add("MatMulInteger", "x", w.constant([[3, -2], [1, 5]], np.int8))
    sums = w.add("Add", sums, w.constant([7, 300], np.int32))
    whole = w.add("Clip", sums, w.constant(0, np.int32), w.constant(1000, np.int32))
    whole = w.add("Cast", whole, to=TensorProto.UINT32)
    return w.save(
        folder, w.add("BitShift", whole, w.constant([2, 2], np.uint32), direction="RIGHT")
    )


def test_a_network_of_shifts_has_words_and_bounds(tmp_path: Path) -> None:
    path, question = shifted(tmp_path), tmp_path / "p.vnnlib"
    words = network_in_words(path)
    assert "to the bit" in words and "Stairs" in words
    text = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1"))
    text += "".join(f"(assert (>= X_{i} 10))(assert (<= X_{i} 14))" for i in range(2))
    question.write_text(text + "(assert (>= Y_0 1000))")
    low, up = bound(bitcrown.load(path, question))
    session = NetworkFile(path).session
    values = np.array(
        [
            session.run(None, {"x": np.array([[a, b]], np.uint8)})[0][0]
            for a in range(10, 15)
            for b in range(10, 15)
        ]
    )
    assert (low == values.min(axis=0)).all() and (up == values.max(axis=0)).all()


def asked(folder: Path, low: str, high: str, limit: str) -> Path:
    text = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1"))
    text += "".join(f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))" for i in range(2))
    (folder / "q.vnnlib").write_text(f"{text}(assert (>= Y_0 {limit}))")
    return folder / "q.vnnlib"


def test_the_outlook_names_the_engine_that_decides(tmp_path: Path) -> None:
    """What comes before the float engine is said, and what only floats lack is no obstacle."""
    problem = bitcrown.load(shifted(tmp_path), asked(tmp_path, "10", "14", "1000"))
    found = outlook(problem)
    (sentence,), obstacles = found.sentences, found.obstacles
    assert "decided in integers" in sentence and "to the bit" in sentence and not obstacles
    assert bitcrown.verify(problem, cpu_seconds=60).decided_by.startswith("integers")

    w = Writer([1, 2], TensorProto.FLOAT)
    places = w.add("Cast", w.add("Floor", "x"), to=TensorProto.INT64)
    path = w.save(tmp_path, w.add("Cast", places, to=TensorProto.FLOAT))
    problem = bitcrown.load(path, asked(tmp_path, "0.5", "3.25", "3.5"))
    found = outlook(problem)
    (sentence,), obstacles = found.sentences, found.obstacles
    assert "16 cells" in sentence and not obstacles
    assert bitcrown.verify(problem, cpu_seconds=60).decided_by == "cells"


def test_a_refusal_says_what_blocks_each_engine(tmp_path: Path) -> None:
    w = Writer([1, 2], UINT8)
    sums = w.add("MatMulInteger", "x", w.constant([[3, -2], [1, 5]], np.int8))
    y = w.add("Mod", w.add("Cast", sums, to=TensorProto.FLOAT), w.constant(3.0), fmod=1)
    with pytest.raises(UnsupportedError, match="Mod.*as integers: .*Mod"):
        network_in_words(w.save(tmp_path, y))
