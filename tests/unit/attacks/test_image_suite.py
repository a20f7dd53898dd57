"""Suites: the same result for any batch size, order and interruption, and a state file that fits
one question only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_models import conv_net, some_images
from torch import Tensor

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.suite import SuiteResult, run_suite
from bitcrown.errors import SettingsError

IMAGES = some_images(40, 1)
NET = conv_net(2)
LABELS = NET(IMAGES).argmax(dim=1)
LABELS[:3] = (LABELS[:3] + 1) % 5
BALL = Ball("Linf", 0.06)
pytestmark = pytest.mark.usefixtures("short_suites")


class Interrupted(Exception):
    pass


def attack(
    batch: int = 40,
    ball: Ball = BALL,
    suite: str = "standard",
    resume: Path | None = None,
    stop_after: int = -1,
) -> SuiteResult:
    calls = []

    def progress(line: object) -> None:
        calls.append(line)
        if len(calls) == stop_after:
            raise Interrupted

    return run_suite(
        NET,
        IMAGES,
        LABELS,
        ball,
        suite=suite,
        seed=3,
        batch=batch,
        resume=resume,
        on_progress=progress,
    )


def same(first: SuiteResult, second: SuiteResult) -> bool:
    return first.broken_by == second.broken_by and torch.equal(
        first.adversarial, second.adversarial
    )


@pytest.mark.parametrize("norm,eps,suite", [
    ("Linf", 0.06, "standard"), ("L2", 0.3, "standard"), ("L1", 0.4, "standard"), ("Linf", 0.05,
    "plus"),
    ("Linf", 0.06, "black-box"), ("L2", 0.3, "rand"),
])  # fmt: skip
def test_results_do_not_depend_on_the_batch_and_hold_when_replayed(
    norm: str, eps: float, suite: str
) -> None:
    ball = Ball(norm, eps)
    whole, parts = attack(40, ball, suite), attack(7, ball, suite)
    assert same(whole, parts)
    assert [row[:3] for row in whole.per_attack] == [row[:3] for row in parts.per_attack]
    assert whole.clean_correct.tolist() == [False] * 3 + [True] * 37
    broken = torch.tensor([name is not None for name in whole.broken_by])
    assert 0 < int(broken.sum()) < 37
    assert bool((NET(whole.adversarial).argmax(dim=1) != LABELS)[broken].all())
    for k in broken.nonzero().flatten().tolist():
        assert int(NET(whole.adversarial[k : k + 1]).argmax()) != int(LABELS[k])
    assert whole.replay == (*(int(broken.sum()),) * 3, int(whole.standing().sum()))
    assert torch.equal(whole.adversarial[~broken], IMAGES[~broken])
    move = (whole.adversarial.double() - IMAGES.double()).flatten(1)
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}[norm]
    assert float(torch.linalg.vector_norm(move, ord=order, dim=1).max()) <= eps
    assert float(whole.adversarial.min()) >= 0.0 and float(whole.adversarial.max()) <= 1.0
    assert whole.robust_accuracy() == (37 - int(broken.sum())) / 40
    lower, upper = whole.interval()
    assert lower < whole.robust_accuracy() < upper


def test_an_image_fares_the_same_among_others() -> None:
    # Random numbers go by the number of the image, so the first half of a set keeps its numbers.
    half = run_suite(NET, IMAGES[:20], LABELS[:20], BALL, suite="standard", seed=3, batch=20)
    assert half.broken_by == attack().broken_by[:20]


def test_every_component_sees_only_what_stands() -> None:
    result = attack()
    left = 37
    idle = [row.name for row in result.per_attack if not row.broken]
    assert result.statements[0] == "only 4 of 9 target classes exist"
    assert result.statements[1:] == ((f"added nothing: {', '.join(idle)}",) if idle else ())
    for row in result.per_attack:
        assert row.attempted == left
        left -= row.broken
    assert left == int(result.standing().sum())


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    state = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        attack(8, resume=state, stop_after=stop_after)
    resumed = attack(16, resume=state)
    assert same(resumed, attack())
    assert not [path for path in tmp_path.iterdir() if path != state]
    again = attack(16, resume=state, stop_after=1)
    assert same(again, resumed), "nothing was left to do, so no batch was reported"


def test_a_state_of_another_question_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    attack(resume=state)
    with pytest.raises(SettingsError, match="another attack"):
        attack(ball=Ball("Linf", 0.07), resume=state)
    with pytest.raises(SettingsError, match="another network"):
        run_suite(
            conv_net(9), IMAGES, LABELS, BALL, suite="standard", seed=3, batch=40, resume=state
        )
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(SettingsError, match="not the state"):
        attack(resume=state)
    np.savez(state, a=np.arange(3))
    with pytest.raises(SettingsError, match="missing"):
        attack(resume=state)


@pytest.mark.parametrize(
    "classes,word", [(2, "DLR needs 3 classes"), (3, "targeted DLR needs 4 classes")]
)
def test_few_classes_are_handled_and_stated(classes: int, word: str) -> None:
    net = conv_net(5, classes)
    labels = net(IMAGES).argmax(dim=1)
    result = run_suite(net, IMAGES, labels, Ball("Linf", 0.1), suite="plus", seed=0, batch=40)
    assert any(word in sentence for sentence in result.statements)
    assert any(f"only {classes - 1} of 9" in sentence for sentence in result.statements)
    assert any(result.broken_by)


def test_networks_without_gradients_are_searched_at_random() -> None:
    def rounded(x: Tensor) -> Tensor:
        with torch.no_grad():
            return (NET(x) * 64).round()

    labels = rounded(IMAGES).argmax(dim=1)
    result = run_suite(
        rounded, IMAGES, labels, Ball("Linf", 0.15), suite="standard", seed=0, batch=40
    )
    assert [row.name for row in result.per_attack] == ["random", "square"]
    assert "no gradients: apgd-ce, apgd-t, fab-t did not run" in result.statements[0]
    broken = torch.tensor([name is not None for name in result.broken_by])
    assert bool(broken.any()) and bool(
        (rounded(result.adversarial).argmax(dim=1) != labels)[broken].all()
    )


def test_images_already_wrong_and_radius_zero() -> None:
    wrong = run_suite(NET, IMAGES, (LABELS + 1) % 5, BALL, suite="standard", seed=0, batch=40)
    assert wrong.clean_accuracy() == 3 / 40 or int(wrong.clean_correct.sum()) <= 3
    still = attack(ball=Ball("Linf", 0.0))
    assert still.robust_accuracy() == still.clean_accuracy() == 37 / 40
    assert still.statements[1:] == ("added nothing: apgd-ce, apgd-t, fab-t, square",)


@pytest.mark.parametrize("change,word", [
    ({"images": IMAGES * 255}, "scale the images"), ({"images": IMAGES.double()}, "float32"),
    ({"images": IMAGES[0]}, "images must be"), ({"labels": LABELS[:4]}, "labels must be"),
    ({"labels": LABELS + 5}, "last class"), ({"batch": 0}, "at least one image"),
    ({"suite": "best"}, "not known"),
])  # fmt: skip
def test_impossible_input_is_refused(change: dict[str, object], word: str) -> None:
    question = {"images": IMAGES, "labels": LABELS, "suite": "standard", "batch": 4} | change
    with pytest.raises(SettingsError, match=word):
        run_suite(NET, question.pop("images"), question.pop("labels"), BALL, seed=0, **question)
