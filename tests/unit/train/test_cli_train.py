"""The train command: a folder with checkpoint, network and record; resumable; one sentence for what
is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_task import tiny_images

from bitcrown.cli.main import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    x, y = tiny_images(0, 60)
    wide = np.repeat(np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4))), 3, axis=1)
    np.savez(tmp_path / "images.npz", images=wide, labels=y)
    return tmp_path / "images.npz"


def command(images: Path, out: Path, *more: str) -> list[str]:
    words = [
        "train",
        "--model",
        "resnet_mini",
        "--data",
        str(images),
        "--held-out",
        str(images),
        "--out",
        str(out),
    ]
    words += [
        "--eps",
        "1/255",
        "--classes",
        "4",
        "--input",
        "3,16,16",
        "--epochs",
        "2",
        "--batch",
        "30",
    ]
    return [
        *words,
        "--mean",
        "0.4,0.4,0.4",
        "--std",
        "0.2,0.2,0.2",
        "--padding",
        "0",
        "--threads",
        "1",
        *more,
    ]


def test_a_run_can_stop_and_go_on(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(images, whole)) == 0
    assert main(command(images, parts, "--minutes", "0")) == 0
    assert "--resume" in capsys.readouterr().err
    assert json.loads((parts / "record.json").read_text())["epochs_done"] == 1
    assert main(command(images, parts, "--resume")) == 0
    assert capsys.readouterr().out.strip() == str(parts / "resnet_mini.onnx")

    record = json.loads((parts / "record.json").read_text())
    assert record["epochs_done"] == 2 and len(record["history"]) == 2 and record["images"] == 60
    assert record["settings"]["eps"] == 1 / 255 and record["normalisation"]["std"] == [
        0.2,
        0.2,
        0.2,
    ]
    assert (
        0
        <= record["history"][-1]["held_out_crown_ibp"]
        <= record["history"][-1]["held_out_accuracy"]
        <= 1
    )
    assert (whole / "resnet_mini.onnx").read_bytes() == (parts / "resnet_mini.onnx").read_bytes()
    session = onnxruntime.InferenceSession(
        str(parts / "resnet_mini.onnx"), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"x": np.zeros((1, 3, 16, 16), np.float32)})
    assert logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--model", "resnet50"], "no architecture"),
        (["--eps", "big"], "radius"),
        (["--data", "nowhere.npz"], "does not exist"),
        (["--classes", "3"], "3 classes"),
        (["--method", "magic"], "one of natural"),
        (["--input", "3,16"], "3 numbers"),
        (["--input", "3,20,20"], "20x20"),
        (["--device", "cuda"], "cuda"),
    ],
)
def test_bad_input_is_one_sentence(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    sentence: str,
) -> None:
    import torch

    if change == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(command(images, tmp_path / "out", *change)) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_folder_is_not_written_over(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(images, tmp_path / "out", "--minutes", "0")) == 0
    assert main(command(images, tmp_path / "out")) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(command(images, tmp_path / "out", "--resume", "--seed", "1")) == 2
    assert "other options" in capsys.readouterr().err
