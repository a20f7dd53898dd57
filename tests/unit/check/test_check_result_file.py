"""Results files: what is written is accepted when read, and every kind of tampering gets the right
sentence."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_nets import affine, opened, property_1, unit_box

from bitcrown.check.result_file import CheckOutcome, check_result, network_files, split_word
from bitcrown.check.witness import format_witness
from bitcrown.errors import BitcrownError, ModelError, PropertyError
from bitcrown.spec.reader import parse_query

ONE = property_1(2, 1, *unit_box(2), "(or (<= Y_0 -5) (and (>= Y_0 1.5) (>= X_0 X_1)))")
TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X_f real [1,2]) (declare-output Y_f float32 [1,1]))
(declare-network g (equal-to f) (declare-input X_g real [1,2]) (declare-output Y_g float32 [1,1]))
(assert (and (>= X_f[0,0] 0) (<= X_f[0,0] 1) (>= X_f[0,1] 0) (<= X_f[0,1] 1)))
(assert (and (>= X_g[0,0] 0.5) (<= X_g[0,0] 1) (== X_g[0,1] X_f[0,1])))
(assert (< Y_f[0,0] Y_g[0,0]))
"""
GOOD_1 = "sat\n((X_0 1.0)\n(X_1 0.75)\n(Y_0 1.75))\n"
GOOD_2 = """sat
X_f real [1,2]
0.25
0.5
Y_f float32 [1,1]
0.75
X_g real [1,2]
0.5
0.5
Y_g float32 [1,1]
1.0
"""
Check = Callable[[str, str], CheckOutcome]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    net = affine(tmp_path / "net.onnx", [[1.0, 1.0]])

    def run(result: str, text: str) -> CheckOutcome:
        (tmp_path / "property.vnnlib").write_text(text)
        (tmp_path / "result.txt").write_text(result)
        return check_result(tmp_path / "result.txt", str(net), tmp_path / "property.vnnlib")

    return run


@pytest.mark.parametrize("text", [ONE, TWO])
def test_round_trip(tmp_path: Path, check: Check, text: str) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0, 1.0]])
    _, _, confirmer = opened(text, *[net] * (1 + ("g" in text)))
    points = np.random.default_rng(0).random((40, confirmer.problem.n_inputs))
    found = [witness for point in points if (witness := confirmer.confirm(point)) is not None]
    assert found
    for witness in found:
        outcome = check(format_witness(confirmer.problem.query, witness), text)
        assert outcome == CheckOutcome(
            "sat", True, "accepted: every assertion holds exactly on replay"
        )


@pytest.mark.parametrize(
    "result",
    [
        GOOD_1,
        GOOD_1.removeprefix("sat\n"),
        GOOD_1.replace("sat\n", "sat "),
        GOOD_1.replace("sat", "SAT").replace("\n", "\r\n"),
        "violated\n( (X_0   1)\t(X_1 7.5e-1)  ( Y_0 +1.75 ) )",
        "\n\n" + GOOD_1 + "\n\n",
    ],
)
def test_lenient_reading_of_version_1(check: Check, result: str) -> None:
    assert check(result, ONE).accepted


@pytest.mark.parametrize(
    "result",
    [
        GOOD_2,
        GOOD_2.removeprefix("sat\n"),
        GOOD_2.replace("\n", "\n\n"),
        GOOD_2.replace("Y_f float32 [1,1]", "Y_f  REAL\t[1, 1]"),
        GOOD_2.replace("0.25", "2.5e-1"),
    ],
)
def test_lenient_reading_of_version_2(check: Check, result: str) -> None:
    assert check(result, TWO).accepted


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "(X_0 1.0)",
            "(X_0 1.0000001)",
            "rejected: the inputs lie outside the box: X_0 <= 1 fails by 1.19209e-07",
        ),
        (
            "(X_1 0.75)",
            "(X_1 0.25)",
            "rejected: the inputs satisfy their part, but 1.5 <= Y_0 fails by 0.25",
        ),
        (
            "(Y_0 1.75)",
            "(Y_0 1.5)",
            "holds exactly on replay; the outputs in the file differ from the replay by 0.25",
        ),
        ("(Y_0 1.75)", "", "malformed: there are 0 values of Y, but the property declares 1"),
        ("(X_1 0.75)", "(X_2 0.75)", "malformed: X_2 comes where X_1 is due"),
        ("(X_0 1.0)\n(X_1 0.75)", "(X_1 0.75)\n(X_0 1.0)", "malformed: X_1 comes where X_0 is due"),
        (
            "(X_1 0.75)",
            "(X_1 0.75)\n(X_2 0.5)",
            "malformed: there are 3 values of X, but the property declares 2",
        ),
        ("(X_1 0.75)", "(X_1 nan)", "malformed: X_1 is nan, which is not finite"),
        ("(X_1 0.75)", "(X_1 -inf)", "malformed: X_1 is -inf, which is not finite"),
        ("(X_1 0.75)", "(X_1 3/4)", "malformed: X_1 has the value '3/4', which is no number"),
        ("(X_1 0.75)", "(Z_1 0.75)", "is no pair (X_k number)"),
        ("(Y_0 1.75))", "(Y_0 1.75)", "malformed: the last pair is not closed"),
        ("((X_0", "X_0", "malformed: the witness is not enclosed in parentheses"),
        (GOOD_1, "sat\n", "malformed: the answer is sat, but the file has no witness"),
        (GOOD_1, "maybe\n", "names no verdict; the results file comes first"),
        (GOOD_1, "", "names no verdict; the results file comes first"),
    ],
)
def test_tampering_with_version_1(check: Check, old: str, new: str, sentence: str) -> None:
    assert old in GOOD_1
    outcome = check(GOOD_1.replace(old, new), ONE)
    assert sentence in outcome.sentence
    assert outcome.accepted is ("differ from the replay" in sentence)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "X_f real",
            "X_f float32",
            "malformed: X_f has the type float32, but the property declares real",
        ),
        (
            "Y_f float32",
            "Y_f float64",
            "malformed: Y_f has the type float64, but the property declares float32",
        ),
        (
            "X_f real [1,2]",
            "X_f real [2]",
            "malformed: X_f has the shape [2], but the property declares [1, 2]",
        ),
        ("X_f real [1,2]", "X_h real [1,2]", "stands where tensor 'X_f real [1,2]' is due"),
        ("X_f real [1,2]\n", "", "stands where tensor 'X_f real [1,2]' is due"),
        ("0.25\n", "", "malformed: there are 1 values of X_f, but the property declares 2"),
        (
            "0.25\n",
            "0.25\n0.25\n",
            "malformed: '0.5' stands where tensor 'Y_f float32 [1,1]' is due",
        ),
        (
            "Y_g float32 [1,1]\n1.0\n",
            "",
            "malformed: the file ends where tensor 'Y_g float32 [1,1]' is due",
        ),
        ("1.0\n", "1.0\nbye\n", "malformed: 'bye' follows after the last tensor"),
        ("0.25\n", "nan\n", "malformed: X_f[0,0] is nan, which is not finite"),
        ("0.25\n", "x\n", "malformed: X_f[0,0] has the value 'x', which is no number"),
        ("0.25\n", "-0.25\n", "outside the box: 0 <= X_f[0,0] fails by 0.25"),
        (
            "0.25\n",
            "0.5\n",
            "the inputs satisfy their part, but Y_f[0,0] < Y_g[0,0] fails because both sides are "
            "equal",
        ),
    ],
)
def test_tampering_with_version_2(check: Check, old: str, new: str, sentence: str) -> None:
    assert old in GOOD_2
    outcome = check(GOOD_2.replace(old, new, 1), TWO)
    assert sentence in outcome.sentence
    assert not outcome.accepted


def test_inputs_of_two_networks_that_must_agree(check: Check) -> None:
    outcome = check(
        GOOD_2.replace("X_g real [1,2]\n0.5\n0.5\n", "X_g real [1,2]\n0.5\n0.25\n"), TWO
    )
    assert not outcome.accepted
    assert "outside the box: X_g[0,1] == X_f[0,1] fails by 0.25" in outcome.sentence


def test_bounds_that_hold_only_in_the_networks_type(check: Check) -> None:
    text = property_1(2, 1, *unit_box(2, "0", "0.1"), "(>= Y_0 0.1)")
    result = "sat\n((X_0 0.1)\n(X_1 0.1)\n(Y_0 0.2))\n"
    assert check(result, text).sentence.startswith(
        "accepted: every assertion holds on replay, once input bounds are"
    )
    outcome = check(result.replace("X_0 0.1", "X_0 0.10000001"), text)
    assert (
        not outcome.accepted
        and "outside the box: X_0 <= 0.1 fails by 8.9407e-09" in outcome.sentence
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("unsat\n", "unsat"),
        ("holds", "unsat"),
        ("UNSAT (by bounds)", "unsat"),
        ("timeout", "timeout"),
        ("timed-out", "timeout"),
        ("unknown\n", "unknown"),
        ("error_exit_code_1", "error"),
    ],
)
def test_other_words_have_nothing_to_replay(check: Check, text: str, word: str) -> None:
    assert split_word(text) == (word, "")
    assert check(text, ONE) == CheckOutcome(
        word, True, f"the answer is {word}, so there is no witness to replay"
    )


def test_outputs_that_are_not_finite(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[200.0, 0.0]], activation="Exp")
    (tmp_path / "p.vnnlib").write_text(property_1(2, 1, *unit_box(2), "(>= Y_0 1)"))
    (tmp_path / "r.txt").write_text("sat\n((X_0 1.0)\n(X_1 0.0)\n(Y_0 1e30))")
    outcome = check_result(tmp_path / "r.txt", str(net), tmp_path / "p.vnnlib")
    assert outcome == CheckOutcome("sat", False, "rejected: Y is not finite on replay")


def test_inputs_beyond_the_networks_type(check: Check) -> None:
    outcome = check(GOOD_1.replace("(X_0 1.0)", "(X_0 1e300)"), ONE)
    assert outcome.sentence == "rejected: X is not finite on replay"


def test_gzipped_results_and_lists_of_networks(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1.0, 1.0]])
    (tmp_path / "p.vnnlib").write_text(TWO)
    (tmp_path / "r.counterexample.gz").write_bytes(gzip.compress(GOOD_2.encode()))
    for argument in (str(net), f"[('f', '{net}')]", f"[('f', '{net}'), ('g', '{net}')]"):
        assert check_result(
            tmp_path / "r.counterexample.gz", argument, tmp_path / "p.vnnlib"
        ).accepted
    (tmp_path / "r.counterexample.gz").write_bytes(gzip.compress(GOOD_2.encode())[:-9])
    with pytest.raises(PropertyError, match="cannot be read"):
        check_result(tmp_path / "r.counterexample.gz", str(net), tmp_path / "p.vnnlib")


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "[",
        "[]",
        "[1]",
        "[('f',)]",
        "[('f', 1)]",
        "[('f', 'a'), ('f', 'b')]",
        "[('g', 'a')]",
        "[__import__('os')]",
    ],
)
def test_lists_that_are_none(argument: str) -> None:
    with pytest.raises(PropertyError):
        network_files(argument, parse_query(TWO))


def test_missing_files(tmp_path: Path, check: Check) -> None:
    check(GOOD_1, ONE)
    net, text, result = tmp_path / "net.onnx", tmp_path / "property.vnnlib", tmp_path / "result.txt"
    gone = tmp_path / "gone"
    for arguments, error in [
        ((gone, str(net), text), PropertyError),
        ((result, str(net), gone), PropertyError),
        ((result, str(gone), text), ModelError),
    ]:
        with pytest.raises(error) as caught:
            check_result(*arguments)
        assert isinstance(caught.value, BitcrownError) and "gone" in str(caught.value)


@pytest.mark.parametrize(
    ("result", "code"),
    [(GOOD_1, 0), (GOOD_1.replace("X_0 1.0", "X_0 2"), 1), ("unsat", 0), ("unknown", 3), ("x", 1)],
)
def test_the_command(tmp_path: Path, check: Check, result: str, code: int) -> None:
    sentence = check(result, ONE).sentence
    files = [str(tmp_path / name) for name in ("result.txt", "net.onnx", "property.vnnlib")]
    done = subprocess.run(
        [sys.executable, "-m", "bitcrown.cli", "check", *files],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, sentence + "\n")
