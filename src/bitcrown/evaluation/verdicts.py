"""Proofs for images of a network that quantizes its own input: the verifier's verdict on each.

Such a network is decided in integers where it can be read so, and as floats with steps otherwise;
``search.strategy`` knows which, and here an image is a problem like any other.
"""

from __future__ import annotations

import time

import numpy as np

from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.evaluation.boxes import ImageBoxes
from bitcrown.evaluation.integers import IntegerSubject
from bitcrown.evaluation.proving import Proof, proof_of
from bitcrown.search.strategy import Run, decide
from bitcrown.settings import Settings

_CHECK_SECONDS = 1.0
"""For a proof about an image that is broken already: it must fail."""


class VerdictProver:
    """Decides each image as ``verify`` would within ``seconds``, the network read once."""

    def __init__(
        self,
        subject: IntegerSubject,
        boxes: ImageBoxes,
        settings: Settings,
        seconds: float,
        counts_cpu: bool = False,
    ) -> None:
        self.subject, self.boxes, self.settings = subject, boxes, settings
        self.seconds, self.counts_cpu = seconds, counts_cpu
        self.replay: RuntimeReplay | None = None

    def images_a_pass(self) -> int:
        return 1

    def prove(self, images: np.ndarray, labels: np.ndarray, is_broken: np.ndarray) -> list[Proof]:
        """One ``Proof`` an image ``[B, C, H, W]``; broken ones get a moment only."""
        return [
            self._prove(image, int(label), bool(gone))
            for image, label, gone in zip(images, labels, is_broken, strict=True)
        ]

    def _prove(self, image: np.ndarray, label: int, is_broken: bool) -> Proof:
        started = time.monotonic()
        limit = min(_CHECK_SECONDS, self.seconds) if is_broken else self.seconds
        subject = self.subject
        problem = self.boxes.problem(image, label, subject.classes, subject.file.path)
        budget = Budget.of(limit, self.settings.memory_bytes(), self.counts_cpu)
        run = Run(problem, self.settings, budget, None, replay=self.replay)
        run.integers, self.replay = subject.network, run.replay
        verdict = decide(run)
        return proof_of(verdict, None, {"search": time.monotonic() - started})
