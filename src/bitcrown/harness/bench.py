"""``bitcrown bench``: suites through the scripts, as the competition runs them; resumable; ends
with a table.

What an instance is and how it runs stands in ``one_instance``; where it runs, and how many at a
time, is the scheduler's business (``cluster``). The rows come back here, to the only process that
writes: they are appended to ``records.jsonl`` one by one, so an interrupted run goes on where it
stopped, whatever scheduler it had. Counterexamples are kept beside it.
"""

from __future__ import annotations

import csv
import fcntl
import fnmatch
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitcrown.cluster.shipped import sent_file
from bitcrown.cluster.tasks import Scheduler, Task, results_of
from bitcrown.errors import ResourceError, SettingsError
from bitcrown.files import append_record, each_record, write_whole
from bitcrown.harness.counterexamples import keep_counterexample
from bitcrown.harness.instance import find_suites, read_expected, read_instances
from bitcrown.harness.one_instance import Job, ScriptCall, run_scripts
from bitcrown.settings import ENVIRONMENT_PREFIX, Settings

_LARGEST_NETWORK = 2 << 30
_BULKY = (
    "progress",
    "curve",
    "counters",
    "phases",
    "watch",
    "output",
    "machine",
    "settings",
    "cores",
)
"""Fields of a record that stay in the journal: ten thousand of them need not be in memory."""
_Opening = Callable[[], AbstractContextManager[Scheduler]]


@dataclass(frozen=True)
class BenchPlan:
    """What to run, with the ``environment`` that the settings make; no instance gets more than
    ``timeout_cap`` seconds."""

    suite: Path
    out: Path
    timeout_cap: float = math.inf
    pattern: str = "*"
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


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


def run_bench(plan: BenchPlan, progress: _Progress, opening: _Opening) -> list[dict[str, Any]]:
    """Run what is not finished yet; returns the rows of all instances of the plan, in order,
    without their bulky fields (``whole_rows``).

    ``opening`` makes the scheduler, if there is anything to do. Writes ``records.jsonl`` and
    ``results.csv`` under ``plan.out``. Raises ``KeyboardInterrupt`` after it has ended what was
    running; finished instances stay finished; ``ResourceError`` if ``plan.out`` cannot be made, or
    if instances were lost with their workers.
    """
    jobs = jobs_of(plan)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"results cannot be written to {plan.out}: {error.strerror}; choose --out"
        ) from error
    with _sole_writer(plan.out):
        return _run_jobs(plan, jobs, progress, opening)


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


def _run_jobs(
    plan: BenchPlan, jobs: list[Job], progress: _Progress, opening: _Opening
) -> list[dict[str, Any]]:
    records = plan.out / "records.jsonl"
    if plan.fresh:
        records.unlink(missing_ok=True)
    done = {}  # rows by the text of their key: lists cannot be keys
    for record in each_record(records) if records.exists() else ():
        done[repr(record.get("key"))] = _slim(record)
    # (An instance that a suite lists twice is run once.)
    todo = list({key: job for job in jobs if (key := repr(job.key())) not in done}.values())
    finished = sum(repr(job.key()) in done for job in jobs)

    def tasks(scheduler: Scheduler) -> Iterator[Task]:
        for job in todo:
            progress(finished, len(jobs), job, None)
            yield task_of(job, plan, scheduler)

    with opening() if todo else nullcontext() as scheduler:
        for number, row, facts in results_of(scheduler, tasks(scheduler)) if scheduler else ():
            job = todo[number]
            text = row.pop("answer", None)  # it may be as large as a thousand records
            if text is not None:
                place = keep_counterexample(plan.out, job.suite.category, job.instance, text)
                row["counterexample"] = place
            append_record(records, row | facts)
            done[repr(job.key())] = _slim(row)
            finished += 1
            progress(finished, len(jobs), job, row)
    rows = [done[repr(job.key())] for job in jobs]
    write_results_csv(plan.out / "results.csv", rows)
    return rows


def _slim(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _BULKY}


def whole_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of ``rows`` with all their fields, from the journal."""
    found = {repr(record.get("key")): record for record in each_record(out / "records.jsonl")}
    return [found[repr(row["key"])] for row in rows]


def task_of(job: Job, plan: BenchPlan, scheduler: Scheduler) -> Task:
    """``job`` for whoever runs it: with its share of the machine, and every variable of ours, which
    a process on another machine has not."""
    own = {name: word for name, word in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    own |= plan.environment
    share = scheduler.needs.share_of(Settings.from_environment(own)).as_dict()
    own |= {f"{ENVIRONMENT_PREFIX}{name.upper()}": str(word) for name, word in share.items()}
    files = []
    if scheduler.sends_files:
        paths = [*(path for _, path in job.networks()), job.vnnlib()]
        files = [file for path in paths if (file := sent_file(path)) is not None]
    name = f"{job.suite.category} {job.instance.network} {job.instance.vnnlib}"
    return Task(name, run_scripts, ScriptCall(job, own), tuple(files))


def packed_file(path: Path) -> bytes:
    """A file as it goes to a machine that has it not: a network with its weights, wherever it keeps
    them. Raises ``BitcrownError``."""
    content = path.read_bytes()
    if path.suffix != ".onnx":
        return content
    from bitcrown.check.outside import completed_model

    return completed_model(content, path, _LARGEST_NETWORK)


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
