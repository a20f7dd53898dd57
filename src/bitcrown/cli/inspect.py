"""``bitcrown inspect`` and ``bitcrown bounds``: what files consist of and what ``verify`` will do
with them, and bounds of one tensor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.chosen_output import add_network_options, is_chosen, network_with
from bitcrown.cli.exit_codes import BAD_INPUT, DONE
from bitcrown.cli.options import Verbosity, add_json, verbosity_of
from bitcrown.errors import BitcrownError, ModelError, PropertyError, UnsupportedError

if TYPE_CHECKING:
    from bitcrown.model.file import NetworkFile
    from bitcrown.spec.problem import Problem

_PAIR = "network file, or a pair as \"[('f', 'a.onnx'), ('g', 'b.onnx')]\""


def add_inspect_commands(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="what a network (and a property) consists of")
    inspect.add_argument("onnx", metavar="ONNX", help=_PAIR)
    inspect.add_argument("vnnlib", metavar="VNNLIB", nargs="?", help="property about it")
    add_network_options(inspect)
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
    add_network_options(bounds)
    add_json(bounds)
    bounds.set_defaults(run=bounds_command)


def inspect_command(options: argparse.Namespace) -> int:
    """Everything that can be said is said; what stands in the way comes last, each with its
    reason, and makes the exit code 2."""
    with network_with(options.onnx, options) as onnx:
        return _inspected(options, onnx)


def _inspected(options: argparse.Namespace, onnx: str) -> int:
    from bitcrown.api import load
    from bitcrown.model.file import NetworkFile
    from bitcrown.spec.network_field import parse_network

    say = verbosity_of(options)
    facts: dict[str, Any] = {"networks": []}
    obstacles: list[str] = []
    problem = load(onnx, options.vnnlib) if options.vnnlib else None
    for name, path in parse_network(onnx):
        text, unread, reasons = _network(NetworkFile(Path(path)), problem, name)
        shown = options.onnx if is_chosen(options) else path  # not the copy
        facts["networks"].append({"name": name, "file": shown, "description": text})
        # What the float engine cannot read is in the way of a property only if it decides.
        obstacles += reasons if problem is not None else unread + reasons
        if not say.is_json and text:
            print(f"network {name} ({shown}):\n{text}" if name else text)
    if problem is not None:
        obstacles += _property(problem, say, facts)
    facts["obstacles"] = list(dict.fromkeys(obstacles))
    if say.is_json:
        say.json("inspect", facts)
    for reason in facts["obstacles"]:
        say.note(f"bitcrown: {reason}")
    return BAD_INPUT if obstacles else DONE


def _require_extents(file: NetworkFile) -> None:
    """Raises ``ModelError`` where the file leaves more than its batch free: read as 1, those would
    be another network."""
    from bitcrown.model.input_shape import free_extents

    free = free_extents(file)
    if free:
        raise ModelError(
            f"{file.path.name} leaves extents of its input free ({free}); give --input-shape, for "
            "example 1,3,32,32, or a property, which may say it"
        )


def _network(
    file: NetworkFile, problem: Problem | None, name: str
) -> tuple[str, list[str], list[str]]:
    """The description, and what stands in the way of reading and of running the file."""
    from bitcrown.api import network_in_words
    from bitcrown.model.runtime_trial import require_runtime

    text, unread, reasons = "", list[str](), list[str]()
    try:
        if problem is None:
            _require_extents(file)
        text = network_in_words(file.path, problem, name)
    except UnsupportedError as error:
        several = [tensor.name for tensor in file.outputs] if len(file.outputs) > 1 else []
        choice = f"; --output asks about one output alone ({', '.join(several)})" if several else ""
        unread.append(f"{error}{choice}")
    except PropertyError as error:
        reasons.append(str(error))
    try:
        require_runtime(file)
    except BitcrownError as error:
        reasons.append(str(error))
    return text, unread, reasons


def _property(problem: Problem, say: Verbosity, facts: dict[str, Any]) -> list[str]:
    """The property in words and what will be done with it; returns the obstacles."""
    from bitcrown.api import outlook
    from bitcrown.spec.words import property_in_words

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
    from bitcrown.api import bound, load, outlook

    say = verbosity_of(options)
    with network_with(options.onnx, options) as onnx:
        problem = load(onnx, options.vnnlib)
        try:
            lower, upper = bound(problem, options.tensor, options.case)
        except UnsupportedError:
            found = outlook(problem)
            for sentence in found.sentences if not found.obstacles else ():
                say.note(f"bitcrown: verify does without these bounds: {sentence}")
            raise
    ends = lower.ravel().tolist(), upper.ravel().tolist()
    if say.is_json:
        facts = {"tensor": options.tensor, "case": options.case, "shape": list(lower.shape)}
        say.json("bounds", {**facts, "lower": ends[0], "upper": ends[1]})
        return DONE
    for number, (low, high) in enumerate(zip(*ends, strict=True)):
        print(f"{number}\t{low!r}\t{high!r}")
    return DONE
