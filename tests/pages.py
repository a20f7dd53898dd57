"""Fenced blocks of README and ``docs/``, and what the comment before each says is done with it.

    <!-- tested -->              run, in the page's own folder, after the blocks before it
    <!-- tested, exit code 2 --> the same, where the command fails and is meant to
    <!-- output -->              what the block before it prints; ``...`` stands for anything
    <!-- file: NAME -->          written to NAME in the page's folder
    <!-- not run: REASON -->     shown only; ``NOT_RUN`` lists the reasons there may be

A block in a language that somebody could type needs one of them. Blocks without a language are
figures, and those with a second word (``python PATH``) are recipes, which ``test_docs`` follows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "installs": "it installs packages or builds an environment, which test_packaging or CI does",
    "docker": "no container runtime where the tests run",
    "gpu": "no GPU where the tests run; benchmarks/gpu.sh is the test there",
    "tests": "it starts the tests themselves",
    "your files": "it names files of the reader",
    "cluster": "no cluster where the tests run; the Ray tests start one of their own",
    "hours": "it trains or evaluates for hours",
}
LANGUAGES = {"sh", "python", "vnnlib", "console", "toml", "yaml", "text"}

_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """``line`` is where it begins; ``mark`` the comment before it, or nothing."""

    line: int
    mark: str
    language: str
    text: str

    @property
    def is_tested(self) -> bool:
        return self.mark == "tested" or self.mark.startswith("tested, exit code ")

    @property
    def exit_code(self) -> int:
        return int(self.mark.rpartition(" ")[2]) if "exit code" in self.mark else 0


def blocks(text: str) -> list[Block]:
    """Every block of a page but the recipes."""
    found = []
    for match in _BLOCK.finditer(text):
        mark, language, body = match.groups()
        if " " not in language:
            found.append(Block(text.count("\n", 0, match.start()) + 1, mark or "", language, body))
    return found


def complaint(block: Block) -> str:
    """What is wrong with a block's mark; empty if nothing is."""
    kind, _, rest = block.mark.partition(": ")
    if kind == "not run":
        return "" if rest in NOT_RUN else f"{rest!r} is no reason of NOT_RUN"
    if block.is_tested:
        return "" if block.language in ("sh", "python") else "only sh and python are run"
    if kind == "file":
        return "" if re.fullmatch(r"[\w.-]+", rest) else "a file needs a plain name"
    if block.mark == "output":
        return ""
    return "a block needs a mark" if block.language in LANGUAGES else ""


def unprinted(expected: str, printed: str) -> str:
    """The first line of ``expected`` that ``printed`` does not have, in this order; or nothing."""
    rest = printed
    for line in expected.splitlines():
        pattern = ".*?".join(re.escape(part.strip()) for part in line.split("..."))
        if not pattern.replace(".*?", ""):
            continue
        match = re.search(rf"^\s*{pattern}\s*$", rest, re.MULTILINE)
        if match is None:
            return line
        rest = rest[match.end() :]
    return ""
