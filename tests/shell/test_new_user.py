"""What somebody meets who uses bitcrown for the first time, and does something wrong or unusual.

Each is the kind of a trap that somebody fell into: an answer in silence, a traceback, a sentence
that says something else than what is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import HANG_GUARD, ROOT, Scripts, wait_until_gone
from onnx import TensorProto, helper, numpy_helper
from test_bench import bench, suite
from test_cli import cli

import bitcrown
from bitcrown.attacks.images.components import SUITES
from bitcrown.cli.main import main
from bitcrown.errors import BitcrownError, DataError

__all__ = ["suite"]  # a fixture

SUITE = ROOT / "benchmarks" / "quickstart"
NETWORK = SUITE / "onnx" / "cartpole.onnx"
PROPERTY = SUITE / "vnnlib" / "cartpole_case_unsafe_3.vnnlib"


# -- the library -----------------------------------------------------------------------------------


def test_version_of_the_package() -> None:
    assert bitcrown.__version__[0].isdigit()


def test_what_is_no_problem_is_named() -> None:
    with pytest.raises(BitcrownError, match=r"bitcrown.verify\(bitcrown.load\("):
        bitcrown.verify("x.onnx")
    with pytest.raises(BitcrownError, match=r"bitcrown.bound\(bitcrown.load\("):
        bitcrown.bound("x.onnx")


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_no_network_is_named(wrapped: bool) -> None:
    network = {"N": object()} if wrapped else object()
    with pytest.raises(BitcrownError, match="torch.onnx.export"):
        bitcrown.load(network, PROPERTY)
    with pytest.raises(BitcrownError, match="a property is the path"):
        bitcrown.load(NETWORK, object())


def test_nan_weights_are_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = np.ones((2, 2), np.float32)
    weight[1, 0] = np.nan
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "nan.onnx",
    )
    assert main(["inspect", str(tmp_path / "nan.onnx")]) == 2
    assert "weight 'w' holds NaN" in capsys.readouterr().err


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["verify", str(SUITE), str(PROPERTY)], "is a folder"),
        (["verify", str(NETWORK), str(SUITE)], "is a folder"),
        (["inspect", str(SUITE)], "is a folder"),
        (["inspect", str(PROPERTY)], "the network comes first"),
        (["bounds", str(PROPERTY), str(NETWORK)], "the network comes first"),
        (["bounds", str(NETWORK), str(SUITE)], "is a folder"),
        (["bench", str(NETWORK), "--out", "/dev/null/x"], "cannot be read: it is no text"),
        (["robust", "gone.onnx", "gone.npy"], "gone.npy does not exist"),
        (["robust", str(NETWORK), str(NETWORK)], "the network comes first"),
    ],
)
def test_paths_that_are_something_else(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_every_argument_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "inspect", "bounds", "check", "check-certificate", "bench", "robust"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert "e+0" not in shown
        flat = [line.strip() for line in shown.partition("positional arguments:")[2].splitlines()]
        bare = [line for line in flat if line and not line.startswith("-") and " " not in line]
        # A name alone on its line is followed by its text.
        assert all(flat[flat.index(name) + 1] for name in bare)


def test_seed_names_its_whole_range(scripts: Scripts) -> None:
    done = cli(scripts, "unsat", "verify", "net.onnx", "prop.vnnlib", "--seed", "-1")
    assert "a whole number from 0 to 4294967295" in done.stderr


def run_on_shell(scripts: Scripts, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "bash",
            "-c",
            f"set -o pipefail; bitcrown() {{ '{sys.executable}' -m bitcrown \"$@\"; }}; {command}",
        ],
        cwd=scripts.folder,
        env=scripts.environment("unsat"),
        timeout=HANG_GUARD,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", ["--version", "verify net.onnx prop.vnnlib"])
def test_full_disk_is_a_sentence(scripts: Scripts, words: str) -> None:
    done = run_on_shell(scripts, f"bitcrown {words} > /dev/full")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == 2
    assert "the output cannot be used: No space left on device" in done.stderr


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_reader_that_leaves_early(scripts: Scripts, words: str) -> None:
    done = run_on_shell(scripts, f"bitcrown {words} | head -c 1 > /dev/null")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_interrupted_verify_says_so(scripts: Scripts) -> None:
    command = [sys.executable, "-m", "bitcrown.cli", "verify", "net.onnx", "prop.vnnlib"]
    with subprocess.Popen(
        [*command, "--result", "out.txt", "--record", str(scripts.record)],
        cwd=scripts.folder,
        env=scripts.environment("children"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        pids = scripts.wait_for_pids(3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, output) == (130, "")
    assert "interrupted" in errors and "time limit" not in errors
    assert scripts.results.read_text() == "unknown\n"
    assert scripts.last_record()["reason"] == "the run was interrupted before the search ended"
    wait_until_gone(pids)


def test_every_run_leaves_its_record(scripts: Scripts) -> None:
    assert cli(scripts, "unsat", "verify", "net.onnx", "prop.vnnlib").returncode == 0
    assert scripts.last_record()["result"] == "unsat"


def test_an_empty_record_is_none(scripts: Scripts) -> None:
    """As an empty BITCROWN_RECORD is; it was the folder ``.`` before."""
    done = cli(scripts, "unsat", "verify", "net.onnx", "prop.vnnlib", "--record", "")
    assert done.returncode == 0, done.stderr
    assert not scripts.record.exists()


def test_record_that_cannot_be_written_is_said_before_the_search(scripts: Scripts) -> None:
    place = "/proc/nobody/records.jsonl"
    done = cli(scripts, "unsat", "verify", "net.onnx", "prop.vnnlib", "--record", place)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"the record {place} cannot be written" in done.stderr
    assert not scripts.seen_pids()


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a CUDA device")
def test_cuda_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    from bitcrown.search.decision import device_of

    with pytest.raises(BitcrownError, match="no CUDA device"):
        device_of("cuda")


# -- bench and report ------------------------------------------------------------------------------


def test_bench_says_why_and_does_not_exit_with_zero(scripts: Scripts, suite: Path) -> None:
    done = bench(scripts, suite, "error")
    assert done.returncode == 2
    assert done.stdout.count("ERROR: ") == 3
    assert "the network file ends in the middle of node 3" in done.stdout


def test_two_benches_at_once_in_one_folder(scripts: Scripts, suite: Path) -> None:
    command = [sys.executable, "-m", "bitcrown.cli", "bench", str(suite)]
    command += ["--out", str(scripts.folder / "out")]
    with subprocess.Popen(
        command, env=scripts.environment("children"), stderr=subprocess.PIPE
    ) as first:
        pids = scripts.wait_for_pids(3)
        second = bench(scripts, suite, "unsat")
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=HANG_GUARD)
    assert second.returncode == 2 and "another bench is writing to" in second.stderr
    wait_until_gone(pids)


def test_report_counts_an_instance_once(scripts: Scripts, suite: Path) -> None:
    assert bench(scripts, suite, "unsat").returncode == 0
    assert bench(scripts, suite, "sat", "--timeout-cap", "15").returncode == 0
    records = scripts.folder / "out" / "records.jsonl"
    assert len(records.read_text().splitlines()) == 6
    done = cli(scripts, "unsat", "report", str(records))
    assert "| suite of three | 3 | 3 | 0 |" in done.stdout
    assert "3 records are of instances that were run again" in done.stderr
    # Single runs have no key: they are what somebody put side by side.
    for _ in range(2):
        cli(scripts, "unsat", "verify", "net.onnx", "prop.vnnlib")
    assert "|  | 2 | 0 | 2 |" in cli(scripts, "unsat", "report", str(scripts.record)).stdout


# -- images ----------------------------------------------------------------------------------------


def folders(place: Path, *names: str) -> Path:
    from PIL import Image

    for level, name in enumerate(names):
        (place / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 10 * level, np.uint8)).save(place / name / "a.png")
    return place


def test_folders_named_by_numbers_are_labels(tmp_path: Path) -> None:
    from bitcrown.evaluation.data.sets import read_images

    found = read_images(folders(tmp_path, "0", "10", "2", "07"))
    assert found.labels.tolist() == [0, 2, 7, 10] and found.classes == ()
    levels = np.rint(found.images[:, 0, 0, 0] * 255).tolist()
    assert levels == [0, 20, 30, 10]


def test_folders_with_names_have_a_mapping(tmp_path: Path) -> None:
    from bitcrown.evaluation.data.sets import read_images

    found = read_images(folders(tmp_path, "dog", "cat"))
    assert found.labels.tolist() == [0, 1] and found.classes == ("cat", "dog")


@pytest.mark.parametrize("names", [("0", "1", "background"), ("1", "01")])
def test_folders_that_may_mean_two_things(tmp_path: Path, names: tuple[str, ...]) -> None:
    from bitcrown.evaluation.data.sets import read_images

    with pytest.raises(DataError):
        read_images(folders(tmp_path, *names))


def test_channels_as_the_network_wants_them() -> None:
    from bitcrown.evaluation.samples import channels_as_wanted

    grey = np.arange(6.0).reshape(1, 2, 3)
    three = np.repeat(grey, 3, axis=0)
    assert np.array_equal(channels_as_wanted(grey, 18), three)
    assert np.array_equal(channels_as_wanted(three, 6), grey)
    coloured = three + np.arange(3.0)[:, None, None]
    for values, elements in ((coloured, 6), (coloured, 18), (grey, 12), (grey, 6)):
        assert channels_as_wanted(values, elements) is values


def test_images_settle_free_extents(tmp_path: Path) -> None:
    """A network of any height and width over images of 4 x 4: the sum of the pixels against 8."""
    place = folders(tmp_path / "set", "0", "1")
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    stored = {"axes": np.array([2, 3]), "w": np.float32([[-1, 1]]), "b": np.float32([[0.3, -0.3]])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    path = tmp_path / "free.onnx"
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    from bitcrown.evaluation.data.sets import read_images

    found = read_images(place)
    for eps, statuses in (("1/255", ["proved", "proved"]), ("20/255", ["broken", "broken"])):
        answer = bitcrown.evaluate(
            path, found.images, found.labels, eps, attack="pgd", bounds="bab", seconds=60
        )
        assert [one["status"] for one in answer.record["runs"][0]["per_image"]] == statuses


def test_page_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, seed, the new class, and the images that nobody decided. (What the suite gives up
    after 5000 queries, it has given up after 200.)"""
    short = tuple(replace(part, budget=min(part.budget, 200)) for part in SUITES["black-box"])
    monkeypatch.setitem(SUITES, "black-box", short)
    with np.load(ROOT / "benchmarks" / "qnn_robustness" / "mnist_20.npz") as file:
        images, labels = file["images"][:4, None], file["labels"][:4]
    network = ROOT / "benchmarks" / "qnn_robustness" / "networks" / "mnist_mlp.onnx"
    found = bitcrown.evaluate(
        network, images, labels, ["1/255", "200/255"], attack="black-box", bounds="bab", seconds=0
    )
    page = found.html()
    assert f"bitcrown {bitcrown.__version__}" in page and "seed 0" in page
    statuses = [one["status"] for run in found.record["runs"] for one in run["per_image"]]
    assert {"broken", "open"} <= set(statuses)
    assert page.count("<figure>") == statuses.count("broken") + statuses.count("open")
    broken = [
        one for run in found.record["runs"] for one in run["per_image"] if one["status"] == "broken"
    ]
    for one in broken:
        assert one["broken_as"] != one["label"]
        assert f"label {one['label']}: taken for {one['broken_as']} after" in page
    json.dumps(found.record)
