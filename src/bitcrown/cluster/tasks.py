"""What is computed side by side, and the loop over it that every scheduler shares.

The loop keeps no more tasks with a scheduler than it takes (``room``), so that neither ten thousand
instances nor their results are held at once. A task whose worker was lost (not one that failed) is
given out again, a bounded number of times; what is lost for good is left out and said at the end,
after everything else has finished. One number is with the scheduler at most once at a time, and its
first result is its only one: nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from bitcrown.errors import ResourceError
from bitcrown.settings import GIB, Settings

_MOST_LOST = 10
"""Tasks lost for good with none finished between them: then it is the cluster, not the task."""
_SHOWN = 3

FilePlaces = Mapping[str, str]
"""Where a task's files lie for the one who runs it, by their path at home; a path that is not there
stays what it is."""
Work = Callable[[Any, FilePlaces], Any]
"""A function at the top of a module: it is sent by its name. Raises ``BitcrownError``."""


@dataclass(frozen=True)
class Needs:
    """What is set apart for one task: ``cores`` and ``memory`` in bytes (0: nothing is), ``gpus``
    (None: whatever the machine has)."""

    cores: int = 0
    memory: int = 0
    gpus: int | None = None

    def share_of(self, settings: Settings) -> Settings:
        """``settings`` of a task that has this and no more."""
        return replace(
            settings,
            threads=self.cores or settings.threads,
            memory_gib=self.memory / GIB or settings.memory_gib,
            device="cpu" if self.gpus == 0 else settings.device,
        )


@dataclass(frozen=True)
class SentFile:
    """A file that a task reads: its path, and the SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Task:
    """``name`` is what messages call it; ``files`` are those that ``function`` opens."""

    name: str
    function: Work
    argument: Any
    files: tuple[SentFile, ...] = ()


@dataclass(frozen=True)
class Finished:
    """What became of the task ``number``: its ``value``, or why its worker is gone (``lost``).
    ``facts``: where it ran."""

    number: int
    value: Any = None
    lost: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Scheduler(Protocol):
    """Whoever runs tasks. ``tries``: how often a task is given out in all if its workers are lost;
    ``sends_files``: whether tasks may run where their files are not, and must name them.

    Used in a ``with`` block, at whose end nothing runs any more, however it was left.
    """

    @property
    def needs(self) -> Needs: ...
    @property
    def tries(self) -> int: ...
    @property
    def sends_files(self) -> bool: ...

    def room(self) -> int:
        """How many more tasks it takes now."""

    def submit(self, number: int, task: Task) -> None: ...

    def finished(self) -> Sequence[Finished]:
        """What has ended since the last call; waits for something, but not forever (then it is
        empty). Raises ``BitcrownError`` with the sentence of a task that failed."""

    def cancel(self) -> None:
        """End all that runs; returns when it is gone."""


def results_of(
    scheduler: Scheduler, tasks: Iterable[Task]
) -> Iterator[tuple[int, Any, Mapping[str, Any]]]:
    """Each task's place in ``tasks``, its value and facts about where it ran, as they come.

    ``tasks`` is read no faster than they are given out. Raises ``BitcrownError`` where a task
    failed, and ``ResourceError`` at the end if some were lost with their workers again and again.
    """
    waiting = enumerate(tasks)
    running: dict[int, tuple[Task, int]] = {}
    lost: list[str] = []
    in_a_row = 0
    while in_a_row < _MOST_LOST:
        for number, task in islice(waiting, max(0, scheduler.room())):
            running[number] = task, 1
            scheduler.submit(number, task)
        if not running:
            break
        for end in scheduler.finished():
            task, tries = running.pop(end.number)
            if not end.lost:
                in_a_row = 0
                again = {"tries": tries} if tries > 1 else {}
                yield end.number, end.value, {**end.facts, **again}
            elif tries < scheduler.tries:
                running[end.number] = task, tries + 1
                scheduler.submit(end.number, task)
            else:
                in_a_row += 1
                lost.append(f"{task.name}: {end.lost}")
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise ResourceError(
            f"no result, because the worker was lost, of {'; '.join(lost[:_SHOWN])}{more}; what "
            "was finished is kept, and the same command tries the rest again"
        )
