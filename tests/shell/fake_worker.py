"""A worker that does what ``FAKE_MODE`` says; it stands in for bitcrown's own in the tests of the
parent."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time

FD = int(sys.argv[2])
REQUEST = json.loads(sys.argv[1])
WITNESS = "((X_0 0.5)\n(Y_0 1.5))"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def send(message: dict[str, object]) -> None:
    os.write(FD, json.dumps(message).encode() + b"\n")


def final(**facts: object) -> None:
    send({"kind": "final"} | facts)


def note_pid(pid: int) -> None:
    """Tell the test which processes there are."""
    with open(os.environ["FAKE_PIDS"], "a") as file:
        file.write(f"{pid}\n")


def ignore_everything() -> None:
    """Sit in a blocking call that no signal but SIGKILL ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    while True:
        libc.sleep(600)


def hold_memory() -> None:
    """Take memory in small steps, up to 1 GiB, and keep it."""
    held = []
    for _ in range(64):
        held.append(b"\1" * (16 << 20))
        time.sleep(0.005)
    time.sleep(600)


def children_then_block() -> None:
    """One child in the group and one that left it, then a blocking call."""
    note_pid(subprocess.Popen(SLEEPER).pid)
    note_pid(subprocess.Popen(SLEEPER, start_new_session=True).pid)
    send({"kind": "phase", "name": "children", "facts": {"open": 7, "counters": {"splits": 12}}})
    ignore_everything()


def noise() -> None:
    """A lot of output on both streams, with words that look like an answer, then an answer."""
    for _ in range(200):
        sys.stdout.write("unsat\n" * 4000)
        sys.stderr.write("sat\n((X_0 1))\n" * 2000)
    final(status="unsat", decided_by="noise")


def half_message() -> None:
    os.write(FD, b'{"kind": "final", "status": "unsat"')
    os.kill(os.getpid(), signal.SIGKILL)


def lingering_answer() -> None:
    """An answer from a process that then refuses to end."""
    final(status="unsat")
    ignore_everything()


def when_told() -> None:
    """An answer once the test has made the file that it waits for."""
    while not os.path.exists(os.environ["FAKE_PIDS"] + ".go"):
        time.sleep(0.005)
    final(status="unsat", counters={"splits": 5})
    time.sleep(600)


def large_witness() -> None:
    lines = "\n".join(f"(X_{number} 0.123456789)" for number in range(200_000))
    final(status="sat", witness=f"({lines}\n(Y_0 1.0))")


MODES = {
    "sat": lambda: final(status="sat", witness=WITNESS),
    "unsat": lambda: final(status="unsat", decided_by="fake"),
    "sat_without_witness": lambda: final(status="sat"),
    "unknown_word": lambda: final(status="maybe"),
    "error": lambda: final(status="error", detail="the network file ends in the middle of node 3"),
    "raise": lambda: [][1],
    "segfault": lambda: ctypes.string_at(0),
    "kill_self": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: sys.exit(0),
    "half_message": half_message,
    "garbage_then_answer": lambda: (
        os.write(FD, b"\xff\xfe nothing\n[1]\n"),
        final(status="unsat"),
    ),
    "block": ignore_everything,
    "memory": hold_memory,
    "children": children_then_block,
    "noise": noise,
    "lingering": lingering_answer,
    "large_witness": large_witness,
    "when_told": when_told,
    "stdin": lambda: final(status="unsat", detail=repr(sys.stdin.read())),
    "threads": lambda: final(status="unsat", detail=os.environ["OMP_NUM_THREADS"]),
}

note_pid(os.getpid())
MODES[os.environ["FAKE_MODE"]]()
