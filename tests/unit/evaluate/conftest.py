from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_classifier import blobs, train, write_classifier


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained network; it is right on most images of ``blobs``."""
    return write_classifier(tmp_path_factory.mktemp("small") / "small.onnx", train(*blobs(200), 150))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = blobs(24, seed=7)
    path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    np.savez(path, x=images, y=labels)
    return path
