"""A computation in a fork of this process, ended at a deadline or a memory limit whatever it is doing.

SAT solvers ask now and then whether to stop, but not while they simplify and bit-blast: a hundred thousand terms keep
Boolector busy for seconds before its first question. A deadline is honoured by killing, then, and the memory of a
killed child returns to the system at once. The child is a fork, so that it needs no start-up and no copy of the
formula; it computes a text, writes it into a pipe and leaves without running anyone's clean-up. It stays in the process
group of its parent, so whoever ends the group ends it, too.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from bitcrown.budget import Budget
from bitcrown.verdict import Reason

SECONDS_PER_LOOK = 0.1
CHUNK = 1 << 16


def text_of_child(function: Callable[[], str], budget: Budget, grace: float) -> tuple[str, Reason]:
    """What ``function`` returns in a fork of this process, or an empty text and the reason why there is none.

    ``budget.memory`` bounds what the child holds by itself (bytes; pages shared with the parent do not count, and the
    resident size would not tell: a fork begins without the parent's file pages); ``grace`` seconds after the deadline
    it is killed, so that a function that stops by itself can still say so. A child that dies gives Reason.CRASHED.
    """
    import psutil

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_and_leave(function, reading, writing)
    os.close(writing)
    try:
        parts: list[bytes] = []
        while True:
            ready, _, _ = select.select([reading], [], [], SECONDS_PER_LOOK)
            if ready:
                part = os.read(reading, CHUNK)
                if not part:
                    break
                parts.append(part)
            elif budget.remaining() < -grace:
                return "", Reason.DEADLINE
            elif psutil.Process(child).memory_full_info().uss > budget.memory:
                return "", Reason.MEMORY
        text = b"".join(parts).decode()
        return (text[:-1], Reason.NONE) if text.endswith("\n") else ("", Reason.CRASHED)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _run_and_leave(function: Callable[[], str], reading: int, writing: int) -> None:
    """The child: never returns, and never runs what the parent has registered for its own end."""
    status = 1
    try:
        os.close(reading)
        text = (function() + "\n").encode()
        while text:
            text = text[os.write(writing, text) :]
        status = 0
    finally:
        os._exit(status)
