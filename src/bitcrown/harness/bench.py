"""``bitcrown bench``: suites through the scripts, as the competition runs them; resumable; ends
with a table.

Every instance runs ``prepare_instance.sh`` and ``run_instance.sh`` as real processes in a group of
their own with stdin closed; the group is killed ten seconds after the time limit. Results are
appended to ``records.jsonl`` one by one, so an interrupted run goes on where it stopped;
counterexamples are kept beside it.
"""

from __future__ import annotations

import csv
import fcntl
import fnmatch
import io
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcrown.errors import ResourceError, SettingsError
from bitcrown.files import append_record, read_records, write_whole
from bitcrown.harness.counterexamples import keep_counterexample
from bitcrown.harness.instance import (
    Instance,
    Suite,
    find_suites,
    read_expected,
    read_instances,
    resolve,
)
from bitcrown.harness.processes import signal_group

_PREPARE_SECONDS = 600.0
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class BenchPlan:
    """What to run. ``scripts`` is the folder of the tool's scripts; no instance gets more
    than ``timeout_cap`` seconds."""

    suite: Path
    out: Path
    scripts: Path
    timeout_cap: float = math.inf
    pattern: str = "*"
    jobs: int = 1
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One instance of the plan, with its time limit (seconds) and its truth ("" if unknown)."""

    suite: Suite
    instance: Instance
    timeout: float
    expected: str

    def key(self) -> list[Any]:
        """What makes two runs the same; a list, because a record comes back from JSON as one."""
        return [self.suite.category, self.suite.version, *self.instance.key(), self.timeout]


_Progress = Callable[[int, int, Job, Mapping[str, Any] | None], None]
"""Called before (``None``) and after (row) an instance with the number of finished ones and of
all."""


def jobs_of(plan: BenchPlan) -> list[Job]:
    """All instances that the plan asks for, in the order of the files."""
    found = []
    for suite in find_suites(plan.suite):
        expected = read_expected(suite.folder / "expected.csv")
        for instance in read_instances(suite.file):
            if not fnmatch.fnmatch(
                f"{suite.category} {instance.network} {instance.vnnlib}", f"*{plan.pattern}*"
            ):
                continue
            truth = expected.get(instance.key(), "")
            found.append(Job(suite, instance, min(instance.timeout, plan.timeout_cap), truth))
    if not found:
        raise SettingsError(f"no instance of {plan.suite} matches {plan.pattern!r}")
    return found


def run_bench(plan: BenchPlan, progress: _Progress) -> list[dict[str, Any]]:
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
    with _sole_writer(plan.out):
        return _run_jobs(plan, jobs, progress)


@contextmanager
def _sole_writer(out: Path) -> Iterator[None]:
    """Holds ``out`` for this process: two that write there would run and count everything twice.
    Raises ``ResourceError``."""
    with (out / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(
                f"another bench is writing to {out}; wait for it, or choose another --out"
            ) from error
        yield


def _run_jobs(plan: BenchPlan, jobs: list[Job], progress: _Progress) -> list[dict[str, Any]]:
    records = plan.out / "records.jsonl"
    if plan.fresh:
        records.unlink(missing_ok=True)
    done = {}  # rows by the text of their key: lists cannot be keys
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
            # What an interruption ended says nothing about the instance: it is not finished.
            if running.stopped:
                return
            append_record(records, row)
            done[repr(job.key())] = row
            finished += 1
            progress(finished, len(jobs), job, row)

    with ThreadPoolExecutor(max_workers=plan.jobs) as pool:
        try:
            for future in [pool.submit(work, job) for job in jobs]:
                future.result()
        except BaseException:
            # An interruption, or an error of one thread: the pool waits for the others at the end
            # of the block, so what they run is ended now and what they would take next cancelled.
            running.stop()
            pool.shutdown(cancel_futures=True)
            raise
    rows = [done[repr(job.key())] for job in jobs]
    write_results_csv(plan.out / "results.csv", rows)
    return rows


def write_results_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """``results.csv`` as the harness writes it, without a header: category, network, property,
    seconds of preparing, result, seconds of running."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        seconds = f"{row['prepare_s']:.6f}", f"{row['wall_s']:.6f}"
        asked = row["category"], row["network"], row["vnnlib"]
        writer.writerow([*asked, seconds[0], row["result"], seconds[1]])
    write_whole(path, text.getvalue())


def run_one(plan: BenchPlan, job: Job, running: Running) -> dict[str, Any]:
    """Prepare and run one instance; the row for ``records.jsonl``."""
    folder = job.suite.folder
    network, vnnlib = resolve(job.instance.network, folder), str(folder / job.instance.vnnlib)
    with tempfile.TemporaryDirectory(prefix="bitcrown-bench-") as name:
        work = Path(name)
        results, record = work / "out.txt", work / "record.jsonl"
        # The competition's word for a results file that the script never wrote.
        results.write_text("no_result_in_file\n")
        environment = {**os.environ, **plan.environment, "BITCROWN_RECORD": str(record)}
        words = ["v1", job.suite.category, network, vnnlib]
        command = [str(plan.scripts / "prepare_instance.sh"), *words]
        code, prepare_s = running.call(command, environment, _PREPARE_SECONDS)
        result, wall_s = f"prepare_instance_error_{code}", 0.0
        if code == 0:
            command = [str(plan.scripts / "run_instance.sh"), *words]
            command += [str(results), str(job.timeout)]
            code, wall_s = running.call(command, environment, job.timeout + _GRACE_SECONDS)
            result = word_of(code, results, wall_s, job.timeout)
        kept = {}
        if result == "sat":
            text = results.read_text(encoding="utf-8", errors="replace")
            place = keep_counterexample(plan.out, job.suite.category, job.instance, text)
            kept["counterexample"] = place
        told = read_records(record) if record.exists() else []
    # What the script measured from outside goes over what the run said about itself.
    return (told[-1] if told else {}) | {
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
        **kept,
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
            # An interruption that came between the start and the entry has not seen this group.
            if self.stopped:
                signal_group(process.pid, signal.SIGTERM)
        # The script leads a session of its own, so its pid names the group of all it started.
        timer = threading.Timer(limit, signal_group, (process.pid, signal.SIGKILL))
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
                signal_group(group, signal.SIGTERM)
