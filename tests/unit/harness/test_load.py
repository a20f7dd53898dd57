"""Margins follow the machine: what the kernel counts, what a sleep overshoots, and for how long it
is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitcrown.harness import load as module
from bitcrown.harness.load import WAKES, WINDOW, WORK, Load
from bitcrown.harness.request import WAIT_VARIABLE, Request, worker_environment
from bitcrown.harness.watchdog import safety_margin
from bitcrown.settings import Settings


class Machine:
    """A clock and the kernel's counters, under the test's control."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.running, self.waiting, self.now = file, 0, 0, 100.0
        monkeypatch.setattr(module, "_SCHEDSTAT", file)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        self.compute(0.05, 0.0)

    def compute(self, running: float, waiting: float) -> None:
        self.running, self.waiting = (
            self.running + round(running * 1e9),
            self.waiting + round(waiting * 1e9),
        )
        self.file.write_text(f"{self.running} {self.waiting} 7\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "schedstat", monkeypatch)


def test_an_idle_machine_needs_nothing(machine: Machine) -> None:
    load = Load()
    load.slept(0.05, 0.05)
    assert (load.late, load.slow, load.needed()) == (0.0, 1.0, 0.0)


def test_the_start_of_the_process_counts(machine: Machine) -> None:
    machine.compute(0.0, 0.45)
    assert Load().slow == pytest.approx(10.0)


def test_the_worst_counts_until_it_is_over(machine: Machine) -> None:
    load = Load()
    machine.compute(0.01, 0.03)
    load.look()
    load.slept(0.05, 0.25)
    machine.now += WINDOW / 2
    machine.compute(0.01, 0.0)
    load.look()
    load.slept(0.05, 0.06)
    assert load.slow == pytest.approx(4.0) and load.late == pytest.approx(0.2)
    assert load.needed() == pytest.approx(WAKES * 0.2 + WORK * 3)
    machine.now += 0.6 * WINDOW
    load.slept(0.05, 0.05)
    machine.compute(0.01, 0.0)
    load.look()
    assert load.slow == pytest.approx(1.0) and load.late == pytest.approx(0.01)


def test_what_is_too_short_to_tell_waits_for_more(machine: Machine) -> None:
    load = Load()
    machine.compute(0.001, 0.5)
    load.look()
    assert load.slow == 1.0
    machine.compute(0.004, 0.0)
    load.look()
    assert load.slow == pytest.approx(100.0)


def test_a_kernel_that_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("", "x y z", "1"):
        (tmp_path / "schedstat").write_text(content)
        monkeypatch.setattr(module, "_SCHEDSTAT", tmp_path / "schedstat")
        assert Load().slow == 1.0


def test_threads_sleep_where_cores_are_not_free(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WAIT_VARIABLE, raising=False)
    request = Request("", "n.onnx", "p.vnnlib", 60.0, 0.0, Settings(threads=3))
    free, taken = Load(), Load()
    machine.compute(0.01, 0.02)
    taken.look()
    assert WAIT_VARIABLE not in worker_environment(request, free)
    assert worker_environment(request, taken)[WAIT_VARIABLE] == "PASSIVE"
    assert worker_environment(replace(request, cpu_seconds=5.0), free)[WAIT_VARIABLE] == "PASSIVE"
    assert worker_environment(request, free)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv(WAIT_VARIABLE, "ACTIVE")
    assert worker_environment(request, taken)[WAIT_VARIABLE] == "ACTIVE"


def test_the_margin_takes_at_most_half_of_the_limit() -> None:
    assert safety_margin(60.0, 2.0) == pytest.approx(2.9)
    assert safety_margin(4.0, 100.0) == 2.0
