"""The command line: arguments to a command (one module of this package a group) to an exit code.

Exit codes are in ``exit_codes``. This package alone prints. A command imports what it needs when it
runs, so that ``--help``, and the parent of a timed run, start quickly.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

from bitcrown.cli.bench import add_bench_command
from bitcrown.cli.check import add_check_commands
from bitcrown.cli.completion import add_completion_command
from bitcrown.cli.evaluate import add_evaluate_command
from bitcrown.cli.exit_codes import BAD_INPUT, DONE, INTERRUPTED, UNDECIDED
from bitcrown.cli.inspect import add_inspect_commands
from bitcrown.cli.options import json_text
from bitcrown.cli.report import add_report_command
from bitcrown.cli.robust import add_robust_command
from bitcrown.cli.supports import SOLVER_NAME, add_supports_command
from bitcrown.cli.train import add_train_command
from bitcrown.cli.verify import add_verify_command
from bitcrown.errors import BitcrownError


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        code = _run(arguments)
        # Here, where an error can still be said: the interpreter's own flush comes too late.
        sys.stdout.flush()
        return code
    except BitcrownError as error:
        _complain(f"bitcrown: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _complain("\nbitcrown: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _close(sys.stdout)  # the reader (head, less) is gone
        return UNDECIDED
    except OSError as error:
        _close(sys.stdout)
        where = f"the file {error.filename}" if error.filename else "the output"
        _complain(f"bitcrown: {where} cannot be used: {error.strerror or error}")
        return BAD_INPUT


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return _command(parser, options)
    except BitcrownError as error:
        if getattr(options, "json", False):
            facts = {"status": "error", "reason": str(error)}
            print(json_text(options.name, facts))
        raise


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.solver_name:
        print(SOLVER_NAME)
        return DONE
    if options.version:
        return show_version()
    if options.run is None:
        parser.print_usage(sys.stderr)
        return BAD_INPUT
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _complain(sentence: str) -> None:
    """On stderr, if that can still be written: the exit code says it as well."""
    try:
        print(sentence, file=sys.stderr)
    except OSError:
        _close(sys.stderr)


def _close(stream: TextIO) -> None:
    """What is still to be written goes nowhere, so that Python's flush at the end cannot fail."""
    with suppress(OSError, ValueError):  # not a file at all, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitcrown",
        description="Decide whether a neural network can misbehave.",
        epilog="Exit codes: 0 decided or done, 1 wrong answer or failed check, 2 bad input, 3 "
        "unknown or timeout.",
        allow_abbrev=False,
    )
    parser.add_argument("--name", action="store_true", dest="solver_name", help="the solver's name")
    parser.add_argument(
        "--version", action="store_true", help="version, commit and versions of the dependencies"
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for add in (
        add_robust_command,
        add_verify_command,
        add_inspect_commands,
        add_check_commands,
        add_supports_command,
        add_bench_command,
        add_report_command,
        add_train_command,
        add_evaluate_command,
        add_completion_command,
    ):
        add(commands)
    for name, command in commands.choices.items():
        command.set_defaults(name=name)
    return parser


def show_version() -> int:
    from bitcrown.provenance import commit, dependency_versions, version

    print(f"bitcrown {version()} ({commit()[:12] or 'no commit known'})")
    for name, number in dependency_versions().items():
        print(f"{name} {number}")
    return DONE
