"""``bitcrown bench``: suites run as in the competition."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.exit_codes import BAD_INPUT, DONE, UNDECIDED, WRONG
from bitcrown.cli.options import (
    Verbosity,
    add_options,
    add_verbosity,
    environment_of,
    given_options,
    verbosity_of,
)
from bitcrown.cli.progress import ProgressLine
from bitcrown.cli.scheduling import add_ray_option, chosen_scheduler
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings

if TYPE_CHECKING:
    from bitcrown.harness.one_instance import Job


def add_bench_command(commands: Any) -> None:
    bench = commands.add_parser("bench", help="run a suite through the competition's scripts")
    add = bench.add_argument
    add("suite", type=Path, help="folder with instances.csv, a CSV, or a folder of suites")
    add(
        "--out", type=Path, default=Path("results/bench"), help="folder for results (results/bench)"
    )
    add("--timeout-cap", default="", metavar="S", help="at most this many seconds an instance")
    add("--filter", default="*", metavar="GLOB", help="only instances whose names match")
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="instances at a time, each on cores of its own (default: 1); with --ray: on each node",
    )
    add_ray_option(bench)
    again = bench.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="skip finished instances (the default)"
    )
    again.add_argument("--fresh", action="store_true", help="forget finished instances")
    add(
        "--need-all",
        action="store_true",
        help="exit 3 if an instance with a known truth is undecided",
    )
    add_verbosity(bench)
    add_options(bench)
    bench.set_defaults(run=bench_command)


def bench_command(options: argparse.Namespace) -> int:
    from bitcrown.harness.bench import BenchPlan, packed_file, run_bench, whole_rows
    from bitcrown.harness.instance import parse_timeout
    from bitcrown.harness.tables import (
        failure_sentence,
        is_decided,
        is_failed,
        is_known,
        wrong_rows,
        wrong_sentence,
    )

    if options.jobs < 1:
        raise SettingsError(f"--jobs needs a whole number from 1, but got {options.jobs}")
    environment = environment_of(given_options(options))
    settings = Settings.from_environment(os.environ | environment)
    cap = parse_timeout(options.timeout_cap) if options.timeout_cap else math.inf
    plan = BenchPlan(options.suite, options.out, cap, options.filter, options.fresh, environment)
    say = verbosity_of(options)
    rows = run_bench(
        plan,
        job_progress(say),
        lambda: chosen_scheduler(options.ray, options.jobs, settings, packed_file),
    )
    failures = [failure_sentence(row) for row in rows if is_failed(row)]
    wrong = [wrong_sentence(row) for row in wrong_rows(rows)]
    if say.is_json:
        whole = whole_rows(options.out, rows)
        say.json("bench", {"rows": whole, "failures": failures, "wrong": wrong})
    else:
        show_rows(rows, options.out, failures, wrong)
    if wrong:
        return WRONG
    if failures:
        return BAD_INPUT
    undecided = any(is_known(row) and not is_decided(row) for row in rows)
    return UNDECIDED if options.need_all and undecided else DONE


def show_rows(
    rows: list[dict[str, Any]], out: Path, failures: Sequence[str], wrong: Sequence[str]
) -> None:
    from bitcrown.harness.tables import plain_table

    print(plain_table(rows), end="")
    print(f"results: {out / 'results.csv'}, records: {out / 'records.jsonl'}")
    for sentence in failures:
        print(f"ERROR: {sentence}")
    for sentence in wrong:
        print(f"WRONG: {sentence}")


def job_progress(say: Verbosity) -> Callable[[int, int, Job, Mapping[str, Any] | None], None]:
    """Shows what runs, and keeps one line for each finished instance."""
    line = ProgressLine(say.is_quiet)

    def show(finished: int, total: int, job: Job, row: Mapping[str, Any] | None) -> None:
        name = f"{job.suite.category} {job.instance.network} {job.instance.vnnlib}"
        how = "running" if row is None else f"{row['result']:8s} {row['wall_s']:8.2f} s"
        line.show(f"[{finished}/{total}] {how}  {name}", row is not None)

    return show
