"""What several commands have in common: tables of options (``Option`` rows), ``-v``, ``-q`` and
``--json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitcrown.settings import ENVIRONMENT_PREFIX, OPTIONS, Option

JSON_FORMAT = 1
"""Of what ``--json`` prints (``docs/json.md``)."""


def add_options(parser: argparse.ArgumentParser, table: Sequence[Option] = OPTIONS) -> None:
    """One option for each row of the table."""
    for option in table:
        flag = "--" + option.name.replace("_", "-")
        text = f"{option.sentence}; {option.range_text()} (default: {option.default})"
        parser.add_argument(flag, dest=f"setting_{option.name}", metavar="V", help=text)


def given_options(options: argparse.Namespace, table: Sequence[Option] = OPTIONS) -> dict[str, str]:
    """The words that were given, by the name of the row; rows that were not given are left out."""
    named = {option.name: getattr(options, f"setting_{option.name}") for option in table}
    return {name: value for name, value in named.items() if value is not None}


def environment_of(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as the environment variables that the scripts read."""
    return {ENVIRONMENT_PREFIX + name.upper(): value for name, value in settings.items()}


@dataclass(frozen=True)
class Verbosity:
    """What is said besides the answer: nothing (``is_quiet``), how it came about, or also how far
    it has come where stderr is no terminal (``is_verbose``). ``is_json``: the answer is one JSON
    object."""

    is_quiet: bool = False
    is_verbose: bool = False
    is_json: bool = False

    def note(self, sentence: str) -> None:
        if not self.is_quiet:
            sys.stdout.flush()  # in a pipe the answer would come after what is said about it
            print(sentence, file=sys.stderr)

    def json(self, command: str, facts: Mapping[str, Any]) -> None:
        print(json_text(command, facts))


def json_text(command: str, facts: Mapping[str, Any]) -> str:
    """One line; what JSON has no word for (NaN, infinite numbers) is null."""
    head = {"format": JSON_FORMAT, "command": command}
    return json.dumps(_finite({**head, **facts}), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument(
        "-v", "--verbose", action="store_true", help="progress, also where stderr is no terminal"
    )
    loud.add_argument("-q", "--quiet", action="store_true", help="the answer and errors alone")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the answer as one JSON object")


def verbosity_of(options: argparse.Namespace) -> Verbosity:
    return Verbosity(
        getattr(options, "quiet", False), getattr(options, "verbose", False), options.json
    )
