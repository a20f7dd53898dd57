"""``bitcrown bench``: suites through the scripts, as the competition runs them; resumable; ends
with a table.

Every instance runs ``prepare_instance.sh`` and ``run_instance.sh`` as real processes in a group of
their own with stdin closed; the group is killed ten seconds after the time limit. Results are
appended to ``records.jsonl`` one by one, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import fnmatch
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcrown.errors import ResourceError, SettingsError
from bitcrown.harness.expected import read_expected
from bitcrown.harness.instance import Instance, Suite, find_suites, read_instances, resolve
from bitcrown.harness.results import write_results_csv
from bitcrown.json_lines import append_record, read_records

PREPARE_SECONDS = 600.0
GRACE_SECONDS = 10.0
WORDS = ("sat", "unsat", "unknown", "timeout", "error")


@dataclass(frozen=True)
class Plan:
    """What to run. ``scripts`` is the folder of the tool's scripts, ``timeout_cap`` 0 means no
    cap."""

    suite: Path
    out: Path
    scripts: Path
    timeout_cap: float = 0.0
    pattern: str = "*"
    jobs: int = 1
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    suite: Suite
    instance: Instance
    timeout: float
    expected: str

    def key(self) -> list[Any]:
        return [self.suite.category, self.suite.version, *self.instance.key(), self.timeout]


Progress = Callable[[int, int, Job, Mapping[str, Any] | None], None]
"""Called before (``None``) and after (row) an instance with the number of finished ones and of
all."""


def jobs_of(plan: Plan) -> list[Job]:
    """All instances that the plan asks for, in the order of the files."""
    found = []
    for suite in find_suites(plan.suite):
        expected = read_expected(suite.folder / "expected.csv")
        for instance in read_instances(suite.file):
            if not fnmatch.fnmatch(
                f"{suite.category} {instance.network} {instance.vnnlib}", f"*{plan.pattern}*"
            ):
                continue
            timeout = (
                min(instance.timeout, plan.timeout_cap) if plan.timeout_cap else instance.timeout
            )
            found.append(Job(suite, instance, timeout, expected.get(instance.key(), "")))
    if not found:
        raise SettingsError(f"no instance of {plan.suite} matches {plan.pattern!r}")
    return found


def run_bench(plan: Plan, progress: Progress) -> list[dict[str, Any]]:
    """Run what is not finished yet; returns the rows of all instances of the plan, in order.

    Writes ``records.jsonl`` and ``results.csv`` under ``plan.out``. Raises ``KeyboardInterrupt``
    after it has ended what was running; finished instances stay finished; ``ResourceError`` if
    ``plan.out`` cannot be made.
    """
    jobs = jobs_of(plan)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"results cannot be written to {plan.out}: {error.strerror}; choose --out"
        ) from error
    records = plan.out / "records.jsonl"
    if plan.fresh:
        records.unlink(missing_ok=True)
    done = {}
    if records.exists():
        done = {repr(record.get("key")): record for record in read_records(records)}
    finished = sum(repr(job.key()) in done for job in jobs)
    lock = threading.Lock()
    running = Running()

    def work(job: Job) -> None:
        nonlocal finished
        if repr(job.key()) in done or running.stopped:
            return
        with lock:
            progress(finished, len(jobs), job, None)
        row = run_one(plan, job, running)
        with lock:
            if running.stopped:
                return
            append_record(records, row)
            done[repr(job.key())] = row
            finished += 1
            progress(finished, len(jobs), job, row)

    with ThreadPoolExecutor(max_workers=plan.jobs) as pool:
        complete = False
        try:
            for future in [pool.submit(work, job) for job in jobs]:
                future.result()
            complete = True
        finally:
            if not complete:
                running.stop()
                pool.shutdown(cancel_futures=True)
    rows = [done[repr(job.key())] for job in jobs]
    write_results_csv(plan.out / "results.csv", (competition_row(row) for row in rows))
    return rows


def competition_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "category": row["category"],
        "network": row["network"],
        "property": row["vnnlib"],
        "prepare_time": f"{row['prepare_s']:.6f}",
        "result": row["result"],
        "run_time": f"{row['wall_s']:.6f}",
    }


def run_one(plan: Plan, job: Job, running: Running) -> dict[str, Any]:
    """Prepare and run one instance; the row for ``records.jsonl``."""
    folder = job.suite.folder
    network, vnnlib = resolve(job.instance.network, folder), str(folder / job.instance.vnnlib)
    with tempfile.TemporaryDirectory(prefix="bitcrown-bench-") as name:
        work = Path(name)
        results, record = work / "out.txt", work / "record.jsonl"
        results.write_text("no_result_in_file\n")
        environment = {**os.environ, **plan.environment, "BITCROWN_RECORD": str(record)}
        words = ["v1", job.suite.category, network, vnnlib]
        prepare = [str(plan.scripts / "prepare_instance.sh"), *words]
        code, prepare_s = running.call(prepare, environment, PREPARE_SECONDS)
        result, wall_s = f"prepare_instance_error_{code}", 0.0
        if code == 0:
            command = [
                str(plan.scripts / "run_instance.sh"),
                *words,
                str(results),
                str(job.timeout),
            ]
            code, wall_s = running.call(command, environment, job.timeout + GRACE_SECONDS)
            result = word_of(code, results, wall_s, job.timeout)
        inner = read_records(record)[-1] if record.exists() else {}
    return inner | {
        "key": job.key(),
        "category": job.suite.category,
        "network": job.instance.network,
        "vnnlib": job.instance.vnnlib,
        "timeout": job.timeout,
        "expected": job.expected,
        "result": result,
        "prepare_s": round(prepare_s, 4),
        "wall_s": round(wall_s, 4),
        "exit_code": code,
    }


def word_of(code: int, results: Path, wall: float, timeout: float) -> str:
    """The verdict as the competition of 2026 would note it: late answers and failed scripts do not
    count."""
    if code != 0:
        return "timeout" if wall > timeout else f"error_exit_code_{code}"
    words = results.read_text(encoding="utf-8", errors="replace").split(maxsplit=1)
    word = words[0] if words else "no_result_in_file"
    return "timeout" if word in ("sat", "unsat") and wall > timeout else word


class Running:
    """The process groups that run now, so that an interruption can end them."""

    def __init__(self) -> None:
        self.stopped = False
        self._groups: set[int] = set()
        self._lock = threading.Lock()

    def call(
        self, command: list[str], environment: Mapping[str, str], limit: float
    ) -> tuple[int, float]:
        """Exit code (negative: killed) and wall seconds of one script. Raises ``ResourceError`` if
        it cannot start."""
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise ResourceError(f"{command[0]} cannot be started: {error.strerror}") from error
        with self._lock:
            self._groups.add(process.pid)
            if self.stopped:
                _signal(process.pid, signal.SIGTERM)
        timer = threading.Timer(limit, _signal, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            code = process.wait()
        finally:
            timer.cancel()
            with self._lock:
                self._groups.discard(process.pid)
        return code, time.monotonic() - started

    def stop(self) -> None:
        """Ask everything that runs to end; the scripts end their workers on SIGTERM."""
        with self._lock:
            self.stopped = True
            for group in self._groups:
                _signal(group, signal.SIGTERM)


def _signal(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
