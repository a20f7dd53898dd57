"""Training does what it is for: certified networks verify, and an interrupted run ends like an
uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_task import EPS, NORMALISATION, tiny_data, tiny_run, tiny_settings

from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.errors import DataError, ModelError, SettingsError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.train.certified import margin_rows
from bitcrown.train.checkpoint import load_checkpoint, save_checkpoint
from bitcrown.train.images import Normalisation, cropped, drawn_crops, middle_crop
from bitcrown.train.onnx_export import write_onnx
from bitcrown.train.schedules import step_values
from bitcrown.train.settings import TrainSettings, radius_of
from bitcrown.train.step import parts_of
from bitcrown.train.training import Images, TrainingRun, accuracy, train


def trained(images: int = 1000, **changed: object) -> TrainingRun:
    run = tiny_run(epochs=4, **changed)
    for _ in train(run, tiny_data(0, images)):
        pass
    return run


def proved(run: TrainingRun, data: Images, path: Path) -> float:
    """Share of ``data`` that plain CROWN proves robust on the exported file, in float64 with
    rounding."""
    write_onnx(run.network, path)
    network = Network(read_graph(path), torch.float64)
    count = 0
    with torch.no_grad():
        for image, label in zip(data.images, data.labels, strict=True):
            box = NORMALISATION.box(image.unsqueeze(0).double(), EPS)
            enclosure = LayerBounder(network, 1 << 26, quick=False).run(*box)
            rows = margin_rows(network, label.reshape(1))
            rows = rows[:, torch.arange(4) != label]
            backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
            value = minimum(backward.run(output_seeds(network, rows)), *box, backward.gamma)
            count += bool((value > 0).all())
    return count / len(data.labels)


def test_certified_training_verifies_and_natural_training_does_not(tmp_path: Path) -> None:
    test = tiny_data(1, 60)
    natural, certified = trained(method="natural"), trained(method="certified", fusion="on")
    first, last = certified.history[1]["certified"], certified.history[-1]["certified"]
    assert certified.history[1]["eps"] <= certified.history[-1]["eps"] == pytest.approx(EPS)
    assert last < first
    claims = [accuracy(run, test) for run in (natural, certified)]
    proofs = [proved(run, test, tmp_path / "net.onnx") for run in (natural, certified)]
    assert claims[0]["accuracy"] > 0.8 and claims[1]["accuracy"] > 0.8
    assert proofs[1] > proofs[0] + 0.5
    for claim, proof in zip(claims, proofs, strict=True):
        assert claim["crown_ibp"] <= proof <= claim["accuracy"]


@pytest.mark.parametrize("method", ["adversarial", "mixed"])
def test_attacks_take_part(method: str) -> None:
    run = trained(images=400, method=method)
    assert (
        0 < run.history[-1]["natural"] < run.history[-1]["adversarial"] < 1.38
    )  # log 4 is a guess
    assert ("certified" in run.history[-1]) == (method == "mixed")


@pytest.mark.parametrize("every", [1, 3])
def test_a_mixed_loss_has_its_certified_part_every_so_many_steps(every: int) -> None:
    settings = tiny_settings(method="mixed", certified_every=every, eps_schedule="constant")
    kinds = [parts_of(settings, step_values(settings, 0.5), number) for number in range(1, 7)]
    assert [n for n, parts in enumerate(kinds, 1) if "certified" in parts] == list(
        range(every, 7, every)
    )
    assert all("adversarial" in parts for parts in kinds)
    alone = tiny_settings(method="certified", certified_every=every, eps_schedule="constant")
    assert "certified" in parts_of(alone, step_values(alone, 0.5), 1)


def test_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = tiny_data(0, 200)
    changes = {"epochs": 3, "padding": 1, "flip": "on", "method": "mixed", "certified_every": 2}
    whole, part = tiny_run(**changes), tiny_run(**changes)
    for _ in train(whole, data):
        pass
    for state in train(part, data, until=1):
        save_checkpoint(state, tmp_path / "c.pt")
    resumed = load_checkpoint(tmp_path / "c.pt")
    assert resumed.epoch == 1 and resumed.settings == part.settings
    for _ in train(resumed, data):
        pass
    assert resumed.epoch == 3
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.history]
        for r in (whole, resumed)
    ]
    assert without_time[0] == without_time[1]


def test_bad_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    with pytest.raises(ModelError, match="no checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)
    torch.save({"format": 1, "settings": {}}, path)
    with pytest.raises(ModelError, match="fit together"):
        load_checkpoint(path)
    torch.save({"format": 1, "code": Path("x")}, path)
    with pytest.raises(ModelError):
        load_checkpoint(path)


def test_data_that_does_not_fit_is_refused() -> None:
    data = tiny_data(0, 20)
    run = tiny_run()
    with pytest.raises(DataError, match="classes"):
        next(train(run, Images(data.images, data.labels + 4)))
    with pytest.raises(DataError, match="channels"):
        next(train(run, Images(data.images.expand(-1, 3, -1, -1), data.labels)))
    with pytest.raises(DataError, match="8x8"):
        next(train(run, Images(data.images[:, :, :6, :6], data.labels)))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        Images.of(data.images.numpy() * 255, data.labels.numpy(), torch.device("cpu"))


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    run = tiny_run(method="natural")
    with torch.no_grad():
        run.network.parts["hidden"].weight.fill_(torch.inf)
    with pytest.raises(SettingsError, match="not a number"):
        next(train(run, tiny_data(0, 100)))


@pytest.mark.parametrize("schedule", ["smooth", "linear", "constant"])
def test_radius_rises_to_its_full_value_without_jumps(schedule: str) -> None:
    settings = tiny_settings(
        eps_schedule=schedule, eps_start=0.2, eps_end=0.7, train_eps_factor=1.1, beta_end=0.0
    )
    values = [step_values(settings, t / 1000) for t in range(1001)]
    eps = [value.eps for value in values]
    assert eps == sorted(eps) and eps[-1] == pytest.approx(1.1 * EPS) == pytest.approx(eps[700])
    if schedule != "constant":
        assert (
            eps[200] == 0 and max(b - a for a, b in zip(eps, eps[1:], strict=False)) < 0.005 * EPS
        )
    assert values[-1].beta == pytest.approx(0) and values[-1].kappa == settings.kappa_end
    assert all(0 <= value.kappa <= 1 and 0 <= value.beta <= 1 for value in values)


@pytest.mark.parametrize("schedule", ["cosine", "steps", "constant"])
def test_learning_rate_warms_up_and_never_rises_again(schedule: str) -> None:
    settings = tiny_settings(learning_schedule=schedule, warm_up=0.1, learning_rate=0.01)
    rates = [step_values(settings, t / 100).learning_rate for t in range(101)]
    assert max(rates) == pytest.approx(0.01) and rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True) and min(rates) > 0


def test_settings_say_what_is_wrong() -> None:
    assert radius_of("1/255") == 1 / 255 and radius_of("0.5") == 0.5
    with pytest.raises(SettingsError, match="1/255"):
        radius_of("one")
    with pytest.raises(SettingsError, match="eps"):
        TrainSettings(eps=0.0)
    with pytest.raises(SettingsError, match="order"):
        TrainSettings(eps=0.1, eps_start=0.6, eps_end=0.5)
    with pytest.raises(SettingsError, match="option"):
        TrainSettings.from_mapping({"eps": 0.1, "epsilon": 3})


def test_augmented_images_are_shifted_and_mirrored_originals() -> None:
    image = torch.arange(1.0, 26.0).reshape(1, 1, 5, 5).expand(200, 1, 5, 5) / 25
    crops = drawn_crops(200, (2, 2), True, torch.Generator().manual_seed(0))
    made = cropped(image, crops, 5, 5, 1)
    padded = torch.nn.functional.pad(image[:1], [1] * 4)
    allowed = {
        tuple(view[0, 0, top : top + 5, left : left + 5].flatten().tolist())
        for view in (padded, padded.flip(3))
        for top in range(3)
        for left in range(3)
    }
    found = {tuple(one.flatten().tolist()) for one in made}
    assert found <= allowed and len(found) == len(allowed)


def test_boxes_are_clipped_before_normalisation() -> None:
    normalise = Normalisation((0.5,), (0.25,))
    box = normalise.box(torch.tensor([[[[0.0, 0.5, 1.0]]]]), 0.1)
    assert torch.allclose(box.lower, torch.tensor([[-2.0, -0.4, 1.6]]), atol=1e-6)
    assert torch.allclose(box.upper, torch.tensor([[-1.6, 0.4, 2.0]]), atol=1e-6)
    assert middle_crop(torch.arange(64.0).reshape(1, 1, 8, 8), 2, 2).flatten().tolist() == [
        27,
        28,
        35,
        36,
    ]
