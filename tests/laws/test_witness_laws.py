"""Laws of witnesses: what is confirmed is inside the box and violates, exactly, and survives being
written and read.

Boxes, constraints and candidates are generated; the truth is computed in rational arithmetic from
the printed text.
"""

from __future__ import annotations

import atexit
import re
from fractions import Fraction
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.result_file import check_result
from bitcrown.check.witness import Confirmer, format_witness
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.reader import parse_query
from bitcrown.verdict import Witness
from tests.audit import audit

FOLDER = Path(mkdtemp())
atexit.register(rmtree, FOLDER, True)
FLOAT = st.floats(-2, 3, width=32)
DECIMAL = st.integers(-3000, 3000).map(lambda n: f"{n / 1000:.3f}")


@cache
def network() -> Path:
    """``y_0 = x_0 + x_1``, ``y_1 = x_0 - x_1``: one rounding each, so the truth is easy."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.float32([[1, 1], [1, -1]]), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = FOLDER / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@st.composite
def properties(draw: st.DrawFn) -> tuple[str, list[tuple[Fraction, Fraction]], Fraction, Fraction]:
    """Text of either version, the box, and the right sides of ``y_0 <= a`` and ``y_1 > b``."""
    ends = [sorted((draw(DECIMAL), draw(DECIMAL)), key=Fraction) for _ in range(2)]
    a, b = draw(DECIMAL), draw(DECIMAL)
    is_1 = draw(st.booleans())
    x, y = (
        (["X_0", "X_1"], ["Y_0", "Y_1"]) if is_1 else (["X[0,0]", "X[0,1]"], ["Y[0,0]", "Y[0,1]"])
    )
    lines = [
        f"(assert (and (>= {name} {low}) (<= {name} {high})))"
        for name, (low, high) in zip(x, ends, strict=True)
    ]
    lines += [f"(assert (<= {y[0]} {a}))", f"(assert (> {y[1]} {b}))"]
    head = "".join(f"(declare-const {name} Real)" for name in x + y)
    if not is_1:
        head = (
            "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,2]) "
            "(declare-output Y real [1,2]))"
        )
    box = [(Fraction(low), Fraction(high)) for low, high in ends]
    return "\n".join([head, *lines]), box, Fraction(a), Fraction(b)


def confirmer_of(text: str) -> Confirmer:
    query = parse_query(text)
    problem = problem_from_query(query, {query.networks[0].name: network()})
    return Confirmer(problem, RuntimeReplay(query, problem.networks))


def outcome_of(result: str, text: str) -> bool:
    (FOLDER / "result.txt").write_text(result)
    (FOLDER / "property.vnnlib").write_text(text)
    return check_result(FOLDER / "result.txt", str(network()), FOLDER / "property.vnnlib").accepted


def is_true(
    witness: Witness, box: list[tuple[Fraction, Fraction]], a: Fraction, b: Fraction
) -> bool:
    x = witness.inputs["X"]
    assert x.dtype == np.float32
    inside = all(
        low <= Fraction(float(value)) <= high
        or (not holds_a_float(low, high) and value == np.float32(float(low)))
        for value, (low, high) in zip(x, box, strict=True)
    )
    return inside and Fraction(float(x[0] + x[1])) <= a and Fraction(float(x[0] - x[1])) > b


def holds_a_float(low: Fraction, high: Fraction) -> bool:
    near = np.float32(float(low))
    around = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    return any(low <= Fraction(float(value)) <= high for value in around)


@settings(max_examples=150, deadline=None)
@given(properties(), FLOAT, FLOAT)
def test_what_is_confirmed_is_true_and_accepted(
    generated: tuple[str, list[tuple[Fraction, Fraction]], Fraction, Fraction],
    one: float,
    two: float,
) -> None:
    text, box, a, b = generated
    confirmer = confirmer_of(text)
    if not confirmer.problem.cases:
        return
    witness = confirmer.confirm(np.array([one, two]))
    if witness is None:
        return
    assert is_true(witness, box, a, b)
    assert outcome_of(format_witness(confirmer.problem.query, witness), text)


@settings(max_examples=60, deadline=None)
@given(properties(), st.integers(0, 1), st.sampled_from(["4", "-4", "nan", "1e99"]))
def test_an_input_moved_out_of_the_box_is_rejected(
    generated: tuple[str, list[tuple[Fraction, Fraction]], Fraction, Fraction],
    which: int,
    value: str,
) -> None:
    text = generated[0]
    confirmer = confirmer_of(text)
    witness = audit(confirmer.problem, confirmer, 20, 0)
    if witness is None:
        return
    assert is_true(witness, *generated[1:])
    result = format_witness(confirmer.problem.query, witness)
    assert outcome_of(result, text)
    numbers = iter(range(4))
    pattern = r"(?<=[XY]_\d )\S+(?=\))" if result.startswith("sat\n(") else r"(?m)^-?\d\S*$"
    tampered = re.sub(pattern, lambda match: value if next(numbers) == which else match[0], result)
    assert tampered != result and not outcome_of(tampered, text)
