"""The training loop: one epoch after the other, each determined by the seed and its number alone.

What a step does is in ``step``. Random numbers of epoch ``e`` come from a generator seeded with
``(seed, e)``, so a run that was interrupted and resumed from its checkpoint ends with the weights
of an uninterrupted one: bit for bit on the same CPU; on CUDA sums of gradients have no fixed order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitcrown.errors import DataError, SettingsError
from bitcrown.train.architectures import Architecture
from bitcrown.train.certified import certified_margins
from bitcrown.train.images import Crops, Normalisation, cropped, drawn_crops, middle_crop
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.schedules import step_values
from bitcrown.train.settings import TrainSettings
from bitcrown.train.step import (
    PARTS,
    TrainingBatch,
    TrainingStep,
    fast_products,
    optimiser_of,
    parts_of,
)

_Report = Callable[[dict[str, Any]], None]
_LOOKS = 10
"""Times an epoch at which losses are reported, and that they are numbers is checked."""


@dataclass(frozen=True)
class Images:
    """``images [B, C, H, W]`` float32 in [0, 1], ``labels [B]`` int64; on any device."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], device: torch.device
    ) -> Images:
        """From arrays. Raises ``DataError`` unless they are images in [0, 1] with labels."""
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
            raise DataError(
                f"training needs images [B, C, H, W] with labels [B], but got {images.shape}"
            )
        if images.min() < 0 or images.max() > 1:
            raise DataError(
                "training needs images with values in [0, 1]; normalise with mean and std instead"
            )
        values = torch.as_tensor(np.ascontiguousarray(images, dtype=np.float32), device=device)
        return cls(values, torch.as_tensor(labels.astype(np.int64), device=device))


@dataclass
class TrainingRun:
    """Everything that a checkpoint holds: the state after ``epoch`` finished epochs."""

    network: TrainableNetwork
    optimiser: torch.optim.Optimizer
    settings: TrainSettings
    normalisation: Normalisation
    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def training_device(settings: TrainSettings) -> torch.device:
    """Raises ``SettingsError`` if CUDA is asked for and there is none."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise SettingsError("device cuda is not there; use device cpu, or auto")
    return torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")


def new_run(
    architecture: Architecture, settings: TrainSettings, normalisation: Normalisation
) -> TrainingRun:
    generator = torch.Generator().manual_seed(settings.seed)
    network = TrainableNetwork(architecture, generator).to(training_device(settings))
    return TrainingRun(network, optimiser_of(network, settings), settings, normalisation)


def train(
    run: TrainingRun,
    data: Images,
    held_out: Images | None = None,
    report: _Report | None = None,
    until: int | None = None,
) -> Iterator[TrainingRun]:
    """Train up to epoch ``until``; yields ``run`` after each epoch, when it may be saved.

    ``report`` receives facts several times an epoch; ``held_out`` is measured after each. Raises
    ``DataError`` for data that does not fit the network, and ``SettingsError`` when the loss is no
    longer a number.
    """
    _check_fit(run, data)
    step = TrainingStep(run.network, run.optimiser, run.settings, run.normalisation)
    while run.epoch < min(run.settings.epochs, until or run.settings.epochs):
        started = time.monotonic()
        with fast_products(run.settings):
            facts = _epoch(run, data, step, report)
        if held_out is not None:
            facts |= {f"held_out_{key}": value for key, value in accuracy(run, held_out).items()}
        run.epoch += 1
        run.seconds += time.monotonic() - started
        run.history.append({"epoch": run.epoch, "seconds": round(run.seconds, 3), **facts})
        if report is not None:
            report({"finished": True, **run.history[-1]})
        yield run


def _check_fit(run: TrainingRun, data: Images) -> None:
    channels, classes = run.network.architecture.input_shape[0], run.network.architecture.classes
    if data.images.shape[1] != channels:
        raise DataError(
            f"the network takes {channels} channels, but the images have {data.images.shape[1]}"
        )
    if int(data.labels.min()) < 0 or int(data.labels.max()) >= classes:
        raise DataError(
            f"the network has {classes} classes, but the labels go up to {int(data.labels.max())}"
        )


def _epoch(
    run: TrainingRun, data: Images, step: TrainingStep, report: _Report | None
) -> dict[str, Any]:
    """One pass over the data; returns mean losses and the values of its last step.

    The device is asked for the losses ``_LOOKS`` times, not after each step: it must never wait for
    the host.
    """
    settings = run.settings
    steps = max(1, len(data.labels) // settings.batch)
    totals = torch.zeros(len(PARTS), device=data.images.device)
    counts = dict.fromkeys(PARTS, 0)
    now, means = step_values(settings, 0.0), dict[str, float]()
    run.network.train()
    for number, batch in enumerate(_batches(run, data), 1):
        now = step_values(settings, (run.epoch + (number - 1) / steps) / settings.epochs)
        parts = parts_of(settings, now, number)
        totals += step(batch, now, parts)
        for name in parts:
            counts[name] += 1
        if number % max(1, steps // _LOOKS) and number < steps:
            continue
        sums = zip(PARTS, totals.tolist(), strict=True)
        means = {name: value / counts[name] for name, value in sums if counts[name]}
        if not all(np.isfinite(value) for value in means.values()):
            raise SettingsError(
                f"the loss is not a number in epoch {run.epoch + 1}; take a smaller learning_rate"
            )
        if report is not None:
            report(
                {"finished": False, "epoch": run.epoch + 1, "step": number, "steps": steps, **means}
            )
    return {**means, **now._asdict()}


def _batches(run: TrainingRun, data: Images) -> Iterator[TrainingBatch]:
    """The images in the epoch's own order, augmented; all draws are made at its start."""
    settings, device = run.settings, data.images.device
    _, height, width = run.network.architecture.input_shape
    mixed_seed = settings.seed * 1_000_003 + run.epoch + 1
    generator = torch.Generator().manual_seed(mixed_seed)
    device_generator = torch.Generator(device).manual_seed(mixed_seed)
    count, size = len(data.labels), min(settings.batch, len(data.labels))
    order = torch.randperm(count, generator=generator).to(device)
    rows, columns = (extent + 2 * settings.padding for extent in data.images.shape[2:])
    if rows < height or columns < width:
        raise DataError(
            f"the network takes {height}x{width} images, but the data has {rows}x{columns}"
        )
    drawn = drawn_crops(count, (rows - height, columns - width), settings.flip == "on", generator)
    crops = Crops(*(part.to(device) for part in drawn))
    for start in range(0, count - size + 1, size):
        index = order[start : start + size]
        images = cropped(data.images[index], crops.select(index), height, width, settings.padding)
        noise = torch.rand(images.shape, generator=device_generator, device=device)
        yield TrainingBatch(images, data.labels[index], noise)


def accuracy(run: TrainingRun, data: Images, batch: int = 100) -> dict[str, float]:
    """Share of images that are correct, and that the training bounds call robust (no proof)."""
    network = run.network
    _, height, width = network.architecture.input_shape
    network.eval()
    correct, certified = 0, 0
    with torch.no_grad():
        view = network.folded()
        for start in range(0, len(data.labels), batch):
            images = middle_crop(data.images[start : start + batch], height, width)
            labels = data.labels[start : start + batch]
            is_correct = network(run.normalisation(images)).argmax(1) == labels
            correct += int(is_correct.sum())
            if is_correct.any():
                box = run.normalisation.box(images[is_correct], run.settings.eps)
                certified += int((certified_margins(view, box, labels[is_correct]) > 0).sum())
    return {"accuracy": correct / len(data.labels), "crown_ibp": certified / len(data.labels)}
