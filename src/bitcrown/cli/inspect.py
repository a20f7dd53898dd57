"""``bitcrown inspect`` and ``bitcrown bounds``: what files consist of and what ``verify`` will do
with them, and bounds of one tensor."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.chosen_output import add_output_option, network_with
from bitcrown.cli.exit_codes import BAD_INPUT, DONE
from bitcrown.cli.options import Verbosity, add_json, verbosity_of
from bitcrown.errors import BitcrownError, ModelError, SettingsError, UnsupportedError

if TYPE_CHECKING:
    from bitcrown.model.file import NetworkFile

_PAIR = "network file, or a pair as \"[('f', 'a.onnx'), ('g', 'b.onnx')]\""


def add_inspect_commands(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a network (and a property) consists of")
    inspect.add_argument("onnx", metavar="ONNX", help=_PAIR)
    inspect.add_argument("vnnlib", metavar="VNNLIB", nargs="?", help="property about it")
    inspect.add_argument(
        "--input-shape", metavar="N,...", help="extents of an input that the file leaves free"
    )
    add_output_option(inspect)
    add_json(inspect)
    inspect.set_defaults(run=inspect_command)

    bounds = commands.add_parser(
        "bounds", help="sound bounds of a tensor over the property's input box"
    )
    add = bounds.add_argument
    add("onnx", metavar="ONNX", help=_PAIR)
    add("vnnlib", metavar="VNNLIB", help="property whose box is taken")
    add("--tensor", metavar="NAME", help="name as inspect prints it (default: the output)")
    add("--case", type=int, default=0, metavar="N", help="which case of the property (default: 0)")
    add_output_option(bounds)
    add_json(bounds)
    bounds.set_defaults(run=bounds_command)


def inspect_command(options: argparse.Namespace) -> int:
    """Everything that can be said is said; what stands in the way comes last, each with its
    reason, and makes the exit code 2."""
    with network_with(options.onnx, options.output) as onnx:
        return _inspected(options, onnx)


def _inspected(options: argparse.Namespace, onnx: str) -> int:
    from bitcrown.model.file import NetworkFile
    from bitcrown.spec.network_field import parse_network

    say = verbosity_of(options)
    facts: dict[str, Any] = {"networks": []}
    obstacles: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bitcrown-inspect-") as folder:
        for name, path in parse_network(onnx):
            file = _of_shape(NetworkFile(Path(path)), options, Path(folder))
            text, unread, reasons = _network(file)
            shown = options.onnx if options.output else path  # not the copy
            facts["networks"].append({"name": name, "file": shown, "description": text})
            # What the float engine cannot read is in the way of a property only if it decides.
            obstacles += reasons if options.vnnlib else unread + reasons
            if not say.is_json and text:
                print(f"network {name} ({shown}):\n{text}" if name else text)
    if options.vnnlib:
        obstacles += _property(onnx, options.vnnlib, say, facts)
    facts["obstacles"] = list(dict.fromkeys(obstacles))
    if say.is_json:
        say.json("inspect", facts)
    for reason in facts["obstacles"]:
        say.note(f"bitcrown: {reason}")
    return BAD_INPUT if obstacles else DONE


def _of_shape(file: NetworkFile, options: argparse.Namespace, folder: Path) -> NetworkFile:
    """``file`` with the extents that were asked for. Raises ``ModelError`` where it leaves more
    than its batch free: read as 1 they would be another network."""
    from bitcrown.evaluation.exporting import free_extents, with_input_shape

    free = free_extents(file)
    if options.input_shape is not None:
        try:
            shape = tuple(int(part) for part in options.input_shape.split(","))
        except ValueError as error:
            raise SettingsError(
                f"--input-shape needs whole numbers such as 1,3,32,32, not {options.input_shape!r}"
            ) from error
        if any(extent < 1 for extent in shape):
            raise SettingsError("--input-shape needs extents from 1")
        return with_input_shape(file, shape, folder) if free else file
    if free and not options.vnnlib:
        raise ModelError(
            f"{file.path.name} leaves extents of its input free ({free}); give --input-shape, for "
            "example 1,3,32,32, or a property, which has as many inputs as it says"
        )
    return file


def _network(file: NetworkFile) -> tuple[str, list[str], list[str]]:
    """The description, and what stands in the way of reading and of running the file."""
    from bitcrown.api import network_in_words
    from bitcrown.model.runtime_trial import require_runtime

    text, unread, reasons = "", list[str](), list[str]()
    try:
        text = network_in_words(file.path)
    except UnsupportedError as error:
        unread.append(str(error))
    try:
        require_runtime(file)
    except BitcrownError as error:
        reasons.append(str(error))
    return text, unread, reasons


def _property(onnx: str, vnnlib: str, say: Verbosity, facts: dict[str, Any]) -> list[str]:
    """The property in words and what will be done with it; returns the obstacles."""
    from bitcrown.api import load, outlook
    from bitcrown.spec.words import property_in_words

    problem = load(onnx, vnnlib)
    found = outlook(problem)
    version = ".".join(str(part) for part in problem.query.version)
    facts["property"] = {"version": version, "words": property_in_words(problem)}
    facts["outlook"] = list(found.sentences)
    if not say.is_json:
        print(f"property (VNN-LIB {version}):")
        print(facts["property"]["words"])
        print("verify:")
        for sentence in found.sentences:
            print(f"  {sentence}")
    return list(found.obstacles)


def bounds_command(options: argparse.Namespace) -> int:
    from bitcrown.api import bound, load

    with network_with(options.onnx, options.output) as onnx:
        lower, upper = bound(load(onnx, options.vnnlib), options.tensor, options.case)
    ends = lower.ravel().tolist(), upper.ravel().tolist()
    say = verbosity_of(options)
    if say.is_json:
        facts = {"tensor": options.tensor, "case": options.case, "shape": list(lower.shape)}
        say.json("bounds", {**facts, "lower": ends[0], "upper": ends[1]})
        return DONE
    for number, (low, high) in enumerate(zip(*ends, strict=True)):
        print(f"{number}\t{low!r}\t{high!r}")
    return DONE
