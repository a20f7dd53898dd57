"""Images side by side: blocks of them as tasks of a scheduler, each worker with the network loaded
once.

A worker that raises hands the sentence back; one that dies (killed, out of memory) has proved
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

import numpy as np
import torch

from bitcrown.cluster.local import local_scheduler
from bitcrown.cluster.shipped import sent_file
from bitcrown.cluster.tasks import FilePlaces, Scheduler, Task, results_of
from bitcrown.errors import ResourceError
from bitcrown.evaluation.plan import Plan, make_prover
from bitcrown.evaluation.proving import ImageProver, Proof
from bitcrown.model.classifier import Shape
from bitcrown.model.file import NetworkFile
from bitcrown.settings import GIB, Settings

ImageBlock = tuple[list[int], np.ndarray, np.ndarray, np.ndarray]
"""Image numbers, pixels ``[B, C, H, W]``, labels ``[B]``, and which are broken ``[B]``."""


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


def prove_side_by_side(
    scheduler: Scheduler, plan: Plan, digest: str, shape: Shape, blocks: Iterable[ImageBlock]
) -> Iterator[tuple[list[int], list[Proof]]]:
    """Image numbers and their proofs, block by block as they finish.

    Raises ``ResourceError`` where workers died, ``BitcrownError`` with the worker's sentence where
    one failed.
    """
    question = Question(plan, digest, shape, scheduler.needs.share_of(plan.settings))
    sent = sent_file(str(Path(plan.network).absolute())) if scheduler.sends_files else None

    def tasks() -> Iterator[Task]:
        for block in blocks:
            name = f"images {block[0][0]} to {block[0][-1]}"
            yield Task(name, prove_block, (question, block), () if sent is None else (sent,))

    for _, found, _ in results_of(scheduler, tasks()):
        yield found


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
    if file.digest != question.digest:
        raise ResourceError(f"{path} is another network than the one that was judged and attacked")
    return make_prover(question.plan, file, question.shape, question.settings)
