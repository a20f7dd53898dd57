"""The ResNet suite's generator against the published properties: names, order, time limits, text,
bounds.

What is published stands here as facts: the CSV, and for some files their length and some of their
bounds. With ``BITCROWN_RESNET_SPECS`` naming a folder that holds the published images
(``lucas_specs_*.npz``), the slow test writes all 98 properties and compares every bound with the
same arithmetic in torch, which the authors used.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.reader import read_query

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "benchmarks" / "cifar100_tinyimagenet_resnet"
SPECS = os.environ.get("BITCROWN_RESNET_SPECS", "")
SMALL = "CIFAR100_resnet_small_prop_idx_162_sidx_1236_eps_0.0039"
TINY = "TinyImageNet_resnet_medium_prop_idx_704_sidx_82_eps_0.0039"
LENGTHS = {
    SMALL: 339873,
    "CIFAR100_resnet_small_prop_idx_4322_sidx_9995_eps_0.0039": 339578,
    "CIFAR100_resnet_medium_prop_idx_3858_sidx_134_eps_0.0039": 340815,
    "CIFAR100_resnet_large_prop_idx_7201_sidx_107_eps_0.0039": 341666,
    "CIFAR100_resnet_super_prop_idx_5413_sidx_9987_eps_0.0039": 339309,
    TINY: 1037918,
    "TinyImageNet_resnet_medium_prop_idx_4912_sidx_9915_eps_0.0039": 1042211,
}
"""Bytes of some published files."""
BOUNDS = {
    SMALL: (
        67,
        {
            0: ("-1.8237640857696533", "-1.794421911239624"),
            3062: ("0.22115470468997955", "0.24956157803535461"),
        },
    ),
    TINY: (
        164,
        {
            9402: ("1.3459805250167847", "1.380653977394104"),
            9407: ("1.4500008821487427", "1.484674334526062"),
        },
    ),
}
"""Label and some (lower, upper) of published files."""


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SUITE))
    monkeypatch.delitem(sys.modules, "generate_properties", raising=False)
    module = import_module("generate_properties")
    monkeypatch.delitem(sys.modules, "generate_properties")
    return module


def published_rows() -> list[list[str]]:
    with (SUITE / "published_instances.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_seed_0_draws_the_published_properties_in_their_order(generator: ModuleType) -> None:
    tasks = generator.published_tasks(0, generator.MODELS, SUITE / "selected_list")
    assert [
        [f"{t.network}.onnx", f"{t.name}.vnnlib", str(t.seconds)] for t in tasks
    ] == published_rows()
    other = generator.published_tasks(1, generator.MODELS, SUITE / "selected_list")
    assert [t.name for t in other] != [t.name for t in tasks]


def test_selected_lists_have_the_published_lengths(generator: ModuleType) -> None:
    lists = [
        generator.read_list(SUITE / "selected_list" / f"{model.name}_list.txt")
        for model in generator.MODELS
    ]
    assert [len(entries) for entries in lists] == [1748, 1132, 942, 1130, 834]
    assert all(entries == sorted(set(entries)) and entries[-1] < 10000 for entries in lists)


@pytest.mark.parametrize("name", BOUNDS)
def test_boxes_of_single_pixels_are_the_published_ones(generator: ModuleType, name: str) -> None:
    """Each published pair of bounds is the box of exactly one 8-bit level."""
    dataset = generator.TINYIMAGENET if name == TINY else generator.CIFAR100
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (3, 256, 1))
    lower, upper = generator.input_box(generator.unit_pixels(levels), dataset)
    for index, (low, high) in BOUNDS[name][1].items():
        channel = index // dataset.size**2
        printed = {
            (repr(a), repr(b))
            for a, b in zip(
                lower[channel, :, 0].tolist(), upper[channel, :, 0].tolist(), strict=True
            )
        }
        assert (low, high) in printed


def test_text_means_what_was_asked(generator: ModuleType, tmp_path: Path) -> None:
    """bitcrown's own reader sees the box and one violated comparison for each other label."""
    dataset = generator.Dataset("CIFAR100", 4, 2, (0.5, 0.25, 0.125), (0.2, 0.3, 0.4))
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 2), dtype=np.uint8)
    image[0, 0] = 0, 255
    file = tmp_path / "p.vnnlib"
    file.write_text(generator.property_text(generator.unit_pixels(image), 2, dataset))
    problem = problem_from_query(read_query(file), {"N": tmp_path / "none.onnx"})
    lower, upper = generator.input_box(generator.unit_pixels(image), dataset)
    assert len(problem.cases) == 3
    for case, other in zip(problem.cases, (0, 1, 3), strict=True):
        assert [float(value) for value in case.lower] == lower.ravel().tolist()
        assert [float(value) for value in case.upper] == upper.ravel().tolist()
        (constraint,) = case.constraints
        terms = {monomial: int(value) for monomial, value in constraint.terms}
        assert (
            terms == {(12 + 2,): 1, (12 + other,): -1}
            and constraint.bound == 0
            and not constraint.strict
        )
    assert float(lower[0, 0, 0]) == -2.5 and float(upper[0, 0, 1]) == 2.5


def test_own_list(generator: ModuleType, tmp_path: Path) -> None:
    """Properties of another network, end to end through the script."""
    images = np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "six.npz", x=images, y=np.arange(6))
    (tmp_path / "list.txt").write_text("0\n2\n3\n5\n")
    own = f"tiny:{tmp_path / 'list.txt'}:2:60"
    command = [
        sys.executable,
        str(SUITE / "generate_properties.py"),
        "3",
        "--own",
        own,
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--cifar100", str(tmp_path / "six.npz")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "instances.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    numbers = generator.drawn([0, 2, 3, 5], 2, 3)
    assert rows == [
        ["onnx/tiny.onnx", f"generated_vnnlib/tiny_idx_{k}_eps_0.0039.vnnlib", "60"]
        for k in numbers
    ]
    first_line = (tmp_path / rows[0][1]).read_text().splitlines()[0]
    assert first_line == f"; CIFAR100 property with label: {numbers[0]}."
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 2 and "--cifar100" in missing.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not SPECS, reason="BITCROWN_RESNET_SPECS names no folder with the published images"
)
def test_all_published_properties(generator: ModuleType, tmp_path: Path) -> None:
    packs = {name: Path(SPECS) / f"lucas_specs_{name}.npz" for name in generator.DATASETS}
    command = [sys.executable, str(SUITE / "generate_properties.py"), "0", "--out", str(tmp_path)]
    for name, path in packs.items():
        command += [f"--{name}", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    made = (tmp_path / "cifar100_tinyimagenet_instances.csv").read_bytes()
    assert made == (SUITE / "published_instances.csv").read_bytes()
    compared = 0
    for name, path in packs.items():
        dataset = generator.DATASETS[name]
        with np.load(path, allow_pickle=False) as pack:
            mean, std = (
                torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std)
            )
            images = torch.from_numpy(pack["x"]).float() / 255
            lower, upper = (
                (torch.clip(images + move, 0, 1) - mean) / std for move in (-1 / 255, 1 / 255)
            )
            for k, spec in enumerate(pack["spec_name"].tolist()):
                text = (tmp_path / "generated_vnnlib" / spec).read_text()
                check_text(
                    text,
                    spec,
                    int(pack["label"][k]),
                    lower[k].flatten().tolist(),
                    upper[k].flatten().tolist(),
                )
                compared += 1
    assert compared == 98


def check_text(text: str, spec: str, label: int, lower: list[float], upper: list[float]) -> None:
    assert text.startswith(f"; CIFAR100 property with label: {label}.\n")
    found: dict[str, list[str]] = {"<=": [], ">=": []}
    for line in text.splitlines():
        if line.startswith("(assert (") and " X_" in line:
            relation, _, number = line.removeprefix("(assert (").rstrip(")").split()
            found[relation].append(number)
    assert [float(word) for word in found[">="]] == lower and [
        float(word) for word in found["<="]
    ] == upper
    name = spec.removesuffix(".vnnlib")
    if name in LENGTHS:
        assert len(text) == LENGTHS[name]
    for index, (low, high) in BOUNDS.get(name, (0, {}))[1].items():
        assert (found[">="][index], found["<="][index]) == (low, high)
