"""``docs/property.md``: its examples say what its comments say."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import HANG_GUARD, ROOT

BLOCKS = re.findall(
    r"<!-- tested -->\n```python\n(.*?)```", (ROOT / "docs" / "property.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS, ids=["one", "two networks"])
def test_example(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", block],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        timeout=5 * HANG_GUARD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"print\(verdict.status\)  # (\w+):", block)
    printed = [line for line in done.stdout.splitlines() if line in ("sat", "unsat", "timeout")]
    assert said and printed == said
