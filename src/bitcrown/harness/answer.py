"""How an instance ended, as the parent knows it: from the worker's messages, or because there were
none.

Whatever arrives is taken for a verdict only if it is complete: a known word, and a witness with
``sat``. ``worker`` describes the messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitcrown.verdict import Reason, Status


@dataclass(frozen=True)
class Answer:
    """``witness`` is the text of the counterexample in the results file's format; only ``sat`` has
    one."""

    status: Status
    reason: str = ""
    detail: str = ""
    witness: str = ""
    decided_by: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Content of the results file."""
        witness = f"{self.witness.strip()}\n" if self.status is Status.SAT else ""
        return f"{self.status}\n{witness}"


def crashed(detail: str) -> Answer:
    """A worker that ended without an answer: never a verdict, and no fault of the input as far as
    we know."""
    return Answer(Status.UNKNOWN, Reason.CRASHED, detail)


def parse_message(line: bytes) -> dict[str, Any] | None:
    """One complete line from the worker, or None if it is not a message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def answer_of(message: Mapping[str, Any]) -> Answer:
    """The worker's final message. One with an unknown word, or with ``sat`` and no witness, counts
    as none."""
    words = {status.value: status for status in Status}
    status = words.get(str(message.get("status")))
    if status is None:
        return crashed(f"the worker's last message has the status {message.get('status')!r}")
    witness = message.get("witness", "")
    if status is Status.SAT and not (isinstance(witness, str) and witness.strip()):
        return crashed("the worker said sat without a witness")
    phases, counters = message.get("phases", {}), message.get("counters", {})
    return Answer(
        status,
        reason=str(message.get("reason", "")),
        detail=str(message.get("detail", "")),
        witness=witness if status is Status.SAT else "",
        decided_by=str(message.get("decided_by", "")),
        phases=phases if isinstance(phases, dict) else {},
        counters=counters if isinstance(counters, dict) else {},
    )
