"""README and ``docs/``: every block is run as it stands there, or says why not.

A page is one session: its blocks run one after the other in a folder of their own, in which
``benchmarks`` and ``examples`` lie as in the repository.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_GUARD, ROOT

from tests.pages import NOT_RUN, PAGES, Block, blocks, complaint, unprinted

FOUND = {page: blocks(page.read_text()) for page in PAGES}
RUN = [page for page, found in FOUND.items() if any(block.is_tested for block in found)]
SAYS = re.compile(r"print\(verdict\.status\)  # (\w+):")
"""A comment that says what its line prints."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def environment(programs: Path) -> dict[str, str]:
    places = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(places),
        "PYTHONPATH": str(ROOT / "src"),
        "BITCROWN_RECORD": "",
        "COLUMNS": "100",
    }


def printed_by(block: Block, place: Path, programs: Path) -> str:
    """What a block prints; fails unless it ends with the exit code that it says."""
    is_python = block.language == "python"
    command = [str(programs / "python-block")] if is_python else ["bash", "-euc"]
    done = subprocess.run(
        [*command, block.text],
        cwd=place,
        env=environment(programs) | {"TMPDIR": str(place)},
        timeout=10 * HANG_GUARD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == block.exit_code, f"line {block.line}: {done.stdout}"
    return done.stdout


@pytest.mark.parametrize("page", RUN, ids=name)
def test_page(page: Path, tmp_path: Path, programs: Path) -> None:
    for folder in ("benchmarks", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    printed = ""
    for block in FOUND[page]:
        if block.is_tested:
            printed = printed_by(block, tmp_path, programs)
            missing = unprinted("\n".join(SAYS.findall(block.text)), printed)
            assert not missing, f"line {block.line}: a comment says {missing!r}\n{printed}"
        elif block.mark == "output":
            missing = unprinted(block.text, printed)
            assert not missing, f"line {block.line}: not printed: {missing!r}\n{printed}"
        elif block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_is_done_with_it(page: Path) -> None:
    wrong = [f"line {block.line}: {said}" for block in FOUND[page] if (said := complaint(block))]
    assert not wrong, wrong
    assert page.read_text().count("<!-- ") == sum(bool(block.mark) for block in FOUND[page]), (
        "a mark without its block"
    )


def test_comments_say_what_is_printed() -> None:
    """(As ``test_page`` found; here, that there are such comments.)"""
    said = {
        word for found in FOUND.values() for block in found for word in SAYS.findall(block.text)
    }
    assert said == {"sat", "unsat"}


def test_every_reason_is_needed() -> None:
    """A reason that no block gives is one that nobody has to know."""
    given = {
        block.mark.removeprefix("not run: ")
        for found in FOUND.values()
        for block in found
        if block.mark.startswith("not run: ")
    }
    assert given == set(NOT_RUN)


def test_every_command_of_the_line_is_run_somewhere() -> None:
    from bitcrown.cli.main import build_parser

    run = "".join(block.text for page in RUN for block in FOUND[page] if block.is_tested)
    commands = next(
        action.choices
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    missing = [command for command in commands if f"bitcrown {command}" not in run]
    assert not missing, missing


def test_a_block_without_a_mark_is_noticed() -> None:
    text = "a\n\n```sh\nls\n```\n\n<!-- tested -->\n```sh\nls\n```\n"
    bare, marked = blocks(text)
    assert complaint(bare) and not complaint(marked)
    assert complaint(marked._replace(mark="not run: no idea"))
    assert (bare.line, marked.line) == (3, 7)


def test_output_is_compared() -> None:
    printed = "unsat\nbitcrown: root bounds; 5.78 s\n"
    assert not unprinted("unsat\nbitcrown: root bounds; ... s\n", printed)
    assert unprinted("sat\n", printed) == "sat"
    assert unprinted("bitcrown: root bounds; ... s\nunsat\n", printed) == "unsat"
