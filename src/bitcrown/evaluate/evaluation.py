"""Clean, attacked and verified accuracy of one network over a data set, image by image.

Three stages, each over what the one before left: *clean* (does the original file give the label strictly the largest
logit?), *attack* (every correctly classified image, those that will be proved too) and *bounds* (plain CROWN for all of
them; alpha-CROWN and branch and bound for those neither proved nor broken). So each image ends as

    wrong | broken (by which attack) | proved (by which bound) | open,

and verified <= not broken <= clean holds image by image, or a verdict is wrong: an image that is both broken and proved
is a contradiction, which is reported as such and never resolved silently.

Findings go to a ``Journal`` as they come; at the end every broken image is judged again from the stored pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitcrown.errors import DataError, SettingsError
from bitcrown.evaluate.attacking import Attack, Judge, ball_of, inside, nearest_inside, pgd_attack
from bitcrown.evaluate.boxes import ImageBoxes
from bitcrown.evaluate.data import ImageSet
from bitcrown.evaluate.journal import ATTACK, BOUNDS, CLEAN, Journal, digest, pixels_digest
from bitcrown.evaluate.proving import CROWN, LEVELS, Proof, Prover
from bitcrown.evaluate.workers import prove_blocks
from bitcrown.model.classifier import GraphClassifier, Shape, layout_of, read_classifier
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import model_bytes, read_graph
from bitcrown.search.decision import device_of
from bitcrown.settings import Settings

WRONG, BROKEN, PROVED, OPEN = "wrong", "broken", "proved", "open"
PGD = "pgd"
BY_SEARCH = "search"
ATTACK_BLOCK = 50
"""Images between two entries in the journal."""

Progress = Callable[[str, int, int, dict[str, int]], None]
"""``(stage, done, total, counts)``."""


@dataclass(frozen=True)
class Plan:
    """What to evaluate. ``seconds`` is the time for alpha-CROWN and branch and bound of one image.

    ``batch`` images are attacked at a time, ``jobs`` processes bound images; neither changes what is asked.
    """

    network: Path
    eps: Fraction
    mean: tuple[Fraction, ...] | None = None
    std: tuple[Fraction, ...] | None = None
    order: str = "auto"
    steps: int = 100
    restarts: int = 20
    levels: tuple[str, ...] = (CROWN,)
    seconds: float = 5.0
    batch: int = 100
    jobs: int = 1
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise SettingsError(f"eps must lie in [0, 1], but is {self.eps}")
        for name, least in (("steps", 0), ("restarts", 0), ("batch", 1), ("jobs", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must not be {getattr(self, name)}")
        if not 0 <= self.seconds < float("inf"):
            raise SettingsError(f"the seconds per image must be a number from 0, but are {self.seconds}")
        if not self.levels or self.levels != LEVELS[: len(self.levels)]:
            raise SettingsError(f"bounds are done in the order {', '.join(LEVELS)}, not {', '.join(self.levels)}")

    @property
    def has_attack(self) -> bool:
        return self.steps > 0 and self.restarts > 0

    def identity(self) -> dict[str, Any]:
        """What must be equal for findings to belong to the same evaluation; more images or levels may follow."""
        return {
            "network": self.network.name,
            "network_sha256": digest(model_bytes(self.network)),
            "eps": str(self.eps),
            "mean": [str(value) for value in self.mean or ()],
            "std": [str(value) for value in self.std or ()],
            "order": self.order,
            "attack": {"name": PGD, "steps": self.steps, "restarts": self.restarts} if self.has_attack else None,
            "seconds_per_image": self.seconds,
            "seed": self.settings.seed,
        }


@dataclass(frozen=True)
class Outcome:
    """One image. ``margin``: label's clean logit minus the largest other; ``bound`` CROWN's lower one."""

    image: int
    label: int
    predicted: int
    margin: float
    is_right: bool
    broken_by: str = ""
    proved_by: str = ""
    bound: float | None = None
    seconds: float = 0.0
    detail: str = ""

    @property
    def is_contradiction(self) -> bool:
        return bool(self.proved_by) and (bool(self.broken_by) or not self.is_right)

    @property
    def status(self) -> str:
        if not self.is_right:
            return WRONG
        return BROKEN if self.broken_by else PROVED if self.proved_by else OPEN


def make_prover(plan: Plan, shape: Shape, settings: Settings) -> Prover:
    """The bounds of ``plan`` on images of ``shape``, in whichever process they run."""
    graph = read_graph(plan.network)
    boxes = ImageBoxes(layout_of(graph, shape, plan.mean, plan.std, plan.order), plan.eps)
    proof = Network(graph, torch.float64, device_of(settings.device))
    return Prover(proof, boxes, plan.network, settings, plan.levels, plan.seconds)


class Evaluator:
    """Runs the stages of ``plan`` on ``images`` and keeps what it finds in ``journal``."""

    def __init__(self, plan: Plan, images: ImageSet, journal: Journal, on_progress: Progress | None = None) -> None:
        self.plan, self.images, self.journal = plan, images, journal
        self.on_progress = on_progress or (lambda stage, done, total, counts: None)
        device = device_of(plan.settings.device)
        self.model: GraphClassifier = read_classifier(
            plan.network, images.shape, plan.mean, plan.std, plan.order, torch.float32, device
        )
        self.ball = ball_of(plan.eps)
        self.judge = Judge(plan.network, self.model.layout, self.model.classes)
        worst = int(images.labels.max())
        if worst >= self.model.classes:
            raise DataError(f"{images.name} has label {worst}, but the network has {self.model.classes} outputs")

    def run(self) -> list[Outcome]:
        """All stages, then the stored adversarial images once more."""
        self.clean()
        if self.plan.has_attack:
            plan = self.plan
            self.attack(pgd_attack(self.model, self.ball, plan.steps, plan.restarts, plan.batch), PGD)
        self.bound()
        self.recheck()
        return self.outcomes()

    # -- stages --------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        todo = self.journal.missing(CLEAN, range(len(self.images)))
        for image in set(range(len(self.images))) - set(todo):
            found = self.journal.get(CLEAN, image)
            if found is not None and found["pixels"] != pixels_digest(self.images.images[image]):
                raise SettingsError(f"image {image} is another one than in {self.journal.folder}; choose another --out")
        for done, image in enumerate(todo):
            label = int(self.images.labels[image])
            judged = self.judge(self.images.images[image], label)
            self.journal.add(
                CLEAN,
                image,
                {
                    "label": label,
                    "predicted": judged.predicted,
                    "right": judged.is_right,
                    "margin": judged.margin,
                    "pixels": pixels_digest(self.images.images[image]),
                },
            )
            if done % ATTACK_BLOCK == 0 or done + 1 == len(todo):
                self._progress(CLEAN, done + 1, len(todo))

    def right_images(self) -> list[int]:
        return [image for image in range(len(self.images)) if self._finding(CLEAN, image)["right"]]

    def attack(self, attack: Attack, name: str) -> None:
        """Attack every correctly classified image, in blocks of neighbours."""
        todo = self.journal.missing(ATTACK, self.right_images())
        done = 0
        for start in range(0, len(self.images), ATTACK_BLOCK):
            block = [image for image in todo if start <= image < start + ATTACK_BLOCK]
            if not block:
                continue
            clean = self.images.images[block]
            labels = torch.from_numpy(self.images.labels[block])
            found = attack(torch.from_numpy(clean), labels, self.plan.settings.seed + start).numpy()
            for image, candidate in zip(block, found, strict=True):
                self.journal.add(ATTACK, image, {"attack": name, **self._judged(image, candidate)})
            done += len(block)
            self._progress(ATTACK, done, len(todo))

    def _judged(self, image: int, candidate: np.ndarray) -> dict[str, Any]:
        """Whether ``candidate`` breaks an image; if so it is stored."""
        clean = self.images.images[image]
        if np.array_equal(candidate, clean) or not inside(self.ball, candidate, clean):
            return {"broken": False}
        judged = self.judge(candidate, int(self.images.labels[image]))
        if judged.is_right:
            return {"broken": False, "margin": judged.margin}
        self.journal.store(image, candidate)
        return {"broken": True, "predicted": judged.predicted, "margin": judged.margin}

    def bound(self) -> None:
        plan = self.plan
        todo = [image for image in self.right_images() if not self._is_bounded(image)]
        if not todo:
            return
        make = partial(make_prover, plan, self.images.shape)
        size = make(plan.settings).images_a_pass()
        blocks = []
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            broken = np.array([self._is_broken(image) for image in part])
            blocks.append((part, self.images.images[part], self.images.labels[part], broken))
        done = 0
        for numbers, proofs in prove_blocks(make, plan.settings, blocks, plan.jobs):
            for image, proof in zip(numbers, proofs, strict=True):
                self._record_proof(image, proof)
            done += len(numbers)
            self._progress(BOUNDS, done, len(todo))

    def _is_bounded(self, image: int) -> bool:
        found = self.journal.get(BOUNDS, image)
        if found is None:
            return False
        is_done = found["proved_by"] or found.get("broken") or self._is_broken(image)
        return bool(is_done) or len(found["levels"]) >= len(self.plan.levels)

    def _is_broken(self, image: int) -> bool:
        found = self.journal.get(ATTACK, image)
        return found is not None and bool(found["broken"])

    def _record_proof(self, image: int, proof: Proof) -> None:
        finding: dict[str, Any] = {
            "levels": list(self.plan.levels),
            "bound": proof.margin,
            "proved_by": proof.proved_by,
            "seconds": {name: round(value, 4) for name, value in proof.seconds.items()},
        }
        if proof.status:
            finding.update(status=proof.status, decided_by=proof.decided_by, detail=proof.detail)
            finding["counters"] = proof.counters
        if proof.witness is not None:
            pixels = self.model.layout.to_images(torch.from_numpy(proof.witness[None]))[0].numpy()
            clean = self.images.images[image]
            finding.update(self._judged(image, nearest_inside(self.ball, pixels, clean)))
        self.journal.add(BOUNDS, image, finding)

    def recheck(self) -> None:
        """Judge every broken image again, from the pixels on disk. Raises ``DataError`` where that fails."""
        for outcome in self.outcomes():
            if not outcome.broken_by:
                continue
            pixels = self.journal.stored(outcome.image)
            clean = self.images.images[outcome.image]
            if pixels is None or not inside(self.ball, pixels, clean) or self.judge(pixels, outcome.label).is_right:
                raise DataError(
                    f"the adversarial image of image {outcome.image} in {self.journal.folder} is missing or does not "
                    "hold; evaluate it again with --fresh"
                )

    # -- results -------------------------------------------------------------------------------------------------

    def _finding(self, stage: str, image: int) -> dict[str, Any]:
        found = self.journal.get(stage, image)
        assert found is not None
        return found

    def outcomes(self) -> list[Outcome]:
        return [self._outcome(image) for image in range(len(self.images))]

    def _outcome(self, image: int) -> Outcome:
        clean = self._finding(CLEAN, image)
        attack = self.journal.get(ATTACK, image) or {}
        bounds = self.journal.get(BOUNDS, image) or {}
        broken_by = str(attack["attack"]) if attack.get("broken") else BY_SEARCH if bounds.get("broken") else ""
        return Outcome(
            image,
            int(clean["label"]),
            int(clean["predicted"]),
            float(clean["margin"]),
            bool(clean["right"]),
            broken_by,
            str(bounds.get("proved_by", "")),
            bounds.get("bound"),
            float(sum(bounds.get("seconds", {}).values())),
            str(bounds.get("detail", "")),
        )

    def _progress(self, stage: str, done: int, total: int) -> None:
        findings = self.journal.findings
        counts = {
            "right": sum(bool(found["right"]) for found in findings[CLEAN].values()),
            "broken": sum(bool(found["broken"]) for found in findings[ATTACK].values()),
            "proved": sum(bool(found["proved_by"]) for found in findings[BOUNDS].values()),
        }
        self.on_progress(stage, done, total, counts)


def selected(outcomes: Sequence[Outcome]) -> list[int]:
    """Images worth a property: right, standing after the attack, and not proved by plain CROWN."""
    return [one.image for one in outcomes if one.is_right and not one.broken_by and one.proved_by != CROWN]
