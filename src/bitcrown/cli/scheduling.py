"""``--jobs`` and ``--ray``: where the tasks of ``bench`` and ``evaluate`` run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.settings import Settings

if TYPE_CHECKING:
    from bitcrown.cluster.tasks import Scheduler


def add_ray_option(parser: Any) -> None:
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on the Ray cluster at HOST:PORT (auto: the one this machine is part of; local: "
        "one started for this run)",
    )


@contextmanager
def chosen_scheduler(
    address: str | None, jobs: int, settings: Settings, pack: Callable[[Path], bytes]
) -> Iterator[Scheduler]:
    """What the options name. SIGTERM ends a run as Ctrl-C does: what runs is ended, and what is
    finished stays finished."""
    from bitcrown.cluster.local import local_scheduler

    opened: AbstractContextManager[Scheduler]
    if address is None:
        opened = local_scheduler(jobs, settings)
    else:
        from bitcrown.cluster.ray_tasks import RayTasks

        opened = RayTasks(address, jobs, settings, pack)
    # (Only now: Ray has a handler of its own.)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with opened as scheduler:
        yield scheduler
