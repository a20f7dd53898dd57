"""Schedulers of this machine: tasks in turn, in this process; or side by side, in hosts.

Side by side each host has its slice of the cores. A host that dies has lost its task, which is not
tried again here: it had this machine's memory, and would have no more the next time.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import wait

from bitcrown.cluster.cores import slices_for
from bitcrown.cluster.host import FAILED, LOST, Parcel
from bitcrown.cluster.hosts import Host, body_of
from bitcrown.cluster.tasks import Finished, Needs, Task
from bitcrown.errors import BitcrownError
from bitcrown.settings import GIB, Settings, usable_cores


def local_scheduler(jobs: int, settings: Settings) -> InTurn | LocalJobs:
    """Tasks of this machine: in turn, or ``jobs`` at a time with the threads and the memory of
    ``settings`` each, or their part of what there is."""
    if jobs == 1:
        return InTurn()
    cores = settings.threads or max(1, usable_cores() // jobs)
    memory = int(settings.memory_gib * GIB) or settings.process_bytes() // jobs
    return LocalJobs(jobs, Needs(cores, memory))


class InTurn:
    """One task at a time, without any other process: its times are those of an idle machine."""

    needs, tries, sends_files = Needs(), 1, False

    def __init__(self) -> None:
        self._given: list[tuple[int, Task]] = []

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def room(self) -> int:
        return 1 - len(self._given)

    def submit(self, number: int, task: Task) -> None:
        self._given.append((number, task))

    def finished(self) -> Sequence[Finished]:
        number, task = self._given.pop()
        return [Finished(number, task.function(task.argument, {}))]

    def cancel(self) -> None:
        self._given.clear()


class LocalJobs:
    """``jobs`` tasks at a time, each in a host pinned to its own cores."""

    tries, sends_files = 1, False

    def __init__(self, jobs: int, needs: Needs) -> None:
        self.needs = needs
        self._slices = slices_for(jobs)
        self._hosts: list[Host | None] = [None] * jobs
        self._running: dict[int, int] = {}  # task numbers by place of the host

    def __enter__(self) -> LocalJobs:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def room(self) -> int:
        return len(self._hosts) - len(self._running)

    def submit(self, number: int, task: Task) -> None:
        place = next(k for k in range(len(self._hosts)) if k not in self._running)
        host = self._hosts[place]
        if host is None or not host.is_alive():
            host = self._hosts[place] = Host()
        self._running[place] = number
        host.hand(Parcel(body_of(task), self._slices[place]))

    def finished(self) -> Sequence[Finished]:
        hosts = {place: host for place in self._running if (host := self._hosts[place])}
        ready = wait([host.link for host in hosts.values()])
        found = []
        for place, host in hosts.items():
            if host.link in ready:
                number = self._running.pop(place)
                word, value, facts = host.answer()
                if word == FAILED:
                    raise BitcrownError(value)
                lost = value if word == LOST else ""
                found.append(Finished(number, None if lost else value, lost, facts))
        return found

    def cancel(self) -> None:
        hosts = [host for host in self._hosts if host is not None]
        for host in hosts:
            host.ask_to_end()
        for host in hosts:
            host.end()
        self._hosts = [None] * len(self._hosts)
        self._running.clear()
