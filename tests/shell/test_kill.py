"""Whatever ends the worker, the parent or both: a whole results file with the right word, and no
process behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
from conftest import HANG_GUARD, Scripts, alive, wait_until_gone


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("kill_self", "unknown"),
        ("segfault", "unknown"),
        ("exit", "unknown"),
        ("raise", "unknown"),
        ("half_message", "unknown"),
        ("sat_without_witness", "unknown"),
        ("unknown_word", "unknown"),
        ("error", "error"),
        ("unsat", "unsat"),
        ("garbage_then_answer", "unsat"),
        ("lingering", "unsat"),
    ],
)
def test_however_the_worker_ends(scripts: Scripts, mode: str, word: str) -> None:
    code, _ = scripts.run(mode)
    assert (code, scripts.answer()) == (0, word)
    assert scripts.results.read_text() == f"{word}\n"
    assert scripts.last_record()["result"] == word
    assert not any(alive(pid) for pid in scripts.seen_pids())


def test_sat_has_its_witness(scripts: Scripts) -> None:
    assert scripts.run("sat")[0] == 0
    assert scripts.results.read_text() == "sat\n((X_0 0.5)\n(Y_0 1.5))\n"


def test_large_witness_is_whole(scripts: Scripts) -> None:
    assert scripts.run("large_witness")[0] == 0
    lines = scripts.results.read_text().splitlines()
    assert len(lines) == 200_002 and lines[-1] == "(Y_0 1.0))"


def test_sigkill_of_the_worker_mid_search(scripts: Scripts) -> None:
    with scripts.start("children") as process:
        pids = scripts.wait_for_pids(3)
        os.kill(pids[0], signal.SIGKILL)
        process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, scripts.answer()) == (0, "unknown")
    assert scripts.last_record()["detail"] == "the worker was ended by SIGKILL"
    wait_until_gone(pids)


def test_memory_past_the_limit(scripts: Scripts) -> None:
    code, _ = scripts.run("memory", {"BITCROWN_MEMORY_GIB": "0.2"})
    assert (code, scripts.answer()) == (0, "unknown")
    record = scripts.last_record()
    assert "memory limit" in record["reason"] and record["peak_mib"] >= 200
    assert not any(alive(pid) for pid in scripts.seen_pids())


def test_deadline_inside_a_blocking_call(scripts: Scripts) -> None:
    code, _ = scripts.run("children", timeout="2")
    assert (code, scripts.answer()) == (0, "timeout")
    record = scripts.last_record()
    assert (
        record["progress"] == {"phase": "children", "facts": {"open": 7}}
        and record["phases"]["children"] > 0.0
    )
    assert record["counters"] == {"splits": 12}, "a run that was ended keeps its counters"
    (seconds, worst, count), *_ = record["curve"]
    assert seconds > 0 and (worst, count) == (None, 7)
    wait_until_gone(scripts.seen_pids())


def test_an_answer_after_the_time_limit_is_none(scripts: Scripts) -> None:
    with scripts.start("when_told", timeout="1.5") as process:
        scripts.wait_for_pids(1)
        process.send_signal(signal.SIGSTOP)
        scripts.pids.with_name("pids.go").touch()
        time.sleep(1.6)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, scripts.results.read_text()) == (0, "timeout\n")
    record = scripts.last_record()
    assert record["result"] == "timeout" and record["counters"] in ({}, {"splits": 5})
    wait_until_gone(scripts.seen_pids())


def test_no_kill_leaves_the_answer_of_yesterday(scripts: Scripts) -> None:
    for _ in range(5):
        scripts.results.write_text("unsat\n")
        with scripts.start("unsat") as process:
            while scripts.results.read_text() == "unsat\n" and process.poll() is None:
                pass
            # before Python has begun: the shell has taken the old answer away already
            process.kill()
            process.communicate(timeout=HANG_GUARD)
        assert scripts.results.read_text() in ("", "timeout\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_script(scripts: Scripts, number: signal.Signals) -> None:
    with scripts.start("children") as process:
        pids = scripts.wait_for_pids(3)
        process.send_signal(number)
        process.communicate(timeout=HANG_GUARD)
    assert (process.returncode, scripts.results.read_text()) == (0, "timeout\n")
    wait_until_gone(pids)


def test_sigkill_of_the_parent(scripts: Scripts) -> None:
    with scripts.start("children") as process:
        pids = scripts.wait_for_pids(3)
        process.kill()
        process.communicate(timeout=HANG_GUARD)
    assert scripts.results.read_text() == "timeout\n"
    wait_until_gone(pids)


def test_sigkill_of_the_parents_group(scripts: Scripts) -> None:
    with scripts.start("children") as process:
        pids = scripts.wait_for_pids(3)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=HANG_GUARD)
    assert scripts.results.read_text() == "timeout\n"
    wait_until_gone(pids)
