"""The picture of the README, and the site that mkdocs makes of ``docs/``."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import HANG_GUARD, ROOT
from PIL import Image
from test_pages import environment

PICTURES = ROOT / "docs" / "pictures"
DATA = re.compile(r'href="data:image/png;base64,([^"]*)"')
SUITE = ROOT / "benchmarks" / "qnn_robustness"
EMBEDDED = [
    np.array(Image.open(io.BytesIO(base64.b64decode(text))))
    for text in DATA.findall((PICTURES / "three_answers.svg").read_text())
]


def label_of(levels: np.ndarray) -> int:
    """The first of the largest outputs, as onnxruntime computes them."""
    session = onnxruntime.InferenceSession(
        SUITE / "networks" / "mnist_mlp.onnx", providers=["CPUExecutionProvider"]
    )
    (wanted,) = session.get_inputs()
    kind = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[wanted.type]
    shape = [extent if isinstance(extent, int) else 1 for extent in wanted.shape]
    (scores,) = session.run(None, {wanted.name: levels.astype(kind).reshape(shape)})
    return int(np.ravel(scores).argmax())


def test_the_picture_shows_a_true_counterexample() -> None:
    original, adversarial = EMBEDDED
    assert np.array_equal(original, np.load(SUITE / "mnist_20.npz")["images"][0])
    assert 0 < np.abs(adversarial.astype(int) - original.astype(int)).max() <= 40
    text = (PICTURES / "three_answers.svg").read_text()
    assert f"is classified {label_of(adversarial)}, not {label_of(original)}." in text
    assert "prefers-color-scheme: dark" in text and ElementTree.fromstring(text) is not None


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.svg"
    subprocess.run(
        [sys.executable, "-P", str(PICTURES / "three_answers.py"), str(drawn)],
        env=environment(tmp_path),
        timeout=10 * HANG_GUARD,
        check=True,
    )
    committed = (PICTURES / "three_answers.svg").read_text()
    assert DATA.sub("", drawn.read_text()) == DATA.sub("", committed)


def navigation() -> set[str]:
    """Pages that ``mkdocs.yml`` leads to."""
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    return set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))


def test_every_page_is_in_the_navigation() -> None:
    assert navigation() == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed"
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT,
        env=environment(tmp_path) | {"NO_MKDOCS_2_WARNING": "1"},
        timeout=10 * HANG_GUARD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in navigation():
        stem = page.removesuffix(".md")
        place = tmp_path / "index.html" if stem == "index" else tmp_path / stem / "index.html"
        assert "</h1>" in place.read_text(), page
    assert (tmp_path / "pictures" / "three_answers.svg").is_file()
    assert not (tmp_path / "pictures" / "three_answers.py").exists()
