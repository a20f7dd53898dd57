"""The parent process of ``run_instance.sh``: owns the deadline, the worker's processes and the results file.

    python -m bitcrown.harness.run v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT

Imports nothing heavy. Time counts from the start of this process, which is that of the shell script before it. The
results file says ``timeout`` from the first moment on, and is replaced once, at the end. Exit code 0, whatever
happened to the instance; 1 for another protocol version than ``v1``; 2 if the arguments cannot be understood at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcrown.errors import BitcrownError, ModelError, PropertyError, ResourceError
from bitcrown.harness.instance import find_file, parse_timeout
from bitcrown.harness.outcome import Outcome, is_stream, write_whole
from bitcrown.harness.processes import process_started
from bitcrown.harness.watchdog import Signals, Watchdog, Watched, safety_margin
from bitcrown.settings import Settings
from bitcrown.spec.network_field import parse_network
from bitcrown.verdict import Reason, Status

PROTOCOL = "v1"
USAGE = "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT"
RECORD_VARIABLE = "BITCROWN_RECORD"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Request:
    """One instance to decide. ``started`` is a ``time.monotonic()`` reading from which ``timeout`` seconds count.

    ``certificate``: the file for the proof of an unsat; empty for none.
    """

    category: str
    network: str
    vnnlib: str
    timeout: float
    started: float
    settings: Settings
    certificate: str = ""

    @property
    def deadline(self) -> float:
        """When the worker is ended: the time limit less the safety margin."""
        return self.started + self.timeout - safety_margin(self.timeout)

    @property
    def soft_deadline(self) -> float:
        """What the worker is told: a little earlier, so that it can still say how far it came."""
        return self.deadline - min(0.5, 0.02 * self.timeout)


def main(arguments: Sequence[str], started: float) -> int:
    """Decide the instance of a ``run_instance.sh`` call; ``arguments`` without the program's name."""
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
            write_whole(Path(results), Outcome(Status.TIMEOUT).text(), sync=False)
    except ResourceError as error:
        _say(str(error))
        return 0
    try:
        request = Request(category, network, vnnlib, parse_timeout(timeout), started, Settings.from_environment())
        check_files(network, vnnlib)
    except BitcrownError as error:
        _say(str(error))
        _finish(Path(results), Outcome(Status.ERROR, Reason.BAD_INPUT, str(error)))
        return 0
    watch(request, Path(results), signals, _record_path())
    return 0


def watch(request: Request, results: Path | None, signals: Signals, record: Path | None) -> Watched:
    """Run the worker on ``request`` and write the results file (if any) and the record (if any)."""
    dog = Watchdog(_worker_command(request), request.deadline, request.settings.process_bytes(), signals)
    seen = dog.run(_environment(request.settings))
    if results is not None:
        _finish(results, seen.outcome)
    left = request.started + request.timeout - 0.1 - time.monotonic()
    dog.clean_up(patience=min(5.0, max(0.1, left)))
    if seen.outcome.status is Status.ERROR:
        _say((seen.outcome.detail.strip().splitlines() or [seen.outcome.reason])[-1])
    if record is not None:
        from bitcrown.harness.results import append_record, record_of

        try:
            append_record(record, record_of(request, seen, time.monotonic() - request.started))
        except ResourceError as error:
            if RECORD_VARIABLE in os.environ:  # a place that the user named; the default one may fail in silence
                _say(str(error))
    return seen


def check_files(network: str, vnnlib: str) -> None:
    """Raises ``ModelError`` or ``PropertyError`` naming the first input file that is not there, plain or ``.gz``."""
    for _, path in parse_network(network):
        if find_file(Path(path)) is None:
            raise ModelError(f"the network file {path} does not exist (neither does {path}.gz)")
    if find_file(Path(vnnlib)) is None:
        raise PropertyError(f"the property file {vnnlib} does not exist (neither does {vnnlib}.gz)")


def _finish(results: Path, outcome: Outcome) -> None:
    try:
        write_whole(results, outcome.text())
    except ResourceError as error:
        _say(str(error))


def _record_path() -> Path | None:
    """``BITCROWN_RECORD``; empty for no record; otherwise a file in the user's state folder."""
    named = os.environ.get(RECORD_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "bitcrown" / "records.jsonl"


def _worker_command(request: Request) -> list[str]:
    """The worker's command line; ``BITCROWN_WORKER`` names a Python file to run instead (tests of this parent)."""
    substitute = os.environ.get("BITCROWN_WORKER", "")
    program = [substitute] if substitute else ["-m", "bitcrown.harness.worker"]
    facts: dict[str, Any] = {
        "network": request.network,
        "vnnlib": request.vnnlib,
        "deadline": request.soft_deadline,
        "settings": request.settings.as_dict(),
        "parent": os.getpid(),
        "certificate": request.certificate,
    }
    return [sys.executable, "-P", "-X", "utf8", *program, json.dumps(facts)]


def _environment(settings: Settings) -> dict[str, str]:
    """The worker's environment: thread counts, which must stand before torch is imported."""
    threads = str(settings.thread_count())
    changes: Mapping[str, str] = dict.fromkeys(THREAD_VARIABLES, threads)
    return {**os.environ, **changes}


def _say(sentence: str) -> None:
    try:
        sys.stderr.write(f"bitcrown: {sentence}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or full; the results file is what matters
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], process_started()))
