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
from bitcrown.cli.chosen_output import add_output_option, network_with
from bitcrown.cli.exit_codes import BAD_INPUT, DONE, UNDECIDED
from bitcrown.cli.options import add_options, environment_of, given_options
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings
from bitcrown.verdict import Status

if TYPE_CHECKING:
    from bitcrown.harness.answer import Answer

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
    add("--record", type=Path, metavar="FILE", help="append a JSON record of the run")
    add_output_option(verify)
    add_options(verify)
    verify.set_defaults(run=verify_command)


def verify_command(options: argparse.Namespace) -> int:
    network, vnnlib = verify_files(options.files, options.network)
    if options.network and options.output is not None:
        raise SettingsError("--output is about one network, not about several")
    with network_with(network, options.output) as onnx:
        return _verified(options, onnx, vnnlib)


def _verified(options: argparse.Namespace, network: str, vnnlib: str) -> int:
    from bitcrown.files import write_whole
    from bitcrown.harness.instance import parse_timeout
    from bitcrown.harness.request import Request, check_files
    from bitcrown.harness.results_file import write_answer
    from bitcrown.harness.run import watch
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
    if options.result is not None:
        write_answer(options.result, f"{Status.TIMEOUT}\n")
    seen = watch(request, options.result, Signals(), options.record)
    answer = seen.answer
    if certificate is not None:
        report_certificate(certificate, answer)
    if answer.status is Status.ERROR:
        return BAD_INPUT
    word = (
        "timed-out" if answer.status is Status.TIMEOUT and options.network else answer.status.value
    )
    print(word)
    if answer.status is Status.SAT and options.result is None:
        print(answer.witness.strip())
    how = answer.decided_by or answer.reason + (f" ({answer.detail})" if answer.detail else "")
    print(f"bitcrown: {how}; {time.monotonic() - started:.2f} s", file=sys.stderr)
    if seen.lost:
        return BAD_INPUT
    return DONE if answer.status in (Status.SAT, Status.UNSAT) else UNDECIDED


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
