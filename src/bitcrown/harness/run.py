"""The parent process of ``run_instance.sh``: owns the deadline, the worker's processes and the
results file.

    python -m bitcrown.harness.run v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT

Imports nothing heavy. Time counts from the start of this process, which is that of the shell script
before it. The results file says ``timeout`` from the first moment on, and is replaced once, at the
end, if there is more to say. Exit code 0, whatever happened to the instance; 1 for another protocol
version than ``v1``; 2 if the arguments cannot be understood at all; 3 if the results file holds
another run's answer that could be neither replaced nor removed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcrown.errors import BitcrownError, ModelError, PropertyError, ResourceError
from bitcrown.harness.instance import find_file, parse_timeout
from bitcrown.harness.load import Load
from bitcrown.harness.outcome import Outcome, StaleAnswer, is_stream, write_answer
from bitcrown.harness.processes import process_started
from bitcrown.harness.watchdog import Signals, Watchdog, Watched, safety_margin
from bitcrown.settings import Settings
from bitcrown.spec.network_field import parse_network
from bitcrown.verdict import Reason, Status

PROTOCOL = "v1"
STALE = 3
USAGE = "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT"
RECORD_VARIABLE = "BITCROWN_RECORD"
WAIT_VARIABLE = "OMP_WAIT_POLICY"
BUSY = 2.0
"""Slowness (see ``load``) from which cores are not taken to be free."""
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Request:
    """One instance to decide. ``started`` is a ``time.monotonic()`` reading from which ``timeout``
    seconds count.

    ``certificate``: the file for the proof of an unsat; empty for none. ``cpu_seconds``: what the
    worker may compute, where that is limited, too.
    """

    category: str
    network: str
    vnnlib: str
    timeout: float
    started: float
    settings: Settings
    certificate: str = ""
    cpu_seconds: float | None = None

    @property
    def end(self) -> float:
        """When the time limit is over."""
        return self.started + self.timeout

    def soft_deadline(self, load: Load) -> float:
        """What the worker is told: a little before it is ended, so that it can still say how far it
        came."""
        room = min(0.5, 0.02 * self.timeout) * load.slow
        return self.end - safety_margin(self.timeout, load.needed()) - min(room, 0.1 * self.timeout)


def main(arguments: Sequence[str], started: float) -> int:
    """Decide the instance of a ``run_instance.sh`` call; ``arguments`` without the program's
    name."""
    signals = Signals()
    if not arguments or arguments[0] != PROTOCOL:
        _say(f"unknown protocol version {arguments[0] if arguments else ''!r}; {USAGE}")
        return 1
    if len(arguments) != 6:
        _say(f"expected 6 arguments but got {len(arguments)}; {USAGE}")
        return 2
    _, category, network, vnnlib, results, timeout = arguments
    try:
        if not is_stream(Path(results)):
            write_answer(Path(results), Outcome(Status.TIMEOUT).text())
    except ResourceError as error:
        _say(str(error))
        return STALE if isinstance(error, StaleAnswer) else 0
    try:
        request = Request(
            category, network, vnnlib, parse_timeout(timeout), started, Settings.from_environment()
        )
        check_files(network, vnnlib)
    except BitcrownError as error:
        _say(str(error))
        return _finish(Path(results), Outcome(Status.ERROR, Reason.BAD_INPUT, str(error)))[0]
    return watch(request, Path(results), signals, _record_path()).exit_code


def watch(request: Request, results: Path | None, signals: Signals, record: Path | None) -> Watched:
    """Run the worker on ``request`` and write the results file (if any) and the record (if any)."""
    load = Load()
    memory = request.settings.process_bytes()
    dog = Watchdog(
        _worker_command(request, load), request.end, request.timeout, memory, signals, load
    )
    seen = dog.run(_environment(request, load), lambda: None if record is None else _look_around())
    if results is not None:
        seen.exit_code, seen.lost = _finish(results, seen.outcome)
    dog.clean_up()
    if seen.outcome.status is Status.ERROR:
        _say((seen.outcome.detail.strip().splitlines() or [seen.outcome.reason])[-1])
    if record is not None:
        from bitcrown.harness.results import record_of
        from bitcrown.json_lines import append_record

        try:
            append_record(record, record_of(request, seen, time.monotonic() - request.started))
        except ResourceError as error:
            if (
                RECORD_VARIABLE in os.environ
            ):  # a place that the user named; the default one may fail in silence
                _say(str(error))
    return seen


def _look_around() -> None:
    """Read what the record will say of the machine, while the worker begins: neither before it nor
    at the end."""
    from bitcrown.harness.results import machine_facts

    machine_facts()


def check_files(network: str, vnnlib: str) -> None:
    """Raises ``ModelError`` or ``PropertyError`` naming the first input file that is not there,
    plain or ``.gz``."""
    for _, path in parse_network(network):
        if find_file(Path(path)) is None:
            raise ModelError(f"the network file {path} does not exist (neither does {path}.gz)")
    if find_file(Path(vnnlib)) is None:
        raise PropertyError(f"the property file {vnnlib} does not exist (neither does {vnnlib}.gz)")


def _finish(results: Path, outcome: Outcome) -> tuple[int, str]:
    """Write the answer, unless the file says so already; the exit code, and why the answer is lost,
    if it is."""
    if outcome.status is Status.TIMEOUT and results.is_file():
        return 0, ""
    try:
        write_answer(results, outcome.text())
    except ResourceError as error:
        _say(str(error))
        return STALE if isinstance(error, StaleAnswer) else 0, str(error)
    return 0, ""


def _record_path() -> Path | None:
    """``BITCROWN_RECORD``; empty for no record; otherwise a file in the user's state folder."""
    named = os.environ.get(RECORD_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "bitcrown" / "records.jsonl"


def _worker_command(request: Request, load: Load) -> list[str]:
    """The worker's command line; ``BITCROWN_WORKER`` names a Python file to run instead (tests of
    this parent)."""
    substitute = os.environ.get("BITCROWN_WORKER", "")
    program = [substitute] if substitute else ["-m", "bitcrown.harness.worker"]
    facts: dict[str, Any] = {
        "network": request.network,
        "vnnlib": request.vnnlib,
        "deadline": request.soft_deadline(load),
        "settings": request.settings.as_dict(),
        "parent": os.getpid(),
        "certificate": request.certificate,
        "cpu_seconds": request.cpu_seconds,
    }
    return [sys.executable, "-P", "-X", "utf8", *program, json.dumps(facts)]


def _environment(request: Request, load: Load) -> dict[str, str]:
    """The worker's environment: thread counts, which must stand before torch is imported.

    OpenMP's threads wait for each other by spinning. That is quickest while every thread has a
    core; where they have not, they burn the time that the thread they wait for needs (measured: 12
    times as long on two cores with a load of nine), and where computing is counted it would count.
    Then they sleep.
    """
    changes = dict.fromkeys(THREAD_VARIABLES, str(request.settings.thread_count()))
    if request.cpu_seconds is not None or load.slow >= BUSY:
        changes[WAIT_VARIABLE] = os.environ.get(WAIT_VARIABLE, "PASSIVE")
    return {**os.environ, **changes}


def _say(sentence: str) -> None:
    try:
        sys.stderr.write(f"bitcrown: {sentence}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or full; the results file is what matters
        return


if __name__ == "__main__":
    code = main(sys.argv[1:], process_started())
    sys.stderr.flush()
    # nothing is left to tidy up, and tearing the interpreter down takes time that may not be left
    os._exit(code)
