"""Tables of options (``Option`` rows) as options of a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from bitcrown.settings import ENVIRONMENT_PREFIX, OPTIONS, Option


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
