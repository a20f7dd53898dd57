"""The bench runner over real scripts with the fake worker: resumption, interruption, wrong
answers."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HANG_GUARD, Scripts, wait_until_gone


@pytest.fixture
def suite(scripts: Scripts) -> Path:
    folder = scripts.folder / "suite of three"
    (folder / "onnx").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / "onnx" / f"{name}.onnx").touch()
    (folder / "p.vnnlib").touch()
    (folder / "instances.csv").write_text(
        "".join(f"./onnx/{name}.onnx,p.vnnlib,20.0\n" for name in "abc")
    )
    private = scripts.folder / f"bitcrown-{os.getuid()}"
    private.mkdir(mode=0o700)
    (private / "warm").touch()
    return folder


def bench(scripts: Scripts, suite: Path, mode: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "bitcrown.cli",
            "bench",
            str(suite),
            "--out",
            str(scripts.folder / "out"),
            *more,
        ],
        env=scripts.environment(mode),
        timeout=HANG_GUARD,
        capture_output=True,
        text=True,
    )


def results(scripts: Scripts) -> list[list[str]]:
    with (scripts.folder / "out" / "results.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_results_and_table(scripts: Scripts, suite: Path) -> None:
    done = bench(scripts, suite, "unsat")
    assert done.returncode == 0
    assert [row[:3] + row[4:5] for row in results(scripts)] == [
        ["suite of three", f"onnx/{name}.onnx", "p.vnnlib", "unsat"] for name in "abc"
    ]
    assert "[3/3] unsat" in done.stderr and "suite of three" in done.stdout


def test_wrong_answer_is_loud(scripts: Scripts, suite: Path) -> None:
    (suite / "expected.csv").write_text(
        "onnx,vnnlib,expected\nonnx/b.onnx,p.vnnlib,sat\nonnx/c.onnx,p.vnnlib,unsat\n"
    )
    done = bench(scripts, suite, "unsat")
    assert done.returncode == 1
    assert (
        "WRONG: suite of three: onnx/b.onnx with p.vnnlib is sat, but the answer was unsat"
        in done.stdout
    )


def test_json_has_the_records_as_they_were_written(scripts: Scripts, suite: Path) -> None:
    done = bench(scripts, suite, "unsat", "--json", "--filter", "*b.onnx*")
    written = (scripts.folder / "out" / "records.jsonl").read_text().splitlines()
    rows = json.loads(done.stdout)["rows"]
    assert rows == [json.loads(line) for line in written] and rows[0]["settings"]["seed"] == 0


def test_counterexamples_are_kept(scripts: Scripts, suite: Path) -> None:
    assert bench(scripts, suite, "sat").returncode == 0
    out = scripts.folder / "out"
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    # (On a loaded machine one of them may have come too late.)
    broken = [row for row in rows if row["result"] == "sat"]
    assert broken and all(("counterexample" in row) == (row in broken) for row in rows)
    for row in broken:
        kept = gzip.decompress((out / row["counterexample"]).read_bytes()).decode()
        assert kept == "((X_0 0.5)\n(Y_0 1.5))\n"


def test_undecided_counts_where_all_are_needed(scripts: Scripts, suite: Path) -> None:
    (suite / "expected.csv").write_text("onnx,vnnlib,expected\nonnx/b.onnx,p.vnnlib,sat\n")
    assert bench(scripts, suite, "exit").returncode == 0
    assert bench(scripts, suite, "exit", "--need-all").returncode == 3


def test_second_run_skips_what_is_finished(scripts: Scripts, suite: Path) -> None:
    assert bench(scripts, suite, "unsat", "--filter", "*b.onnx*").returncode == 0
    assert len(scripts.seen_pids()) == 1
    assert bench(scripts, suite, "sat").returncode == 0
    assert [row[4] for row in results(scripts)] == ["sat", "unsat", "sat"]
    assert bench(scripts, suite, "sat", "--fresh").returncode == 0
    assert [row[4] for row in results(scripts)] == ["sat", "sat", "sat"]


def test_interrupted_run_goes_on(scripts: Scripts, suite: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bitcrown.cli",
        "bench",
        str(suite),
        "--out",
        str(scripts.folder / "out"),
    ]

    def interruptible() -> None:
        """A shell starts background jobs with SIGINT ignored, and tests may run in one."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command,
        env=scripts.environment("children"),
        stderr=subprocess.DEVNULL,
        preexec_fn=interruptible,
    ) as process:
        pids = scripts.wait_for_pids(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANG_GUARD) == 130
    wait_until_gone(pids)
    assert bench(scripts, suite, "unsat").returncode == 0
    assert [row[4] for row in results(scripts)] == ["unsat"] * 3


def test_a_killed_run_leaves_nobody(scripts: Scripts, suite: Path) -> None:
    command = [sys.executable, "-m", "bitcrown.cli", "bench", str(suite), "--jobs", "2"]
    command += ["--out", str(scripts.folder / "out")]
    with subprocess.Popen(
        command, env=scripts.environment("children"), stderr=subprocess.DEVNULL
    ) as process:
        pids = scripts.wait_for_pids(6)
        process.kill()
    wait_until_gone(pids)


def test_several_at_a_time(scripts: Scripts, suite: Path) -> None:
    assert bench(scripts, suite, "threads", "--jobs", "2").returncode == 0
    lines = (scripts.folder / "out" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["settings"]["threads"] for line in lines} == {
        max(1, len(os.sched_getaffinity(0)) // 2)
    }
    cores = [set(json.loads(line)["cores"]) for line in lines]
    assert {len(one) for one in cores} == {max(1, len(os.sched_getaffinity(0)) // 2)}


def test_cap_on_the_time_limit(scripts: Scripts, suite: Path) -> None:
    assert (
        bench(scripts, suite, "block", "--timeout-cap", "0.4", "--filter", "*a.onnx*").returncode
        == 0
    )
    assert [row[4] for row in results(scripts)] == ["timeout"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--filter", "nothing like it"], "no instance of"),
        (["--timeout-cap", "0"], "positive finite"),
        (["--jobs", "0"], "--jobs needs"),
        (["--seed", "-1"], "option seed needs"),
        (["--out", "/proc/nowhere"], "results cannot be written"),
    ],
)
def test_bad_options(scripts: Scripts, suite: Path, arguments: list[str], sentence: str) -> None:
    done = bench(scripts, suite, "unsat", *arguments)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_leftovers_of_a_dead_run_are_ended(scripts: Scripts, suite: Path) -> None:
    """Parent and guard killed at one moment: nobody is left to clean up but the next
    ``prepare``."""
    with scripts.start("children") as process:
        pids = scripts.wait_for_pids(3)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        guard = next(int(pid) for pid in children if int(pid) not in pids)
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(guard, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=HANG_GUARD)
    time.sleep(0.1)
    assert bench(scripts, suite, "unsat", "--filter", "*a.onnx*").returncode == 0
    wait_until_gone(pids)


def test_scripts_run_on_the_python_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``env/bin/bitcrown bench`` of an environment that is not activated took the system's python3,
    which has no onnxruntime."""
    from bitcrown.harness.one_instance import ScriptCall, script_environment

    program = tmp_path / "system" / "python3"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    own = tmp_path / "env" / "python3"
    own.parent.mkdir()
    own.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    found = script_environment(ScriptCall(None, {"A": "b"}))  # type: ignore[arg-type]
    assert shutil.which("python3", path=found["PATH"]) == str(own) and found["A"] == "b"
