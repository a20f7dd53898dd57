"""Several attacks one after the other; an image counts as robust only if all of them fail on it.

The cascade of AutoAttack (Croce & Hein 2020): every component sees only the images that are
classified correctly and still stand, so the result is the worst case per image and the order only
decides who gets the credit. The number that is reported is not what the attacks said of themselves:
at the end the stored images are given to the network again, together and one by one, and only what
is misclassified then counts as broken.

An image's fate does not depend on batch size, order or interruptions: see ``victim`` (arithmetic),
``noise`` (random numbers) and ``progress`` (resuming). Networks whose logits depend on the batch
are the exception, and are reported.

Legend: ``B`` images, ``C`` channels, ``H x W`` pixels, ``K`` classes, ``A`` components.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bitcrown.attacks.images import hygiene, progress
from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.components import Component, components, run_component, statements
from bitcrown.attacks.images.hygiene import Finding
from bitcrown.attacks.images.noise import stream_keys
from bitcrown.attacks.images.victim import (
    Classifier,
    Victim,
    is_misclassified,
    rows_for,
    widest_call,
)
from bitcrown.errors import SettingsError


class AttackRow(NamedTuple):
    """One component: images it was tried on, images it broke, seconds it took."""

    name: str
    attempted: int
    broken: int
    seconds: float


class Progress(NamedTuple):
    """After each batch: images of the component that are done, and images that still stand."""

    name: str
    done: int
    total: int
    standing: int
    seconds: float


class SuiteReplay(NamedTuple):
    """The images that broke the network, given to it again: how many fool it, and how.

    ``correct``: images of all, unbroken ones included, that are classified correctly when given
    together.
    """

    stored: int
    together: int
    alone: int
    correct: int


@dataclass(frozen=True)
class SuiteResult:
    """``adversarial [B, C, H, W]``: clean where none was found; ``clean_correct [B]`` bool."""

    suite: str
    ball: Ball
    seed: int
    adversarial: Tensor
    broken_by: tuple[str | None, ...]
    clean_correct: Tensor
    per_attack: tuple[AttackRow, ...]
    warnings: tuple[Finding, ...]
    statements: tuple[str, ...]
    replay: SuiteReplay
    is_batch_dependent: bool

    def standing(self) -> Tensor:
        """``[B]`` bool: classified correctly and never broken."""
        unbroken = torch.tensor([name is None for name in self.broken_by], dtype=torch.bool)
        return self.clean_correct.cpu() & unbroken

    def clean_accuracy(self) -> float:
        return float(self.clean_correct.double().mean())

    def robust_accuracy(self) -> float:
        return float(self.standing().double().mean())

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the robust accuracy."""
        return hygiene.confidence_interval(int(self.standing().sum()), len(self.broken_by))


def run_suite(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    suite: str,
    seed: int,
    batch: int,
    resume: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> SuiteResult:
    """Attack ``images [B, C, H, W]`` (float32 in the ball's pixel range) of classes ``labels [B]``.

    ``suite``: see ``components.SUITES``. ``batch``: images attacked together; bounds memory and
    changes no result, unless the network itself depends on the batch. ``resume``: file the state is
    kept in after every batch. Raises ``SettingsError`` for impossible input.
    """
    chosen = components(suite, ball.norm)
    _check_input(images, labels, ball, batch)
    # Only a randomised network draws from torch's own generator; fixed for it, and given back as it
    # was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _check_classes(Victim(model, rows=None).logits(images[:1]), labels)
        found = hygiene.inspect(model, images, labels, ball)
        most = widest_call(model, images)
        victim = Victim(model, None if found.is_batch_dependent else rows_for(len(images), most))
        logits = _grouped_logits(victim, images, batch)
        said = statements(chosen, logits.shape[1], found.is_differentiable)
        if not found.is_differentiable:
            chosen = _without_gradients(chosen)
        cascade = _Cascade(
            suite, victim, most, images, labels, ball, chosen, seed, batch, logits, resume
        )
        cascade.run(on_progress)
        return cascade.result(found, said)


def _without_gradients(chosen: tuple[Component, ...]) -> tuple[Component, ...]:
    kept = tuple(component for component in chosen if not component.needs_gradients())
    random = Component("random", 100)
    return kept if random in kept else (random, *kept)


def _grouped_logits(victim: Victim, x: Tensor, batch: int) -> Tensor:
    """``[B, K]``: the images in the order given, ``batch`` at a time."""
    return torch.cat([victim.logits(x[first : first + batch]) for first in range(0, len(x), batch)])


@dataclass
class _Cascade:
    """One run of a suite: what is asked, and how far it has come."""

    suite: str
    victim: Victim
    most: int
    images: Tensor
    labels: Tensor
    ball: Ball
    components: tuple[Component, ...]
    seed: int
    batch: int
    logits: Tensor
    file: Path | None

    def __post_init__(self) -> None:
        self.correct = self.logits.argmax(dim=1) == self.labels
        self.standing = progress.Standing.fresh(self.images, len(self.components))
        # Where batches do not matter, a run may go on with another batch.
        own_batch = self.batch if self.victim.rows is None else 0
        words = (self.ball, self.components, self.seed, self.suite, own_batch)
        self.question = progress.fingerprint(self.images, self.labels, *words)
        if self.file is not None:
            self.standing = progress.load_state(
                self.file, self.standing, self.question, self.logits
            )

    def run(self, on_progress: Callable[[Progress], None] | None) -> None:
        for index, component in enumerate(self.components):
            victim, size = self._victim(index)
            while len(rows := self._next(index, size)):
                began = time.monotonic()
                self._run_batch(index, component, victim, rows)
                self.standing.done[index, rows] = True
                self.standing.seconds[index] += time.monotonic() - began
                if self.file is not None:
                    progress.save_state(self.file, self.standing, self.question, self.logits)
                if on_progress is not None:
                    on_progress(self._progress(index, component))

    def _open(self) -> npt.NDArray[np.bool_]:
        """``[B]``: right, and not broken yet."""
        is_open: npt.NDArray[np.bool_] = self.correct.cpu().numpy() & (self.standing.broken_by < 0)
        return is_open

    def _victim(self, index: int) -> tuple[Victim, int]:
        """The network for a component, and how many images it gets at a time.

        The size of a call follows from how many images stood when the component began, also after
        an interruption.
        """
        if self.victim.rows is None:
            return self.victim, self.batch
        broken_by = self.standing.broken_by
        at_start = self.correct.cpu().numpy() & ((broken_by < 0) | (broken_by >= index))
        width = self.components[index].width(self.logits.shape[1] - 1)
        rows = rows_for(int(at_start.sum()) * width, self.most)
        return replace(self.victim, rows=rows), max(1, self.batch // rows) * rows

    def _next(self, index: int, size: int) -> npt.NDArray[np.int64]:
        """Numbers of the next images for a component."""
        return np.flatnonzero(self._open() & ~self.standing.done[index])[:size]

    def _progress(self, index: int, component: Component) -> Progress:
        done, standing = int(self.standing.done[index].sum()), int(self._open().sum())
        total = done + int((self._open() & ~self.standing.done[index]).sum())
        return Progress(component.name, done, total, standing, float(self.standing.seconds[index]))

    def _run_batch(
        self, index: int, component: Component, victim: Victim, rows: npt.NDArray[np.int64]
    ) -> None:
        torch.manual_seed(int(stream_keys(self.seed, rows[:1], component.name, "network")[0]))
        place = torch.from_numpy(rows).to(self.images.device)
        trace = run_component(
            component, victim, self.images[place], self.labels[place], rows, self.ball, self.seed
        )
        self.standing.adversarial[place[trace.found]] = trace.x[trace.found]
        self.standing.broken_by[rows[trace.found.cpu().numpy()]] = index
        if component.needs_gradients():
            self.standing.noticed[index] += np.array(hygiene.notice(trace))

    def result(self, found: hygiene.Inspection, said: tuple[str, ...]) -> SuiteResult:
        """Judge the stored images anew."""
        broken_by = self.standing.broken_by.copy()
        stored = torch.from_numpy(np.flatnonzero(broken_by >= 0)).to(self.images.device)
        adversarial = self.standing.adversarial
        logits = _grouped_logits(self.victim, adversarial, self.batch)
        together = is_misclassified(logits, self.labels)[stored]
        alone = torch.zeros_like(together)
        single = Victim(self.victim.model, rows=None)
        for k, place in enumerate(stored.tolist()):
            lonely = single.logits(adversarial[place : place + 1])
            alone[k] = is_misclassified(lonely, self.labels[place : place + 1])[0]
        inside = self.ball.contains(adversarial[stored], self.images[stored])
        correct = int((logits.argmax(dim=1) == self.labels).sum())
        replay = SuiteReplay(len(stored), int(together.sum()), int(alone.sum()), correct)
        warnings = [*found.findings, *self._comparisons()]
        failed = stored[~(together & inside)]
        if len(failed) or not bool(alone.all()):
            warnings.append(_replay_finding(replay, int(inside.sum())))
        broken_by[failed.cpu().numpy()] = -1
        if self.victim.rows is not None:
            # (In a batch-dependent network taking one image back would change what the others do.)
            adversarial = adversarial.clone()
            adversarial[failed] = self.images[failed]
        names = tuple(self.components[k].name if k >= 0 else None for k in broken_by.tolist())
        left = int((self.correct.cpu().numpy() & (broken_by < 0)).sum())
        warnings.append(hygiene.small_sample(left, len(names)))
        idle = [row.name for row in self._rows() if not row.broken]
        said += (f"added nothing: {', '.join(idle)}",) if idle else ()
        return SuiteResult(
            self.suite, self.ball, self.seed, adversarial, names, self.correct, self._rows(),
            tuple(warning for warning in warnings if warning is not None), said, replay,
            found.is_batch_dependent,
        )  # fmt: skip

    def _rows(self) -> tuple[AttackRow, ...]:
        standing = self.standing
        return tuple(
            AttackRow(
                component.name,
                int(standing.done[k].sum()),
                int((standing.broken_by == k).sum()),
                float(standing.seconds[k]),
            )
            for k, component in enumerate(self.components)
        )

    def _comparisons(self) -> list[Finding | None]:
        found: list[Finding | None] = []
        white_box = 0
        for k, (component, row) in enumerate(zip(self.components, self._rows(), strict=True)):
            if component.needs_gradients():
                white_box += 1
                found += hygiene.gradients_met(
                    row.name, row.attempted, *self.standing.noticed[k].tolist()
                )
            else:
                found.append(
                    hygiene.black_box_ahead(len(self.images), white_box, row.name, row.broken)
                )
        return found


def _replay_finding(replay: SuiteReplay, inside: int) -> Finding:
    stored, together, alone, _ = replay
    counts = {"stored": stored, "together": together, "alone": alone, "inside": inside}
    return Finding(
        "replay",
        f"of {stored} stored images {together} fool the network together, {alone} alone, {inside} "
        "lie inside the ball; only those that fool it together and lie inside count as broken",
        {name: float(count) for name, count in counts.items()},
    )


def _check_input(images: Tensor, labels: Tensor, ball: Ball, batch: int) -> None:
    if images.dim() != 4 or not len(images):
        raise SettingsError(
            "images must be [B, C, H, W] with at least one image, but have shape "
            f"{list(images.shape)}"
        )
    if images.dtype != torch.float32:
        raise SettingsError(f"images must be float32, but are {images.dtype}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise SettingsError(
            f"labels must be {len(images)} int64 numbers, but are {list(labels.shape)} "
            f"{labels.dtype}"
        )
    if not bool(((images >= ball.low) & (images <= ball.high)).all()):
        raise SettingsError(
            f"pixels must lie between {ball.low} and {ball.high}; scale the images first"
        )
    if batch < 1:
        raise SettingsError(f"the batch must have at least one image, but {batch} was asked for")


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise SettingsError(
            "the network must give one row of at least 2 logits per image, not "
            f"{list(logits.shape)}"
        )
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise SettingsError(
            f"labels must lie between 0 and {logits.shape[1] - 1}, the last class of the network"
        )
