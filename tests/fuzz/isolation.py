"""Trials in a forked child, so that a crash, a hang or a leak of one does not end the others.

The child does one trial after another and says before each which one it begins. Its processor time
is limited anew for every trial (the kernel ends it with SIGXCPU), and its clock is its processor
time, so that nothing depends on how busy the machine is. After a death the next child goes on
behind the trial that killed it; after ``BATCH`` trials a fresh child takes over. Legend: a *trial*
maps a number to a dictionary with the entry ``kind``.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

Trial = Callable[[int], dict[str, Any]]
BATCH = 200
WALL_FACTOR = 30.0
"""A trial that waits for something other than the processor is ended after this many times its
limit."""


def results(
    trial: Trial, numbers: Iterable[int], cpu_seconds: float, cpu_clock: bool = True
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Results of ``trial`` in the order of ``numbers``; ``hang`` and ``crash`` are kinds of their
    own.

    ``cpu_clock``: whether ``time.monotonic`` is the processor time in the child; not for trials
    that wait for others.
    """
    context = multiprocessing.get_context("fork")
    waiting = iter(numbers)
    batch = list(islice(waiting, BATCH))
    while batch:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(
            target=_work, args=(trial, batch, cpu_seconds, cpu_clock, theirs), daemon=True
        )
        child.start()
        theirs.close()
        done = 0
        while done < len(batch):
            message = _received(ours, WALL_FACTOR * cpu_seconds)
            if message is None:
                child.kill()
                child.join()
                yield batch[done], _death(child.exitcode)
                done += 1
                break
            yield batch[done], message
            done += 1
        child.join()
        ours.close()
        batch = batch[done:] or list(islice(waiting, BATCH))


def _received(ours: Connection, seconds: float) -> dict[str, Any] | None:
    try:
        if not ours.poll(seconds):
            return None
        result: dict[str, Any] = ours.recv()
        return result
    except EOFError:
        return None


def _death(code: int | None) -> dict[str, Any]:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"kind": "hang", "signature": "processor time is up"}
    return {"kind": "crash", "signature": f"the process ended with {code}"}


def _work(
    trial: Trial, batch: list[int], cpu_seconds: float, cpu_clock: bool, theirs: Connection
) -> None:
    if cpu_clock:
        time.monotonic = time.process_time  # the clock of bitcrown's budgets
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in batch:
        limit = int(time.process_time() + cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit if most < 0 else min(limit, most), most))
        theirs.send(trial(number))
    theirs.close()
    os._exit(0)
