"""Processes as /proc shows them: age, memory of a run, and killing exactly the processes of one
run.

Every process of a run carries ``BITCROWN_RUN=<token>`` in its environment. Only that token, or the
process group that we made ourselves, decides what is killed; never a name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

TOKEN = "BITCROWN_RUN"
_LONGEST_START = 60.0
"""Seconds that a shell and an interpreter may take to start; a greater age of this process is not
believed."""
_PASSES = 5
"""Looks for processes of a run; each finds what the one before it missed."""
_PROC = Path("/proc")


def process_started() -> float:
    """``time.monotonic()`` reading at which this process began (shell included, where the shell
    used ``exec``).

    Falls back to now if /proc does not say, or says something that cannot be (some sandboxes give 0
    ticks).
    """
    now = time.monotonic()
    # Ticks since boot, which includes suspension, where the monotonic clock stands still: so the
    # age is taken on the boot clock, and only the age is carried over to the monotonic one.
    fields = _stat("self")
    if len(fields) < 20 or not fields[19].isdigit() or fields[19] == "0":
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return now - age if 0.0 <= age <= _LONGEST_START else now


def _stat(pid: str | int) -> list[str]:
    """Fields of /proc/PID/stat after the command name, which may itself hold blanks and brackets.

    In proc(5)'s order, from its third field on: state (0), parent (1), group (2), session (3),
    start time in clock ticks since boot (19).
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if there is none, or only its
    remains."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else 0


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(_PROC) if name.isdigit())


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 if it is gone."""
    try:
        words = (_PROC / str(pid) / "statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def group_members(group: int) -> list[int]:
    """Live processes whose process group or session is ``group``."""
    found = []
    for pid in pids():
        fields = _stat(pid)
        if len(fields) > 3 and fields[0] not in "ZX" and str(group) in fields[2:4]:
            found.append(pid)
    return found


def token_members(token: str) -> list[int]:
    """Live processes, other than this one, that carry the token of one run."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for pid in pids():
        if pid == os.getpid():
            continue
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(pid)
    return found


def signal_group(group: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to every process of a group that we made; a group that is gone is no error."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_token(token: str) -> set[int]:
    """SIGKILL to every process of the run ``token``, wherever it moved to; returns those that were
    hit."""
    hit: set[int] = set()
    # A process may fork between the look and the kill; its child carries the token, too, and is
    # found by the next pass.
    for _ in range(_PASSES):
        members = token_members(token)
        if not members:
            break
        for pid in members:
            hit.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.01)
    return hit


class Guard:
    """A forked process in a session of its own that kills the run if this process dies without
    saying ``release``.

    It is what makes SIGKILL of the parent safe: it reads a pipe whose other end only the parent
    holds, so the end of the file means that the parent is gone, however it went. What stands in
    the pipe then is the worker's group, and ``done`` if there is nothing left to do.
    """

    def __init__(self, token: str) -> None:
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writer)
            try:
                _guard(reader, token)
            finally:
                os._exit(0)
        os.close(reader)

    def watch(self, group: int) -> None:
        """From now on ``group`` is what dies with this process."""
        self._say(f"{group}\n".encode())

    def release(self) -> None:
        """Everything is cleaned up already; the guard goes without a further act, and nobody waits
        for it."""
        self._say(b"done\n")
        os.close(self._writer)
        os.waitpid(self._pid, os.WNOHANG)

    def _say(self, words: bytes) -> None:
        try:
            os.write(self._writer, words)
        except BrokenPipeError:  # somebody killed the guard; the run goes on without it
            return


def _guard(reader: int, token: str) -> None:
    # A session of its own: a harness that kills the parent's whole group must not hit the guard.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    # Nothing of the parent's stays open here: a results pipe that the guard held would never end.
    os.closerange(3, reader)
    os.closerange(reader + 1, 1024)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    received = b""
    while chunk := os.read(reader, 4096):
        received += chunk
    words = received.decode("ascii", errors="replace").split()
    if "done" in words:
        return
    if words and words[0].isdigit():
        signal_group(int(words[0]))
    kill_token(token)
