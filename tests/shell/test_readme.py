"""The README's commands, run as they stand there: every block after ``<!-- tested -->``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_GUARD, ROOT

BLOCK = re.compile(r"<!-- tested -->\n```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    return tmp_path


def environment() -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BITCROWN_RECORD": "",
    }


def test_there_is_something_to_test() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "sh", "sh", "python"]


@pytest.mark.parametrize(
    ("language", "text"),
    BLOCKS,
    ids=[f"{language}{place}" for place, (language, _) in enumerate(BLOCKS)],
)
def test_block(place: Path, language: str, text: str) -> None:
    command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-P", "-c", text]
    done = subprocess.run(
        command,
        cwd=place,
        env=environment(),
        timeout=5 * HANG_GUARD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_of_the_line_is_shown() -> None:
    shown = "".join(text for language, text in BLOCKS if language == "sh")
    commands = [
        "verify",
        "inspect",
        "bounds",
        "check",
        "check-certificate",
        "bench",
        "report",
        "evaluate",
        "--version",
    ]
    for command in commands:
        assert f"bitcrown {command}" in shown
