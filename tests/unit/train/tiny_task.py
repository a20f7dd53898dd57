"""A task that can be solved robustly or not: four classes of 8x8 images with two features.

The bright quadrant tells the class to 95 % and survives noise of 0.05. A faint checkerboard
(amplitude 0.02) tells it always and does not. A natural network uses both.
"""

from __future__ import annotations

import numpy as np
import torch

from bitcrown.train.architectures import Architecture, Stage
from bitcrown.train.images import Normalisation
from bitcrown.train.settings import TrainSettings
from bitcrown.train.training import Images, TrainingRun, new_run

EPS = 0.05
TINY = Architecture("tiny", (1, 8, 8), 8, 2, 1, (Stage(8, 1, 2),), 16, 4)
NORMALISATION = Normalisation((0.45,), (0.3,))


def tiny_images(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    shown = np.where(random.random(count) < 0.95, labels, random.integers(0, 4, count))
    images = random.normal(0.4, 0.1, (count, 1, 8, 8))
    rows, columns = np.indices((8, 8))
    for image, label, quadrant in zip(images, labels, shown, strict=True):
        top, left = 4 * (quadrant // 2), 4 * (quadrant % 2)
        image[0, top : top + 4, left : left + 4] += 0.3
        pattern = (rows * (label % 2) + columns * (label // 2)) % 2 * 2 - 1
        image[0] += 0.02 * pattern
    return images.clip(0, 1).astype(np.float32), labels.astype(np.int64)


def tiny_data(seed: int, count: int) -> Images:
    return Images.of(*tiny_images(seed, count), torch.device("cpu"))


def tiny_settings(**changed: object) -> TrainSettings:
    values = {
        "eps": EPS,
        "epochs": 6,
        "batch": 50,
        "learning_rate": 5e-3,
        "padding": 0,
        "flip": "off",
        "device": "cpu",
    }
    return TrainSettings.from_mapping({**values, "eps_end": 0.6, **changed})


def tiny_run(**changed: object) -> TrainingRun:
    return new_run(TINY, tiny_settings(**changed), NORMALISATION)
