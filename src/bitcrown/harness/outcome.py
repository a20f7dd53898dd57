"""How an instance ended, as the parent knows it, and the results file that says so.

The results file is written to a temporary file in its own folder, synced and renamed, so that a reader sees either the
old file or the new one and never a half.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcrown.errors import ResourceError
from bitcrown.verdict import Reason, Status


@dataclass(frozen=True)
class Outcome:
    """``witness`` is the text of the counterexample in the results file's format; only ``sat`` has one."""

    status: Status
    reason: str = ""
    detail: str = ""
    witness: str = ""
    decided_by: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Content of the results file."""
        return f"{self.status}\n{self.witness.strip()}\n" if self.status is Status.SAT else f"{self.status}\n"


def crashed(detail: str) -> Outcome:
    """A worker that ended without an answer: never a verdict, and no fault of the input as far as we know."""
    return Outcome(Status.UNKNOWN, Reason.CRASHED, detail)


def parse_message(line: bytes) -> dict[str, Any] | None:
    """One complete line from the worker, or None if it is not a message."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def outcome_of(message: Mapping[str, Any]) -> Outcome:
    """The worker's final message as an outcome. ``sat`` without a witness, or an unknown word, is no answer."""
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


def write_whole(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write ``content`` to ``path`` so that no reader ever sees a part of it; makes the folder if it is missing.

    A device, a pipe, or a file in a folder that takes no new files is written in place. Raises ``ResourceError``.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _replace(target, data, sync)
        except PermissionError:
            if not target.is_file():
                raise
            target.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"the results file {path} cannot be written: {error.strerror or error}") from error


def _replace(target: Path, data: bytes, sync: bool) -> None:
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
