"""The notebooks of ``examples/`` (jupytext's percent format), run as scripts.

They end with asserted facts, so running is the test; that they are notebooks is checked here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import HANG_GUARD, ROOT
from test_pages import environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} == {
        "acas_xu",
        "certified_training",
        "int8_mcu",
        "network_pair",
        "torch_mlp",
    }


@every_example
def test_example_runs(example: Path, programs: Path) -> None:
    done = subprocess.run(
        [str(programs / "python-block"), example.read_text()],
        cwd=ROOT,
        env=environment(programs),
        timeout=10 * HANG_GUARD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_example
def test_example_is_a_notebook_that_teaches_and_asserts(example: Path) -> None:
    text = example.read_text()
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    code = [cell for cell in cells if not cell.startswith(" [markdown]")]
    assert text.startswith("# ---\n# jupyter:\n#   jupytext:\n")
    assert len(prose) >= 3 and len(code) >= 3
    assert all(line.startswith("#") or not line for cell in prose for line in cell.splitlines()[1:])
    assert sum(cell.count("assert ") for cell in code) >= 3
    assert "assert " in code[-1], "it ends with what it has shown"
