"""The public names stay what they are, whatever else was imported."""

from __future__ import annotations

import subprocess
import sys


def test_bounds_is_the_function_also_after_the_package_of_that_name_was_imported() -> None:
    code = "import bitcrown; from bitcrown.bounds import crown; print(bitcrown.bounds.__module__, crown.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["bitcrown.api", "bitcrown.bounds.crown"]
