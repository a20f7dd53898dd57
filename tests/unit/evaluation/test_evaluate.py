"""Evaluation end to end on a small trained network: columns agree image by image, runs resume,
errors are loud."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from small_classifier import blobs, train, write_classifier

from bitcrown.cli.main import main
from bitcrown.cluster.local import InTurn
from bitcrown.errors import DataError, ResourceError, SettingsError
from bitcrown.evaluation import accuracies
from bitcrown.evaluation.accuracies import Evaluator, ImageOutcome, selected
from bitcrown.evaluation.attacking import ball_of
from bitcrown.evaluation.boxes import ImageBoxes
from bitcrown.evaluation.data.sets import read_images
from bitcrown.evaluation.journal import ATTACK, BOUNDS, CLEAN, Journal
from bitcrown.evaluation.plan import Plan
from bitcrown.evaluation.proving import LEVELS, parse_levels
from bitcrown.evaluation.report.summary import Share, run_record, shares
from bitcrown.evaluation.report.tables import bounds_table
from bitcrown.evaluation.subjects import layer_count, parameter_count
from bitcrown.evaluation.workers import attack_block, prove_block, side_by_side
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.objective import objective_of
from bitcrown.settings import Settings

MEAN, STD = (Fraction("0.25"),), (Fraction("0.5"),)
EPS = Fraction(8, 255)


def plan_for(network: Path, **changes: object) -> Plan:
    values: dict[str, object] = {
        "mean": MEAN,
        "std": STD,
        "steps": 10,
        "restarts": 2,
        "levels": LEVELS,
        "seconds": 60.0,
        "counts_cpu": True,
        "settings": Settings(device="cpu", memory_gib=1.0),
    }
    return Plan(network, **{"eps": EPS, **values, **changes})  # type: ignore[arg-type]


def identity(plan: Plan) -> dict[str, Any]:
    return plan.identity(NetworkFile(Path(plan.network)).digest)


def evaluate(
    plan: Plan, data: Path, folder: Path | None = None
) -> tuple[Evaluator, list[ImageOutcome]]:
    evaluator = Evaluator(plan, read_images(data), Journal(folder, identity(plan)))
    return evaluator, evaluator.run()


def logits_of(network: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    inputs = (image - np.float32(0.25)) / np.float32(0.5)
    result: np.ndarray = session.run(None, {"x": inputs[None].astype(np.float32)})[0][0]
    return result


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained network; it is right on most images of ``blobs``."""
    return write_classifier(
        tmp_path_factory.mktemp("small") / "small.onnx", train(*blobs(200), 150)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = blobs(24, seed=7)
    path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    np.savez(path, x=images, y=labels)
    return path


@pytest.fixture(scope="module")
def finished(
    classifier: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluator, list[ImageOutcome], Path]:
    folder = tmp_path_factory.mktemp("out") / "run"
    evaluator, outcomes = evaluate(plan_for(classifier), data, folder)
    return evaluator, outcomes, folder


Finished = tuple[Evaluator, list[ImageOutcome], Path]


def test_every_status_is_what_onnxruntime_and_sampling_say(
    finished: Finished, classifier: Path, data: Path
) -> None:
    evaluator, outcomes, _ = finished
    images = read_images(data)
    generator = np.random.default_rng(0)
    assert {one.status for one in outcomes} >= {"wrong", "broken", "proved"}
    for one in outcomes:
        image, label = images.images[one.image], int(images.labels[one.image])
        logits = logits_of(classifier, image)
        assert one.is_right == (logits.argmax() == label) and one.predicted == logits.argmax()
        if one.status == "broken":
            pixels = evaluator.journal.stored(one.image)
            assert pixels is not None and pixels.min() >= 0 and pixels.max() <= 1
            assert np.abs(pixels.astype(np.float64) - image).max() <= float(EPS)
            assert logits_of(classifier, pixels).argmax() != label
        if one.status == "proved":
            for _ in range(20):
                move = generator.choice([-1.0, 1.0], image.shape) * float(EPS)
                assert (
                    logits_of(classifier, np.clip(image + move, 0, 1).astype(np.float32)).argmax()
                    == label
                )


def test_columns_decrease_and_match_the_images(finished: Finished) -> None:
    _, outcomes, _ = finished
    rows = {row.name: row.count for row in shares(outcomes, LEVELS, True)}
    assert (
        rows["crown"]
        <= rows["alpha"]
        <= rows["bab"]
        <= rows["attack"]
        <= rows["clean"]
        < len(outcomes)
    )
    assert rows["crown"] < rows["alpha"] < rows["bab"] < rows["clean"]
    assert not any(one.is_contradiction for one in outcomes)
    assert rows["clean"] == sum(one.status != "wrong" for one in outcomes)
    chosen = selected(outcomes)
    assert chosen == sorted(chosen) and rows["attack"] - rows["crown"] == len(chosen)


def test_what_the_search_breaks_is_counted_beside_the_attack() -> None:
    """Six images: wrong, broken by the attack, broken by the search, proved twice, open."""
    plain: dict[str, Any] = {"label": 0, "predicted": 0, "margin": 1.0, "is_right": True}
    six = [
        ImageOutcome(0, label=0, predicted=1, margin=-1.0, is_right=False),
        ImageOutcome(1, **plain, broken_by="pgd"),
        ImageOutcome(2, **plain, broken_by="search"),
        ImageOutcome(3, **plain, proved_by="crown"),
        ImageOutcome(4, **plain, proved_by="bab"),
        ImageOutcome(5, **plain),
    ]
    assert [one.status for one in six] == ["wrong", "broken", "broken", "proved", "proved", "open"]
    rows = {row.name: row.count for row in shares(six, LEVELS, True)}
    assert rows == {"clean": 5, "crown": 1, "alpha": 1, "bab": 2, "attack": 4, "standing": 3}
    assert selected(six) == [4, 5]
    assert ImageOutcome(6, **plain, broken_by="pgd", proved_by="bab").is_contradiction


def test_an_interrupted_run_goes_on_and_ends_the_same(
    finished: Finished, classifier: Path, data: Path, tmp_path: Path
) -> None:
    _, outcomes, folder = finished
    lines = (folder / "images.jsonl").read_bytes().splitlines(keepends=True)
    clean = [line for line in lines if json.loads(line)["stage"] == CLEAN]
    attacked = [line for line in lines if json.loads(line)["stage"] == ATTACK]
    (tmp_path / "setup.json").write_bytes((folder / "setup.json").read_bytes())
    (tmp_path / "images.jsonl").write_bytes(b"".join([*clean[:10], clean[10][:20]]))
    evaluator, again = evaluate(plan_for(classifier), data, tmp_path)
    strip = [(one.image, one.status, one.broken_by, one.proved_by, one.bound) for one in outcomes]
    assert [
        (one.image, one.status, one.broken_by, one.proved_by, one.bound) for one in again
    ] == strip
    kept = (tmp_path / "images.jsonl").read_bytes().splitlines(keepends=True)
    assert kept[:10] == clean[:10] and len(evaluator.journal.findings[ATTACK]) == len(attacked)


def test_a_finished_run_does_nothing_again(
    finished: Finished, classifier: Path, data: Path
) -> None:
    _, outcomes, folder = finished
    before = (folder / "images.jsonl").read_bytes()
    _, again = evaluate(plan_for(classifier), data, folder)
    assert (folder / "images.jsonl").read_bytes() == before and again == outcomes


def test_more_levels_may_follow_in_the_same_folder(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    _, few = evaluate(plan_for(classifier, levels=LEVELS[:1]), data, tmp_path)
    _, more = evaluate(plan_for(classifier), data, tmp_path)
    assert {one.proved_by for one in few} == {"", "crown"}
    assert [one.image for one in few if one.proved_by] == [
        one.image for one in more if one.proved_by == "crown"
    ]
    assert sum(bool(one.proved_by) for one in more) > sum(bool(one.proved_by) for one in few)


def test_batch_size_changes_no_result(finished: Finished, classifier: Path, data: Path) -> None:
    _, outcomes, _ = finished
    _, again = evaluate(plan_for(classifier, batch=3, levels=LEVELS[:1]), data)
    assert [one.broken_by == "pgd" for one in again] == [one.broken_by == "pgd" for one in outcomes]


def test_two_jobs_prove_the_same(finished: Finished, classifier: Path, data: Path) -> None:
    _, outcomes, _ = finished
    _, again = evaluate(plan_for(classifier, jobs=2), data)
    assert [(one.image, one.proved_by, one.bound) for one in again] == [
        (one.image, one.proved_by, one.bound) for one in outcomes
    ]


def test_attacks_side_by_side_find_the_same(
    classifier: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point by point, in real processes: what they find has to come back out of them."""
    monkeypatch.setattr(accuracies, "_ATTACK_BLOCK", 7)
    images, found = read_images(data), []
    for jobs in (1, 2):
        plan = plan_for(classifier, levels=(), jobs=jobs)
        evaluator = Evaluator(plan, images, Journal(None, identity(plan)))
        evaluator.run()
        found.append((evaluator.journal.findings["attack"], evaluator.adversarial()))
    assert found[0][0] == found[1][0] and any(one["broken"] for one in found[0][0].values())
    assert np.array_equal(found[0][1], found[1][1])


def test_a_cluster_without_work_for_it_is_refused(
    classifier: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(classifier), "--data", str(data), "--eps", "1/255", "--ray", "local"]
    words += ["--attack", "standard"]
    assert main(words) == 2 and "give --attack pgd, --bounds" in capsys.readouterr().err


def test_another_network_at_the_path_proves_nothing(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    """What workers open must be what was judged and attacked."""
    other = tmp_path / "small.onnx"
    other.write_bytes(classifier.read_bytes())
    plan, images = plan_for(other), read_images(data)
    shape, block = images.shape, ([0], images.images[:1], images.labels[:1], np.zeros(1, bool))
    write_classifier(other, [1.5 * weight for weight in train(*blobs(8), 1)])
    for work, given in ((prove_block, block), (attack_block, block[:3])):
        digest = NetworkFile(classifier).digest
        with pytest.raises(ResourceError, match="another network"):
            list(side_by_side(work, InTurn(), plan, digest, shape, [given]))


def test_another_evaluation_in_the_folder_is_refused(
    finished: Finished, classifier: Path, data: Path
) -> None:
    folder = finished[2]
    with pytest.raises(SettingsError, match="eps"):
        Journal(folder, identity(plan_for(classifier, eps=Fraction(1, 255))))
    images = read_images(data)
    other = type(images)(images.name, images.images[::-1].copy(), images.labels[::-1].copy())
    plan = plan_for(classifier)
    with pytest.raises(SettingsError, match="another one"):
        Evaluator(plan, other, Journal(folder, identity(plan))).run()


def test_a_damaged_adversarial_image_is_noticed(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    plan = plan_for(classifier, levels=LEVELS[:1])
    _, outcomes = evaluate(plan, data, tmp_path)
    broken = next(one.image for one in outcomes if one.broken_by)
    np.save(tmp_path / "adversarial" / f"{broken:05d}.npy", read_images(data).images[broken])
    with pytest.raises(DataError, match="does not hold"):
        evaluate(plan, data, tmp_path)


def test_broken_and_proved_is_reported_as_wrong(
    classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal with a false proof of a broken image: the command says so and fails."""
    plan = plan_for(classifier, levels=LEVELS[:1])
    evaluator, outcomes = evaluate(plan, data, tmp_path / "Linf-8_255")
    broken = next(one.image for one in outcomes if one.broken_by)
    found = evaluator.journal.get(BOUNDS, broken)
    assert found is not None
    evaluator.journal.add(BOUNDS, broken, {**found, "proved_by": "crown"})
    arguments = [
        "evaluate",
        str(classifier),
        "--data",
        str(data),
        "--eps",
        "8/255",
        "--mean",
        "0.25",
        "--std",
        "0.5",
    ]
    arguments += [
        "--steps",
        "10",
        "--restarts",
        "2",
        "--cpu-seconds-per-image",
        "60",
        "--out",
        str(tmp_path),
    ]
    arguments += ["--bounds", "crown"]
    assert (
        main(
            [
                *arguments,
                "--html",
                str(tmp_path / "page.html"),
                "--device",
                "cpu",
                "--memory-gib",
                "1",
            ]
        )
        == 1
    )
    assert not (tmp_path / "page.html").exists()
    assert f"[{broken}]" in capsys.readouterr().err


def test_command_writes_table_record_and_list(
    finished: Finished,
    classifier: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, outcomes, _ = finished
    arguments = [
        "evaluate",
        str(classifier),
        "--data",
        str(data),
        "--eps",
        "8/255",
        "--mean",
        "0.25",
        "--std",
        "0.5",
    ]
    arguments += ["--steps", "10", "--restarts", "2", "--first", "20", "--out", str(tmp_path)]
    code = main(
        [*arguments, "--select", str(tmp_path / "list.txt"), "--device", "cpu", "--memory-gib", "1"]
    )
    assert code == 0
    whole = json.loads((tmp_path / "record.json").read_text())
    (record,) = whole["runs"]
    printed = capsys.readouterr().out
    first = outcomes[:20]
    assert (
        record["accuracy"]["clean"]["count"] == sum(one.is_right for one in first)
        and record["images"] == 20
    )
    assert f"{100 * record['accuracy']['clean']['share']:.2f} %" in printed
    assert (
        sum(record["proved_by"].values()) + sum(record["broken_by"].values())
        <= record["accuracy"]["clean"]["count"]
    )
    assert (
        record["eps"] == "8/255"
        and record["contradictions"] == []
        and len(record["per_image"]) == 20
    )
    numbers = [int(line) for line in (tmp_path / "list.txt").read_text().split()]
    assert numbers == [
        one.image
        for one in first
        if one.is_right and one.broken_by != "pgd" and one.proved_by != "crown"
    ]


def test_bad_options_are_one_sentence(
    classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["evaluate", str(classifier), "--data", str(data)]
    for extra in (
        ["--eps", "x"],
        ["--eps", "2"],
        ["--eps", "1/255", "--bounds", "magic"],
        ["--eps", "1/255", "--mean", "0,0,0"],
        ["--eps", "1/255", "--std", "0"],
        ["--eps", "1/255", "--steps", "0", "--select", str(tmp_path / "list")],
        ["--eps", "1/255", "--first", "0"],
        ["--eps", "1/255", "--crop", "7"],
    ):
        assert main([*plain, *extra]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_box_holds_both_readings_and_little_more(classifier: Path, data: Path) -> None:
    images = read_images(data).images[:4]
    evaluator = Evaluator(plan_for(classifier), read_images(data), Journal(None, {}))
    boxes = ImageBoxes(evaluator.subject.layout, EPS)
    lower, upper = boxes.outward(images)
    eps, mean, std = np.float32(8 / 255), np.float32(0.25), np.float32(0.5)
    single = [((np.clip(images + move, 0, 1) - mean) / std).reshape(4, -1) for move in (-eps, eps)]
    assert (lower <= single[0]).all() and (upper >= single[1]).all()
    limits = ball_of(EPS).limits(torch.from_numpy(images))
    inputs = [((pixels.numpy() - mean) / std).reshape(4, -1) for pixels in limits]
    assert (lower <= inputs[0]).all() and (upper >= inputs[1]).all()
    for k in range(4):
        exact_lower, exact_upper = boxes.exact(images[k])
        for i in range(36):
            pixel = Fraction(float(images[k].ravel()[i]))
            ends = [
                (min(max(pixel + move, Fraction(0)), Fraction(1)) - MEAN[0]) / STD[0]
                for move in (-EPS, EPS)
            ]
            assert Fraction(lower[k, i]) <= exact_lower[i] <= ends[0]
            assert Fraction(upper[k, i]) >= exact_upper[i] >= ends[1]
            assert upper[k, i] - lower[k, i] <= float(ends[1] - ends[0]) + 1e-6


def test_problem_and_rows_ask_the_same(classifier: Path, data: Path) -> None:
    """The objective that is bounded equals the one that the verifier would make of the property."""
    evaluator = Evaluator(plan_for(classifier), read_images(data), Journal(None, {}))
    boxes = ImageBoxes(evaluator.subject.layout, EPS)
    image, label = read_images(data).images[3], int(read_images(data).labels[3])
    made = objective_of(boxes.problem(image, label, 3, classifier))
    lower, upper = boxes.outward(image[None])
    rows = boxes.objective(lower[0], upper[0], label, 3)
    for name in ("C", "rhs", "lower", "upper", "box"):
        np.testing.assert_array_equal(getattr(made, name), getattr(rows, name))
    assert made.D is None and rows.D is None


def test_wilson_interval_and_levels() -> None:
    low, high = Share("clean", 60, 100).interval()
    assert (round(low, 4), round(high, 4)) == (0.5020, 0.6906)
    for count in (0, 10):
        low, high = Share("clean", count, 10).interval()
        assert 0.0 <= low <= count / 10 <= high <= 1.0 and low < high
    for few, many in pairwise((10, 100, 1000)):
        width = [
            high - low for low, high in (Share("c", n // 2, n).interval() for n in (few, many))
        ]
        assert width[1] < width[0]
    assert parse_levels("bab") == LEVELS and parse_levels("crown") == ("crown",)
    assert parse_levels("crown, alpha") == ("crown", "alpha")


def test_size_and_layers(classifier: Path, finished: Finished) -> None:
    assert parameter_count(NetworkFile(classifier)) == 4 * 9 + 4 + 36 * 24 + 24 + 24 * 3 + 3
    assert layer_count(read_graph(classifier)) == 3
    evaluator, outcomes, _ = finished
    text = bounds_table("small", run_record(evaluator, outcomes, 1.0), "blobs")
    assert "| small " in text and "PGD-10x2 acc." in text
