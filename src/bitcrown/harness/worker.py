"""The child process that decides one instance, and the messages it sends.

Started as ``python -m bitcrown.harness.worker REQUEST FD``. REQUEST is a JSON object: ``network``
(path or text of a list of pairs), ``vnnlib``, ``deadline`` (a ``time.monotonic()`` reading),
``settings``, ``parent`` (pid), ``certificate`` (the file for the proof of an unsat, or empty) and
``cpu_seconds`` (or null). Messages are JSON objects, one a line, on the descriptor FD:

    {"kind": "phase", "name": "...", "facts": {..., "counters": {...}}}
    {"kind": "final", "status": "sat|unsat|unknown|timeout|error", "reason": "...", "detail": "...",
     "decided_by": "...", "phases": {...}, "counters": {...}, "witness": "..."}
                                                                witness: with sat, and only there

Only a complete final line counts. What is printed to stdout or stderr never reaches the results
file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from bitcrown.errors import BitcrownError, BudgetExpired, ResourceError, UnsupportedError
from bitcrown.settings import Settings
from bitcrown.verdict import Reason, Status

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    request = json.loads(arguments[1])
    descriptor = int(arguments[2])
    os.set_inheritable(descriptor, False)
    _harden(int(request["parent"]))
    with os.fdopen(descriptor, "wb", buffering=0) as channel:
        _send(channel, {"kind": "phase", "name": "start", "facts": {}})
        _send(channel, {"kind": "final"} | _decide(request, channel))
    return 0


def _harden(parent: int) -> None:
    """Die with the parent, leave no core file, be the first that the kernel ends when memory is
    short."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that died before that line sends no signal any more, but we have another one since.
    if os.getppid() != parent:
        os._exit(1)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def _send(channel: IO[bytes], message: dict[str, Any]) -> None:
    data = json.dumps(message, default=str, allow_nan=True).encode() + b"\n"
    while data:  # a raw pipe may take a part of it
        data = data[channel.write(data) or 0 :]


def _decide(request: dict[str, Any], channel: IO[bytes]) -> dict[str, Any]:
    """The final message of the request. An exception never becomes a verdict."""

    def report(phase: str, facts: dict[str, Any]) -> None:
        _send(channel, {"kind": "phase", "name": phase, "facts": facts})

    try:
        return _verdict(request, report)
    except BudgetExpired as error:
        return _without_answer(Status.TIMEOUT, Reason.DEADLINE, str(error))
    except UnsupportedError as error:
        return _without_answer(Status.UNKNOWN, Reason.UNSUPPORTED, str(error))
    except ResourceError as error:
        return _without_answer(Status.UNKNOWN, Reason.CRASHED, str(error))
    except BitcrownError as error:
        return _without_answer(Status.ERROR, Reason.BAD_INPUT, str(error))
    except MemoryError:
        return _without_answer(Status.UNKNOWN, Reason.MEMORY, traceback.format_exc(limit=-3))
    # The process boundary: whatever went wrong becomes a message, and never a verdict.
    except Exception as error:  # noqa: BLE001
        if "out of memory" in str(error).lower() or "can't allocate" in str(error).lower():
            return _without_answer(Status.UNKNOWN, Reason.MEMORY, str(error))
        return _without_answer(Status.ERROR, Reason.CRASHED, traceback.format_exc())


def _without_answer(status: Status, reason: Reason, detail: str) -> dict[str, Any]:
    return {"status": status.value, "reason": reason.value, "detail": detail}


def _verdict(request: dict[str, Any], report: Any) -> dict[str, Any]:
    from bitcrown.api import load_and_verify
    from bitcrown.harness.leftovers import runtime_folder

    settings = Settings.from_mapping(request["settings"])
    seconds = float(request["deadline"]) - time.monotonic()
    files = request["network"], request["vnnlib"]
    certificate, cpu_seconds = request["certificate"], request["cpu_seconds"]
    verdict, problem = load_and_verify(
        *files, seconds, settings, report, bool(certificate), cpu_seconds, runtime_folder()
    )
    proof = verdict.certificate
    if proof is not None:
        from bitcrown.files import write_whole

        if not isinstance(proof, bytes):
            proof = json.dumps(proof, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        write_whole(Path(certificate), proof)
    message: dict[str, Any] = {
        "status": verdict.status.value,
        "reason": verdict.reason.value,
        "detail": verdict.detail,
        "decided_by": verdict.decided_by,
        "phases": dict(verdict.phases),
        "counters": dict(verdict.counters),
    }
    if verdict.witness is not None:
        from bitcrown.check.witness import format_witness

        # All but the first line, which is the word sat.
        message["witness"] = format_witness(problem.query, verdict.witness).partition("\n")[2]
    return message


if __name__ == "__main__":
    sys.exit(main(sys.argv))
