"""Hidden tensors, stored inputs and inputs without bounds, from the files to a replayed answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.check.result_file import check_result
from bitcrown.check.witness import format_witness
from bitcrown.errors import PropertyError
from bitcrown.verdict import Status, Verdict

BOX = "(assert (and (>= X[0] -1.0) (<= X[0] 1.0) (>= X[1] -1.0) (<= X[1] 1.0)))"


def network(path: Path) -> Path:
    """``h = relu(W x + a)`` of two inputs and three neurons, ``y = h[0] - h[1] + h[2]``; ``a`` is
    an input with a stored value."""
    weight = np.array([[1, -1, 2], [1, 1, -1]], dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Add", ["p", "a"], ["z"], name="pre"),
            helper.make_node("Relu", ["z"], ["h"], name="act"),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array([0.5, 0, -1], dtype=np.float32), "a"),
            numpy_helper.from_array(np.array([[1], [-1], [1]], dtype=np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def decide(
    tmp_path: Path,
    asserts: str,
    hidden: str = "",
    a: str = "(declare-input A float32 [3] initialized)",
    box: str = BOX,
) -> Verdict:
    """The verdict; a witness is written as a results file and checked like anybody else's."""
    model, prop = network(tmp_path / "n.onnx"), tmp_path / "p.vnnlib"
    prop.write_text(
        f"(vnnlib-version <2.1>)(declare-network f {a} (declare-input X float32 [2]) {hidden} "
        f"(declare-output Y float32 [1])){box}{asserts}"
    )
    problem = bitcrown.load(model, prop)
    verdict = bitcrown.verify(problem, seconds=60)
    if verdict.witness is not None:
        result = tmp_path / "result.txt"
        result.write_text(format_witness(problem.query, verdict.witness))
        outcome = check_result(result, str(model), prop)
        assert outcome.accepted, outcome.sentence
    return verdict


HIDDEN = '(declare-hidden H float32 [3] "{}")'


@pytest.mark.parametrize("name", ["h", "act"])
def test_a_hidden_tensor_is_bounded_and_replayed(tmp_path: Path, name: str) -> None:
    hidden = HIDDEN.format(name)
    assert decide(tmp_path, "(assert (< H[1] 0.0))", hidden).status is Status.UNSAT
    assert decide(tmp_path, "(assert (< H[1] 0.001))", hidden).status is Status.SAT
    assert decide(tmp_path, "(assert (<= H[1] 0.0))", hidden).status is Status.SAT
    assert decide(tmp_path, "(assert (>= H[2] 2.001))", hidden).status is Status.UNSAT
    found = decide(tmp_path, "(assert (>= H[2] 1.9))(assert (<= Y[0] 2.4))", hidden)
    assert found.status is Status.SAT and found.witness is not None
    assert found.witness.outputs["H"][2] >= np.float32(1.9)


def test_values_before_the_activation_and_twice(tmp_path: Path) -> None:
    hidden = (
        HIDDEN.format("z")
        + ' (declare-hidden I float32 [3] "z")'
        + (' (declare-hidden O float32 [1] "y")')
    )
    found = decide(tmp_path, "(assert (> O[0] (+ Y[0] 0.001)))", hidden)
    assert found.status is Status.UNSAT
    found = decide(tmp_path, "(assert (<= (+ H[0] I[0]) -2.8))", hidden)
    assert found.status is Status.SAT and found.witness is not None
    assert (found.witness.outputs["H"] == found.witness.outputs["I"]).all()


def test_stored_inputs_keep_their_value(tmp_path: Path) -> None:
    assert decide(tmp_path, "(assert (> A[0] 0.5))").status is Status.UNSAT
    assert decide(tmp_path, "(assert (<= Y[0] -2.1))").status is Status.UNSAT
    found = decide(tmp_path, "(assert (>= Y[0] (+ 2.4 A[2])))")
    assert found.status is Status.SAT and found.witness is not None
    assert found.witness.outputs["A"].tolist() == [0.5, 0, -1]


def test_declarations_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PropertyError, match="no node of n.onnx writes 'relu'"):
        decide(tmp_path, "(assert (>= H[0] 0.0))", HIDDEN.format("relu"))
    with pytest.raises(PropertyError, match="declares .* as outputs"):
        decide(tmp_path, "(assert (>= H[0] 0.0))", '(declare-hidden H float32 [2] "h")')
    with pytest.raises(PropertyError, match="stores a value for"):
        two = "(declare-input A float32 [3] initialized) (declare-input B real [1] initialized)"
        decide(tmp_path, "(assert (>= Y[0] 0.0))", a=two)


def test_two_networks_of_one_file_ask_for_different_tensors(tmp_path: Path) -> None:
    model, prop = network(tmp_path / "n.onnx"), tmp_path / "p.vnnlib"
    one = "(declare-input A{0} real [3] initialized) (declare-input X{0} real [2])"
    prop.write_text(
        f"(vnnlib-version <2.1>)(declare-network f {one.format('')} "
        '(declare-hidden H real [3] "h") (declare-output Y real [1]))'
        f"(declare-network g (equal-to f) {one.format('g')} "
        '(declare-hidden Z real [3] "z") (declare-output V real [1]))'
        f"{BOX}{BOX.replace('X[', 'Xg[')}(assert (and (>= X[0] Xg[0]) (>= X[1] Xg[1])))"
        "(assert (< H[0] (- Z[0] 1.0)))"
    )
    assert bitcrown.verify(bitcrown.load(model, prop), seconds=60).status is Status.UNSAT


def test_inputs_without_bounds(tmp_path: Path) -> None:
    """A counterexample is found; a proof about all numbers is claimed only where it is one."""
    half = "(assert (and (>= X[0] 0.0) (<= X[1] 0.0)))"
    found = decide(tmp_path, "(assert (>= Y[0] 500.0))", box=half)
    assert found.status is Status.SAT
    diamond = "".join(
        f"(assert (<= (+ (* {p} X[0]) (* {q} X[1])) 1.0))" for p in (1, -1) for q in (1, -1)
    )
    hidden = HIDDEN.format("h")
    assert decide(tmp_path, "(assert (>= H[2] 2.01))", hidden, box=diamond).status is Status.UNSAT
    real = half.replace("float32", "real")
    model, prop = tmp_path / "n.onnx", tmp_path / "q.vnnlib"
    prop.write_text(
        "(vnnlib-version <2.1>)(declare-network f (declare-input A real [3] initialized) "
        '(declare-input X real [2]) (declare-hidden H real [3] "h") (declare-output Y real [1]))'
        f"{real}(assert (< H[0] -1.0))"
    )
    verdict = bitcrown.verify(bitcrown.load(model, prop), seconds=60)
    assert verdict.status is Status.UNKNOWN and "X[0] has no bounds" in verdict.detail
