"""The quantized-network suite: its instances, its scripts, and certificates through the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import bitcrown
from bitcrown.certificates import read_network, read_query
from bitcrown.check.result_file import check_result
from bitcrown.cli import main
from bitcrown.harness.expected import read_expected
from bitcrown.harness.instance import parse_network, read_instances
from bitcrown.quant.certificate import property_form
from bitcrown.quant.query import robustness_query
from bitcrown.verdict import Status

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks" / "qnn_robustness"


def script(name: str, *arguments: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one of the suite's scripts."""
    command = [sys.executable, str(SUITE / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def image_of(dataset: str, sample_id: int) -> tuple[np.ndarray, int]:
    with np.load(SUITE / "samples.npz", allow_pickle=False) as file:
        place = int(np.nonzero(file[f"{dataset}_ids"] == sample_id)[0][0])
        return file[f"{dataset}_images"][place].astype(np.int64), int(file[f"{dataset}_labels"][place])


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("mnist_0000_eps1", "unsat"),
        ("mnist_0320_eps4", "sat"),
        ("mnist_0175_eps2", "unsat"),
        ("mnist_0151_eps2_v2", "sat"),
        ("fashion-mnist_0101_eps2_v2", "unsat"),
    ],
)
def test_instances_are_decided(name: str, word: str) -> None:
    instance = next(one for one in read_instances(SUITE / "instances.csv") if one.vnnlib == f"vnnlib/{name}.vnnlib")
    assert read_expected(SUITE / "expected.csv")[instance.key()] == word
    path = parse_network(instance.network)[0][1]
    verdict = bitcrown.verify(bitcrown.load(SUITE / path, SUITE / instance.vnnlib), seconds=60)
    assert verdict.status is Status(word)


def test_every_instance_has_its_files_and_a_known_truth() -> None:
    truth = read_expected(SUITE / "expected.csv")
    instances = read_instances(SUITE / "instances.csv")
    assert {truth[one.key()] for one in instances} == {"sat", "unsat"}
    for one in instances:
        assert all((SUITE / path).is_file() for _, path in parse_network(one.network))
        assert (SUITE / f"{one.vnnlib}.gz").is_file()


@pytest.mark.parametrize("name", ["mnist_0115_eps2", "mnist_0151_eps2_v2", "fashion-mnist_0301_eps4"])
def test_properties_ask_for_first_index_argmax(name: str) -> None:
    """Both versions of VNN-LIB, read back, are the query of the library."""
    dataset, sample_id, eps = name.removesuffix("_v2").split("_")
    onnx = SUITE / "networks" / f"{dataset}_mlp.onnx"
    network = read_network(onnx)
    asked = robustness_query(network, *image_of(dataset, int(sample_id)), int(eps.removeprefix("eps")))
    assert property_form(read_query(onnx, SUITE / "vnnlib" / f"{name}.vnnlib", network)) == property_form(asked)


def test_published_counts() -> None:
    with (SUITE / "published.csv").open(newline="") as file:
        words = [(row["dataset"], row["published"]) for row in csv.DictReader(file)]
    counts = {
        dataset: [words.count((dataset, word)) for word in ("misclassified", "timeout", "vulnerable")]
        for dataset in ("mnist", "fashion-mnist")
    }
    assert counts == {"mnist": [9, 73, 5], "fashion-mnist": [36, 70, 2]}


def test_random_selection_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    generate, samples = import_module("generate_properties"), import_module("samples")
    benchmarks = {dataset: samples.Benchmark.of(dataset) for dataset in samples.DATASETS}
    first, again, other = (list(generate.drawn(seed, 20, benchmarks)) for seed in ("7", "7", "8"))
    assert first == again != other
    for query in first:
        image, label = benchmarks[query.dataset].samples.sample(query.sample_id)
        assert benchmarks[query.dataset].predicted(image) == label


def test_one_sample_and_its_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--sample_id", "175", "--eps", "2", "--certificate", "proof.json"
    code, output, errors = script("check_mnist_robustness.py", *arguments, folder=tmp_path)
    assert code == 0, errors
    assert output.startswith("mnist sample 175, label 7, eps 2: robust (")
    certificate = tmp_path / "proof.json"
    network, prop = SUITE / "networks" / "mnist_mlp.onnx", SUITE / "vnnlib" / "mnist_0175_eps2.vnnlib"
    assert main(["check-certificate", str(network), str(prop), str(certificate)]) == 0
    assert capsys.readouterr().out == "accepted\n"
    other = SUITE / "vnnlib" / "mnist_0115_eps2.vnnlib"
    assert main(["check-certificate", str(network), str(other), str(certificate)]) == 1
    assert "another property" in capsys.readouterr().out
    changed = json.loads(certificate.read_text())
    changed["roots"][0] = changed["roots"][1]
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert main(["check-certificate", str(network), str(prop), str(tmp_path / "changed.json")]) == 1
    assert capsys.readouterr().out.startswith("rejected: ")


def test_misclassified_sample_and_bad_input(tmp_path: Path) -> None:
    code, output, _ = script("check_mnist_robustness.py", "--sample_id", "217", "--eps", "3", folder=tmp_path)
    assert (code, output) == (0, "mnist sample 217, label 6: misclassified as 5\n")
    code, _, errors = script("check_mnist_robustness.py", "--sample_id", "5000", "--eps", "1", folder=tmp_path)
    assert code == 2
    assert "test image 5000 of mnist is not stored" in errors and len(errors.splitlines()) == 1


def test_check_certificate_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    network = SUITE / "networks" / "mnist_mlp.onnx"
    prop = SUITE / "vnnlib" / "mnist_0175_eps2.vnnlib"
    plain = ROOT / "benchmarks" / "quickstart" / "onnx" / "cartpole.onnx"
    for files, word in (
        ((network, prop, broken), "is not a JSON file"),
        ((network, prop, tmp_path / "absent.json"), "cannot be read"),
        ((broken, prop, broken), "can only be read together"),
        ((plain, prop, broken), "no quantized operators"),
    ):
        assert main(["check-certificate", *map(str, files)]) == 2
        assert word in capsys.readouterr().err


def test_answer_of_the_shell_script_is_accepted(tmp_path: Path) -> None:
    onnx, vnnlib = SUITE / "networks" / "mnist_mlp.onnx", SUITE / "vnnlib" / "mnist_0115_eps2.vnnlib"
    results = tmp_path / "out.txt"
    command = [ROOT / "run_instance.sh", "v1", "qnn_robustness", onnx, vnnlib, results, "60"]
    subprocess.run([str(part) for part in command], check=True, timeout=120)
    assert results.read_text().splitlines()[0] == "sat"
    outcome = check_result(results, str(onnx), vnnlib)
    assert outcome.accepted, outcome.sentence
