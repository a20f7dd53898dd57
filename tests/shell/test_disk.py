"""Results files on disks that are full or read-only, and links that somebody planted: no answer of
yesterday stays.

What needs a disk of its own runs as root only; a limit on the size of files stands in for a full
disk elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HANG_GUARD, Scripts

from bitcrown.errors import ResourceError
from bitcrown.files import write_whole
from bitcrown.harness.results_file import StaleAnswer, write_answer


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB with the answer of an earlier run on it."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    try:
        (place / "out.txt").write_text("unsat\n")
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    with (place / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with (
        pytest.raises(OSError, match="No space left"),
        (place / "more").open("wb", buffering=0) as file,
    ):
        file.write(b"x" * 4096)


@pytest.mark.parametrize(
    ("mode", "word"), [("unsat", "unsat"), ("exit", "unknown"), ("large_witness", "error")]
)
def test_full_disk(scripts: Scripts, disk: Path, mode: str, word: str) -> None:
    """What fits into the old file is written there; a witness that does not fit becomes ``error``,
    never a half."""
    fill(disk)
    code, errors = scripts.run(mode, results=str(disk / "out.txt"))
    assert code == 0 and (disk / "out.txt").read_text() == f"{word}\n"
    assert ("cannot be written" in errors) == (word == "error")
    if word == "error":
        assert "No space left on device" in scripts.last_record()["lost"]


def test_disk_that_has_become_full_during_the_run(scripts: Scripts, disk: Path) -> None:
    with scripts.start("when_told", results=str(disk / "out.txt")) as process:
        scripts.wait_for_pids(1)
        assert (disk / "out.txt").read_text() == "timeout\n"
        fill(disk)
        scripts.pids.with_name("pids.go").touch()
        process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, (disk / "out.txt").read_text()) == (0, "unsat\n")


def test_read_only_disk_is_told_by_the_exit_code(scripts: Scripts, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, errors = scripts.run("exit", results=str(disk / "out.txt"))
    assert code == 3 and (disk / "out.txt").read_text() == "unsat\n"
    assert len(errors.splitlines()) == 1 and "what it says is not the answer" in errors
    assert not scripts.seen_pids(), "the worker was started for an answer that nobody can read"


def test_disk_that_has_become_read_only_during_the_run(scripts: Scripts, disk: Path) -> None:
    with scripts.start("when_told", results=str(disk / "out.txt")) as process:
        scripts.wait_for_pids(1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        scripts.pids.with_name("pids.go").touch()
        _, errors = process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, (disk / "out.txt").read_text()) == (3, "timeout\n")
    assert "cannot be written" in errors


def test_no_byte_can_be_written(scripts: Scripts) -> None:
    """Every write fails, removing does not: nothing stays that could be taken for an answer."""
    scripts.results.write_text("unsat\n")

    def forbid() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    environment = scripts.environment("unsat", FAKE_PIDS="/dev/null")
    done = subprocess.run(
        scripts.arguments(),
        cwd=scripts.folder,
        env=environment,
        preexec_fn=forbid,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not scripts.results.exists()
    assert "cannot be written: File too large" in done.stderr


def test_an_answer_that_cannot_be_changed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs this: writing, emptying and removing all fail."""
    file = tmp_path / "out.txt"
    file.write_text("unsat\n")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StaleAnswer, match="Read-only file system, nor emptied, nor removed"):
        write_answer(file, "timeout\n")
    monkeypatch.undo()
    assert file.read_text() == "unsat\n"
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match="cannot be written"):
        write_answer(file, "timeout\n")
    assert not file.exists()


def test_planted_links_are_not_followed(scripts: Scripts) -> None:
    """Names that follow from the process number can be guessed; names that cannot are not found in
    time."""
    victim = scripts.folder / "victim"
    victim.write_text("precious")
    for number in range(os.getpid() + 1, os.getpid() + 3000):
        (scripts.folder / f".out.txt.{number}.tmp").symlink_to(victim)
    try:
        assert scripts.run("unsat")[0] == 0
        assert scripts.answer() == "unsat" and victim.read_text() == "precious"
    finally:
        for link in scripts.folder.glob(".out.txt.*.tmp"):
            link.unlink()


def test_even_the_right_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"\0" * count)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".new.txt.{'00' * 12}.tmp").symlink_to(victim)
    with pytest.raises(ResourceError, match="File exists"):
        write_whole(tmp_path / "new.txt", "text")
    assert victim.read_text() == "precious" and not (tmp_path / "new.txt").exists()
    assert (tmp_path / f".new.txt.{'00' * 12}.tmp").is_symlink()
