"""Fixtures that call the tool's scripts as a harness does, with the fake worker in place of the
real one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.warm import warm_commands

ROOT = Path(__file__).resolve().parents[2]
HANG_GUARD = 60.0


class Scripts:
    """The scripts with the fake worker; ``folder`` is the harness's working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids = folder / "pids"
        self.record = folder / "record.jsonl"
        self.results = folder / "out.txt"
        (folder / "net.onnx").write_bytes(b"not looked at")
        (folder / "prop.vnnlib").write_text("; not looked at\n")
        self.pids.touch()

    def environment(self, mode: str, **more: str) -> dict[str, str]:
        return os.environ | {
            "BITCROWN_WORKER": str(Path(__file__).with_name("fake_worker.py")),
            "BITCROWN_RECORD": str(self.record),
            "XDG_RUNTIME_DIR": str(self.folder),
            "FAKE_MODE": mode,
            "FAKE_PIDS": str(self.pids),
            **more,
        }

    def arguments(self, **changes: str) -> list[str]:
        words = {
            "version": "v1",
            "category": "some category",
            "network": "net.onnx",
            "vnnlib": "./prop.vnnlib",
            "results": "out.txt",
            "timeout": "30.0",
        } | changes
        return [str(ROOT / "run_instance.sh"), *words.values()]

    def start(
        self, mode: str, environment: dict[str, str] | None = None, **changes: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(**changes),
            cwd=self.folder,
            env=self.environment(mode, **(environment or {})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, mode: str, environment: dict[str, str] | None = None, **changes: str
    ) -> tuple[int, str]:
        """Exit code and what was written to stderr."""
        with self.start(mode, environment, **changes) as process:
            _, errors = process.communicate(timeout=HANG_GUARD)
        return process.returncode, errors

    def answer(self) -> str:
        return self.results.read_text().splitlines()[0]

    def last_record(self) -> dict[str, Any]:
        return json.loads(self.record.read_text().splitlines()[-1])

    def seen_pids(self) -> list[int]:
        return [int(line) for line in self.pids.read_text().split()]

    def wait_for_pids(self, count: int) -> list[int]:
        """Wait until the fake worker has told of ``count`` processes."""
        deadline = time.monotonic() + HANG_GUARD
        while len(self.seen_pids()) < count:
            assert time.monotonic() < deadline, "the fake worker never started"
            time.sleep(0.01)
        return self.seen_pids()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + HANG_GUARD
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``bitcrown`` and ``python-block`` of a process that has loaded everything."""
    with warm_commands(tmp_path_factory.mktemp("warm")) as folder:
        yield folder


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    scripts = Scripts(folder)
    yield scripts
    assert not list(folder.glob(".*.tmp")), "a temporary file was left behind"
