"""The recipes of ``docs/adding.md``, followed to the letter in a copy of the repository.

A block's info string says what it is: ``python PATH`` is a whole new file, ``diff PATH`` an edit of
an existing one, ``python tested`` and ``sh tested`` are run once the changes above them are made.
An edit has no line numbers: its lines without ``+`` must stand in the file exactly once, which is
what a reader needs as well.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PATIENCE = 600
"""Seconds after which a command of a recipe hangs."""


class Block(NamedTuple):
    language: str
    target: str
    text: str


def recipes() -> dict[str, list[Block]]:
    sections = (ROOT / "docs" / "adding.md").read_text().split("\n## ")[1:]
    found = {
        text.partition("\n")[0]: [Block(*parts) for parts in BLOCK.findall(text)]
        for text in sections
    }
    return {title: blocks for title, blocks in found.items() if blocks}


RECIPES = recipes()


def edited(text: str, diff: str) -> str:
    """``text`` with the hunks of ``diff`` (divided by ``@@``) applied."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        if not lines:
            continue
        padded = f"\n{text}"
        assert before.strip(), "an edit needs a line that says where it goes"
        assert padded.count(f"\n{before}\n") == 1, f"stands not exactly once:\n{before}"
        text = padded.replace(f"\n{before}\n", f"\n{after}\n")[1:]
    return text


def apply(block: Block, folder: Path) -> None:
    path = folder / block.target
    if block.language == "diff":
        path.write_text(edited(path.read_text(), block.text))
    else:
        assert not path.exists(), f"{block.target} is there already"
        path.write_text(block.text)


def run(block: Block, folder: Path) -> None:
    """``.venv/bin/python`` is the interpreter of this test, with the copy's sources before all
    others."""
    if block.language == "sh":
        text = block.text.replace(".venv/bin/python", shlex.quote(sys.executable))
        command = ["bash", "-euc", text]
    else:
        command = [sys.executable, "-P", "-c", block.text]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "BITCROWN_RECORD": ""},
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("src", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_works_as_it_stands(title: str, copy: Path) -> None:
    blocks = RECIPES[title]
    assert [block for block in blocks if block.target == "tested"], "nothing shows that it works"
    for block in blocks:
        if block.target == "tested":
            run(block, copy)
        else:
            apply(block, copy)


@pytest.mark.parametrize("title", RECIPES)
def test_recipe_is_needed(title: str, copy: Path) -> None:
    """What a recipe adds is not there yet: its last check fails where no step was taken."""
    with pytest.raises(AssertionError):
        run(RECIPES[title][-1], copy)
