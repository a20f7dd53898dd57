"""Two clocks in one budget: computing counts where it is asked for, in this process and in a
child."""

from __future__ import annotations

import math
import os
import signal
import time

import pytest

from bitcrown import budget as module
from bitcrown.budget import PATIENCE, Budget, Stopwatch
from bitcrown.child_process import text_of_child, text_or_error
from bitcrown.errors import BitcrownError, BudgetExpired, ModelError, PropertyError
from bitcrown.verdict import Reason


class Clocks:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.cpu = 1000.0, 50.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(module.time, "process_time", lambda: self.cpu)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_a_busy_machine_does_not_end_a_budget_of_computing(clocks: Clocks) -> None:
    wall, cpu = Budget.of_seconds(10.0), Budget.of_cpu_seconds(10.0)
    clocks.wall += 100.0
    clocks.cpu += 2.0
    assert wall.is_expired() and not cpu.is_expired()
    assert cpu.remaining() == pytest.approx(8.0)
    clocks.cpu += 8.0
    with pytest.raises(BudgetExpired):
        cpu.check()


def test_a_process_that_only_waits_comes_to_an_end(clocks: Clocks) -> None:
    budget = Budget.of_cpu_seconds(2.0)
    clocks.wall += 2.0 * PATIENCE
    assert budget.is_expired()


def test_a_share_is_counted_as_the_whole_is(clocks: Clocks) -> None:
    share, rest = Budget.of_cpu_seconds(10.0).capped(3.0), Budget.of_seconds(10.0).capped(3.0)
    clocks.wall += 5.0
    assert share.remaining() == pytest.approx(3.0) and rest.is_expired()
    clocks.cpu += 4.0
    assert share.is_expired()
    assert Budget.of_cpu_seconds(1.0).capped(3.0).remaining() == pytest.approx(1.0)
    assert Budget.of_seconds(5.0).cpu_remaining() == math.inf
    assert not Budget.unlimited().is_expired()


def compute_for_ever() -> str:
    while True:
        pass


def test_the_computing_of_a_child_counts() -> None:
    budget = Budget(time.monotonic() + 600.0, cpu_deadline=time.process_time() + 0.2)
    assert text_of_child(compute_for_ever, budget, 0.0) == ("", Reason.DEADLINE)
    told = text_of_child(
        lambda: f"{Budget.of_cpu_seconds(50.0).for_child().cpu_deadline:.0f}", budget, 0.0
    )
    assert told == ("50", Reason.NONE)


def refuse() -> str:
    raise PropertyError("line 3: two\nlines")


def test_a_child_hands_its_answer_and_its_sentence_on() -> None:
    assert (
        text_or_error(lambda: "an answer\nof two lines", Budget.unlimited(), "that asks")
        == "an answer\nof two lines"
    )
    with pytest.raises(BitcrownError, match="^line 3: two lines$"):
        text_or_error(refuse, Budget.unlimited(), "that asks")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_a_child_that_crashes_is_one_sentence(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ModelError, match="^the process that looks crashed, so the file is damaged$"
    ):
        text_or_error(lambda: str(os.kill(os.getpid(), number)), Budget.unlimited(), "that looks")
    with pytest.raises(ModelError, match="crashed"):
        text_or_error(lambda: str(1 // 0), Budget.unlimited(), "that looks")
    assert capfd.readouterr() == ("", "")


def test_a_stopwatch_counts_neither_other_processes_nor_threads_twice(clocks: Clocks) -> None:
    watch = Stopwatch()
    clocks.wall, clocks.cpu = clocks.wall + 10.0, clocks.cpu + 2.0  # others compute
    assert watch.seconds == 2.0
    clocks.wall, clocks.cpu = clocks.wall + 1.0, clocks.cpu + 30.0  # so do our threads
    assert watch.seconds == 11.0
