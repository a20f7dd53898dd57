"""Checkpoints: weights, optimiser, settings and history after a finished epoch, as plain tensors
and numbers.

They are read with ``weights_only``: a file that holds anything but tensors, numbers, words, lists
and dictionaries is refused, so a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bitcrown.errors import ModelError, ResourceError, SettingsError
from bitcrown.files import replacing
from bitcrown.train.architectures import Architecture, Stage
from bitcrown.train.images import Normalisation
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.settings import TrainSettings
from bitcrown.train.step import optimiser_of
from bitcrown.train.training import TrainingRun, training_device

_FORMAT = 1
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, RuntimeError, struct.error, pickle.UnpicklingError,
)  # fmt: skip
"""What a damaged stream of pickled instructions makes torch's reader raise: it trusts the order of
things."""


def save_checkpoint(run: TrainingRun, path: Path) -> None:
    """Write ``path`` whole or not at all. Raises ``ResourceError`` if it cannot be written."""
    content = {
        "format": _FORMAT,
        "architecture": asdict(run.network.architecture),
        "settings": run.settings.as_dict(),
        "normalisation": asdict(run.normalisation),
        "epoch": run.epoch,
        "seconds": run.seconds,
        "history": run.history,
        "network": run.network.state_dict(),
        "optimiser": run.optimiser.state_dict(),
    }
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except OSError as error:
        raise ResourceError(f"the checkpoint cannot be written to {path}: {error}") from error


def load_checkpoint(path: Path, device: str | None = None) -> TrainingRun:
    """The run in ``path``, on ``device`` or where its settings say. Raises ``ModelError``."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"there is no checkpoint {path}") from error
    except _DAMAGE as error:
        raise ModelError(
            f"{path} is not a checkpoint of bitcrown train, or it is damaged"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ModelError(f"{path} is not a checkpoint of bitcrown train (format {_FORMAT})")
    try:
        return _restored(content, device)
    except (*_DAMAGE, SettingsError) as error:
        raise ModelError(f"{path} does not fit together: {error}") from error


def _restored(content: dict[str, Any], device: str | None) -> TrainingRun:
    values = content["settings"] if device is None else {**content["settings"], "device": device}
    settings = TrainSettings.from_mapping(values)
    fields = dict(content["architecture"])
    fields["stages"] = tuple(Stage(**stage) for stage in fields["stages"])
    fields["input_shape"] = tuple(fields["input_shape"])
    stored = content["normalisation"]
    normalisation = Normalisation(tuple(stored["mean"]), tuple(stored["std"]))
    network = TrainableNetwork(Architecture(**fields)).to(training_device(settings))
    network.load_state_dict(content["network"])
    optimiser = optimiser_of(network, settings)
    # The groups of this device stay: which kernels, and where the learning rate lives.
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": content["optimiser"]["state"], "param_groups": groups})
    epoch, seconds, history = content["epoch"], content["seconds"], list(content["history"])
    return TrainingRun(network, optimiser, settings, normalisation, epoch, seconds, history)
