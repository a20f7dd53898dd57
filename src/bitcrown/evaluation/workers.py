"""Images in parallel: one process a job, each with the network loaded once, blocks of images handed
out as they finish.

A worker that raises hands the sentence back; one that dies (killed, out of memory) ends the
evaluation with an error. Either way what was finished is in the journal, and the next run goes on
from there; an image is never taken for proved because its worker is gone.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.evaluation.proving import ImageProver, Proof
from bitcrown.settings import GIB, Settings

ImageBlock = tuple[list[int], np.ndarray, np.ndarray, np.ndarray]
"""Image numbers, pixels ``[B, C, H, W]``, labels ``[B]``, and which are broken ``[B]``."""
_MakeProver = Callable[[Settings], ImageProver]
_POLL_SECONDS = 1.0
_AHEAD = 2
"""Blocks handed out before a job's first is finished."""


def _share_of(settings: Settings, jobs: int) -> Settings:
    """What one of ``jobs`` processes may use of the memory and the cores."""
    memory = settings.process_bytes() / GIB / jobs
    return replace(settings, memory_gib=memory, threads=max(1, settings.thread_count() // jobs))


def prove_in_processes(
    make: _MakeProver, settings: Settings, blocks: Sequence[ImageBlock], jobs: int
) -> Iterator[tuple[list[int], list[Proof]]]:
    """Image numbers and their proofs, block by block as they finish. ``make`` must be picklable.

    Raises ``ResourceError`` where a worker died, ``BitcrownError`` with the worker's sentence where
    one failed.
    """
    context = multiprocessing.get_context("spawn")
    inbox: Any = context.Queue()
    outbox: Any = context.Queue()
    waiting: Iterator[ImageBlock | None] = iter([*blocks, *[None] * jobs])
    for block in islice(waiting, _AHEAD * jobs):
        inbox.put(block)
    part = _share_of(settings, jobs)
    workers = [
        context.Process(target=_work, args=(make, part, inbox, outbox), daemon=True)
        for _ in range(jobs)
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in blocks:
            numbers, result = _next(outbox, workers)
            if isinstance(result, str):
                raise BitcrownError(result)
            yield numbers, result
            for block in islice(waiting, 1):
                inbox.put(block)
    finally:
        inbox.cancel_join_thread()
        for worker in workers:
            worker.terminate()
            worker.join()


def _next(outbox: Any, workers: Sequence[Any]) -> tuple[list[int], list[Proof] | str]:
    while True:
        try:
            found: tuple[list[int], list[Proof] | str] = outbox.get(timeout=_POLL_SECONDS)
            return found
        except queue.Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise ResourceError(
                    f"a worker process ended with code {dead[0]}; run again with fewer --jobs or "
                    "a smaller network"
                ) from None


def _work(make: _MakeProver, settings: Settings, inbox: Any, outbox: Any) -> None:
    torch.set_num_threads(settings.thread_count())
    prover: ImageProver | None = None
    while (block := inbox.get()) is not None:
        numbers, images, labels, broken = block
        try:
            prover = prover or make(settings)
            outbox.put((numbers, prover.prove(images, labels, broken)))
        except BitcrownError as error:
            outbox.put((numbers, str(error)))
