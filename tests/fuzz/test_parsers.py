"""A slice of the parser fuzzer: the same damaged files every time. ``parsers.py`` by itself runs as
many as asked."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import parsers

TRIALS = 200


def test_only_errors_of_ours_escape() -> None:
    """In a process of its own: a fork of one in which torch has started threads would wait for them
    for ever."""
    command = [sys.executable, parsers.__file__, str(TRIALS), "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TRIALS} trials, seed 1: 0 failures" in done.stdout


def test_crashes_and_foreign_errors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    monkeypatch.setitem(parsers.READERS, "idx", foreign)
    monkeypatch.setitem(parsers.READY, "idx", True)
    found = parsers.read_again("idx", b"abc")
    assert found is not None and "KeyError" in found.what
    monkeypatch.setitem(parsers.READERS, "idx", lambda data, folder: __import__("os").abort())
    crashed = parsers.read_again("idx", b"abc")
    assert crashed is not None and crashed.what.startswith("ended by SIGABRT")


def test_damage_follows_from_the_seed() -> None:
    one, other = (parsers.mutated(bytes(range(200)), random.Random(3)) for _ in range(2))
    assert one == other != bytes(range(200))
