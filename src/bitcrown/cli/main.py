"""The command line: arguments to library calls to exit codes. Only modules named `cli` or `cli_*`
print.

Exit codes: 0 decided, or done; 1 a wrong answer or a witness that does not hold; 2 input that
cannot be used (one sentence on stderr); 3 no answer (``unknown`` or ``timeout``).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.budget import PATIENCE, Budget
from bitcrown.cli.evaluate import add_evaluate_command
from bitcrown.cli.options import add_settings, given_settings
from bitcrown.cli.train import add_train_command
from bitcrown.errors import BitcrownError, PropertyError, SettingsError
from bitcrown.settings import Settings, usable_cores
from bitcrown.verdict import Status

if TYPE_CHECKING:
    from bitcrown.harness.outcome import Outcome

DECIDED, WRONG, BAD_INPUT, UNDECIDED = 0, 1, 2, 3
DEFAULT_TIMEOUT = 300.0
START_SECONDS = 60.0
"""For the start of a worker whose time is counted in computing."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        return show_version()
    if options.run is None:
        parser.print_usage(sys.stderr)
        return BAD_INPUT
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except BitcrownError as error:
        print(f"bitcrown: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nbitcrown: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNDECIDED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitcrown",
        description="Decide whether a neural network can misbehave.",
        epilog="Exit codes: 0 decided or done, 1 wrong answer or failed check, 2 bad input, 3 "
        "unknown or timeout.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="store_true", help="version, commit and versions of the dependencies"
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    verify = commands.add_parser("verify", help="decide one instance")
    verify.add_argument(
        "files", nargs="+", metavar="FILE", help="ONNX VNNLIB, or VNNLIB alone with --network"
    )
    verify.add_argument(
        "--network", action="append", metavar="NAME=ONNX", help="file of one declared network"
    )
    verify.add_argument("--timeout", metavar="S", help="seconds (default: 300)")
    verify.add_argument(
        "--cpu-seconds", metavar="S", help="seconds of computing, whatever else the machine does"
    )
    verify.add_argument(
        "--result", type=Path, metavar="FILE", help="write the answer as VNN-COMP's results file"
    )
    verify.add_argument(
        "--certificate", type=Path, metavar="FILE", help="write the proof of an unsat"
    )
    verify.add_argument(
        "--record", type=Path, metavar="FILE", help="append a JSON record of the run"
    )
    add_settings(verify)
    verify.set_defaults(run=verify_command)

    inspect = commands.add_parser("inspect", help="what a network (and a property) consists of")
    inspect.add_argument("onnx")
    inspect.add_argument("vnnlib", nargs="?")
    inspect.set_defaults(run=inspect_command)

    bounds = commands.add_parser(
        "bounds", help="sound bounds of a tensor over the property's input box"
    )
    bounds.add_argument("onnx")
    bounds.add_argument("vnnlib")
    bounds.add_argument("--tensor", help="name as inspect prints it (default: the output)")
    bounds.add_argument(
        "--case", type=int, default=0, help="which case of the property (default: 0)"
    )
    bounds.set_defaults(run=bounds_command)

    check = commands.add_parser(
        "check", help="replay the witness of a results file on the original network"
    )
    for name in ("result", "onnx", "vnnlib"):
        check.add_argument(name)
    check.set_defaults(run=check_command)

    proof = commands.add_parser(
        "check-certificate", help="check a proof of an unsat, independently"
    )
    for name, text in (
        ("model", "ONNX, .h5 or JSON"),
        ("property", "VNNLIB or JSON"),
        ("certificate", "what verify --certificate wrote"),
    ):
        proof.add_argument(name, type=Path, help=text)
    proof.set_defaults(run=check_certificate_command)

    _add_bench_commands(commands)
    add_train_command(commands)
    add_evaluate_command(commands)
    return parser


def _add_bench_commands(commands: Any) -> None:
    bench = commands.add_parser("bench", help="run a suite through the competition's scripts")
    bench.add_argument(
        "suite", type=Path, help="folder with instances.csv, a CSV, or a folder of suites"
    )
    bench.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="folder for results (results/bench)"
    )
    bench.add_argument(
        "--timeout-cap", default="", metavar="S", help="at most this many seconds an instance"
    )
    bench.add_argument(
        "--filter", default="*", metavar="GLOB", help="only instances whose names match"
    )
    bench.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="instances at a time (default: 1)"
    )
    again = bench.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="skip finished instances (the default)"
    )
    again.add_argument("--fresh", action="store_true", help="forget finished instances")
    bench.add_argument(
        "--need-all",
        action="store_true",
        help="exit 3 if an instance with a known truth is undecided",
    )
    add_settings(bench)
    bench.set_defaults(run=bench_command)
    report = commands.add_parser("report", help="a Markdown table of records")
    report.add_argument("records", type=Path, nargs="+", help="records.jsonl of a bench run")
    report.set_defaults(run=report_command)


def verify_command(options: argparse.Namespace) -> int:
    from bitcrown.files import write_whole
    from bitcrown.harness.instance import parse_timeout
    from bitcrown.harness.outcome import write_answer
    from bitcrown.harness.run import Request, check_files, watch
    from bitcrown.harness.watchdog import Signals

    started = time.monotonic()
    network, vnnlib = verify_files(options.files, options.network)
    settings = Settings.from_environment(os.environ | environment_of(given_settings(options)))
    check_files(network, vnnlib)
    certificate: Path | None = options.certificate
    if certificate is not None:
        write_whole(certificate, "")
    cpu = None if options.cpu_seconds is None else parse_timeout(options.cpu_seconds)
    usual = DEFAULT_TIMEOUT if cpu is None else PATIENCE * max(cpu, 1.0) + START_SECONDS
    timeout = usual if options.timeout is None else parse_timeout(options.timeout)
    request = Request("", network, vnnlib, timeout, started, settings, str(certificate or ""), cpu)
    if options.result is not None:
        write_answer(options.result, f"{Status.TIMEOUT}\n")
    seen = watch(request, options.result, Signals(), options.record)
    outcome = seen.outcome
    if certificate is not None:
        report_certificate(certificate, outcome)
    if outcome.status is Status.ERROR:
        return BAD_INPUT
    word = (
        "timed-out"
        if outcome.status is Status.TIMEOUT and options.network
        else outcome.status.value
    )
    print(word)
    if outcome.status is Status.SAT and options.result is None:
        print(outcome.witness.strip())
    how = outcome.decided_by or outcome.reason + (f" ({outcome.detail})" if outcome.detail else "")
    print(f"bitcrown: {how}; {time.monotonic() - started:.2f} s", file=sys.stderr)
    if seen.lost:
        return BAD_INPUT
    return DECIDED if outcome.status in (Status.SAT, Status.UNSAT) else UNDECIDED


def report_certificate(path: Path, outcome: Outcome) -> None:
    """Whether the proof was written; an empty file, made before the run, is taken away again."""
    if not path.is_file() or path.stat().st_size:
        print(f"bitcrown: certificate: {path}", file=sys.stderr)
        return
    path.unlink()
    why = outcome.counters.get(
        "no_certificate", "certificates of integer networks are about one input box"
    )
    why = why if outcome.status is Status.UNSAT else "nothing is proved"
    print(f"bitcrown: no certificate was written: {why}", file=sys.stderr)


def verify_files(files: Sequence[str], networks: Sequence[str] | None) -> tuple[str, str]:
    """(network field, property) of either form: ``ONNX VNNLIB``, or ``VNNLIB`` with ``NAME=ONNX``
    pairs."""
    from bitcrown.harness.instance import network_field

    if not networks:
        if len(files) != 2:
            raise SettingsError("verify needs ONNX and VNNLIB, or VNNLIB and --network NAME=ONNX")
        return files[0], files[1]
    if len(files) != 1:
        raise SettingsError("verify with --network takes one VNNLIB file and nothing else")
    pairs = tuple((name, path) for name, _, path in (pair.partition("=") for pair in networks))
    if not all(name and path for name, path in pairs):
        raise SettingsError("--network needs NAME=ONNX, for example f=net.onnx")
    return network_field(pairs), files[0]


def inspect_command(options: argparse.Namespace) -> int:
    from bitcrown.model.describe import describe
    from bitcrown.model.file import NetworkFile
    from bitcrown.model.onnx_reader import read_graph
    from bitcrown.model.runtime_trial import require_runtime

    file = NetworkFile(Path(options.onnx))
    print(describe(read_graph(file)))
    if options.vnnlib:
        from bitcrown.api import load
        from bitcrown.spec.words import property_in_words

        problem = load(options.onnx, options.vnnlib)
        print(f"property (VNN-LIB {'.'.join(str(part) for part in problem.query.version)}):")
        print(property_in_words(problem))
    require_runtime(file)
    return DECIDED


def bounds_command(options: argparse.Namespace) -> int:
    from bitcrown.api import bound, load

    lower, upper = bound(load(options.onnx, options.vnnlib), options.tensor, options.case)
    for number, (low, high) in enumerate(
        zip(lower.ravel().tolist(), upper.ravel().tolist(), strict=True)
    ):
        print(f"{number}\t{low!r}\t{high!r}")
    return DECIDED


def check_command(options: argparse.Namespace) -> int:
    from bitcrown.check.result_file import CheckOutcome, check_result
    from bitcrown.child_process import text_or_error

    def replayed() -> str:
        return json.dumps(
            astuple(check_result(Path(options.result), options.onnx, Path(options.vnnlib)))
        )

    answer = CheckOutcome(
        *json.loads(text_or_error(replayed, Budget.unlimited(), "that replays the witness"))
    )
    print(answer.sentence)
    if not answer.accepted:
        return WRONG
    return DECIDED if answer.word in ("sat", "unsat") else UNDECIDED


def check_certificate_command(options: argparse.Namespace) -> int:
    from bitcrown.certificates.files import check_certificate

    finding = check_certificate(options.model, options.property, options.certificate)
    print("accepted" if finding.accepted else f"rejected: {finding.message}")
    return DECIDED if finding.accepted else WRONG


def bench_command(options: argparse.Namespace) -> int:
    from bitcrown.harness.bench import Plan, run_bench
    from bitcrown.harness.expected import is_decided, is_known, wrong_rows
    from bitcrown.harness.instance import parse_timeout
    from bitcrown.harness.report import plain_table, wrong_sentence
    from bitcrown.provenance import ROOT

    if options.jobs < 1:
        raise SettingsError(f"--jobs needs a whole number from 1, but got {options.jobs}")
    if not (ROOT / "run_instance.sh").is_file():
        raise PropertyError(
            "bench runs the tool's scripts, so it needs bitcrown installed from its repository"
        )
    settings = given_settings(options)
    Settings.from_mapping(settings)
    if options.jobs > 1:
        settings.setdefault("threads", str(max(1, usable_cores() // options.jobs)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cap = parse_timeout(options.timeout_cap) if options.timeout_cap else 0.0
    environment = environment_of(settings)
    plan = Plan(
        options.suite,
        options.out,
        ROOT,
        cap,
        options.filter,
        options.jobs,
        options.fresh,
        environment,
    )
    rows = run_bench(plan, show_progress)
    print(plain_table(rows), end="")
    print(f"results: {options.out / 'results.csv'}, records: {options.out / 'records.jsonl'}")
    wrong = wrong_rows(rows)
    for row in wrong:
        print(f"WRONG: {wrong_sentence(row)}")
    if wrong:
        return WRONG
    undecided = any(is_known(row) and not is_decided(row) for row in rows)
    return UNDECIDED if options.need_all and undecided else DECIDED


def show_progress(finished: int, total: int, job: Any, row: Mapping[str, Any] | None) -> None:
    """One line that is written over on a terminal; elsewhere one plain line for each finished
    instance."""
    name = f"{job.suite.category} {job.instance.network} {job.instance.vnnlib}"
    live = sys.stderr.isatty()
    if row is not None:
        line = f"[{finished}/{total}] {row['result']:8s} {row['wall_s']:8.2f} s  {name}"
        print(f"\r\x1b[K{line}" if live else line, file=sys.stderr, flush=True)
    elif live:
        print(
            f"\r\x1b[K[{finished}/{total}] running  {name}"[:150],
            end="",
            file=sys.stderr,
            flush=True,
        )


def report_command(options: argparse.Namespace) -> int:
    from bitcrown.harness.report import markdown
    from bitcrown.harness.results import is_result
    from bitcrown.json_lines import read_records

    rows = [row for path in options.records for row in read_records(path) if is_result(row)]
    if not rows:
        raise PropertyError("the files hold no records")
    print(markdown(rows), end="")
    return DECIDED


def show_version() -> int:
    from bitcrown.provenance import commit, dependency_versions, version

    print(f"bitcrown {version()} ({commit()[:12] or 'no commit known'})")
    for name, number in dependency_versions().items():
        print(f"{name} {number}")
    return DECIDED


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as the environment variables that the scripts read."""
    from bitcrown.settings import ENVIRONMENT_PREFIX

    return {ENVIRONMENT_PREFIX + name.upper(): value for name, value in settings.items()}
