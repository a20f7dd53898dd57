"""The quantized-network suite: its instances, its scripts, and certificates through the command
line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import bitcrown
from bitcrown.certificates.files import integer_query, read_network
from bitcrown.check.result_file import check_result
from bitcrown.cli.main import main
from bitcrown.harness.instance import read_expected, read_instances
from bitcrown.quant.proof.writer import property_form
from bitcrown.quant.query import robustness_query
from bitcrown.quant.smt.solvers import violates
from bitcrown.spec.network_field import parse_network
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
        return file[f"{dataset}_images"][place].astype(np.int64), int(
            file[f"{dataset}_labels"][place]
        )


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
    instance = next(
        one
        for one in read_instances(SUITE / "instances.csv")
        if one.vnnlib == f"vnnlib/{name}.vnnlib"
    )
    assert read_expected(SUITE / "expected.csv")[instance.key()] == word
    path = parse_network(instance.network)[0][1]
    verdict = bitcrown.verify(
        bitcrown.load(SUITE / path, SUITE / instance.vnnlib), cpu_seconds=60.0
    )
    assert verdict.status is Status(word)


def test_every_instance_has_its_files_and_a_known_truth() -> None:
    truth = read_expected(SUITE / "expected.csv")
    instances = read_instances(SUITE / "instances.csv")
    assert {truth[one.key()] for one in instances} == {"sat", "unsat"}
    for one in instances:
        assert all((SUITE / path).is_file() for _, path in parse_network(one.network))
        assert (SUITE / f"{one.vnnlib}.gz").is_file()


@pytest.mark.parametrize(
    "name", ["mnist_0115_eps2", "mnist_0151_eps2_v2", "fashion-mnist_0301_eps4"]
)
def test_properties_ask_for_first_index_argmax(name: str) -> None:
    """Both versions of VNN-LIB, read back, are the query of the library."""
    dataset, sample_id, eps = name.removesuffix("_v2").split("_")
    onnx = SUITE / "networks" / f"{dataset}_mlp.onnx"
    network = read_network(onnx)
    asked = robustness_query(
        network, *image_of(dataset, int(sample_id)), int(eps.removeprefix("eps"))
    )
    assert property_form(
        integer_query(onnx, SUITE / "vnnlib" / f"{name}.vnnlib", network)
    ) == property_form(asked)


def test_exported_cases_are_those_of_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    dense_cases = import_module("check_mnist_robustness").dense_cases
    query = robustness_query(
        read_network(SUITE / "networks" / "mnist_mlp.onnx"), *image_of("mnist", 115), 2
    )
    outputs = np.random.default_rng(0).integers(-32, -26, (300, 32))
    outputs[:150, 4] = outputs[:150].max(axis=1)
    expected = outputs.argmax(axis=1) != 4
    assert 0 < expected.sum() < len(expected)
    assert query.violated(outputs).tolist() == expected.tolist()
    assert [violates(row, dense_cases(query)) for row in outputs] == expected.tolist()


def test_any_image_of_the_test_set(tmp_path: Path) -> None:
    """Without arguments: image 0, eps 1. The accuracy is that of the images in the folder."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([image_of("mnist", 0)[1], 9, 9, 9, 9], dtype=np.uint8)
    images[0] = image_of("mnist", 0)[0].reshape(28, 28)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = b"\0\0\x08" + bytes([array.ndim])
        head += b"".join(extent.to_bytes(4, "big") for extent in array.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(head + array.tobytes())
    with_images = "--images", str(tmp_path)
    code, output, errors = script("check_mnist_robustness.py", *with_images, folder=tmp_path)
    assert code == 0, errors
    assert re.fullmatch(r"test accuracy: \d+.00% \(\d of 5 images, all\)", output.splitlines()[0])
    assert output.splitlines()[1].startswith("mnist sample 0, label 7, eps 1: robust (")
    code, output, _ = script(
        "check_mnist_robustness.py", *with_images, "--sample_id", "4", folder=tmp_path
    )
    assert code == 0 and output.splitlines()[1].startswith("mnist sample 4, label 9")


def test_published_counts() -> None:
    with (SUITE / "published.csv").open(newline="") as file:
        words = [(row["dataset"], row["published"]) for row in csv.DictReader(file)]
    counts = {
        dataset: [
            words.count((dataset, word)) for word in ("misclassified", "timeout", "vulnerable")
        ]
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
    lines = output.splitlines()
    assert lines[0] == "test accuracy: 97.75% (391 of 400 images, stored)"
    assert lines[1].startswith("mnist sample 175, label 7, eps 2: robust (")
    certificate = tmp_path / "proof.json"
    network, prop = (
        SUITE / "networks" / "mnist_mlp.onnx",
        SUITE / "vnnlib" / "mnist_0175_eps2.vnnlib",
    )
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


def test_misclassified_sample_and_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    script_module = import_module("check_mnist_robustness")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["check_mnist_robustness.py", *arguments])
        return script_module.main()

    assert run("--sample_id", "217", "--eps", "3") == 0
    assert capsys.readouterr().out.endswith("\nmnist sample 217, label 6: misclassified as 5\n")
    for arguments, sentence in (
        (("--sample_id", "5000", "--eps", "1"), "test image 5000 of mnist is not stored"),
        (("--sample_id", "1", "--eps", "-1"), "the radius -1 is negative"),
        (("--images", "nowhere"), "nowhere holds no test images of mnist"),
        (
            ("--sample_id", "1", "--eps", "1", "--seconds", "nan"),
            "the time limit must be a positive finite number",
        ),
    ):
        assert run(*arguments) == 2
        errors = capsys.readouterr().err
        assert sentence in errors and len(errors.splitlines()) == 1


def test_check_certificate_refuses_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty = tmp_path / "broken.json", tmp_path / "empty.json"
    broken.write_text("{")
    empty.write_text("{}")
    network = SUITE / "networks" / "mnist_mlp.onnx"
    prop = SUITE / "vnnlib" / "mnist_0175_eps2.vnnlib"
    plain = ROOT / "benchmarks" / "quickstart" / "onnx" / "cartpole.onnx"
    for files, word in (
        ((network, prop, broken), "is not a JSON file"),
        ((network, prop, tmp_path / "absent.json"), "cannot be read"),
        ((broken, prop, broken), "can only be read together"),
        ((plain, prop, empty), "no network of integers"),
    ):
        assert main(["check-certificate", *map(str, files)]) == 2
        assert word in capsys.readouterr().err


def test_answer_of_the_shell_script_is_accepted(tmp_path: Path) -> None:
    onnx, vnnlib = (
        SUITE / "networks" / "mnist_mlp.onnx",
        SUITE / "vnnlib" / "mnist_0115_eps2.vnnlib",
    )
    results = tmp_path / "out.txt"
    command = [ROOT / "run_instance.sh", "v1", "qnn_robustness", onnx, vnnlib, results, "60"]
    subprocess.run([str(part) for part in command], check=True, timeout=120)
    assert results.read_text().splitlines()[0] == "sat"
    outcome = check_result(results, str(onnx), vnnlib)
    assert outcome.accepted, outcome.sentence


def test_table_goes_on_where_it_stopped_and_tells_contradictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    table = import_module("table")
    records = tmp_path / "table.jsonl"
    arguments = ["table.py", "--dataset", "mnist", "--check", "--out", str(records), "--samples"]
    monkeypatch.setattr(sys, "argv", [*arguments, "115"])
    assert table.main() == 0
    first = records.read_text()
    monkeypatch.setattr(sys, "argv", [*arguments, "115-119"])
    assert table.main() == 0
    assert records.read_text().startswith(first)
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == [115, 116, 117, 118, 119]
    assert rows[0]["verdict"] == "vulnerable" and rows[0]["seen"] != rows[0]["label"]
    assert all(row["verdict"] == "robust" and row["rejected"] == "" for row in rows[1:])
    output = capsys.readouterr().out
    assert (
        "| mnist 115-119 | 2 | timeout | 1 | 0 |" in output
        and "certificates: 4 checked, 0 rejected" in output
    )
    records.write_text(
        "".join(json.dumps(row | {"verdict": "robust", "rejected": ""}) + "\n" for row in rows)
    )
    assert table.main() == 1
    assert "WRONG: mnist 115" in capsys.readouterr().out


def test_maximum_radius_is_between_a_proof_and_a_counterexample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    script_module, decision, samples = (
        import_module(n) for n in ("check_mnist_robustness", "decision", "samples")
    )
    monkeypatch.setattr(
        sys, "argv", ["check_mnist_robustness.py", "--sample_id", "115", "--max-radius"]
    )
    assert script_module.main() == 0
    found = re.fullmatch(
        r"test accuracy: .*\nmnist sample 115, label 4: maximum robust radius (\d+) \(.*\)\n",
        capsys.readouterr().out,
    )
    assert found is not None
    benchmark = samples.Benchmark.of("mnist")
    around = [
        decision.answer(benchmark, samples.Query("mnist", 115, int(found[1]) + step), 60)
        for step in (0, 1)
    ]
    assert [one.verdict for one in around] == ["robust", "vulnerable"]


def verify_with_certificate(name: str, path: Path) -> int:
    instance = next(
        one
        for one in read_instances(SUITE / "instances.csv")
        if one.vnnlib == f"vnnlib/{name}.vnnlib"
    )
    network = SUITE / parse_network(instance.network)[0][1]
    files = [str(network), str(SUITE / instance.vnnlib)]
    return main(["verify", *files, "--cpu-seconds", "60", "--certificate", str(path)])


def test_verify_writes_a_certificate_that_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "proof.json"
    assert verify_with_certificate("mnist_0000_eps1", path) == 0
    out, err = capsys.readouterr()
    assert out.startswith("unsat") and f"certificate: {path}" in err
    network, prop = (
        SUITE / "networks" / "mnist_mlp.onnx",
        SUITE / "vnnlib" / "mnist_0000_eps1.vnnlib",
    )
    assert main(["check-certificate", str(network), str(prop), str(path)]) == 0


def test_verify_leaves_no_certificate_where_nothing_is_proved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proof.json"
    path.write_text("an older proof")
    assert verify_with_certificate("mnist_0320_eps4", path) == 0
    out, err = capsys.readouterr()
    assert out.startswith("sat") and "no certificate was written" in err and not path.exists()
