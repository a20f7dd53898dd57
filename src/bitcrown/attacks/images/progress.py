"""How far a suite has come: kept in one file that is replaced as a whole, so an interruption loses
one batch at most.

What is stored is per image: which components have dealt with it, what broke it, and the image that
did. Random numbers belong to images (``noise``), so going on from here gives what an uninterrupted
run would have given.

The file is a NumPy archive without pickled objects. It belongs to one question (network, images,
ball, suite, seed) and is refused for any other: the first logits are part of the question, so a
changed network is noticed too.

Legend: ``B`` images, ``A`` components, ``K`` classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.archives import read_arrays
from bitcrown.errors import DataError, ResourceError, SettingsError
from bitcrown.files import replacing

_COUNTS = ("broken_by", "done", "seconds", "noticed")
"""Fields of ``Standing`` besides the images, in their order."""


@dataclass
class Standing:
    """The state of a suite; changed in place as it goes on.

    ``broken_by [B]``: number of the component, -1 where none; ``done [A, B]``; ``seconds [A]``;
    ``noticed [A, 3]``: images with broken, with zero gradients, with a loss that never rose.
    """

    adversarial: Tensor
    broken_by: npt.NDArray[np.int64]
    done: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]
    noticed: npt.NDArray[np.int64]

    @classmethod
    def fresh(cls, images: Tensor, parts: int) -> Standing:
        count = len(images)
        return cls(
            images.clone(),
            np.full(count, -1, dtype=np.int64),
            np.zeros((parts, count), dtype=np.bool_),
            np.zeros(parts),
            np.zeros((parts, 3), dtype=np.int64),
        )


def fingerprint(images: Tensor, labels: Tensor, *words: object) -> str:
    """One word for the question: the data and everything else that a result depends on."""
    digest = hashlib.sha256(repr(words).encode())
    for tensor in (images, labels):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def save_state(path: Path, standing: Standing, question: str, logits: Tensor) -> None:
    """Replace ``path`` by the present state; ``logits [B, K]`` tell networks apart."""
    counts = {name: getattr(standing, name) for name in _COUNTS}
    images, known = standing.adversarial.cpu().numpy(), logits.cpu().numpy()
    try:
        with replacing(path) as file:
            np.savez(file, question=np.array(question), logits=known, adversarial=images, **counts)
    except OSError as error:
        raise ResourceError(
            f"the state of the attack cannot be written to {path}: {error}"
        ) from error


def load_state(path: Path, fresh: Standing, question: str, logits: Tensor) -> Standing:
    """The state in ``path``, else ``fresh``. Raises ``SettingsError`` if it is of another run."""
    if not path.exists():
        return fresh
    stored = _arrays(path)
    if str(stored.get("question")) != question:
        raise SettingsError(
            f"{path} belongs to another attack (other images, ball, suite or seed); name another "
            "file"
        )
    # Another machine may give other last bits; another network gives other numbers.
    known, now = stored["logits"], logits.cpu().numpy()
    if (
        known.shape != now.shape
        or known.dtype.kind != "f"
        or not np.allclose(known, now, rtol=1e-3, atol=1e-3, equal_nan=True)
    ):
        raise SettingsError(f"{path} belongs to an attack on another network; name another file")
    images = stored["adversarial"]
    if images.shape != tuple(fresh.adversarial.shape) or images.dtype != np.float32:
        raise SettingsError(
            f"{path} is damaged: its images have shape {images.shape}; delete it and begin again"
        )
    for name in _COUNTS:
        found, expected = stored[name], getattr(fresh, name)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise SettingsError(
                f"{path} is damaged: {name} has shape {found.shape}; delete it and begin again"
            )
    adversarial = torch.from_numpy(images).to(fresh.adversarial.device)
    return Standing(adversarial, *(stored[name] for name in _COUNTS))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        found = read_arrays(path)
    except DataError as error:
        raise SettingsError(
            f"{path} is not the state of an attack ({error}); delete it or name another file"
        ) from error
    missing = {"question", "logits", "adversarial", *_COUNTS} - found.keys()
    if missing:
        raise SettingsError(
            f"{path} is not the state of an attack: {', '.join(sorted(missing))} missing"
        )
    return found
