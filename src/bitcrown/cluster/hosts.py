"""Hosts as their parent sees them: start, hand over, look for the answer, end.

A host leads a session of its own, so that Ctrl-C on a terminal reaches the parent alone, which ends
its hosts in order. It is told the module path of its parent, not the parent's main module: that of
a Ray worker is none of its business.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from bitcrown.cluster.host import LOST, Parcel
from bitcrown.cluster.tasks import Task

GRACE_SECONDS = 15.0
"""For a host that was asked to end: scripts that it runs end their own workers first."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from bitcrown.cluster.host import main; main(int(sys.argv[1]))"
)


def body_of(task: Task) -> bytes:
    """What a parcel holds of a task."""
    return bytes(ForkingPickler.dumps((task.function, task.argument, task.files)))


class Host:
    """One host process; ``link`` is readable when there is an answer, or when it has died."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-X", "utf8", "-c", _START, str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                [*command, json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.link: Connection[Any, Any] = Connection(ours.detach())

    def hand(self, parcel: Parcel) -> None:
        """Give it something to do; what comes of it, also where it is dead, ``answer`` says."""
        try:
            self.link.send(parcel)
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> tuple[str, Any, dict[str, Any]]:
        """Waits for the answer; a host that died has lost its task."""
        try:
            found: tuple[str, Any, dict[str, Any]] = ForkingPickler.loads(self.link.recv_bytes())
            return found
        except (EOFError, OSError):
            code = self.process.wait()
            why = f"a worker process ended with code {code}"
            return LOST, f"{why} (too little memory, perhaps)" if code == -9 else why, {}

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ask_to_end(self) -> None:
        self.process.terminate()

    def end(self) -> None:
        """Returns when it is gone, and what its task had started with it."""
        self.ask_to_end()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self.link.close()
