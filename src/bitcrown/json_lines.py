"""Records in JSON Lines files, one object a line, that survive a writer which is killed.

Lines are only ever appended. A killed writer leaves at most half a line at the end: the next writer
closes it, readers leave it out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitcrown.errors import ResourceError


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line, after closing a half line of a killed writer. Raises
    ``ResourceError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            broken = False
            if size:
                file.seek(size - 1)
                broken = file.read(1) != b"\n"
            line = json.dumps(record, default=str).encode() + b"\n"
            file.write(b"\n" + line if broken else line)
    except OSError as error:
        raise ResourceError(
            f"the record {path} cannot be written: {error.strerror or error}"
        ) from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; half lines are left out. Raises ``ResourceError`` if it
    cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ResourceError(
            f"the records {path} cannot be read: {error.strerror or error}"
        ) from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
