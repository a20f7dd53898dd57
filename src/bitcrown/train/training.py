"""The training loop: one epoch after the other, each determined by the seed and its number alone.

A step (see ``settings`` for the loss): one forward pass over the augmented clean images measures the batch moments;
with them the network is one affine-and-ReLU function, which the attack, the bounds and all losses share. Random numbers
of epoch ``e`` come from a generator seeded with ``(seed, e)``, so a run that was interrupted and resumed from its
checkpoint ends with the weights of an uninterrupted one, on the same machine bit for bit.

Precision: bounds are always float32. A box of radius 1/255 is one part in 60 of the range of a normalised image, and
lower and upper bounds are subtracted from one another layer by layer; bfloat16 (8 bits) would leave nothing of it. The
attack's steps use only signs of gradients, so they may run in bfloat16 (``precision=mixed``, CUDA).
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
from bitcrown.train.adversarial import ascended
from bitcrown.train.architectures import Architecture
from bitcrown.train.certified import FUSED_FROM, certified_loss, certified_margins
from bitcrown.train.images import Normalisation, augmented, centre_crop
from bitcrown.train.network import TrainableNetwork, detached
from bitcrown.train.schedules import Stage, stage
from bitcrown.train.settings import TrainSettings

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Images:
    """``images [B, C, H, W]`` float32 in [0, 1], ``labels [B]`` int64; on any device."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], device: torch.device) -> Images:
        """From arrays. Raises ``DataError`` where they are not images in [0, 1] with a label each."""
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
            raise DataError(f"training needs images [B, C, H, W] with labels [B], but got {images.shape}")
        if images.min() < 0 or images.max() > 1:
            raise DataError("training needs images with values in [0, 1]; normalise with mean and std instead")
        values = torch.as_tensor(np.ascontiguousarray(images, dtype=np.float32), device=device)
        return cls(values, torch.as_tensor(labels.astype(np.int64), device=device))


@dataclass
class Run:
    """Everything that a checkpoint holds: the state after ``epoch`` finished epochs."""

    network: TrainableNetwork
    optimiser: torch.optim.Optimizer
    settings: TrainSettings
    normalisation: Normalisation
    epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def device_of(settings: TrainSettings) -> torch.device:
    """Raises ``SettingsError`` if CUDA is asked for and there is none."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise SettingsError("device cuda is not there; use device cpu, or auto")
    return torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")


def new_run(architecture: Architecture, settings: TrainSettings, normalisation: Normalisation) -> Run:
    generator = torch.Generator().manual_seed(settings.seed)
    network = TrainableNetwork(architecture, generator).to(device_of(settings))
    return Run(network, optimiser_of(network, settings), settings, normalisation)


def optimiser_of(network: TrainableNetwork, settings: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)


def train(
    run: Run, data: Images, held_out: Images | None = None, report: Report | None = None, until: int | None = None
) -> Iterator[Run]:
    """Train up to epoch ``until`` (all by default); yields ``run`` after each epoch, when it may be saved.

    ``report`` receives facts several times an epoch; ``held_out`` is measured after each. Raises ``DataError`` for
    data that does not fit the network, and ``SettingsError`` when the loss is no longer a number.
    """
    _check_fit(run, data)
    while run.epoch < min(run.settings.epochs, until or run.settings.epochs):
        started = time.monotonic()
        facts = _epoch(run, data, report)
        if held_out is not None:
            facts |= {f"held_out_{key}": value for key, value in accuracy(run, held_out).items()}
        run.epoch += 1
        run.seconds += time.monotonic() - started
        run.history.append({"epoch": run.epoch, "seconds": round(run.seconds, 3), **facts})
        if report is not None:
            report({"finished": True, **run.history[-1]})
        yield run


def _check_fit(run: Run, data: Images) -> None:
    channels, classes = run.network.architecture.input_shape[0], run.network.architecture.classes
    if data.images.shape[1] != channels:
        raise DataError(f"the network takes {channels} channels, but the images have {data.images.shape[1]}")
    if int(data.labels.min()) < 0 or int(data.labels.max()) >= classes:
        raise DataError(f"the network has {classes} classes, but the labels go up to {int(data.labels.max())}")


def _epoch(run: Run, data: Images, report: Report | None) -> dict[str, Any]:
    """One pass over the data; returns mean losses and the stage at its end."""
    settings, network = run.settings, run.network
    mixed_seed = settings.seed * 1_000_003 + run.epoch + 1
    generator = torch.Generator().manual_seed(mixed_seed)
    device_generator = torch.Generator(data.images.device).manual_seed(mixed_seed)
    order = torch.randperm(len(data.labels), generator=generator)
    size = min(settings.batch, len(order))
    steps = len(order) // size
    _, height, width = network.architecture.input_shape
    totals: dict[str, float] = {}
    now = stage(settings, 0.0)
    network.train()
    for step in range(steps):
        now = stage(settings, (run.epoch + step / steps) / settings.epochs)
        index = order[step * size : (step + 1) * size].to(data.images.device)
        flip = settings.flip == "on"
        images = augmented(data.images[index], height, width, settings.padding, flip, generator)
        losses = _step(run, images, data.labels[index], now, device_generator)
        for key, value in losses.items():
            totals[key] = totals.get(key, 0.0) + value
        if not all(np.isfinite(value) for value in losses.values()):
            raise SettingsError(f"the loss is not a number in epoch {run.epoch + 1}; take a smaller learning_rate")
        if report is not None:
            means = {key: value / (step + 1) for key, value in totals.items()}
            report({"finished": False, "epoch": run.epoch + 1, "step": step + 1, "steps": steps, **means})
    means = {key: value / steps for key, value in totals.items()}
    return {**means, "eps": now.eps, "beta": now.beta, "kappa": now.kappa, "learning_rate": now.learning_rate}


def _step(run: Run, images: Tensor, labels: Tensor, now: Stage, generator: torch.Generator) -> dict[str, float]:
    """One step of the optimiser; returns the parts of the loss and the share of correct images."""
    settings, network = run.settings, run.network
    only_natural, share = settings.weights()
    logits, moments = network.clean_pass(run.normalisation(images))
    parts = {"natural": torch.nn.functional.cross_entropy(logits, labels)}
    loss = parts["natural"]
    if not only_natural and now.eps > 0:
        view = network.folded(moments)
        robust = torch.zeros((), device=images.device)
        if share > 0:
            is_fused = settings.fusion == "on" or (settings.fusion == "auto" and logits.shape[1] >= FUSED_FROM)
            box = run.normalisation.box(images, now.eps)
            parts["certified"] = certified_loss(view, box, labels, now.beta, is_fused).mean()
            robust = robust + share * parts["certified"]
        if share < 1:
            points = _attacked(run, view, images, labels, now.eps, generator)
            attacked = view(run.normalisation(points).flatten(1))
            parts["adversarial"] = torch.nn.functional.cross_entropy(attacked, labels)
            robust = robust + (1 - share) * parts["adversarial"]
        loss = now.kappa * loss + (1 - now.kappa) * robust
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    for group in run.optimiser.param_groups:
        group["lr"] = now.learning_rate
    run.optimiser.step()
    correct = (logits.argmax(1) == labels).float().mean()
    return {"loss": loss.item(), "accuracy": correct.item()} | {key: value.item() for key, value in parts.items()}


def _attacked(run: Run, view: Any, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    fixed = detached(view)
    is_mixed = run.settings.precision == "mixed" and images.is_cuda

    def loss(points: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=is_mixed):
            logits = fixed(run.normalisation(points).flatten(1))
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    return ascended(loss, images, eps, run.settings.attack_steps, generator)


def accuracy(run: Run, data: Images, batch: int = 100) -> dict[str, float]:
    """Share of images that are correct, and that the training bounds (no proof) call robust at the target radius."""
    network = run.network
    _, height, width = network.architecture.input_shape
    network.eval()
    correct, certified = 0, 0
    with torch.no_grad():
        view = network.folded()
        for start in range(0, len(data.labels), batch):
            images = centre_crop(data.images[start : start + batch], height, width)
            labels = data.labels[start : start + batch]
            is_correct = network(run.normalisation(images)).argmax(1) == labels
            correct += int(is_correct.sum())
            if is_correct.any():
                box = run.normalisation.box(images[is_correct], run.settings.eps)
                certified += int((certified_margins(view, box, labels[is_correct]) > 0).sum())
    return {"accuracy": correct / len(data.labels), "crown_ibp": certified / len(data.labels)}
