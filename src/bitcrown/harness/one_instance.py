"""One instance of a suite through the competition's scripts, and the row that is kept of it.

The scripts are real processes in a group of their own with stdin closed; the group is killed ten
seconds after the time limit. Whoever is interrupted while they run (``KeyboardInterrupt``) asks
them to end, which ends their workers, and waits for that; whoever is killed, takes them along.
Everything here is sent to other processes and other machines: an instance's files may lie elsewhere
there (``FilePlaces``), and the scripts are those of the bitcrown that runs there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bitcrown.cluster.tasks import FilePlaces
from bitcrown.errors import ResourceError
from bitcrown.files import read_records
from bitcrown.harness.instance import Instance, Suite, network_field, resolve
from bitcrown.harness.processes import signal_group
from bitcrown.provenance import ROOT
from bitcrown.spec.network_field import parse_network

_PREPARE_SECONDS = 600.0
_GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """One instance of a plan, with its time limit (seconds) and its truth ("" if unknown)."""

    suite: Suite
    instance: Instance
    timeout: float
    expected: str

    def key(self) -> list[Any]:
        """What makes two runs the same; a list, because a record comes back from JSON as one."""
        return [self.suite.category, self.suite.version, *self.instance.key(), self.timeout]

    def networks(self) -> tuple[tuple[str, str], ...]:
        """Names (empty for the only one) and paths."""
        return parse_network(resolve(self.instance.network, self.suite.folder.absolute()))

    def vnnlib(self) -> str:
        return str(self.suite.folder.absolute() / self.instance.vnnlib)


@dataclass(frozen=True)
class ScriptCall:
    """What a worker is told: the job, and the variables that the scripts get besides its own."""

    job: Job
    environment: Mapping[str, str] = field(default_factory=dict)


def run_scripts(call: ScriptCall, places: FilePlaces) -> dict[str, Any]:
    """Prepare and run one instance; the row for ``records.jsonl``, after ``sat`` with the whole
    ``answer``. Raises ``ResourceError`` where the scripts cannot be started."""
    job = call.job
    pairs = tuple((name, places.get(path, path)) for name, path in job.networks())
    words = ["v1", job.suite.category, network_field(pairs), places.get(job.vnnlib(), job.vnnlib())]
    with tempfile.TemporaryDirectory(prefix="bitcrown-bench-") as name:
        work = Path(name)
        results, record = work / "out.txt", work / "record.jsonl"
        # The competition's word for a results file that the script never wrote.
        results.write_text("no_result_in_file\n")
        environment = {**script_environment(call), "BITCROWN_RECORD": str(record)}
        command = [*_script("prepare"), *words]
        code, prepare_s = _call(command, environment, _PREPARE_SECONDS)
        result, wall_s = f"prepare_instance_error_{code}", 0.0
        if code == 0:
            command = [*_script("run"), *words, str(results), str(job.timeout)]
            code, wall_s = _call(command, environment, job.timeout + _GRACE_SECONDS)
            result = word_of(code, results, wall_s, job.timeout)
        told = read_records(record) if record.exists() else []
        kept = {}
        if result == "sat":
            kept["answer"] = results.read_text(encoding="utf-8", errors="replace")
    # What the script measured from outside goes over what the run said about itself.
    return (told[-1] if told else {}) | {
        "key": job.key(),
        "category": job.suite.category,
        "network": job.instance.network,
        "vnnlib": job.instance.vnnlib,
        "timeout": job.timeout,
        "expected": job.expected,
        "result": result,
        "prepare_s": round(prepare_s, 4),
        "wall_s": round(wall_s, 4),
        "exit_code": code,
        **kept,
    }


def script_environment(call: ScriptCall) -> dict[str, str]:
    """The variables of the scripts. Where the repository has no ``.venv``, their ``python3`` is the
    one that runs here, whether or not its environment is activated."""
    found = {**os.environ, **call.environment}
    places = [str(Path(sys.executable).parent), found.get("PATH", os.defpath)]
    return {**found, "PATH": os.pathsep.join(places)}


def _script(name: str) -> list[str]:
    """The script, or what it starts where bitcrown was installed without its repository."""
    script = ROOT / f"{name}_instance.sh"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-P", "-X", "utf8", "-m", f"bitcrown.harness.{name}"]


def word_of(code: int, results: Path, wall: float, timeout: float) -> str:
    """The verdict as the competition of 2026 would note it: late answers and failed scripts do not
    count."""
    if code != 0:
        return "timeout" if wall > timeout else f"error_exit_code_{code}"
    words = results.read_text(encoding="utf-8", errors="replace").split(maxsplit=1)
    word = words[0] if words else "no_result_in_file"
    return "timeout" if word in ("sat", "unsat") and wall > timeout else word


def _call(command: list[str], environment: Mapping[str, str], limit: float) -> tuple[int, float]:
    """Exit code (negative: killed) and wall seconds of one script. Raises ``ResourceError`` if it
    cannot start."""
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(_end_with, os.getpid(), ctypes.CDLL(None)),
        )
    except OSError as error:
        raise ResourceError(f"{command[0]} cannot be started: {error.strerror}") from error
    # The script leads a session of its own, so its pid names the group of all it started.
    timer = threading.Timer(limit, signal_group, (process.pid, signal.SIGKILL))
    try:
        timer.start()
        code = process.wait()
    except BaseException:
        signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        signal_group(process.pid, signal.SIGKILL)
        raise
    finally:
        timer.cancel()
    return code, time.monotonic() - started


def _end_with(parent: int, libc: ctypes.CDLL) -> None:
    """In the child, before it becomes the script: SIGTERM when its parent is gone, however it went
    (Ray kills the children of a worker that ends, and that is no occasion to tidy up)."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone already
        os.kill(os.getpid(), signal.SIGTERM)
