"""Answers before the time limit on a machine that has four times as much to do as it can.

Slow, because it is about the clock and has to wait for it; what margins follow from is tested in
``test_load``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from conftest import Scripts

from bitcrown.settings import usable_cores

pytestmark = pytest.mark.slow


@pytest.fixture
def busy() -> Iterator[None]:
    loops = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
        for _ in range(4 * usable_cores())
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("mode", ["block", "children", "memory"])
@pytest.mark.parametrize("timeout", ["3", "5", "8"])
def test_no_answer_is_late(scripts: Scripts, busy: None, mode: str, timeout: str) -> None:
    """The script has ended before the limit, whatever its worker does; half the limit is always
    used."""
    begin = time.monotonic()
    code, _ = scripts.run(mode, timeout=timeout)
    spent = time.monotonic() - begin
    record = scripts.last_record()
    assert (code, scripts.answer()) == (
        0,
        "timeout" if mode != "memory" or record["result"] == "timeout" else "unknown",
    )
    assert spent < float(timeout), record["watch"]
    if record["result"] == "timeout":
        assert record["wall_s"] > 0.4 * float(timeout), "the margin is at most half of the limit"
        assert record["watch"]["slow"] >= 1.0


def test_an_answer_that_is_due_at_the_limit(scripts: Scripts, busy: None) -> None:
    """A worker that answers at any moment around the limit: the word is an answer in time, or
    timeout."""
    for delay in (1.0, 2.0, 2.5, 2.7):
        begin = time.monotonic()
        with scripts.start("when_told", timeout="3") as process:
            time.sleep(max(0.0, begin + delay - time.monotonic()))
            scripts.pids.with_name("pids.go").touch()
            process.communicate(timeout=60)
        spent = time.monotonic() - begin
        assert scripts.answer() in ("unsat", "timeout") and spent < 3.0, (delay, spent)
        os.unlink(scripts.pids.with_name("pids.go"))
