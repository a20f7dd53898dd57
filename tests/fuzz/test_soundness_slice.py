"""A slice of the standing fuzzer: fixed seeds and counts, so that the result hangs on nothing but
the code.

A failure prints the shrunk instance's line; ``soundness.py --family F --seed S --only NUMBER``
gives it again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("soundness.py")
SLICE = {
    "float": (2, 120),
    "integer": (1, 95),
    "mixed": (1, 25),
    "parser": (1, 120),
    "certificate": (1, 28),
    "pairs": (1, 20),
}
"""Seed and number of instances of each family: about two minutes in total."""


@pytest.mark.timeout(
    3600
)  # a stop for machines that hang: the limits that count are in processor time
@pytest.mark.parametrize("family", SLICE)
def test_nothing_false_is_said(family: str, tmp_path: Path) -> None:
    seed, count = SLICE[family]
    words = ["--family", family, "--seed", str(seed), "--count", str(count), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-P", str(FUZZER), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert f"{family} (seed {seed}): {count} instances" in done.stdout
