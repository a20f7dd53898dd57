"""Tasks for the schedulers; a module of its own, because workers import it and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bitcrown.cluster.tasks import FilePlaces
from bitcrown.errors import ModelError


def told(argument: Any, places: FilePlaces) -> dict[str, Any]:
    return {
        "argument": argument,
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "started": time.monotonic(),
    }


def content(path: str, places: FilePlaces) -> tuple[str, bytes]:
    """Where a file lay, and what was in it."""
    return places[path], Path(places[path]).read_bytes()


def ending(code: int, places: FilePlaces) -> None:
    """Ends its process (negative: by a signal), or fails in words."""
    if code < 0:
        os.kill(os.getpid(), -code)
    if code:
        os._exit(code)
    raise ModelError("no such layer")


def sleeping(folder: str, places: FilePlaces) -> None:
    """Starts a child, notes both processes, and sleeps; ends its child when it is interrupted."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        (Path(folder) / f"{os.getpid()} {child.pid}").touch()
        time.sleep(600)
    finally:
        child.kill()
        child.wait()


def unknown_error(argument: Any, places: FilePlaces) -> None:
    raise ZeroDivisionError("in a test")
