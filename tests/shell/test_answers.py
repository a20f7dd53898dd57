"""Real answers of ``run_instance.sh`` on bundled instances, read back as another tool's results
would be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bitcrown.check.result_file import check_result

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "benchmarks" / "quickstart"


@pytest.mark.parametrize(
    ("network", "prop", "word"),
    [
        ("lunarlander", "lunarlander_case_unsafe_35", "sat"),
        ("cartpole", "cartpole_case_unsafe_3", "unsat"),
    ],
)
def test_answers_are_accepted(network: str, prop: str, word: str, tmp_path: Path) -> None:
    onnx, vnnlib = SUITE / "onnx" / f"{network}.onnx", SUITE / "vnnlib" / f"{prop}.vnnlib"
    results = tmp_path / "out.txt"
    command = [ROOT / "run_instance.sh", "v1", "any", onnx, vnnlib, results, "60"]
    subprocess.run([str(part) for part in command], check=True, timeout=120)
    lines = results.read_text().splitlines()
    assert lines[0] == word
    assert lines[1].startswith("((X_0 ") if word == "sat" else len(lines) == 1
    outcome = check_result(results, str(onnx), vnnlib)
    assert outcome.accepted, outcome.sentence
