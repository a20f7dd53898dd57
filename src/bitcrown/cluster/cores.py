"""Which cores a task has, so that tasks beside each other share none.

Cores are taken in slices of neighbours: the cores that this process may use, in the order of their
processors and physical cores (so that the two threads of one core come one after the other), cut
into pieces of one length. On one machine the driver deals the slices out. On a node of a cluster
nobody does: there the tasks of a user agree through locked files, one a core, which the kernel
unlocks when their holder is gone, however it went. Where there are fewer cores than the cluster was
told, tasks wait for each other. In a container that has a share of the time of all cores, and none
of its own, nothing is bound: its neighbours would choose the same ones.
"""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from bitcrown.errors import ResourceError
from bitcrown.settings import usable_cores

_TOPOLOGY = Path("/sys/devices/system/cpu")
_WAIT_SECONDS = 0.05


def _place_of(core: int) -> tuple[int, int, int]:
    """Processor, physical core, number; zeros where the kernel does not say."""
    numbers = []
    for name in ("physical_package_id", "core_id"):
        try:
            numbers.append(int((_TOPOLOGY / f"cpu{core}" / "topology" / name).read_text()))
        except (OSError, ValueError):
            numbers.append(0)
    return numbers[0], numbers[1], core


def slices(count: int, cores: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """The cores of this process (or ``cores``) in pieces of ``count``; what is left over is in no
    piece. One piece of all where there are fewer."""
    allowed = sorted(os.sched_getaffinity(0), key=_place_of) if cores is None else list(cores)
    count = max(1, min(count, len(allowed)))
    return [
        tuple(allowed[first : first + count]) for first in range(0, len(allowed) - count + 1, count)
    ]


def slices_for(jobs: int, cores: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """A slice for each of ``jobs`` tasks at a time; where they are more than cores, some share
    one."""
    allowed = len(os.sched_getaffinity(0)) if cores is None else len(cores)
    pieces = slices(max(1, allowed // jobs), cores)
    return [pieces[job % len(pieces)] for job in range(jobs)]


def pin(cores: Sequence[int]) -> None:
    """Bind all threads of this process, and what they start, to ``cores``; none: leave it."""
    for thread in os.listdir("/proc/self/task") if cores else ():
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has just ended
            continue


@contextmanager
def free_slice(count: int, folder: Path | None = None) -> Iterator[tuple[int, ...]]:
    """``count`` cores that no other task of this user on this machine holds; waits for them.
    ``folder`` holds the locks. Empty where this process has no cores of its own. Raises
    ``ResourceError`` where there can be no locks."""
    is_owner = usable_cores() >= len(os.sched_getaffinity(0))
    piece: tuple[int, ...] | None = None if is_owner else ()
    held = ExitStack()
    while piece is None:
        try:
            piece, held = _locked_slice(count, folder or _own_folder())
        except OSError as error:
            raise ResourceError(f"cores cannot be set apart: {error}") from error
        if piece is None:
            time.sleep(_WAIT_SECONDS * (1 + random.random()))
    with held:
        yield piece


def _locked_slice(count: int, folder: Path) -> tuple[tuple[int, ...] | None, ExitStack]:
    """The first slice whose cores could all be locked, and what holds them."""
    for piece in slices(count):
        with ExitStack() as held:
            if all(_is_locked(held.enter_context(_lock(folder, core))) for core in piece):
                return piece, held.pop_all()
    return None, ExitStack()


def _own_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"bitcrown-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ResourceError(f"{folder} belongs to somebody else")
    return folder


def _lock(folder: Path, core: int) -> IO[bytes]:
    return (folder / str(core)).open("ab")


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
