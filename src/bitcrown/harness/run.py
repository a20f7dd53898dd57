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

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bitcrown.errors import BitcrownError, ResourceError
from bitcrown.files import append_record
from bitcrown.harness.answer import Answer
from bitcrown.harness.instance import parse_timeout
from bitcrown.harness.load import Load
from bitcrown.harness.processes import process_started
from bitcrown.harness.request import Request, check_files, worker_command, worker_environment
from bitcrown.harness.results_file import StaleAnswer, is_stream, write_answer
from bitcrown.harness.watchdog import Signals, Watchdog, Watched
from bitcrown.settings import Settings
from bitcrown.verdict import Reason, Status

PROTOCOL = "v1"
STALE = 3
_USAGE = "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT"
_RECORD_VARIABLE = "BITCROWN_RECORD"


def main(arguments: Sequence[str], started: float) -> int:
    """Decide the instance of a ``run_instance.sh`` call; ``arguments`` without the program's
    name."""
    # First of all, so that a harness that stops us early still gets a results file that says so.
    signals = Signals()
    if not arguments or arguments[0] != PROTOCOL:
        _say(f"unknown protocol version {arguments[0] if arguments else ''!r}; {_USAGE}")
        return 1
    if len(arguments) != 6:
        _say(f"expected 6 arguments but got {len(arguments)}; {_USAGE}")
        return 2
    _, category, network, vnnlib, results, timeout = arguments
    try:
        if not is_stream(Path(results)):
            write_answer(Path(results), Answer(Status.TIMEOUT).text())
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
        return _finish(Path(results), Answer(Status.ERROR, Reason.BAD_INPUT, str(error)))[0]
    return watch(request, Path(results), signals, record_path()).exit_code


def watch(
    request: Request,
    results: Path | None,
    signals: Signals,
    record: Path | None,
    look: Callable[[Watched], None] | None = None,
) -> Watched:
    """Run the worker on ``request`` and write the results file (if any) and the record (if any).
    ``look`` sees how far it has come."""
    load = Load()
    memory = request.settings.process_bytes()
    dog = Watchdog(
        worker_command(request, load), request.end, request.timeout, memory, signals, load, look
    )
    environment = worker_environment(request, load)
    seen = dog.run(environment, (lambda: None) if record is None else _look_around)
    # The answer first, then the tidying up: whatever kills this process from here on, it stands.
    if results is not None:
        seen.exit_code, seen.lost = _finish(results, seen.answer)
    dog.clean_up()
    if seen.answer.status is Status.ERROR:
        _say((seen.answer.detail.strip().splitlines() or [seen.answer.reason])[-1])
    if record is not None:
        from bitcrown.harness.records import record_of

        try:
            append_record(record, record_of(request, seen, time.monotonic() - request.started))
        except ResourceError as error:
            # Only where the user named the place: the default one may fail in silence.
            if record != _default_record():
                _say(str(error))
    return seen


def _look_around() -> None:
    """Read what the record will say of the machine, while the worker begins: neither before it nor
    at the end."""
    from bitcrown.harness.records import machine_facts

    machine_facts()


def _finish(results: Path, answer: Answer) -> tuple[int, str]:
    """Write the answer; the exit code, and why the answer is lost, if it is. ``timeout`` stands in
    the file from the first moment on."""
    if answer.status is Status.TIMEOUT and results.is_file():
        return 0, ""
    try:
        write_answer(results, answer.text())
    except ResourceError as error:
        _say(str(error))
        return STALE if isinstance(error, StaleAnswer) else 0, str(error)
    return 0, ""


def record_path() -> Path | None:
    """``BITCROWN_RECORD``; empty for no record; otherwise a file in the user's state folder."""
    named = os.environ.get(_RECORD_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    return _default_record()


def _default_record() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "bitcrown" / "records.jsonl"


def _say(sentence: str) -> None:
    try:
        sys.stderr.write(f"bitcrown: {sentence}\n")
        sys.stderr.flush()
    except OSError:  # stderr is closed or full; the results file is what matters
        return


if __name__ == "__main__":
    code = main(sys.argv[1:], process_started())
    sys.stderr.flush()
    # Nothing is left to tidy up, and tearing the interpreter down takes time that may not be left.
    os._exit(code)
