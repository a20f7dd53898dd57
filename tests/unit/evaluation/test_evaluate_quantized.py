"""Networks that quantize their own input are attacked with gradients and proved as ``verify``
would, integers from end to end or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitcrown
from tests.quant_models import Writer


def classifier(folder: Path, has_floats: bool) -> Path:
    """The class of a 2 x 2 image is its brighter column."""
    w = Writer([1, 1, 2, 2], opset=13)
    x = w.add("Flatten", w.quantized("x", 1 / 255, 0, np.uint8))
    weight = w.weight([[1, -1], [-1, 1], [1, -1], [-1, 1]], 0.5)
    h = w.quantized(w.add("MatMul", x, weight), 1 / 64, 128, np.uint8)
    if has_floats:
        h = w.quantized(w.add("Tanh", h), 1 / 128, 128, np.uint8)
    return w.save(folder, h)


@pytest.mark.parametrize("has_floats", [False, True])
def test_small_balls_are_proved_and_large_ones_broken(has_floats: bool, tmp_path: Path) -> None:
    path = classifier(tmp_path, has_floats)
    images = np.array([[[[180, 80], [190, 70]]], [[[60, 200], [50, 210]]]], np.uint8)
    labels = np.array([0, 1])
    found = bitcrown.evaluate(path, images, labels, ["10/255", "80/255"], bounds="bab")
    small, large = ([one.status for one in run] for run in found.outcomes)
    assert small == ["proved"] * 2
    assert large == ["broken"] * 2
