"""A computation in a fork of this process, which may hang, fill the memory or crash without harm to
this one.

SAT solvers ask now and then whether to stop, but not while they simplify and bit-blast: a hundred
thousand terms keep Boolector busy for seconds before its first question. A deadline is honoured by
killing, then, and the memory of a killed child returns to the system at once. And onnxruntime
aborts on some damaged files, which ends whatever process has opened them: where a file has not been
opened before and its process must not die, a child opens it first.

The child is a fork, so that it needs no start-up and no copy of what it works on; it computes a
text, writes it into a pipe and leaves without running anyone's clean-up. What it prints goes
nowhere. It stays in the process group of its parent, so whoever ends the group ends it, too.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
from collections.abc import Callable

from bitcrown.budget import Budget
from bitcrown.errors import BitcrownError, ModelError
from bitcrown.verdict import Reason

_SECONDS_PER_LOOK = 0.1
_CHUNK = 1 << 16
_DONE, _REFUSED = "done", "refused"


def text_of_child(function: Callable[[], str], budget: Budget, grace: float) -> tuple[str, Reason]:
    """What ``function`` returns in a fork of this process, or an empty text and the reason why
    there is none.

    ``budget.memory`` bounds what the child holds by itself (bytes; pages shared with the parent do
    not count, and the resident size would not tell: a fork begins without the parent's file pages);
    ``grace`` seconds after the deadline it is killed, so that a function that stops by itself can
    still say so. Where the budget counts computing, that of the child counts. A child that dies
    gives Reason.CRASHED.
    """
    import psutil

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_and_leave(function, reading, writing)
    # The child's copy must be the only one: then the end of the pipe is the child's end.
    os.close(writing)
    try:
        parts: list[bytes] = []
        looked, allowance = time.monotonic(), budget.cpu_remaining()
        # A large text arrives in pieces and the child waits while the pipe is full, so reading goes
        # before looking. It ends with the end of the pipe; only the finally clause reaps the child,
        # hence its number stays its own until then.
        while True:
            ready, _, _ = select.select([reading], [], [], _SECONDS_PER_LOOK)
            if ready:
                part = os.read(reading, _CHUNK)
                if not part:
                    break
                parts.append(part)
            elif budget.remaining() < -grace:
                return "", Reason.DEADLINE
            elif time.monotonic() - looked >= _SECONDS_PER_LOOK:
                looked, process = time.monotonic(), psutil.Process(child)
                if process.memory_full_info().uss > budget.memory:
                    return "", Reason.MEMORY
                if sum(process.cpu_times()[:2]) > allowance + grace:
                    return "", Reason.DEADLINE
        # The child writes a line end last: a text without one was cut short by its death.
        text = b"".join(parts).decode()
        return (text[:-1], Reason.NONE) if text.endswith("\n") else ("", Reason.CRASHED)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def text_or_error(function: Callable[[], str], budget: Budget, what: str) -> str:
    """What ``function`` returns in a child process.

    A ``BitcrownError`` of the child is raised here with its sentence. Raises ``ModelError`` where
    there is no answer, saying that the process ``what`` ("that replays the witness") crashed, or
    was too slow or too large.
    """

    def told() -> str:
        try:
            return f"{_DONE} {function()}"
        except BitcrownError as error:
            return f"{_REFUSED} {error}"

    text, reason = text_of_child(told, budget, 0.0)
    if reason is not Reason.NONE:
        why = {Reason.DEADLINE: "did not end in time", Reason.MEMORY: "asked for too much memory"}
        raise ModelError(f"the process {what} {why.get(reason, 'crashed, so the file is damaged')}")
    word, _, rest = text.partition(" ")
    if word == _REFUSED:
        raise BitcrownError(rest)
    return rest


def _run_and_leave(function: Callable[[], str], reading: int, writing: int) -> None:
    """The child: never returns, and never runs what the parent has registered for its own end."""
    status = 1  # unless it comes to the end below, also where ``function`` raises
    try:
        os.close(reading)
        # What aborts here is expected: no traces on stderr, no core file.
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        text = (function() + "\n").encode()
        while text:
            text = text[os.write(writing, text) :]
        status = 0
    finally:
        # Not sys.exit: buffers, threads and atexit handlers copied by the fork are the parent's.
        os._exit(status)
