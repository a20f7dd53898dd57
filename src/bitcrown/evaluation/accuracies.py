"""Clean, attacked and verified accuracy of one network over a data set, image by image.

Three stages: *clean* (does the network give the label the largest logit? ``subjects`` says who
judges), *attack* (every correctly classified image, those that will be proved too; PGD, or a suite)
and *bounds* (plain CROWN for all of them; alpha-CROWN and branch and bound for those neither proved
nor broken). So each image ends as

    wrong | broken (by which attack) | proved (by which bound) | open,

and verified <= not broken <= clean holds image by image, or a verdict is wrong: an image that is
both broken and proved is a contradiction, which is reported as such and never resolved silently.

Findings go to a ``Journal`` as they come (a suite keeps its own state beside it and is entered
there when it is done); at the end every broken image is judged again from the stored pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bitcrown.attacks.images.suite import Progress, SuiteResult, run_suite
from bitcrown.cluster.tasks import Scheduler, Work
from bitcrown.errors import DataError, SettingsError
from bitcrown.evaluation.attacking import Attack, Judgement, inside
from bitcrown.evaluation.data.sets import ImageSet
from bitcrown.evaluation.integers import IntegerSubject
from bitcrown.evaluation.journal import ATTACK, BOUNDS, CLEAN, Journal, pixels_digest
from bitcrown.evaluation.plan import PGD, Plan, check_subject, make_prover, open_subject
from bitcrown.evaluation.proving import CROWN, Proof
from bitcrown.evaluation.subjects import FileSubject, Subject
from bitcrown.evaluation.workers import (
    AttackBlock,
    ImageBlock,
    attack_block,
    plan_attack,
    prove_block,
    side_by_side,
    worker_processes,
)

_WRONG, _BROKEN, _PROVED, OPEN = "wrong", "broken", "proved", "open"
BY_SEARCH = "search"
_ATTACK_BLOCK = 50
"""Images between two entries in the journal; other devices than the CPU get a batch at a time."""

OnStage = Callable[[str, int, int, dict[str, int]], None]
"""``(stage, done, total, counts)``."""


@dataclass(frozen=True)
class ImageOutcome:
    """One image. ``margin``: label's clean logit minus the largest other; ``bound`` CROWN's lower
    one; ``broken_as``: what the network takes the adversarial image for."""

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
    broken_as: int | None = None

    @property
    def is_contradiction(self) -> bool:
        return bool(self.proved_by) and (bool(self.broken_by) or not self.is_right)

    @property
    def status(self) -> str:
        if not self.is_right:
            return _WRONG
        return _BROKEN if self.broken_by else _PROVED if self.proved_by else OPEN


class Evaluator:
    """Runs the stages of ``plan`` on ``images`` and keeps what it finds in ``journal``; PGD and
    bounds run where ``scheduler`` says, or in ``plan.jobs`` processes of this machine. (Judging an
    image is one pass, PGD thousands; a suite looks at all images at once.)"""

    def __init__(
        self,
        plan: Plan,
        images: ImageSet,
        journal: Journal,
        on_progress: OnStage | None = None,
        subject: Subject | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.plan, self.images, self.journal = plan, images, journal
        self.scheduler = scheduler
        self.on_progress = on_progress or (lambda stage, done, total, counts: None)
        self.subject = subject or open_subject(plan, images.shape)
        check_subject(plan, self.subject)
        self.model = self.subject.classifier(plan.bpda)
        self.points = self.subject.space.points(images.images)
        self.ball = self.subject.space.ball(plan.norm, plan.eps)
        self.suite: SuiteResult | None = None
        worst = int(images.labels.max())
        if worst >= self.subject.classes:
            raise DataError(
                f"{images.name} has label {worst}, but the network has {self.subject.classes} "
                "outputs"
            )

    def run(self) -> list[ImageOutcome]:
        """All stages, then the stored adversarial images once more."""
        plan = self.plan
        self.clean()
        if plan.has_suite:
            self.attack_by_suite()
        elif plan.has_attack:
            self.attack(plan_attack(plan, self.subject), PGD)
        if plan.levels:
            self.bound()
        self.recheck()
        return self.outcomes()

    # -- stages ------------------------------------------------------------------------------------

    def clean(self) -> None:
        everything = range(len(self.images))
        todo = self.journal.missing(CLEAN, everything)
        for image in set(everything) - set(todo):
            found = self.journal.get(CLEAN, image)
            if found is not None and found["pixels"] != pixels_digest(self.images.images[image]):
                raise SettingsError(
                    f"image {image} is another one than in {self.journal.folder}; choose another "
                    "--out"
                )
        # (Where logits depend on neighbours, all images are judged together or none.)
        todo = list(everything) if todo and self.subject.is_grouped else todo
        size = len(todo) if self.subject.is_grouped else _ATTACK_BLOCK
        for start in range(0, len(todo), size or 1):
            block = todo[start : start + size]
            judged = self.subject.judge(self.images.images[block], self.images.labels[block])
            for image, judgement in zip(block, judged, strict=True):
                finding = {
                    "label": judgement.label,
                    "predicted": judgement.predicted,
                    "right": judgement.is_right,
                    "margin": judgement.margin,
                    "pixels": pixels_digest(self.images.images[image]),
                }
                self.journal.add(CLEAN, image, finding)
            self._progress(CLEAN, start + len(block), len(todo))

    def right_images(self) -> list[int]:
        clean = self.journal.findings[CLEAN]
        return [image for image in range(len(self.images)) if clean[image]["right"]]

    def attack_by_suite(self) -> None:
        """Run the suite, or go on with it, on all images; what it says to have broken is judged and
        stored."""
        plan, device = self.plan, self.subject.device
        place = self.journal.folder
        self.suite = result = run_suite(
            self.model,
            self.points.to(device),
            torch.from_numpy(self.images.labels).to(device),
            self.ball,
            suite=plan.attack,
            seed=plan.settings.seed,
            batch=plan.batch,
            resume=None if place is None else place / f"suite-{plan.attack}-{len(self.images)}.npz",
            on_progress=self._suite_progress,
        )
        pixels = self.subject.space.pixels(result.adversarial)
        moved = [
            k for k in range(len(pixels)) if not np.array_equal(pixels[k], self.images.images[k])
        ]
        for image, judged in zip(moved, self._judged_among(pixels, moved), strict=True):
            self.journal.store(image, pixels[image])
            name = result.broken_by[image]
            if name is not None and not judged.is_right and self._is_inside(image, pixels[image]):
                self._record_attack(image, {"attack": name, **_break_of(judged)})
        for image in self.right_images():
            found = self.journal.get(ATTACK, image)
            if found is None or (found["broken"] and image not in moved):
                self._record_attack(image, {"attack": plan.attack, "broken": False})

    def _judged_among(self, pixels: np.ndarray, chosen: list[int]) -> list[Judgement]:
        """Verdicts on the images ``chosen`` of ``pixels [B, C, H, W]``, among all of them where
        that matters."""
        if self.subject.is_grouped:
            judged = self.subject.judge(pixels, self.images.labels)
            return [judged[image] for image in chosen]
        return self.subject.judge(pixels[chosen], self.images.labels[chosen]) if chosen else []

    def _record_attack(self, image: int, finding: dict[str, Any]) -> None:
        found = self.journal.get(ATTACK, image)
        if found is None or any(found.get(key) != value for key, value in finding.items()):
            self.journal.add(ATTACK, image, finding)

    def _suite_progress(self, at: Progress) -> None:
        self.on_progress(at.name, at.done, at.total, {"standing": at.standing})

    def attack(self, attack: Attack, name: str) -> None:
        """Attack every correctly classified image, in blocks; PGD of workers is ``plan``'s."""
        todo = self.journal.missing(ATTACK, self.right_images())
        done = 0
        size = _ATTACK_BLOCK if self.subject.device.type == "cpu" else self.plan.batch
        parts = [todo[start : start + size] for start in range(0, len(todo), size)]
        with ExitStack() as stack:
            scheduler = self._scheduler(stack, len(parts)) if name == PGD else None
            found: Iterator[tuple[list[int], torch.Tensor]]
            if scheduler is None:
                labels, seed = torch.from_numpy(self.images.labels), self.plan.settings.seed
                found = (
                    (part, attack(self.points[part], labels[part], np.array(part), seed))
                    for part in parts
                )
            else:
                blocks = (
                    (part, self.images.images[part], self.images.labels[part]) for part in parts
                )
                there = self._side_by_side(attack_block, scheduler, blocks)
                found = ((part, torch.tensor(points)) for part, points in there)
            for part, points in found:
                pixels = self.subject.space.pixels(points)
                for image, candidate in zip(part, pixels, strict=True):
                    finding = {"attack": name, **self._judged(image, candidate)}
                    self.journal.add(ATTACK, image, finding)
                done += len(part)
                self._progress(ATTACK, done, len(todo))

    def _scheduler(self, stack: ExitStack, blocks: int) -> Scheduler | None:
        """Who works on so many blocks: the given one, processes until ``stack`` ends, or nobody."""
        jobs = min(self.plan.jobs, blocks)
        if self.scheduler is not None or jobs < 2:
            return self.scheduler
        return stack.enter_context(worker_processes(self.plan, jobs))

    def _side_by_side(
        self, work: Work, scheduler: Scheduler, blocks: Iterable[ImageBlock | AttackBlock]
    ) -> Iterator[tuple[list[int], Any]]:
        assert isinstance(self.subject, FileSubject | IntegerSubject)
        file = self.subject.file
        there = replace(self.plan, network=file.path)
        return side_by_side(work, scheduler, there, file.digest, self.images.shape, blocks)

    def _is_inside(self, image: int, pixels: np.ndarray) -> bool:
        return inside(self.ball, self.subject.space.points(pixels[None])[0], self.points[image])

    def _judged(self, image: int, candidate: np.ndarray) -> dict[str, Any]:
        """Whether ``candidate`` breaks an image; if so it is stored."""
        if np.array_equal(candidate, self.images.images[image]) or not self._is_inside(
            image, candidate
        ):
            return {"broken": False}
        judged = self.subject.judge(candidate[None], self.images.labels[image : image + 1])[0]
        if judged.is_right:
            return {"broken": False, "margin": judged.margin}
        self.journal.store(image, candidate)
        return _break_of(judged)

    def bound(self) -> None:
        plan = self.plan
        todo = [image for image in self.right_images() if not self._is_bounded(image)]
        if not todo:
            return
        assert isinstance(self.subject, FileSubject | IntegerSubject)
        file, shape = self.subject.file, self.images.shape
        prover = make_prover(plan, file, shape, plan.settings, self.subject)
        size = prover.images_a_pass()
        blocks = self._blocks(todo, size)
        done = 0
        with ExitStack() as stack:
            scheduler = self._scheduler(stack, -(-len(todo) // size))
            found: Iterator[tuple[list[int], list[Proof]]]
            if scheduler is None:
                found = ((numbers, prover.prove(*block)) for numbers, *block in blocks)
            else:
                found = self._side_by_side(prove_block, scheduler, blocks)
            for numbers, proofs in found:
                for image, proof in zip(numbers, proofs, strict=True):
                    self._record_proof(image, proof)
                done += len(numbers)
                self._progress(BOUNDS, done, len(todo))

    def _blocks(self, images: list[int], size: int) -> Iterator[ImageBlock]:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            broken = np.array([self._is_broken(image) for image in part])
            yield part, self.images.images[part], self.images.labels[part], broken

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
            pixels = self.subject.layout.to_images(torch.from_numpy(proof.witness[None])).numpy()
            # (What the search finds lies in a slightly larger box.)
            point = self.ball.project(
                self.subject.space.nearest(pixels), self.points[image : image + 1]
            )
            finding.update(self._judged(image, self.subject.space.pixels(point)[0]))
        self.journal.add(BOUNDS, image, finding)

    def recheck(self) -> None:
        """Judge every broken image again, from the pixels on disk. Raises ``DataError`` where that
        fails."""
        broken = [outcome.image for outcome in self.outcomes() if outcome.broken_by]
        pixels = self.adversarial()
        for image, judged in zip(broken, self._judged_among(pixels, broken), strict=True):
            if judged.is_right or not self._is_inside(image, pixels[image]):
                raise DataError(
                    f"the adversarial image of image {image} in {self.journal.folder} is missing "
                    "or does not hold; "
                    "evaluate it again with --fresh"
                )

    def adversarial(self) -> np.ndarray:
        """``[B, C, H, W]``: what is stored for each image, and the clean ones."""
        found = self.images.images.copy()
        for image in range(len(found)):
            stored = self.journal.stored(image)
            if stored is not None and stored.shape == found[image].shape:
                found[image] = stored
        return found

    # -- results -----------------------------------------------------------------------------------

    def outcomes(self) -> list[ImageOutcome]:
        return [self._outcome(image) for image in range(len(self.images))]

    def _outcome(self, image: int) -> ImageOutcome:
        clean = self.journal.findings[CLEAN][image]
        attack = self.journal.get(ATTACK, image) or {}
        bounds = self.journal.get(BOUNDS, image) or {}
        broken_by = str(attack["attack"]) if attack.get("broken") else ""
        if not broken_by and bounds.get("broken"):
            broken_by = BY_SEARCH
        return ImageOutcome(
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
            (attack if attack.get("broken") else bounds).get("predicted") if broken_by else None,
        )

    def _progress(self, stage: str, done: int, total: int) -> None:
        findings = self.journal.findings
        counts = {
            "right": sum(bool(found["right"]) for found in findings[CLEAN].values()),
            "broken": sum(bool(found["broken"]) for found in findings[ATTACK].values()),
            "proved": sum(bool(found["proved_by"]) for found in findings[BOUNDS].values()),
        }
        self.on_progress(stage, done, total, counts)


def _break_of(judged: Judgement) -> dict[str, Any]:
    return {"broken": True, "predicted": judged.predicted, "margin": judged.margin}


def selected(outcomes: Sequence[ImageOutcome]) -> list[int]:
    """Images worth a property: right, standing after the attack, and not proved by plain CROWN."""
    return [
        one.image
        for one in outcomes
        if one.is_right and not one.broken_by and one.proved_by != CROWN
    ]
