"""Robustness around one input: proofs that no sample contradicts, counterexamples that hold,
radii that are in order, and every kind of network and input."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import bitcrown
from bitcrown.cli.main import main
from bitcrown.errors import DataError, ModelError, SettingsError
from bitcrown.evaluation.question import (
    FileClassifier,
    Neighbourhood,
    open_classifier,
    weights_of,
)
from bitcrown.evaluation.radii import next_radius, radius_words
from bitcrown.evaluation.samples import sample_of
from bitcrown.spec.query import Compare, Const
from bitcrown.verdict import Status

ROOT = Path(__file__).resolve().parents[3]
INTEGERS = ROOT / "benchmarks" / "qnn_robustness" / "networks"
DIGITS = ROOT / "benchmarks" / "qnn_robustness" / "mnist_20.npz"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "cnn.onnx"
    save(network, torch.rand(1, 3, 8, 8), path)
    return path


def save(network: nn.Module, x: torch.Tensor, path: Path, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), dynamo=False, **options)


def classes(network: nn.Module, values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(values)).argmax(dim=1).numpy()
    return found


def test_proof_holds_for_samples_and_counterexample_for_the_module(
    network: nn.Module, image: torch.Tensor
) -> None:
    found = bitcrown.robust(network, image, "1/255", cpu_seconds=30)
    assert found.status is Status.UNSAT and found.adversarial is None
    assert "No image within 1/255" in found.sentence()
    generator = np.random.default_rng(0)
    moved = image.numpy() + generator.choice([-1, 0, 1], (500, 3, 8, 8)) / np.float32(255)
    assert (classes(network, moved.clip(0, 1).astype(np.float32)) == found.label).all()
    found = bitcrown.robust(network, image, "60/255", cpu_seconds=30)
    assert found.status is Status.SAT and found.adversarial is not None
    assert np.abs(found.adversarial.astype(np.float64) - image.numpy()).max() <= 60 / 255
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    assert classes(network, found.adversarial[None])[0] == found.seen != found.label


def test_exported_program_and_file_say_the_same(
    network: nn.Module, image: torch.Tensor, file: Path
) -> None:
    program = torch.export.export(network, (image[None],))
    for model in (program, file, str(file)):
        assert bitcrown.robust(model, image, "1/255", cpu_seconds=30).status is Status.UNSAT
    assert network.training is False


def test_module_is_left_in_its_mode_and_asked_in_evaluation_mode(image: torch.Tensor) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.99), nn.Linear(192, 3)).train()
    first = bitcrown.robust(module, image, 0, cpu_seconds=30)
    assert module.training and first.status is Status.UNSAT
    assert first.label == classes(module.eval(), image[None].numpy())[0]


def test_what_is_no_network(image: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="a torch module or an exported program"):
        bitcrown.robust(lambda x: x, image, 0.1)

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such layer")

    with pytest.raises(ModelError, match="torch cannot export Broken: no such layer"):
        bitcrown.robust(Broken(), image, 0.1)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_balls(network: nn.Module, image: torch.Tensor, norm: str) -> None:
    """A counterexample lies in the ball; a proof for the box is one for the ball."""
    order = {"L2": 2, "L1": 1}[norm]
    assert bitcrown.robust(network, image, 1e-3, norm=norm, cpu_seconds=30).status is Status.UNSAT
    found = bitcrown.robust(network, image, 3 * 8 ** (2 - order), norm=norm, cpu_seconds=30)
    assert found.status is Status.SAT and found.adversarial is not None
    moves = (found.adversarial.astype(np.float64) - image.numpy()).ravel()
    assert np.linalg.norm(moves, order) <= 3 * 8 ** (2 - order)
    assert classes(network, found.adversarial[None])[0] != found.label
    # Larger than what its box lets prove, smaller than what an attack breaks: open, with advice.
    radii = [Fraction(k, 20) for k in (1, 3, 9)]
    seen = [bitcrown.robust(network, image, r, norm=norm, cpu_seconds=2) for r in radii]
    assert Status.ERROR not in {one.status for one in seen}
    assert all("ball" in one.verdict.detail for one in seen if one.status is Status.UNKNOWN)


def test_mask_map_and_target(network: nn.Module, image: torch.Tensor) -> None:
    mask = np.zeros((8, 8))
    mask[:2, :3] = 1
    found = bitcrown.robust(network, image, 1, mask=mask, cpu_seconds=60)
    values = found.original if found.adversarial is None else found.adversarial
    assert (values[:, mask == 0] == image.numpy()[:, mask == 0]).all()
    weights = np.linspace(0, 1, 64).reshape(8, 8)
    moved = bitcrown.robust(network, image, "200/255", eps_map=weights, cpu_seconds=60)
    assert moved.adversarial is not None
    room = weights * 200 / 255 * (1 + 1e-12)
    assert (np.abs(moved.adversarial.astype(np.float64) - image.numpy()) <= room).all()
    label = found.label
    for target in ((label + step) % 10 for step in range(4)):
        if target == label:
            with pytest.raises(SettingsError, match="is the class of the input itself"):
                bitcrown.robust(network, image, 0.1, target=target)
            continue
        one = bitcrown.robust(network, image, "5/255", target=target, cpu_seconds=30)
        if one.adversarial is not None:
            with torch.no_grad():
                logits = network(torch.from_numpy(one.adversarial[None]))[0]
            assert logits[target] >= logits[label] - 1e-6


def test_radius_is_in_order(network: nn.Module, image: torch.Tensor) -> None:
    found = bitcrown.robust(network, image, "1/255", radius=True, cpu_seconds=60)
    assert found.proved is not None and found.broken is not None
    assert 0 < found.proved < found.broken
    assert bitcrown.robust(network, image, found.proved, cpu_seconds=60).status is Status.UNSAT
    assert found.adversarial is not None
    distance = np.abs(found.adversarial.astype(np.float64) - image.numpy()).max()
    assert distance <= found.broken <= Fraction(float(distance)) * (1 + Fraction(1, 10**12))
    assert "which is proved" in found.sentence()


def test_label_that_the_network_does_not_give(network: nn.Module, image: torch.Tensor) -> None:
    own = int(classes(network, image[None].numpy())[0])
    found = bitcrown.robust(network, image, 0, label=(own + 1) % 10)
    assert found.sentence() == f"the input itself is classified {own}, not {(own + 1) % 10}."
    with pytest.raises(SettingsError, match="classes 0 to 9"):
        bitcrown.robust(network, image, 0, label=10)


def test_normalised_input_is_asked_in_pixels(image: torch.Tensor) -> None:
    """The network sees (x - mean) / std; the radius and the counterexample are pixels."""
    torch.manual_seed(3)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner((x - 0.5) / 0.25)

    for eps in ("1/255", "30/255"):
        plain = bitcrown.robust(Outer(), image, eps, cpu_seconds=30)
        named = bitcrown.robust(inner, image, eps, mean=["0.5"], std=["0.25"], cpu_seconds=30)
        assert plain.status is named.status and plain.label == named.label
    assert named.adversarial is not None
    assert np.abs(named.adversarial.astype(np.float64) - image.numpy()).max() <= 30 / 255


@pytest.mark.parametrize("order", ["chw", "hwc"])
def test_brightness_and_contrast(image: torch.Tensor, tmp_path: Path, order: str) -> None:
    """Two numbers: whether they are robust can be seen on a grid, and the search is complete."""
    torch.manual_seed(1)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2) if order == "hwc" else x)

    network = Last().eval()
    path = tmp_path / "net.onnx"
    shape = (1, 3, 8, 8) if order == "chw" else (1, 8, 8, 3)
    save(network, torch.rand(*shape), path, opset_version=17)
    mean, std = ["0.4", "0.5", "0.6"], ["0.25", "0.5", "0.3"]

    def seen(values: np.ndarray) -> np.ndarray:
        rows = (np.array([float(v) for v in row], np.float32)[:, None, None] for row in (mean, std))
        centre, scale = rows
        moved = torch.from_numpy((values - centre) / scale)
        with torch.no_grad():
            found: np.ndarray = network.inner(moved).argmax(dim=1).numpy()
        return found

    statuses = set()
    grid = np.linspace(-1, 1, 21, dtype=np.float32)
    for brightness, contrast in (("0.01", "0.01"), ("0", "0.02"), ("0.9", "0.9")):
        found = bitcrown.robust(
            path,
            image,
            0,
            brightness=brightness,
            contrast=contrast,
            mean=mean,
            std=std,
            cpu_seconds=30,
        )
        statuses.add(found.status)
        pairs = [(b * float(brightness), c * float(contrast)) for b in grid for c in grid]
        x = image.numpy()
        lit = np.stack([np.clip(0.5 + (1 + c) * (x - 0.5) + b, 0, 1) for b, c in pairs])
        kept = (seen(lit.astype(np.float32)) == found.label).all()
        assert kept or found.status is Status.SAT
        if found.adversarial is not None:
            assert seen(found.adversarial[None])[0] == found.seen != found.label
            design = np.stack([np.ones(x.size), (x - 0.5).ravel()], axis=1)
            free = (found.adversarial > 0) & (found.adversarial < 1)
            move = (found.adversarial - x)[free]
            rest = np.linalg.lstsq(design[free.ravel()], move, rcond=None)[1]
            assert not rest.size or rest[0] < 1e-6
    assert statuses == {Status.UNSAT, Status.SAT}
    with pytest.raises(SettingsError, match="asked by themselves"):
        bitcrown.robust(path, image, 0, brightness="0.1", radius=True)


def test_arrays_of_any_shape_and_range() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = np.array([5.0, -3.0, 0.5, 2.0, 1.0, -7.0])
    found = bitcrown.robust(network, x, "0.001", cpu_seconds=30)
    assert found.status is Status.UNSAT and "(any numbers)" in found.sentence()
    with pytest.raises(DataError, match="outside"):
        bitcrown.robust(network, x, "0.001", limits=(0, 1))
    with pytest.raises(DataError, match="NaN or infinite"):
        bitcrown.robust(network, np.full(6, np.nan), "0.001")


def test_free_extents_are_those_of_the_image(tmp_path: Path, image: torch.Tensor) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    ).eval()
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    path = tmp_path / "free.onnx"
    save(network, image[None], path, input_names=["x"], dynamic_axes=axes)
    found = bitcrown.robust(path, image, "1/1000", cpu_seconds=30)
    assert found.label == classes(network, image[None].numpy())[0]
    with pytest.raises(ModelError, match="free extents"):
        bitcrown.robust(path, image.numpy().ravel(), "1/1000")


@pytest.mark.parametrize("name", ["mnist_mlp.onnx"])
def test_integer_networks(name: str) -> None:
    """The radius is whole levels, and the first of equal outputs wins."""
    for index in range(3):
        word = f"{DIGITS}:{index}"
        proved = bitcrown.robust(INTEGERS / name, word, "1/255", cpu_seconds=30)
        assert proved.status is Status.UNSAT
        broken = bitcrown.robust(INTEGERS / name, word, "120/255", cpu_seconds=30)
        assert broken.status is Status.SAT and broken.adversarial is not None
        levels = np.rint(broken.adversarial * 255)
        assert np.abs(levels - np.rint(broken.original * 255)).max() <= 120
        session = onnxruntime.InferenceSession(str(INTEGERS / name))
        (outputs,) = session.run(
            None, {session.get_inputs()[0].name: levels.astype(np.uint8).reshape(1, -1)}
        )
        assert int(outputs[0].argmax()) == broken.seen != broken.label


@pytest.mark.parametrize("eps", ["2/255", "60/255"])
def test_property_file_asks_the_same(
    file: Path, image: torch.Tensor, tmp_path: Path, eps: str
) -> None:
    place = tmp_path / "p.vnnlib"
    found = bitcrown.robust(file, image, eps, vnnlib=place, cpu_seconds=30)
    assert bitcrown.verify(bitcrown.load(file, place), cpu_seconds=30).status is found.status


def test_radii_in_words() -> None:
    words = [radius_words(Fraction(text)) for text in ("8/255", "2/17", "51/255", "1", "0.1", "0")]
    assert words == ["8/255", "30/255", "0.2", "1", "0.1", "0"]
    assert radius_words(Fraction(25, 2040)) == "0.0122549 (3.125/255)"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.rint(image.numpy() * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save("cat.png")
    return Path("cat.png")


def test_command_says_one_sentence_and_writes_the_counterexample(
    file: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robust", str(file), str(picture), "--eps", "1/255", "--cpu-seconds", "30"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("No image within 1/255 of cat.png (pixels in [0, 1]) changes")
    assert "next: --eps 2/255" in said.err
    words = ["--eps", "60/255", "--cpu-seconds", "30", "-q"]
    assert main(["robust", str(file), str(picture), *words]) == 0
    said = capsys.readouterr()
    assert "Written to cat-adversarial.npy and cat-adversarial.png." in said.out and not said.err
    values = np.load("cat-adversarial.npy")
    with Image.open("cat-adversarial.png") as written:
        pixels = np.asarray(written).transpose(2, 0, 1)
    assert np.abs(pixels / 255 - values).max() <= 0.5 / 255 + 1e-6


def test_command_in_json(file: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--eps", "60/255", "--cpu-seconds", "30", "--json"]
    assert main(["robust", str(file), str(picture), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == 1 and found["command"] == "robust" and found["status"] == "sat"
    assert found["files"] == ["cat-adversarial.npy", "cat-adversarial.png"]
    assert main(["robust", str(file), "gone.png", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "error" and "gone.png does not exist" in found["reason"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--norm", "L7"], "norm 'L7' is not known"),
        (["--normalisation", "cifar"], "--normalisation is one of"),
        (["--normalisation", "cifar10", "--mean", "0"], "not both"),
        (["--eps", "-1"], "eps must not be negative"),
        (["--eps", "8/0"], "a number such as"),
        (["--limits", "0"], "--limits takes none, or two numbers"),
        (["--mask", "cat.png"], "cannot be read"),
        (["--timeout", "nan"], "the time limit must be"),
    ],
)
def test_command_refuses_in_one_sentence(
    file: Path,
    picture: Path,
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["robust", str(file), str(picture), *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and len(said.err.splitlines()) == 1 and not said.out


# -- the box ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["chw", "hwc"])
@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("has_map", [False, True])
def test_box_holds_the_set_and_little_else(
    order: str, is_normalised: bool, has_map: bool, tmp_path: Path
) -> None:
    """Every image of the set, normalised in float32 or exactly, is an input of the box; the ends of
    the box are those of the set but for rounding."""

    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] * torch.tensor([1.0, 2.0, 3.0])

    shape = (3, 4, 5) if order == "chw" else (4, 5, 3)
    path = tmp_path / "net.onnx"
    save(Last(), torch.rand(1, *shape), path)
    generator = np.random.default_rng(5)
    image = generator.random((3, 4, 5)).astype(np.float32)
    image[0, 0] = [0, 1, 0.5, 1e-3, 0.999]
    mean, std = (Fraction(1, 3), Fraction(1, 2), Fraction(2, 5)), (Fraction(1, 4),) * 3
    sample = sample_of(image, "x")
    opened = open_classifier(
        path,
        sample,
        mean if is_normalised else None,
        std if is_normalised else None,
        "auto",
        tmp_path,
    )
    assert isinstance(opened, FileClassifier)
    weights = generator.random((4, 5)) if has_map else None
    eps = Fraction(20, 255)
    around = Neighbourhood(eps, "Linf", weights_of(sample, weights, None))
    ends = opened.query(around, 0, None).assertion.args[:-1]
    numbers = [
        [side.value for side in (one.left, one.right) if isinstance(side, Const)][0]
        for one in ends
        if isinstance(one, Compare)
    ]
    lower, upper = numbers[:60], numbers[60:]
    exact_eps = float(eps) * (np.ones((3, 4, 5)) if weights is None else weights[None])
    low = np.clip(image.astype(np.float64) - exact_eps, 0, 1)
    high = np.clip(image.astype(np.float64) + exact_eps, 0, 1)
    centre, scale = (np.array([float(v) for v in row])[:, None, None] for row in (mean, std))
    if not is_normalised:
        centre, scale = np.float64(0.0), np.float64(1.0)

    def flat(values: np.ndarray) -> np.ndarray:
        moved = (values - centre) / scale
        result: np.ndarray = (moved.transpose(1, 2, 0) if order == "hwc" else moved).ravel()
        return result

    for wanted, found in ((flat(low), lower), (flat(high), upper)):
        assert np.abs(wanted - np.array([float(v) for v in found])).max() < 2e-6
    for _ in range(20):
        image_of_set = generator.uniform(low, high).astype(np.float32)
        corner = generator.random(low.shape) < 0.3
        image_of_set = np.clip(np.where(corner, high, image_of_set), low, high)
        inputs = flat(image_of_set)
        assert all(
            float(a) - 1e-12 <= x <= float(b) + 1e-12
            for a, x, b in zip(lower, inputs.tolist(), upper, strict=True)
        )


@pytest.mark.parametrize("top", [None, Fraction(1)])
@pytest.mark.parametrize(
    ("proves", "breaks"),
    [
        (Fraction(1, 7), Fraction(1, 5)),
        (Fraction(1, 9000), Fraction(1, 2)),
        (Fraction(0), Fraction(1, 300)),
        (Fraction(3, 4), Fraction(99)),
        (Fraction(99), Fraction(99)),
    ],
)
def test_bisections_end_and_close_in(
    top: Fraction | None, proves: Fraction, breaks: Fraction
) -> None:
    """A verifier that proves up to ``proves`` and breaks from ``breaks`` on, simulated."""
    proved, broken, opened, eps = None, None, [], Fraction(1, 100)
    for _ in range(100):
        if eps <= proves:
            proved = max(proved or eps, eps)
        elif eps >= breaks:
            broken = min(broken or eps, eps)
        else:
            opened.append(eps)
        following = next_radius(proved, broken, opened, top)
        if following is None or following > 1000:
            break
        assert top is None or following <= top
        eps = following
    else:
        pytest.fail("it goes on for ever")
    reach = min(proves, top or 1000)
    if proves >= Fraction(1, 10**5):
        assert proved is not None and proved * Fraction(11, 10) >= reach / (1 if top else 2)
    if breaks <= (top or 1000):
        assert broken is not None and broken <= breaks * Fraction(11, 10)
