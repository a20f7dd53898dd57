"""Which images are broken: attacks propose, onnxruntime decides.

An attack runs on the network as bitcrown reads it. What it finds counts only if the pixels lie in
the ball and the *original file*, run by onnxruntime on the pixels normalised in float32, gives
another logit at least as large as the label's. Clean accuracy is judged by the same call, so no
column of a table depends on how bitcrown computes.

Legend: ``B`` images, ``C`` channels, ``H`` rows, ``W`` columns, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.pgd import pgd_images
from bitcrown.attacks.images.victim import Classifier
from bitcrown.check.replay import RuntimeReplay
from bitcrown.model.classifier import ImageLayout
from bitcrown.spec.robustness import NETWORK, other_label_query
from bitcrown.spec.rounding import round_down

Attack = Callable[[Tensor, Tensor, npt.NDArray[np.int64], int], Tensor]
"""``(images [B, C, H, W], labels [B], their numbers [B], seed)`` to adversarial images; the clean
image where nothing was found."""


@dataclass(frozen=True)
class Judgement:
    """``logits [K]``; ``margin``: label's logit minus the largest other (NaN counts as wrong).

    ``first_wins``: of equal logits the first decides (exact integer networks, where ties are
    common).
    """

    logits: np.ndarray
    label: int
    first_wins: bool = False

    @property
    def margin(self) -> float:
        others = np.delete(self.logits, self.label)
        return float(self.logits[self.label] - others.max())

    @property
    def is_right(self) -> bool:
        """Strictly: a tie is a violation, as in the published properties (unless
        ``first_wins``)."""
        if self.first_wins and not np.isnan(self.logits).any():
            return int(self.logits.argmax()) == self.label
        return self.margin > 0

    @property
    def predicted(self) -> int:
        return int(np.nanargmax(self.logits)) if not np.isnan(self.logits).all() else -1


class Judge:
    """The original file on pixels. Raises ``ModelError`` where onnxruntime cannot run it."""

    def __init__(self, path: Path, layout: ImageLayout, classes: int) -> None:
        self.layout = layout
        # Any query about one image will do: the replay only takes sizes from it.
        zero = [Fraction(0)] * int(np.prod(layout.shape))
        self.replay = RuntimeReplay(other_label_query(zero, zero, 0, classes), {NETWORK: path})

    def __call__(self, image: np.ndarray, label: int) -> Judgement:
        """``image [C, H, W]`` float32."""
        inputs = self.layout.to_inputs(torch.from_numpy(image[None])).numpy()[0]
        _, outputs = self.replay.run(inputs)
        return Judgement(outputs[0].astype(np.float64), label)


def ball_of(eps: Fraction, norm: str = "Linf") -> Ball:
    """The ball of radius ``eps``; the radius as a float is never larger than it."""
    return Ball(norm, round_down(eps))


def pgd_attack(
    model: Classifier, ball: Ball, steps: int, restarts: int, batch: int, device: torch.device
) -> Attack:
    """Projected gradient descent with ``steps`` and ``restarts``."""

    def run(images: Tensor, labels: Tensor, number: npt.NDArray[np.int64], seed: int) -> Tensor:
        found = pgd_images(
            model,
            images.to(device),
            labels.to(device),
            ball,
            steps=steps,
            restarts=restarts,
            seed=seed,
            batch=batch,
            number=number,
        )
        return found.cpu()

    return run


def inside(ball: Ball, candidate: Tensor, clean: Tensor) -> bool:
    """Whether the point ``candidate [C, H, W]`` lies in the ball around ``clean``."""
    return bool(ball.contains(candidate[None], clean[None])[0])
