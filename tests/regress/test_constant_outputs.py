"""Outputs that are one integer whatever the input: no step of a staircase is left, and no
constraint of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import Stairs
from bitcrown.quant.query import split_by_box
from bitcrown.quant.search.decide import decide_query
from bitcrown.verdict import Status
from tests.fuzz.integer_family import only_search
from tests.quant_models import UINT8, Writer


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ("(and (<= Y_0 0.5))", Status.SAT),
        ("(and (<= Y_0 0.5) (>= (+ Y_0 Y_1) -1.0))", Status.SAT),
        ("(and (>= Y_0 0.5)) (and (>= Y_1 -1.0) (<= Y_0 0.0))", Status.SAT),
        ("(and (>= Y_0 0.5)) (and (>= Y_1 -1.0) (<= Y_0 -0.5))", Status.UNSAT),
    ],
)
def test_the_search_ends_where_outputs_are_constant(
    cases: str, expected: Status, tmp_path: Path
) -> None:
    w = Writer([1, 2], UINT8)
    x = w.add("DequantizeLinear", "x", w.constant(np.float32(0.5)), w.constant(3, np.uint8))
    y = w.add(
        "Min",
        w.add("MatMul", x, w.weight([[1, 2], [-3, 4]], np.float32(0.25))),
        w.constant(np.float32(-2)),
    )
    model, asked = (
        w.save(tmp_path, w.quantized(y, np.float32(0.1), 0, np.uint8)),
        tmp_path / "p.vnnlib",
    )
    text = "".join(f"(declare-const {name}_{i} Real)" for name in "XY" for i in (0, 1))
    text += "".join(f"(assert (>= X_{i} 2))(assert (<= X_{i} 9))" for i in (0, 1))
    asked.write_text(f"{text}(assert (or {cases}))")
    network = read_onnx(model)
    output = network.nodes[network.output]
    assert isinstance(output, Stairs) and output.late.shape[1] == 0
    (query,) = split_by_box(load(model, asked), network)
    with only_search():
        assert decide_query(query, Budget.of_seconds(20)).status is expected
