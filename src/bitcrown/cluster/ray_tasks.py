"""The scheduler of a Ray cluster (https://docs.ray.io, tested with the version in
``constraints.txt``).

A Ray worker that takes a task sets cores apart on its node and hands the task to a host of its own,
which has nothing of Ray in it: no threads of Ray compete for the cores while a time is taken, and
the host ends with the worker, also where its node is killed. Ray decides where a task runs; that it
runs again after a node was lost, how often, and what counts, is decided here, by the driver: Ray's
own retries are off.

A task takes as many cores, bytes and GPUs of its node as ``Needs`` says. Twice as many tasks as fit
are handed over at a time, so that no node waits for the driver, and an autoscaler sees that there
is more to do.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from bitcrown.cluster.cores import free_slice
from bitcrown.cluster.host import DONE, FAILED, LOST, MISSING, Parcel
from bitcrown.cluster.hosts import Host, body_of
from bitcrown.cluster.tasks import Finished, Needs, SentFile, Task
from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.files import find_file
from bitcrown.provenance import version
from bitcrown.settings import GIB, Settings, usable_cores

LOCAL = "local"
_AHEAD = 2
_LOOK_SECONDS, _NODES_SECONDS, _CANCEL_SECONDS = 1.0, 2.0, 20.0
_PATIENCE = 600.0
"""Seconds without any node that could take a task."""
_CONNECT_SECONDS = 10.0
_LOCAL_STORE = 256 << 20
_MEMORY_SHARE = 0.9
"""Of what a node offers, dealt out to its tasks."""
_Answer = tuple[str, Any, dict[str, Any]]


def read_whole(path: Path) -> bytes:
    """The content of a file as it is sent where no better way is known."""
    return path.read_bytes()


def needs_on(nodes: Sequence[Mapping[str, float]], jobs: int, settings: Settings) -> Needs:
    """What a task has if ``jobs`` of them run on a node at a time: its part of the smallest of
    ``nodes`` (resources by Ray's names), or the ``threads`` and ``memory_gib`` of ``settings``.

    A GPU where CUDA is asked for, or where every node has one and nothing else is asked for. Raises
    ``ResourceError`` if no node computes.
    """
    useful = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not useful:
        raise ResourceError("no node of the cluster offers CPUs; add one (ray start --address ...)")
    smallest = min(int(node["CPU"]) for node in useful)
    cores = settings.threads or max(1, smallest // jobs)
    beside = max(1, smallest // cores)
    offered = min(int(node.get("memory", 0)) for node in useful)
    memory = int(settings.memory_gib * GIB) or int(_MEMORY_SHARE * offered) // beside
    has_gpus = all(node.get("GPU", 0) >= 1 for node in useful)
    takes_one = settings.device == "cuda" or (settings.device == "auto" and has_gpus)
    return Needs(cores, memory, int(takes_one))


def fit(node: Mapping[str, float], needs: Needs) -> int:
    """How many tasks a node takes at a time."""
    wanted = {"CPU": needs.cores, "memory": needs.memory, "GPU": needs.gpus or 0}
    return min(int(node.get(name, 0) // count) for name, count in wanted.items() if count)


@dataclass
class _Flight:
    """A task that is under way; ``sent`` holds its files in the object store, by digest."""

    number: int
    task: Task
    sent: dict[str, Any] = field(default_factory=dict)


class RayTasks:
    """Tasks on the cluster at ``address`` (``local``: one that is started here and ends with this).

    ``pack`` reads a file for nodes that have it not. Raises ``ResourceError`` where there is no
    Ray, no cluster, or no node that computes.
    """

    tries, sends_files = 3, True

    def __init__(
        self,
        address: str,
        jobs: int,
        settings: Settings,
        pack: Callable[[Path], bytes] = read_whole,
    ) -> None:
        self._pack = pack
        self._ray = _connected(address)
        self._flights: dict[Any, _Flight] = {}
        self._looked, self._slots = 0.0, 0
        try:
            self.needs = needs_on(self._nodes(), jobs, settings)
        except BitcrownError:
            self._ray.shutdown()
            raise
        self._served = time.monotonic()
        needs = self.needs
        self._remote = self._ray.remote(
            max_retries=0, num_cpus=needs.cores, memory=needs.memory, num_gpus=needs.gpus
        )(work_here)

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.cancel()
        finally:
            self._ray.shutdown()

    def room(self) -> int:
        return max(1, _AHEAD * self._fitting()) - len(self._flights)

    def submit(self, number: int, task: Task) -> None:
        self._launch(_Flight(number, task))

    def finished(self) -> Sequence[Finished]:
        refs = list(self._flights)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=_LOOK_SECONDS)
        if not ready:
            self._require_nodes()
            return []
        # All that have come by now, in one go.
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        found = (self._landed(self._flights.pop(ref), ref) for ref in ready)
        return [end for end in found if end is not None]

    def cancel(self) -> None:
        refs = list(self._flights)
        self._flights.clear()
        for ref in refs:
            self._ray.cancel(ref)
        if refs:  # (a worker returns from a task when its host is gone)
            self._ray.wait(refs, num_returns=len(refs), timeout=_CANCEL_SECONDS)

    # -- one task ----------------------------------------------------------------------------------

    def _launch(self, flight: _Flight) -> None:
        asked = body_of(flight.task), version(), self.needs.cores, flight.sent
        self._flights[self._remote.remote(*asked)] = flight

    def _landed(self, flight: _Flight, ref: Any) -> Finished | None:
        """What became of a task; None where it goes on, with the files that it lacked."""
        from ray.exceptions import RayError

        try:
            word, value, facts = self._ray.get(ref)
        except RayError as error:
            return Finished(flight.number, lost=_first_line(error))
        if word == FAILED:
            raise BitcrownError(value)
        if word == MISSING:
            self._send(flight, value)
            self._launch(flight)
            return None
        if word == LOST:
            return Finished(flight.number, lost=value, facts=facts)
        assert word == DONE
        return Finished(flight.number, value, facts=facts)

    def _send(self, flight: _Flight, missing: Sequence[SentFile]) -> None:
        """Put files into the object store, where they stay as long as a task that lacked them is
        under way. Raises ``ResourceError``."""
        under_way = {name: ref for one in self._flights.values() for name, ref in one.sent.items()}
        for file in missing:
            found = find_file(Path(file.path))
            try:
                if found is None:
                    raise FileNotFoundError(2, "it is gone")
                content = under_way.get(file.sha256) or self._ray.put(self._pack(found))
            except OSError as error:
                raise ResourceError(f"{file.path} cannot be sent: {error.strerror}") from error
            flight.sent[file.sha256] = content

    # -- nodes -------------------------------------------------------------------------------------

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self) -> int:
        """How many tasks the cluster takes at a time, as far as is known."""
        now = time.monotonic()
        if now - self._looked > _NODES_SECONDS:
            self._slots = sum(fit(node, self.needs) for node in self._nodes())
            self._looked = now
        if self._slots:
            self._served = now
        return self._slots

    def _require_nodes(self) -> None:
        if not self._fitting() and time.monotonic() - self._served > _PATIENCE:
            needs = self.needs
            raise ResourceError(
                f"for {_PATIENCE:.0f} s no node of the cluster had {needs.cores} CPUs, "
                f"{needs.memory / GIB:.1f} GiB and {needs.gpus} GPUs for one task; what was "
                "finished is kept"
            )


def _connected(address: str) -> Any:
    try:
        # What is checked here goes nowhere else, and a task without a GPU is to see none.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        import ray
    except ImportError as error:
        raise ResourceError(
            "--ray needs Ray: pip install 'bitcrown[cluster]', on every node"
        ) from error
    _require_listener(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        own = {"num_cpus": usable_cores(), "object_store_memory": _LOCAL_STORE}
        quiet.update(own, include_dashboard=False)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise ResourceError(
            f"the Ray cluster at {address!r} cannot be used: {_first_line(error)}"
        ) from error
    return ray


def _require_listener(address: str) -> None:
    """Raises ``ResourceError`` where nobody answers at HOST:PORT; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"the Ray cluster at {address!r} cannot be used: {error}; give the address that "
            "ray start --head printed, or auto"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# -- in a worker of Ray --------------------------------------------------------------------------


def work_here(body: bytes, made_by: str, cores: int, sent: Mapping[str, Any]) -> _Answer:
    """Hand a task to this worker's host, on cores of its own; the host's answer.

    ``made_by``: the driver's version; ``sent``: files in the object store, by digest.
    """
    import ray

    if made_by != version():
        why = (
            f"a node has bitcrown {version()}, the driver {made_by}: install one of them everywhere"
        )
        return FAILED, why, {}
    contents = {digest: ray.get(ref) for digest, ref in sent.items()}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    host = _host(devices)
    if not host.is_alive():
        _host.cache_clear()
        host = _host(devices)
    try:
        with free_slice(cores) as piece:
            return _answer_of(host, Parcel(body, piece, contents))
    except BitcrownError as error:
        return FAILED, str(error), {}


@functools.lru_cache(maxsize=1)
def _host(devices: str | None) -> Host:
    """This worker's host. A change of GPUs makes a new one, because a process that has opened a GPU
    keeps it; the old one ends with its socket."""
    return Host()


def _answer_of(host: Host, parcel: Parcel) -> _Answer:
    host.hand(parcel)
    try:
        # Ray cancels between two steps of the interpreter only, so nothing may block for long.
        while not wait([host.link], timeout=_LOOK_SECONDS / 4):
            continue
    except BaseException:
        # What it computes is wanted no more, and must be gone before its cores are free.
        _host.cache_clear()
        host.end()
        raise
    return host.answer()
