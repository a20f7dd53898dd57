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
    "float": (2, 60),
    "integer": (1, 50),
    "mixed": (1, 12),
    "parser": (1, 60),
    "certificate": (1, 16),
    "pairs": (1, 12),
}
"""Seed and number of instances of each family: about a minute of computing in total."""
LONGER = 6
"""Times as many, from another seed, in the slow tests."""

# A stop for machines that hang: the limits that count are in processor time.
patient = pytest.mark.timeout(3600)


@patient
@pytest.mark.parametrize("family", SLICE)
def test_nothing_false_is_said(family: str, tmp_path: Path) -> None:
    assert_all_right(family, *SLICE[family], tmp_path)


@patient
@pytest.mark.slow
@pytest.mark.parametrize("family", SLICE)
def test_nothing_false_is_said_of_many_more(family: str, tmp_path: Path) -> None:
    seed, count = SLICE[family]
    assert_all_right(family, seed + 10, LONGER * count, tmp_path)


def assert_all_right(family: str, seed: int, count: int, tmp_path: Path) -> None:
    words = ["--family", family, "--seed", str(seed), "--count", str(count), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-P", str(FUZZER), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert f"{family} (seed {seed}): {count} instances" in done.stdout
