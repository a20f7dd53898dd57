"""What /proc says about this machine's processes, and what is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitcrown.harness import leftovers
from bitcrown.harness.processes import (
    TOKEN,
    group_members,
    kill_token,
    process_started,
    resident_bytes,
    start_ticks,
    token_members,
)

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_time_counts_from_the_start_of_the_process() -> None:
    script = (
        "import time; time.sleep(0.3); from bitcrown.harness.processes import process_started; "
        "print(time.monotonic() - process_started())"
    )
    age = float(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
    )
    assert 0.29 <= age <= 60.0


def test_an_age_that_cannot_be_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for fields in ([], ["S"] * 30, ["S"] * 19 + ["0"], ["S"] * 19 + ["1"]):
        monkeypatch.setattr("bitcrown.harness.processes._stat", lambda pid, fields=fields: fields)
        assert (
            abs(process_started() - time.monotonic()) < 1.0
            or time.clock_gettime(time.CLOCK_BOOTTIME) < 60.0
        )


def test_memory_and_group_of_a_process() -> None:
    with subprocess.Popen(SLEEPER, start_new_session=True) as process:
        assert resident_bytes(process.pid) > 0 and start_ticks(process.pid) > 0
        assert group_members(process.pid) == [process.pid]
        process.kill()
        process.wait()
    assert resident_bytes(process.pid) == 0 and start_ticks(process.pid) == 0
    assert group_members(process.pid) == []


def test_only_the_token_decides_what_is_killed() -> None:
    with (
        subprocess.Popen(SLEEPER, env=os.environ | {TOKEN: "ours"}) as ours,
        subprocess.Popen(SLEEPER, env=os.environ | {TOKEN: "ours too"}) as theirs,
    ):
        while token_members("ours") != [ours.pid] or token_members("ours too") != [theirs.pid]:
            time.sleep(0.01)
        assert kill_token("ours") == {ours.pid}
        assert ours.wait() < 0
        assert theirs.poll() is None
        theirs.kill()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = leftovers.runtime_folder()
    assert found is not None and found.parent == tmp_path
    return found


def test_notes_of_the_living_and_the_broken(folder: Path) -> None:
    note = leftovers.note_run("abc")
    assert note is not None
    for number, text in enumerate(
        ["", "{", "[]", '{"parent": "x"}', '{"parent": 1, "started": 5, "token": ""}']
    ):
        (folder / f"broken{number}.json").write_text(text)
    assert leftovers.end_leftovers() == 0
    assert list(folder.iterdir()) == [note], "a living run's note stays, broken ones go"
    leftovers.drop_note(note)
    assert list(folder.iterdir()) == []


def test_a_folder_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    shared = tmp_path / f"bitcrown-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    assert leftovers.runtime_folder() != shared
