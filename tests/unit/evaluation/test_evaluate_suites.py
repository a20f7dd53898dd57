"""Suites through ``evaluate``: on files, integers and torch networks; interruption, batch size,
contradictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_classifier import blobs, train, write_classifier

import bitcrown
from bitcrown.api import exact_radius
from bitcrown.attacks.images import components
from bitcrown.attacks.images.components import Component
from bitcrown.cli.main import main
from bitcrown.errors import BitcrownError, DataError, RecordError, SettingsError
from bitcrown.evaluation import accuracies as evaluation
from bitcrown.evaluation.accuracies import Evaluator
from bitcrown.evaluation.data.sets import ImageSet, read_images
from bitcrown.evaluation.integers import IntegerSubject
from bitcrown.evaluation.journal import BOUNDS, Journal
from bitcrown.evaluation.plan import Plan
from bitcrown.evaluation.runs import Evaluation, evaluate_runs, folder_name
from bitcrown.evaluation.subjects import Space
from bitcrown.model.file import NetworkFile
from bitcrown.quant.formats.fixed_point import read_h5
from bitcrown.settings import Settings
from bitcrown.zoo.networks import build_network
from bitcrown.zoo.weights import save_weights

ROOT = Path(__file__).resolve().parents[3]
CPU = Settings(device="cpu", memory_gib=1.0, threads=1)
NORMALISED = {"mean": (Fraction("0.25"),), "std": (Fraction("0.5"),)}
EPS = Fraction(16, 255)
SHORT = {
    "standard": (
        Component("apgd-ce", 10),
        Component("apgd-t", 10, targets=2),
        Component("fab-t", 10, targets=2),
        Component("square", 30),
    ),
    "plus": (Component("apgd-ce", 4), Component("square", 20)),
    "black-box": (Component("random", 5), Component("square", 200)),
}


@pytest.fixture(autouse=True)
def short_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same components as the real suites, with budgets for small networks."""
    for name, chosen in SHORT.items():
        monkeypatch.setitem(components.SUITES, name, chosen)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(
        tmp_path_factory.mktemp("small") / "small.onnx", train(*blobs(200), 150)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = blobs(60, seed=7)
    path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    np.savez(path, x=images, y=labels)
    return path


def plan_for(network: Path | str, **changes: Any) -> Plan:
    return Plan(
        network, **{"eps": EPS, "attack": "standard", "settings": CPU, **NORMALISED, **changes}
    )


def evaluate(plan: Plan, images: ImageSet, out: Path | None = None) -> Evaluation:
    return evaluate_runs(plan, [plan.eps], [plan.bpda], images, out)


def timeless(value: Any) -> Any:
    """A record without what the clock and the machine say."""
    if isinstance(value, dict):
        clock = ("time", "seconds", "wall_s", "bound_seconds", "machine")
        return {key: timeless(part) for key, part in value.items() if key not in clock}
    return [timeless(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def finished(classifier: Path, data: Path) -> Evaluation:
    return evaluate(plan_for(classifier), read_images(data))


def test_the_sandwich_holds_for_every_image(classifier: Path, data: Path) -> None:
    plan = plan_for(classifier, levels=("crown", "alpha", "bab"), seconds=60.0, counts_cpu=True)
    found = evaluate_runs(plan, [Fraction(2, 255), EPS], [""], read_images(data))
    for run in found.record["runs"]:
        status = {one["image"]: one["status"] for one in run["per_image"]}
        assert run["contradictions"] == [] and len(status) == 60
        verified, attacked, clean = (
            run["accuracy"][name]["count"] for name in ("bab", "attack", "clean")
        )
        assert 0 < verified <= attacked < clean
        assert run["open_gap"] == list(status.values()).count("open") / 60
        assert {one["broken_by"] for one in run["per_image"] if one["status"] == "broken"} <= {
            row["name"] for row in run["per_attack"]
        } | {"search"}
        assert sum(row["broken"] for row in run["per_attack"]) == clean - attacked
    small, large = (run["accuracy"]["attack"]["count"] for run in found.record["runs"])
    assert large < small
    assert "Verified" in found.table() and "16/255" in found.table()


def test_batch_size_changes_no_record(finished: Evaluation, classifier: Path, data: Path) -> None:
    for batch in (3, 50, 200):
        other = evaluate(plan_for(classifier, batch=batch), read_images(data))
        assert timeless(other.record) == timeless(finished.record)
        np.testing.assert_array_equal(other.adversarial[0], finished.adversarial[0])


def test_an_interrupted_suite_goes_on_and_ends_the_same(
    finished: Evaluation, classifier: Path, data: Path, tmp_path: Path
) -> None:
    """Stopped after every batch, again and again: the same record as in one go, and as once more
    afterwards."""

    class Stopped(Exception):
        pass

    plan = plan_for(classifier, batch=20)
    stops = 0

    def stop(stage: str, done: int, total: int, counts: dict[str, int]) -> None:
        if stage != "clean":
            raise Stopped

    while True:
        try:
            again = evaluate_runs(plan, [EPS], [""], read_images(data), tmp_path, on_progress=stop)
            break
        except Stopped:
            stops += 1
    assert stops >= len(SHORT["standard"])
    assert timeless(again.record) == timeless(finished.record)
    once_more = evaluate_runs(plan, [EPS], [""], read_images(data), tmp_path)
    assert timeless(once_more.record) == timeless(finished.record)


def test_what_the_judge_does_not_confirm_does_not_count(
    classifier: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that claims to have broken every image with a point of the ball: only real ones
    count."""
    images = read_images(data)

    def boastful(
        model: Callable[..., Any], x: torch.Tensor, labels: torch.Tensor, ball: Any, **rest: Any
    ) -> Any:
        honest = real(model, x, labels, ball, **rest)
        moved = ball.project(x + 1e-3, x)
        return replace(honest, adversarial=moved, broken_by=("apgd-ce",) * len(x))

    real = evaluation.run_suite
    monkeypatch.setattr(evaluation, "run_suite", boastful)
    found = evaluate(plan_for(classifier), images)
    (run,) = found.record["runs"]
    right = run["accuracy"]["clean"]["count"]
    lost = next(warning for warning in run["warnings"] if warning["name"] == "unconfirmed")
    assert lost["measurement"]["images"] == run["accuracy"]["attack"]["count"] > right / 2


def test_a_proof_of_a_broken_image_is_loud(
    classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(classifier, levels=("crown",))
    images = read_images(data)
    folder = tmp_path / folder_name(plan)
    evaluator = Evaluator(
        plan, images, Journal(folder, plan.identity(NetworkFile(classifier).digest))
    )
    broken = next(one.image for one in evaluator.run() if one.broken_by)
    evaluator.journal.add(
        BOUNDS, broken, {**evaluator.journal.findings[BOUNDS][broken], "proved_by": "crown"}
    )
    found = evaluate(plan, images, tmp_path)
    assert found.record["contradictions"] == [broken]
    with pytest.raises(RecordError):
        found.html()
    arguments = [
        "evaluate",
        str(classifier),
        "--data",
        str(data),
        "--eps",
        "16/255",
        "--mean",
        "0.25",
        "--std",
        "0.5",
    ]
    arguments += [
        "--attack",
        "standard",
        "--bounds",
        "crown",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    page = tmp_path / "page.html"
    assert main([*arguments, "--html", str(page), "--memory-gib", "1", "--threads", "1"]) == 1
    assert f"[{broken}]" in capsys.readouterr().err and not page.exists()


def test_command_end_to_end(
    classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = [
        "evaluate",
        str(classifier),
        "--data",
        str(data),
        "--eps",
        "4/255,16/255",
        "--mean",
        "0.25",
    ]
    arguments += [
        "--std",
        "0.5",
        "--attack",
        "standard",
        "--verify",
        "--first",
        "20",
        "--out",
        str(tmp_path),
    ]
    arguments += ["--html", str(page), "--device", "cpu", "--memory-gib", "1", "--threads", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    record = json.loads((tmp_path / "record.json").read_text())
    assert [run["eps"] for run in record["runs"]] == ["4/255", "16/255"]
    for run in record["runs"]:
        assert {row["name"] for row in run["per_attack"]} == {
            "apgd-ce",
            "apgd-t",
            "fab-t",
            "square",
        }
        standing = run["accuracy"].get("standing", run["accuracy"]["attack"])
        assert f"{100 * standing['share']:.2f} %" in printed.out
        assert any(found["name"] == "sample-size" for found in run["warnings"])
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        assert f"{name} [" in printed.err
    text = page.read_text()
    assert (
        "data:image/png" in text
        and "<svg" in text
        and "sample-size" in text
        and "<script" not in text
    )
    assert (tmp_path / "Linf-4_255" / "images.jsonl").is_file()


def test_impossible_wishes_are_one_sentence(
    classifier: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["evaluate", str(classifier), "--data", str(data), "--eps", "1/255", "--device", "cpu"]
    for extra in (
        ["--attack", "magic"],
        ["--norm", "L3"],
        ["--norm", "L2", "--attack", "standard", "--verify"],
        ["--verify", "--bounds", "crown"],
        ["--bpda", "identity"],
        ["--attack", "standard", "--bpda", "magic"],
        ["--attack", "standard", "--bpda", "removed"],
        ["--attack", "standard", "--select", "x", "--eps", "1/255,2/255"],
    ):
        assert main([*plain, *extra]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for model in ("zoo:none", "zoo:small", "zoo:small:none"):
        assert (
            main(["evaluate", model, "--data", str(data), "--eps", "1/255", "--attack", "plus"])
            == 2
        )
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_other_norms_attack_and_do_not_prove(classifier: Path, data: Path, norm: str) -> None:
    radius = Fraction(1, 2) if norm == "L2" else Fraction(2)
    plan = plan_for(classifier, norm=norm, eps=radius, attack="plus")
    found = evaluate(plan, read_images(data, first=20))
    (run,) = found.record["runs"]
    assert (
        run["norm"] == norm
        and 0 < run["accuracy"]["attack"]["count"] < run["accuracy"]["clean"]["count"]
    )
    move = (found.adversarial[0].astype(np.float64) - found.images.images).reshape(20, -1)
    assert (np.linalg.norm(move, 2 if norm == "L2" else 1, axis=1) <= float(radius)).all()
    assert norm in found.html()
    with pytest.raises(SettingsError, match="L-infinity only"):
        plan_for(classifier, norm=norm, levels=("crown",))


# -- exact integer networks ------------------------------------------------------------------------


@pytest.fixture
def integer_file(tmp_path: Path) -> Path:
    """36 inputs, 12 hidden, 3 outputs in the format of the AAAI 2021 benchmark, trained on
    ``blobs`` for a moment."""
    import h5py

    images, labels = blobs(300)
    x, y = torch.from_numpy(images).float().flatten(1) / 256, torch.from_numpy(labels)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(36, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(4 * model(x), y).backward()
        optimiser.step()
    path = tmp_path / "integers.h5"
    with h5py.File(path, "w") as file:
        names = ["dense", "dense_1"]
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name, layer in zip(names, (model[0], model[2]), strict=True):
            group = file.create_group(name)
            weights = [f"{name}/kernel:0", f"{name}/bias:0"]
            group.attrs["weight_names"] = [word.encode() for word in weights]
            group[weights[0]] = layer.weight.detach().numpy().T
            group[weights[1]] = layer.bias.detach().numpy()
    return path


def test_integer_network_is_attacked_on_the_lattice_and_decided(
    integer_file: Path, data: Path
) -> None:
    images = read_images(data)
    plan = Plan(
        integer_file,
        EPS,
        attack="standard",
        settings=CPU,
        levels=("crown", "alpha", "bab"),
        seconds=60.0,
        counts_cpu=True,
    )
    found = evaluate(plan, images)
    (run,) = found.record["runs"]
    assert [row["name"] for row in run["per_attack"]] == ["random", "square"]
    assert "no gradients: apgd-ce, apgd-t, fab-t did not run" in " ".join(run["statements"])
    network = read_h5(integer_file)
    levels = np.rint(found.adversarial[0].astype(np.float64) * 255).astype(np.int64)
    clean = np.rint(images.images.astype(np.float64) * 255).astype(np.int64)
    np.testing.assert_array_equal(levels.astype(np.float32) / np.float32(255), found.adversarial[0])
    assert np.abs(levels - clean).max() == 16 and levels.min() >= 0 and levels.max() <= 255
    predicted = network.evaluate(levels.reshape(60, -1)).argmax(axis=1)
    statuses = np.array([one.status for one in found.outcomes[0]])
    broken_by = {one.broken_by for one in found.outcomes[0]}
    assert (predicted[statuses == "broken"] != images.labels[statuses == "broken"]).all()
    assert (
        {"broken", "proved", "wrong"} <= set(statuses)
        and "open" not in statuses
        and "square" in broken_by
    )
    right = network.evaluate(clean.reshape(60, -1)).argmax(axis=1) == images.labels
    np.testing.assert_array_equal(right, statuses != "wrong")
    generator = np.random.default_rng(0)
    for image in np.flatnonzero(statuses == "proved"):
        near = clean[image].reshape(-1) + generator.choice([-16, 16], (50, 36))
        assert (network.evaluate(near.clip(0, 255)).argmax(axis=1) == images.labels[image]).all()


def test_network_that_quantizes_its_own_input_is_attacked_on_pixels_and_judged_by_onnxruntime() -> (
    None
):
    """An int8 convolution for pixels 0 to 255; the judge runs the file, the attack the integers."""
    with np.load(ROOT / "benchmarks" / "qnn_robustness" / "mnist_20.npz") as file:
        levels, labels = file["images"][:3, None], file["labels"][:3].astype(np.int64)
    network = ROOT / "tests" / "data" / "quant" / "made_mnist_conv_int8_qop.onnx"
    images = ImageSet("mnist", levels.astype(np.float32) / np.float32(255), labels)
    plan = Plan(network, Fraction(2, 5), std=(Fraction(1, 255),), attack="black-box", settings=CPU)
    found = evaluate(plan, images)
    (run,) = found.record["runs"]
    assert run["accuracy"]["clean"]["count"] == 3 > run["accuracy"]["attack"]["count"]
    assert not {"clean-disagreement", "unconfirmed"} & {
        warning["name"] for warning in run["warnings"]
    }
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for one in found.outcomes[0]:
        pixels = found.adversarial[0][one.image]
        logits = session.run(None, {name: (pixels / np.float32(1 / 255))[None].astype(np.float32)})[
            0
        ][0]
        assert (logits.argmax() == one.label) == (one.status != "broken")
    plain = evaluate(replace(plan, attack="pgd", steps=20, restarts=2), images).outcomes[0]
    assert "broken" in {one.status for one in plain}
    small = replace(plan, eps=Fraction(1, 255), attack="none", levels=("crown", "alpha", "bab"))
    assert "proved" in {one.status for one in evaluate(small, images).outcomes[0]}


def test_ties_go_to_the_first_output(integer_file: Path, data: Path) -> None:
    subject = IntegerSubject(NetworkFile(integer_file), (1, 6, 6))
    points = subject.space.points(read_images(data).images)
    outputs = subject.network.evaluate(subject.integers(points))
    logits = subject.classifier("")(points).numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1), outputs.argmax(axis=1))
    assert all(len(set(row)) == 3 for row in logits.tolist())
    assert any(len(set(row)) < 3 for row in outputs.tolist())


def test_integer_network_refuses_what_is_off_the_lattice(integer_file: Path, data: Path) -> None:
    images = read_images(data)
    other = ImageSet("half", (images.images / np.float32(2)), images.labels)
    with pytest.raises(DataError, match="1/255"):
        evaluate(Plan(integer_file, EPS, attack="standard", settings=CPU), other)
    for changes in (
        {"norm": "L2"},
        {"mean": (Fraction(1, 2),)},
        {"bpda": "identity"},
        {"levels": ("crown",)},
    ):
        with pytest.raises(SettingsError):
            evaluate(
                Plan(integer_file, EPS, **{"attack": "standard", "settings": CPU, **changes}),
                images,
            )
    with pytest.raises(SettingsError, match="suite"):
        evaluate(Plan(integer_file, EPS, settings=CPU), images)


def test_a_radius_between_levels_is_rounded_down() -> None:
    space = Space(255)
    assert space.ball("Linf", Fraction(1, 255)).eps == 1.0
    assert space.ball("Linf", Fraction(199, 25500)).eps == 1.0
    assert space.ball("Linf", Fraction(1, 256)).eps == 0.0
    points = space.points(
        (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(1, 1, 16, 16)
    )
    assert points.flatten().tolist() == list(range(256))


# -- torch networks and the zoo --------------------------------------------------------------------


def test_zoo_network_with_and_without_bpda(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are what the network says in the groups given, so it is right at first; both columns
    are printed."""
    network = build_network("small", seed=3)
    weights, data = tmp_path / "weights.npz", tmp_path / "data.npz"
    save_weights(network, weights)
    levels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    with torch.no_grad():
        pixels = torch.from_numpy(levels.astype(np.float32) / np.float32(255))
        labels = torch.cat([network(pixels[:2]), network(pixels[2:])]).argmax(dim=1).numpy()
    np.savez(data, x=levels, y=labels)
    arguments = [
        "evaluate",
        "zoo:small",
        "--weights",
        str(weights),
        "--data",
        str(data),
        "--eps",
        "8/255",
    ]
    arguments += [
        "--attack",
        "plus",
        "--batch",
        "2",
        "--bpda",
        "none,removed",
        "--out",
        str(tmp_path / "out"),
    ]
    assert (
        main(
            [*arguments, "--device", "cpu", "--threads", "1", "--html", str(tmp_path / "page.html")]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "Robust Accuracy without BPDA" in out and "Robust Accuracy with BPDA (removed)" in out
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    plain, substituted = record["runs"]
    assert plain["bpda"] is None and substituted["bpda"] == "removed"
    assert plain["accuracy"]["clean"]["count"] == 4 and plain["is_batch_dependent"]
    names = {warning["name"] for warning in plain["warnings"]}
    assert {"batch-dependent", "nan-gradient"} <= names
    names = {warning["name"] for warning in substituted["warnings"]}
    assert {"batch-dependent", "cross-sample-gradient"} <= names and "nan-gradient" not in names
    assert main([*arguments, "--device", "cpu", "--verify"]) == 2
    assert "cannot be verified" in capsys.readouterr().err


def test_a_large_gap_between_rules_is_a_warning(data: Path) -> None:
    """A network whose rounding hides its gradient: straight-through finds what its own gradients
    cannot."""
    images = read_images(data, first=40)
    weight = torch.linspace(-1, 1, 36)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        score = torch.round(8 * (x.flatten(1) @ weight)) / 8
        return torch.stack([score, 0.02 - score], dim=1)

    labels = rounded(torch.from_numpy(images.images)).argmax(dim=1).numpy()
    found = bitcrown.evaluate(
        rounded,
        images.images,
        labels,
        "12/255",
        attack="plus",
        bpda=("", "straight-through"),
        settings=CPU,
    )
    plain, substituted = found.record["runs"]
    gap = next(
        warning
        for warning in substituted["warnings"]
        if warning["name"] == "substitute-gradient-gap"
    )
    assert gap["measurement"]["without"] == plain["accuracy"]["attack"]["share"]
    assert (
        gap["measurement"]["with"]
        == substituted["accuracy"]["attack"]["share"]
        < gap["measurement"]["without"]
    )
    assert "substitute-gradient-gap" in found.table()


# -- the library -----------------------------------------------------------------------------------


def test_library_and_command_agree(classifier: Path, data: Path, finished: Evaluation) -> None:
    images = read_images(data)
    given = {"mean": ["0.25"], "std": [0.5], "settings": CPU}
    found = bitcrown.evaluate(str(classifier), images.images, images.labels, 16 / 255, **given)
    ignored = ("data", "model")
    strip = [
        {k: v for k, v in timeless(one.record).items() if k not in ignored}
        for one in (found, finished)
    ]
    assert strip[0] == strip[1]
    suite = bitcrown.attack(
        classifier, np.rint(images.images * 255).astype(np.uint8), images.labels, "16/255", **given
    )
    np.testing.assert_array_equal(suite.adversarial.numpy(), finished.adversarial[0])
    assert suite.broken_by == tuple(one.broken_by or None for one in finished.outcomes[0])


def test_numbers_mean_what_they_say() -> None:
    assert exact_radius("8/255") == exact_radius(8 / 255) == Fraction(8, 255)
    assert exact_radius(0.1) == Fraction(1, 10) and exact_radius(Fraction(1, 3)) == Fraction(1, 3)
    assert exact_radius(0.1 + 2.0**-55) != Fraction(1, 10) or 0.1 + 2.0**-55 == 0.1
    for wrong in ("x", float("nan"), float("inf"), "1/0"):
        with pytest.raises(BitcrownError):
            exact_radius(wrong)
