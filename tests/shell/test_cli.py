"""The command line over the fake worker: words on stdout, exit codes, one sentence for bad
input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_GUARD, Scripts

from bitcrown.cli.main import main


def cli(scripts: Scripts, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bitcrown.cli", *arguments],
        cwd=scripts.folder,
        env=scripts.environment(mode),
        timeout=HANG_GUARD,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("mode", "code", "output"),
    [
        ("sat", 0, "sat\n((X_0 0.5)\n(Y_0 1.5))\n"),
        ("unsat", 0, "unsat\n"),
        ("exit", 3, "unknown\n"),
        ("error", 2, ""),
    ],
)
def test_verify(scripts: Scripts, mode: str, code: int, output: str) -> None:
    done = cli(scripts, mode, "verify", "net.onnx", "prop.vnnlib")
    assert (done.returncode, done.stdout) == (code, output)
    said = done.stderr.splitlines()
    # Without an answer it also says what to try and, if there was any, where the time went.
    assert len(said) in ((2, 3) if code == 3 else (1,))
    assert all(line.startswith("bitcrown: ") for line in said)


def test_verify_writes_result_and_record(scripts: Scripts) -> None:
    files = ["--result", "new/out.txt", "--record", str(scripts.record)]
    assert cli(scripts, "sat", "verify", "net.onnx", "prop.vnnlib", *files).returncode == 0
    assert (scripts.folder / "new/out.txt").read_text() == "sat\n((X_0 0.5)\n(Y_0 1.5))\n"
    assert scripts.last_record()["result"] == "sat"


def test_the_standards_form(scripts: Scripts) -> None:
    done = cli(
        scripts, "block", "verify", "prop.vnnlib", "--network", "f=net.onnx", "--timeout", "0.5"
    )
    assert (done.returncode, done.stdout) == (3, "timed-out\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", "gone.onnx", "prop.vnnlib"], "the network file gone.onnx does not exist"),
        (["verify", "net.onnx"], "verify needs ONNX and VNNLIB"),
        (["verify", "net.onnx", "prop.vnnlib", "--timeout", "nan"], "positive finite"),
        (["verify", "net.onnx", "prop.vnnlib", "--device", "abacus"], "option device needs one of"),
        (["verify", "prop.vnnlib", "--network", "net.onnx"], "--network needs NAME=ONNX"),
        (["bench", "gone"], "gone does not exist"),
        (["report", "gone.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(scripts: Scripts, arguments: list[str], sentence: str) -> None:
    done = cli(scripts, "unsat", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_version_and_help(scripts: Scripts) -> None:
    assert cli(scripts, "unsat", "--version").stdout.startswith("bitcrown 0.")
    assert "Exit codes: 0 decided" in " ".join(cli(scripts, "unsat", "--help").stdout.split())
    assert cli(scripts, "unsat").returncode == 2


def test_capabilities_in_the_words_of_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> list[str]:
        assert main(arguments) == 0
        return capsys.readouterr().out.splitlines()

    assert said("--name") == ["bitcrown"]
    low, high = map(int, said("supports", "--onnx-opset-versions"))
    assert low <= 13 <= 21 <= high
    assert {"Conv", "Gemm", "Relu"} <= set(said("supports", "--onnx-operators"))
    assert said("supports", "--vnnlib-versions") == ["2.0", "2.1"]
    assert "H" in said("supports", "--hidden-node-theories")
    spelled = said("supports", "--multiple-inputs-output-theories")
    assert spelled == said("supports", "--multiple-input-output-theories") == ["SIO", "MIO"]
    assert said("supports", "--serialise-assignments") == ["false"]
    with pytest.raises(SystemExit):
        main(["supports"])


def test_inspect_says_what_was_read_and_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    suite = Path(__file__).resolve().parents[2] / "benchmarks/quickstart"
    files = [str(suite / "onnx/cartpole.onnx"), str(suite / "vnnlib/cartpole_case_unsafe_3.vnnlib")]
    assert main(["inspect", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "input input [1, 4]",
        "output output [1, 2]",
        "6 tensors, 4610 weights; 3 Linear, 2 Relu",
    ]
    assert [line.split()[1] for line in lines[3:9]] == [
        "Input",
        "Linear",
        "Relu",
        "Linear",
        "Relu",
        "Linear",
    ]
    assert lines[9] == "property (VNN-LIB 1.0):"
    told = lines.index("Case 1: Y_0 <= Y_1.")
    assert lines[told + 1] == "verify:"
    assert lines[told + 2] == (
        "  4 of 4 inputs vary, in 1 box: boxes of inputs are split, and signs of neurons where "
        "that lasts"
    )
    assert lines[told + 3].startswith("  Relu: ") and lines[told + 3].endswith("makes each exact")
