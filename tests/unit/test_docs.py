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
    """What a recipe adds is not there yet: a check of it fails where no step was taken."""
    with pytest.raises(AssertionError):
        for block in RECIPES[title]:
            if block.target == "tested":
                run(block, copy)


# -- what documents speak of exists --------------------------------------------------------------

SOURCE = ROOT / "src" / "bitcrown"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^ *```(.*?)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)\)")
COMMAND = re.compile(r"^bitcrown ([a-z-]+)")
MADE = ("results/", "bench-results/", "DIR/")
"""Where commands of the documents write."""
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def is_path(word: str) -> bool:
    """Whether a word in backticks names a file or a folder of ours."""
    if not re.fullmatch(r"[\w.-]+(/[\w.*-]+)*/?", word) or word.startswith(MADE):
        return False
    first = word.split("/")[0]
    places = [path.name for folder in (ROOT, SOURCE) for path in folder.iterdir()]
    is_file = word.endswith((".py", ".sh")) or re.fullmatch(r"[\w/]+\.md", word) is not None
    return ("/" in word and first in places) or is_file


def stands(word: str) -> bool:
    near = (ROOT, SOURCE, SOURCE / "check" / "certificates")
    names = (word, f"{word}.py")
    return any(bool(list(place.glob(name))) for place in near for name in names)


def is_known(dotted: str) -> bool:
    """Whether ``bitcrown.a.b`` is a module, or a name that a module defines."""
    parts = dotted.split(".")[1:]
    for count in range(len(parts), -1, -1):
        place = SOURCE.joinpath(*parts[:count])
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place
        file = file / "__init__.py" if file.is_dir() else file
        if file.is_file():
            rest = parts[count:]
            return not rest or re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()) is not None
    return False


@every_document
def test_paths_in_backticks_exist(document: Path) -> None:
    words = [word for word in WORD.findall(prose(document)) if is_path(word)]
    missing = [word for word in words if not stands(word.rstrip("/"))]
    assert not missing, missing


@every_document
def test_modules_in_backticks_exist(document: Path) -> None:
    words = re.findall(r"`(bitcrown(?:\.\w+)+)[`(]", prose(document))
    missing = [word for word in words if not is_known(word)]
    assert not missing, missing


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    missing = [to for to in LINK.findall(prose(document)) if not (document.parent / to).exists()]
    assert not missing, missing


def commands(document: Path) -> list[list[str]]:
    """Lines of shell blocks, and commands in backticks, as words."""
    text = document.read_text()
    shell = [block for kind, block in FENCE.findall(text) if kind.split(" ")[0] == "sh"]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    lines += [word for word in WORD.findall(prose(document)) if COMMAND.match(word)]
    words = [shlex.split(line, comments=True) for line in lines]
    return [found for found in words if found and "=" not in found[0]]


def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bitcrown", command, "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"bitcrown {command}: {done.stderr}"
    return done.stdout


def test_commands_exist_with_their_options_and_files() -> None:
    """Blocks are run elsewhere (``tests/shell/test_pages.py``), but not all of them; here every
    command of every document is held against the parser and the tree."""
    options: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for program, *words in commands(document):
            if program == "bitcrown" and words and not words[0].startswith("-"):
                options.setdefault(words[0], set()).update(
                    word.partition("=")[0] for word in words if word.startswith("--")
                )
            elif "/" in program and program != ".venv/bin/python":
                assert (ROOT / program).is_file(), program
            for word in words:
                word = re.sub(r":\d+$", "", word)  # one image of a file
                if word.startswith(("benchmarks/", "tests/", "docs/", "src/")):
                    assert (ROOT / word).exists() or (ROOT / f"{word}.gz").exists(), word
    assert options, "no document shows a command"
    for command, given in options.items():
        text = help_of(command)
        assert not [option for option in given if option not in text], (command, given)
