"""The README's commands, run as they stand there: every block after ``<!-- tested -->``. One after
``<!-- tested after it -->`` goes on in the folder of the block before it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_GUARD, ROOT

BLOCK = re.compile(r"<!-- tested( after it)? -->\n```(\w+)\n(.*?)```", re.DOTALL)
FOUND = BLOCK.findall((ROOT / "README.md").read_text())
BLOCKS = [(language, text) for _, language, text in FOUND]
CHAINS = [
    [(language, text)] + [one[1:] for one in FOUND[place + 1 : place + 2] if one[0]]
    for place, (follows, language, text) in enumerate(FOUND)
    if not follows
]


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
    assert [language for language, _ in BLOCKS] == [
        *("python", "sh", "sh"),
        *("sh", "sh", "sh", "sh", "python"),
    ]


@pytest.mark.parametrize(
    "chain", CHAINS, ids=[f"{chain[0][0]}{place}" for place, chain in enumerate(CHAINS)]
)
def test_block(place: Path, chain: list[tuple[str, str]]) -> None:
    for language, text in chain:
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
        "robust",
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
