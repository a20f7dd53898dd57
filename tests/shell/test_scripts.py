"""The scripts as the competition calls them: odd paths, odd environments, bad input."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import HANG_GUARD, ROOT, Scripts

from bitcrown.settings import usable_cores


def test_output_of_the_worker_stays_out_of_the_results(scripts: Scripts) -> None:
    code, errors = scripts.run("noise")
    assert (code, errors) == (0, "")
    assert scripts.results.read_text() == "unsat\n"


def test_stdin_is_not_read(scripts: Scripts) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"the rest of the instance list\n")
    with os.fdopen(reader) as instances, os.fdopen(writer, "w"):
        environment = scripts.environment("stdin")
        subprocess.run(
            scripts.arguments(),
            cwd=scripts.folder,
            env=environment,
            stdin=instances,
            timeout=HANG_GUARD,
            check=True,
        )
        assert instances.readline() == "the rest of the instance list\n"
    assert scripts.last_record()["detail"] == "''"


def test_exported_xtrace(scripts: Scripts) -> None:
    command = ["env", "SHELLOPTS=xtrace", "/bin/bash", *scripts.arguments()]
    done = subprocess.run(
        command,
        cwd=scripts.folder,
        env=scripts.environment("unsat"),
        timeout=HANG_GUARD,
        capture_output=True,
    )
    assert (done.returncode, scripts.answer()) == (0, "unsat")


def test_called_through_a_link_and_a_relative_path(scripts: Scripts) -> None:
    (scripts.folder / "link").symlink_to(ROOT / "run_instance.sh")
    arguments = ["./link", *scripts.arguments()[1:]]
    subprocess.run(
        arguments,
        cwd=scripts.folder,
        env=scripts.environment("unsat"),
        timeout=HANG_GUARD,
        check=True,
    )
    assert scripts.answer() == "unsat"


def test_the_earlier_content_is_replaced(scripts: Scripts) -> None:
    scripts.results.write_text("no_result_in_file\n" * 100)
    assert scripts.run("unsat")[0] == 0
    assert scripts.results.read_text() == "unsat\n"


def test_folder_of_the_results_is_made(scripts: Scripts) -> None:
    assert scripts.run("unsat", results="new/deeper/out.txt")[0] == 0
    assert (scripts.folder / "new/deeper/out.txt").read_text() == "unsat\n"


def test_results_may_be_a_device(scripts: Scripts) -> None:
    with scripts.start("unsat", results="/dev/stdout") as process:
        output, _ = process.communicate(timeout=HANG_GUARD)
    assert process.returncode == 0 and output.splitlines()[-1] == "unsat"
    assert Path("/dev/stdout").exists()


def test_list_of_networks_and_gz(scripts: Scripts) -> None:
    (scripts.folder / "net.onnx").rename(scripts.folder / "net.onnx.gz")
    code, errors = scripts.run("unsat", network="[('f', './net.onnx'), ('g', 'net.onnx')]")
    assert (code, errors, scripts.answer()) == (0, "", "unsat")


def test_threads_are_set_before_the_worker_starts(scripts: Scripts) -> None:
    scripts.run("threads")
    assert scripts.last_record()["detail"] == str(usable_cores())
    scripts.run("threads", {"BITCROWN_THREADS": "1"})
    assert scripts.last_record()["detail"] == "1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "gone.onnx"}, "the network file gone.onnx does not exist"),
        ({"vnnlib": "gone.vnnlib"}, "the property file gone.vnnlib does not exist"),
        ({"network": "[('f', 3)]"}, "not a list of ('name', 'path') pairs"),
        ({"network": "[("}, "not a list of ('name', 'path') pairs"),
        ({"network": "[('f', 'a'), ('f', 'b')]"}, "names one network twice"),
        ({"network": ""}, "the network field is empty"),
        ({"timeout": "0"}, "must be a positive finite number"),
        ({"timeout": "-3"}, "must be a positive finite number"),
        ({"timeout": "nan"}, "must be a positive finite number"),
        ({"timeout": "inf"}, "must be a positive finite number"),
        ({"timeout": "ten"}, "must be a number of seconds"),
        ({"timeout": ""}, "must be a number of seconds"),
    ],
)
def test_bad_input_is_error_with_one_sentence(
    scripts: Scripts, changes: dict[str, str], sentence: str
) -> None:
    code, errors = scripts.run("unsat", **changes)
    assert (code, scripts.results.read_text()) == (0, "error\n")
    assert sentence in errors and len(errors.splitlines()) == 1
    assert not scripts.seen_pids(), "the worker was started"


def test_bad_option_is_error(scripts: Scripts) -> None:
    code, errors = scripts.run("unsat", {"BITCROWN_DEVICE": "abacus"})
    assert (code, scripts.answer()) == (0, "error")
    assert "device needs one of auto, cpu, cuda" in errors


def test_worker_that_says_error(scripts: Scripts) -> None:
    code, errors = scripts.run("error")
    assert (code, scripts.answer()) == (0, "error")
    assert errors == "bitcrown: the network file ends in the middle of node 3\n"


@pytest.mark.parametrize("results", ["/proc/nobody/out.txt", "net.onnx/out.txt", "."])
def test_results_that_cannot_be_written(scripts: Scripts, results: str) -> None:
    code, errors = scripts.run("unsat", results=results)
    assert code == 0
    assert len(errors.splitlines()) == 1 and "cannot be written" in errors


def test_full_disk(scripts: Scripts) -> None:
    code, errors = scripts.run("unsat", results="/dev/full")
    assert code == 0 and "cannot be written: No space left on device" in errors


def test_record_that_cannot_be_written_does_no_harm(scripts: Scripts) -> None:
    code, errors = scripts.run("unsat", {"BITCROWN_RECORD": "/proc/nobody/records.jsonl"})
    assert (code, scripts.answer()) == (0, "unsat")
    assert "the record" in errors


@pytest.mark.parametrize("name", ["run_instance.sh", "prepare_instance.sh", "install_tool.sh"])
@pytest.mark.parametrize("version", [["v2"], []])
def test_other_protocol_version(scripts: Scripts, name: str, version: list[str]) -> None:
    done = subprocess.run(
        [ROOT / name, *version],
        cwd=scripts.folder,
        timeout=HANG_GUARD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "version" in done.stderr


def prepare(scripts: Scripts, *arguments: str) -> subprocess.CompletedProcess[str]:
    (scripts.folder / f"bitcrown-{os.getuid()}").mkdir(mode=0o700, exist_ok=True)
    (scripts.folder / f"bitcrown-{os.getuid()}" / "warm").touch()
    return subprocess.run(
        [ROOT / "prepare_instance.sh", *arguments],
        cwd=scripts.folder,
        env=scripts.environment("unsat"),
        timeout=HANG_GUARD,
        capture_output=True,
        text=True,
    )


def test_prepare_never_fails(scripts: Scripts) -> None:
    for network in ("net.onnx", "gone.onnx", "[(", ""):
        assert prepare(scripts, "v1", "category", network, "prop.vnnlib").returncode == 0
    assert prepare(scripts, "v1").returncode == 0


def test_prepare_leaves_a_living_run_alone(scripts: Scripts) -> None:
    with scripts.start("children") as process:
        scripts.wait_for_pids(3)
        assert prepare(scripts, "v1", "category", "net.onnx", "prop.vnnlib").returncode == 0
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=HANG_GUARD)
    assert scripts.answer() == "timeout"
