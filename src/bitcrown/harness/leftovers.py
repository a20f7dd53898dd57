"""Notes about running workers, so that the next ``prepare`` can end what a dead run of ours left
behind.

One small file a run in a private folder of the user: the parent's pid and start time, and the run's
token. A run whose parent still lives is never touched.
"""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

from bitcrown.harness.processes import kill_token, start_ticks

_PATIENCE = 25.0
"""Seconds to wait for killed processes to be gone."""


def runtime_folder() -> Path | None:
    """A folder that only this user can write to, or None if there is no such place."""
    for base in (os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("TMPDIR", ""), "/tmp"):
        if not base:
            continue
        folder = Path(base) / f"bitcrown-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
        except OSError:
            continue
        # It may have been there before, made by somebody else, or as a link.
        is_ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
        if is_ours and not facts.st_mode & 0o022:
            return folder
    return None


def note_run(token: str) -> Path | None:
    """Write the note of this process's run; None (and no harm) where that is impossible."""
    folder = runtime_folder()
    if folder is None:
        return None
    note = folder / f"{token}.json"
    try:
        note.write_text(
            json.dumps({"parent": os.getpid(), "started": start_ticks(os.getpid()), "token": token})
        )
    except OSError:
        return None
    return note


def drop_note(note: Path | None) -> None:
    if note is not None:
        try:
            note.unlink(missing_ok=True)
        except OSError:
            return


def end_leftovers() -> int:
    """Kill the processes of runs whose parent is dead and wait for them to go; returns how many
    there were."""
    folder = runtime_folder()
    if folder is None:
        return 0
    killed = 0
    deadline = time.monotonic() + _PATIENCE
    for note in sorted(folder.glob("*.json")):
        try:
            facts = json.loads(note.read_text())
            parent, started = int(facts["parent"]), int(facts["started"])
            token = str(facts["token"])
        except (OSError, ValueError, KeyError, TypeError):
            drop_note(note)
            continue
        # Process numbers are used again; a number together with its start time is not.
        if started and start_ticks(parent) == started:
            continue
        if token:
            hit = kill_token(token)
            killed += len(hit)
            while any(start_ticks(pid) for pid in hit) and time.monotonic() < deadline:
                time.sleep(0.05)
        drop_note(note)
    return killed
