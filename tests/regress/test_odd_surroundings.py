"""What a command does where its surroundings are odd: files that cannot be written, names that are
none. Each ended with a traceback and exit code 1, which means a wrong answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitcrown.errors import PropertyError
from bitcrown.harness.instance import read_instances

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_an_error_that_nobody_can_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitcrown.cli", "verify", "none.onnx", "none.vnnlib"]
    with FULL.open("w") as nowhere:
        ended = subprocess.run(command, stderr=nowhere, stdout=subprocess.PIPE, cwd=tmp_path)
    assert ended.returncode == 2


@pytest.mark.parametrize("row", ["a\0.onnx,p.vnnlib,5\n", "a.onnx,p\0.vnnlib,5\n"])
def test_a_name_that_no_file_can_have(row: str, tmp_path: Path) -> None:
    (tmp_path / "instances.csv").write_text(row)
    with pytest.raises(PropertyError, match="row 1: .*is no path"):
        read_instances(tmp_path / "instances.csv")
