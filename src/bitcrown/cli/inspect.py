"""``bitcrown inspect`` and ``bitcrown bounds``: what files consist of, and bounds of one tensor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitcrown.cli.exit_codes import DONE


def add_inspect_commands(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a network (and a property) consists of")
    inspect.add_argument("onnx")
    inspect.add_argument("vnnlib", nargs="?")
    inspect.set_defaults(run=inspect_command)

    bounds = commands.add_parser(
        "bounds", help="sound bounds of a tensor over the property's input box"
    )
    add = bounds.add_argument
    add("onnx")
    add("vnnlib")
    add("--tensor", help="name as inspect prints it (default: the output)")
    add("--case", type=int, default=0, help="which case of the property (default: 0)")
    bounds.set_defaults(run=bounds_command)


def inspect_command(options: argparse.Namespace) -> int:
    from bitcrown.api import network_in_words
    from bitcrown.model.file import NetworkFile
    from bitcrown.model.runtime_trial import require_runtime

    print(network_in_words(options.onnx))
    if options.vnnlib:
        from bitcrown.api import load
        from bitcrown.spec.words import property_in_words

        problem = load(options.onnx, options.vnnlib)
        print(f"property (VNN-LIB {'.'.join(str(part) for part in problem.query.version)}):")
        print(property_in_words(problem))
    require_runtime(NetworkFile(Path(options.onnx)))
    return DONE


def bounds_command(options: argparse.Namespace) -> int:
    from bitcrown.api import bound, load

    lower, upper = bound(load(options.onnx, options.vnnlib), options.tensor, options.case)
    for number, (low, high) in enumerate(
        zip(lower.ravel().tolist(), upper.ravel().tolist(), strict=True)
    ):
        print(f"{number}\t{low!r}\t{high!r}")
    return DONE
