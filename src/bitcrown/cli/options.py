"""The settings table as options of a command."""

from __future__ import annotations

import argparse

from bitcrown.settings import OPTIONS


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One option for each row of the settings table."""
    for option in OPTIONS:
        flag = "--" + option.name.replace("_", "-")
        text = f"{option.sentence}; {option.range_text()} (default: {option.default})"
        parser.add_argument(flag, dest=f"setting_{option.name}", metavar="V", help=text)


def given_settings(options: argparse.Namespace) -> dict[str, str]:
    named = {option.name: getattr(options, f"setting_{option.name}") for option in OPTIONS}
    return {name: value for name, value in named.items() if value is not None}
