"""How an instance ended, as the parent knows it, and the results file that says so.

The results file is replaced as a whole (``bitcrown.files``). The answer of an earlier run must
never be taken for this one's, so a file that cannot be replaced is emptied, written in place, or
removed, whichever the disk still allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcrown.errors import ResourceError
from bitcrown.files import write_in_place, write_whole
from bitcrown.verdict import Reason, Status


@dataclass(frozen=True)
class Outcome:
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
        return (
            f"{self.status}\n{self.witness.strip()}\n"
            if self.status is Status.SAT
            else f"{self.status}\n"
        )


class StaleAnswer(ResourceError):
    """The results file can be neither written nor emptied nor removed: it may hold the answer of
    another run."""


def crashed(detail: str) -> Outcome:
    """A worker that ended without an answer: never a verdict, and no fault of the input as far as
    we know."""
    return Outcome(Status.UNKNOWN, Reason.CRASHED, detail)


def parse_message(line: bytes) -> dict[str, Any] | None:
    """One complete line from the worker, or None if it is not a message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def outcome_of(message: Mapping[str, Any]) -> Outcome:
    """The worker's final message as an outcome. ``sat`` without a witness, or an unknown word, is
    no answer."""
    words = {status.value: status for status in Status}
    status = words.get(str(message.get("status")))
    if status is None:
        return crashed(f"the worker's last message has the status {message.get('status')!r}")
    witness = message.get("witness", "")
    if status is Status.SAT and not (isinstance(witness, str) and witness.strip()):
        return crashed("the worker said sat without a witness")
    phases, counters = message.get("phases", {}), message.get("counters", {})
    return Outcome(
        status,
        reason=str(message.get("reason", "")),
        detail=str(message.get("detail", "")),
        witness=witness if status is Status.SAT else "",
        decided_by=str(message.get("decided_by", "")),
        phases=phases if isinstance(phases, dict) else {},
        counters=counters if isinstance(counters, dict) else {},
    )


def is_stream(path: Path) -> bool:
    """Whether ``path`` is a device or a pipe, to which each write adds."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_answer(path: Path, text: str) -> None:
    """Make ``text`` the content of the results file, or see to it that no other answer stands
    there.

    Where no new file can be written (a full disk), the old one is emptied and written in place;
    where that fails it says ``error``, or is removed. Raises ``ResourceError`` if the file does not
    hold ``text`` in the end, and ``StaleAnswer`` if nothing about it could be changed.
    """
    try:
        write_whole(path, text)
    except ResourceError as error:
        if not path.is_file():
            raise
        if not _written_in_place(path, text):
            _withdraw(path, error)


def _withdraw(path: Path, error: ResourceError) -> None:
    """Take an answer back that cannot be replaced; always raises."""
    if _written_in_place(path, f"{Status.ERROR}\n"):
        raise ResourceError(f"{error}; it says error") from error
    try:
        path.unlink()
    except OSError:
        if path.is_file() and path.stat().st_size:
            raise StaleAnswer(
                f"{error}, nor emptied, nor removed: what it says is not the answer"
            ) from error
    raise error


def _written_in_place(path: Path, text: str) -> bool:
    try:
        write_in_place(path, text.encode())
    except OSError:
        return False
    return True
