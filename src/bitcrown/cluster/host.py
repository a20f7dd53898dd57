"""The process in which tasks run, one after the other: nothing else lives in it.

It reads *parcels* from a socket and answers each. When the socket ends, its parent is gone, however
that went; that, and SIGTERM, interrupt the task that runs (``KeyboardInterrupt`` in the main
thread), so that what the task has started is ended by the task itself, and then the host ends. The
parcel's body is unpacked only after the cores are set, because an import may start threads.

Answers are ``(word, value, facts)`` with one of the words below.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

from bitcrown.cluster.cores import pin
from bitcrown.cluster.shipped import Shelf
from bitcrown.errors import BitcrownError

DONE, FAILED, LOST, MISSING = "done", "failed", "lost", "missing"
"""The value follows; a sentence; why (memory); the files that must be sent along."""


@dataclass(frozen=True)
class Parcel:
    """``body``: the pickled function, argument and files of a task; ``contents``: files by
    digest."""

    body: bytes
    cores: tuple[int, ...] = ()
    contents: Mapping[str, bytes] = field(default_factory=dict)


def main(descriptor: int) -> None:
    # Whoever started this may have had signals blocked, as Ray's workers have.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGTERM, _interrupt)
    link: Connection[Any, Any] = Connection(descriptor)
    shelf = Shelf()
    parcels: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(link, parcels), daemon=True).start()
    try:
        while True:
            link.send_bytes(_answer(parcels.get(), shelf))
    except (KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shelf.close()


def _interrupt(number: int, frame: object) -> None:
    """Once: a second one must not interrupt the tidying up."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _listen(link: Connection[Any, Any], parcels: SimpleQueue[bytes]) -> None:
    try:
        while True:
            parcels.put(link.recv_bytes())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _answer(data: bytes, shelf: Shelf) -> bytes:
    try:
        answer = _answered(data, shelf)
        return bytes(ForkingPickler.dumps(answer))
    except BitcrownError as error:
        answer = FAILED, str(error), {}
    except MemoryError:
        answer = LOST, "its process had no memory left", {}
    # The boundary of a process: whatever went wrong becomes a sentence, and never a result.
    except Exception as error:  # noqa: BLE001
        where = traceback.format_exc(limit=-1).strip().splitlines()[1].strip()
        answer = FAILED, f"a task ended with {type(error).__name__}: {error} ({where})", {}
    return bytes(ForkingPickler.dumps(answer))


def _answered(data: bytes, shelf: Shelf) -> tuple[str, Any, dict[str, Any]]:
    parcel: Parcel = ForkingPickler.loads(data)
    pin(parcel.cores)
    function, argument, files = ForkingPickler.loads(parcel.body)
    missing = shelf.missing(files, parcel.contents)
    if missing:
        return MISSING, missing, {}
    value = function(argument, shelf.places(files))
    return DONE, value, {"node": platform.node(), "cores": sorted(os.sched_getaffinity(0))}
