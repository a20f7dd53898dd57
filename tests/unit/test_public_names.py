"""The public names stay what they are, whatever else was imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("name", "module"), [("bounds", "crown"), ("attack", "ball"), ("evaluate", "data")])
def test_a_name_is_the_function_also_after_the_package_of_that_name_was_imported(name: str, module: str) -> None:
    code = (
        f"import bitcrown; from bitcrown.{name} import {module}; print(bitcrown.{name}.__module__, {module}.__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["bitcrown.api", f"bitcrown.{name}.{module}"]
