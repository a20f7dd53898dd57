"""``bitcrown verify``: decide one instance, as ``run_instance.sh`` does, and print the answer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.budget import PATIENCE
from bitcrown.cli.chosen_output import add_network_options, is_chosen, network_with
from bitcrown.cli.exit_codes import BAD_INPUT, DONE, INTERRUPTED, UNDECIDED
from bitcrown.cli.explain import Ending, explanation
from bitcrown.cli.options import (
    Verbosity,
    add_options,
    add_verbosity,
    environment_of,
    given_options,
    verbosity_of,
)
from bitcrown.cli.progress import PhaseLine
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings
from bitcrown.verdict import Reason, Status

if TYPE_CHECKING:
    from bitcrown.harness.answer import Answer
    from bitcrown.harness.watchdog import Watched

_DEFAULT_TIMEOUT = 300.0
_START_SECONDS = 60.0
"""For the start of a worker whose time is counted in computing."""


def add_verify_command(commands: Any) -> None:
    verify = commands.add_parser("verify", help="decide one instance")
    add = verify.add_argument
    add("files", nargs="+", metavar="FILE", help="ONNX VNNLIB, or VNNLIB alone with --network")
    add("--network", action="append", metavar="NAME=ONNX", help="file of one declared network")
    add("--timeout", metavar="S", help="seconds (default: 300)")
    add("--cpu-seconds", metavar="S", help="seconds of computing, whatever else the machine does")
    add("--result", type=Path, metavar="FILE", help="write the answer as VNN-COMP's results file")
    add("--certificate", type=Path, metavar="FILE", help="write the proof of an unsat")
    add(
        "--record",
        metavar="FILE",
        help="append a JSON record of the run here; empty: nowhere (default: BITCROWN_RECORD, or "
        "~/.local/state/bitcrown/records.jsonl)",
    )
    add_network_options(verify)
    add_verbosity(verify)
    add_options(verify)
    verify.set_defaults(run=verify_command)


def verify_command(options: argparse.Namespace) -> int:
    network, vnnlib = verify_files(options.files, options.network)
    with network_with(network, options) as onnx:
        return _verified(options, onnx, vnnlib)


def _verified(options: argparse.Namespace, network: str, vnnlib: str) -> int:
    from bitcrown.files import require_appendable, write_whole
    from bitcrown.harness.answer import Answer
    from bitcrown.harness.instance import parse_timeout
    from bitcrown.harness.request import Request, check_files
    from bitcrown.harness.results_file import write_answer
    from bitcrown.harness.run import record_path, watch
    from bitcrown.harness.watchdog import Signals

    started = time.monotonic()
    settings = Settings.from_environment(os.environ | environment_of(given_options(options)))
    check_files(network, vnnlib)
    certificate: Path | None = options.certificate
    # A place that cannot be written is said before the search, not after it; and a proof of an
    # earlier run must not be taken for one of this run.
    if certificate is not None:
        write_whole(certificate, "")
    cpu = None if options.cpu_seconds is None else parse_timeout(options.cpu_seconds)
    usual = _DEFAULT_TIMEOUT if cpu is None else PATIENCE * max(cpu, 1.0) + _START_SECONDS
    timeout = usual if options.timeout is None else parse_timeout(options.timeout)
    request = Request("", network, vnnlib, timeout, started, settings, str(certificate or ""), cpu)
    if options.record is None:
        record = record_path()
    elif record := Path(options.record) if options.record else None:
        require_appendable(record)
    if options.result is not None:
        write_answer(options.result, f"{Status.TIMEOUT}\n")
    signals = Signals(Answer(Status.UNKNOWN, Reason.INTERRUPTED))
    say = verbosity_of(options)
    line = PhaseLine(say)
    seen = watch(request, options.result, signals, record, line.look)
    line.end()
    if certificate is not None:
        report_certificate(certificate, seen.answer)
    if seen.answer.reason == Reason.INTERRUPTED:
        print(f"\nbitcrown: interrupted ({seen.answer.detail})", file=sys.stderr)
        return INTERRUPTED
    if say.is_json:
        named = options.files[0] if is_chosen(options) else network  # not the copy
        facts = {"network": named, "property": vnnlib, "timeout": timeout}
        answer = {**Ending.of_watched(seen).as_dict(), "witness": seen.answer.witness or None}
        say.json("verify", {**facts, **answer, "seconds": time.monotonic() - started})
    elif seen.answer.status is not Status.ERROR:
        show_answer(seen, options, say, time.monotonic() - started)
    if seen.lost or seen.answer.status is Status.ERROR:
        return BAD_INPUT
    return DONE if seen.answer.status in (Status.SAT, Status.UNSAT) else UNDECIDED


def show_answer(seen: Watched, options: argparse.Namespace, say: Verbosity, seconds: float) -> None:
    """The word and the counterexample on stdout, how it came about on stderr."""
    answer = seen.answer
    is_timed_out = answer.status is Status.TIMEOUT and options.network
    print("timed-out" if is_timed_out else answer.status.value)
    if answer.status is Status.SAT and options.result is None:
        print(answer.witness.strip())
    how = answer.decided_by or answer.reason + (f" ({answer.detail})" if answer.detail else "")
    say.note(f"bitcrown: {how}; {seconds:.2f} s")
    for sentence in explanation(Ending.of_watched(seen)):
        say.note(f"bitcrown: {sentence}")


def report_certificate(path: Path, answer: Answer) -> None:
    """Whether the proof was written; an empty file, made before the run, is taken away again."""
    if not path.is_file() or path.stat().st_size:
        print(f"bitcrown: certificate: {path}", file=sys.stderr)
        return
    path.unlink()
    why = answer.counters.get(
        "no_certificate", "certificates of integer networks are about one input box"
    )
    why = why if answer.status is Status.UNSAT else "nothing is proved"
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
