"""Images side by side: blocks of them as tasks of a scheduler, each worker with the network loaded
once.

A worker that raises hands the sentence back; one that dies (killed, out of memory) has found
nothing, and the evaluation ends with an error when all others are done. Either way what was
finished is in the journal, and the next run goes on from there; an image is never taken for proved
because its worker is gone.

A worker opens the network for itself, wherever it lies there; one with another content than that
which was judged and attacked is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitcrown.cluster.local import local_scheduler
from bitcrown.cluster.shipped import sent_file
from bitcrown.cluster.tasks import FilePlaces, Scheduler, Task, Work, results_of
from bitcrown.errors import ResourceError
from bitcrown.evaluation.attacking import Attack, pgd_attack
from bitcrown.evaluation.plan import Plan, make_prover
from bitcrown.evaluation.proving import ImageProver, Proof
from bitcrown.evaluation.subjects import FileSubject, Subject
from bitcrown.model.classifier import Shape
from bitcrown.model.file import NetworkFile
from bitcrown.search.device import device_of
from bitcrown.settings import GIB, Settings

ImageBlock = tuple[list[int], np.ndarray, np.ndarray, np.ndarray]
"""Image numbers, pixels ``[B, C, H, W]``, labels ``[B]``, and which are broken ``[B]``."""
AttackBlock = tuple[list[int], np.ndarray, np.ndarray]
"""The same without the last: nothing is broken yet."""


@dataclass(frozen=True)
class Question:
    """What is asked about images of ``shape``: ``plan``, on a network of this ``digest``, with
    ``settings`` of one task."""

    plan: Plan
    digest: str
    shape: Shape
    settings: Settings


def worker_processes(plan: Plan, jobs: int) -> AbstractContextManager[Scheduler]:
    """``jobs`` processes of this machine, which share what the plan's settings grant."""
    settings = plan.settings
    memory = settings.process_bytes() / GIB / jobs
    cores = max(1, settings.thread_count() // jobs)
    return local_scheduler(jobs, replace(settings, memory_gib=memory, threads=cores))


def side_by_side(
    work: Work,
    scheduler: Scheduler,
    plan: Plan,
    digest: str,
    shape: Shape,
    blocks: Iterable[ImageBlock | AttackBlock],
) -> Iterator[tuple[list[int], Any]]:
    """Image numbers and what ``work`` (``prove_block``, ``attack_block``) finds of them, block by
    block as they finish.

    Raises ``ResourceError`` where workers died, ``BitcrownError`` with the worker's sentence where
    one failed.
    """
    question = Question(plan, digest, shape, scheduler.needs.share_of(plan.settings))
    sent = sent_file(str(Path(plan.network).absolute())) if scheduler.sends_files else None

    def tasks() -> Iterator[Task]:
        for block in blocks:
            name = f"images {block[0][0]} to {block[0][-1]}"
            yield Task(name, work, (question, block), () if sent is None else (sent,))

    for _, found, _ in results_of(scheduler, tasks()):
        yield found


def attack_block(
    asked: tuple[Question, AttackBlock], places: FilePlaces
) -> tuple[list[int], np.ndarray]:
    """A task: what PGD makes of the images of a block, ``[B, C, H, W]``. Whether it breaks the
    network is judged where the task came from. Raises ``BitcrownError``."""
    question, (numbers, images, labels) = asked
    path = str(Path(question.plan.network).absolute())
    subject, attack = _attacker(question, places.get(path, path))
    given = subject.space.points(images), torch.from_numpy(labels), np.array(numbers)
    return numbers, attack(*given, question.settings.seed).numpy()


@functools.lru_cache(maxsize=1)
def _attacker(question: Question, path: str) -> tuple[Subject, Attack]:
    torch.set_num_threads(question.settings.thread_count())
    plan, file = question.plan, NetworkFile(Path(path))
    _require_same(file.digest, question, path)
    # (That onnxruntime survives the file was tried where the task came from.)
    device = device_of(question.settings.device)
    subject = FileSubject(file, question.shape, plan.mean, plan.std, plan.order, device)
    return subject, plan_attack(plan, subject)


def plan_attack(plan: Plan, subject: Subject) -> Attack:
    """PGD as ``plan`` has it."""
    ball, model = subject.space.ball(plan.norm, plan.eps), subject.classifier(plan.bpda)
    return pgd_attack(model, ball, plan.steps, plan.restarts, plan.batch, subject.device)


def _require_same(digest: str, question: Question, path: str) -> None:
    if digest != question.digest:
        raise ResourceError(f"{path} is another network than the one that was judged and attacked")


def prove_block(
    asked: tuple[Question, ImageBlock], places: FilePlaces
) -> tuple[list[int], list[Proof]]:
    """A task: the images of a block. Raises ``BitcrownError``."""
    question, (numbers, images, labels, broken) = asked
    path = str(Path(question.plan.network).absolute())
    return numbers, _prover(question, places.get(path, path)).prove(images, labels, broken)


@functools.lru_cache(maxsize=1)
def _prover(question: Question, path: str) -> ImageProver:
    torch.set_num_threads(question.settings.thread_count())
    file = NetworkFile(Path(path))
    _require_same(file.digest, question, path)
    return make_prover(question.plan, file, question.shape, question.settings)
