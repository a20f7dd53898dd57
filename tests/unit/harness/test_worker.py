"""The worker's boundary: whatever the library does becomes one message, and only a Verdict becomes
a verdict."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

import bitcrown.api
from bitcrown.errors import (
    BudgetExpired,
    ModelError,
    PropertyError,
    ResourceError,
    UnsupportedError,
)
from bitcrown.harness import worker
from bitcrown.settings import Settings
from bitcrown.verdict import Reason, Status, Verdict

REQUEST = {
    "network": "n.onnx",
    "vnnlib": "p.vnnlib",
    "settings": Settings().as_dict(),
    "parent": 0,
    "certificate": "",
    "cpu_seconds": None,
}


def final_message(
    monkeypatch: pytest.MonkeyPatch, outcome: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The final message where ``decide`` returns or raises ``outcome``, and the messages sent
    before it."""

    def decide(
        network: str,
        vnnlib: str,
        seconds: float,
        settings: Settings,
        report: Any,
        proof: bool,
        cpu_seconds: float | None,
        kept: Any,
    ) -> Any:
        assert (network, vnnlib) == ("n.onnx", "p.vnnlib") and 0 < seconds <= 30
        assert proof == bool(REQUEST["certificate"]) and cpu_seconds is None
        report("root", {"cases": 2})
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome, None

    monkeypatch.setattr(bitcrown.api, "load_and_verify", decide)
    channel = io.BytesIO()
    message = worker._decide(REQUEST | {"deadline": time.monotonic() + 30}, channel)
    return message, [json.loads(line) for line in channel.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (BudgetExpired("late"), Status.TIMEOUT, Reason.DEADLINE),
        (UnsupportedError("no rule for Erf at node 3"), Status.UNKNOWN, Reason.UNSUPPORTED),
        (ResourceError("highspy is not installed"), Status.UNKNOWN, Reason.CRASHED),
        (ModelError("the file ends early"), Status.ERROR, Reason.BAD_INPUT),
        (PropertyError("X_3 has no bound"), Status.ERROR, Reason.BAD_INPUT),
        (MemoryError(), Status.UNKNOWN, Reason.MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate"), Status.UNKNOWN, Reason.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Status.UNKNOWN, Reason.MEMORY),
        (ZeroDivisionError(), Status.ERROR, Reason.CRASHED),
        (RecursionError(), Status.ERROR, Reason.CRASHED),
    ],
)
def test_no_exception_becomes_a_verdict(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: Status, reason: Reason
) -> None:
    message, _ = final_message(monkeypatch, error)
    assert (message["status"], message["reason"]) == (status, reason)
    assert str(error) in message["detail"]


def test_a_verdict_is_passed_on_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(
        Status.UNSAT, decided_by="root", phases={"root": 0.5}, counters={"domains": 3}
    )
    message, before = final_message(monkeypatch, verdict)
    assert message == {
        "status": "unsat", "reason": "", "detail": "", "decided_by": "root",
        "phases": {"root": 0.5},
        "counters": {"domains": 3},
    }  # fmt: skip
    assert before == [{"kind": "phase", "name": "root", "facts": {"cases": 2}}]


def test_a_certificate_is_written_where_the_request_names_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proof.json"
    verdict = Verdict(Status.UNSAT, decided_by="integers", certificate={"parts": [1, 2]})
    monkeypatch.setitem(REQUEST, "certificate", str(path))
    message, _ = final_message(monkeypatch, verdict)
    assert message["status"] == "unsat" and json.loads(path.read_text()) == {"parts": [1, 2]}
