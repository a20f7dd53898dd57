"""``bitcrown evaluate``: accuracies of a network over a data set, as one printed table and one record.

Exit codes: 0 done, 1 an image was both broken and proved, 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli_settings import add_settings, given_settings
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings

if TYPE_CHECKING:
    from bitcrown.evaluate.evaluation import Plan

DONE, WRONG = 0, 1
PLAIN_SECONDS = 30.0
"""Seconds between two progress lines where they are not written over each other."""


def add_evaluate_command(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="clean, attacked and verified accuracy over a data set",
        description="Clean, attacked and verified accuracy of a network over labelled images. Interrupted runs go on "
        "where they stopped if --out names the same folder.",
    )
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="labelled images (file or folder)")
    parser.add_argument("--eps", required=True, help="radius in pixels of [0, 1], L-infinity, for example 1/255")
    parser.add_argument("--mean", metavar="M,M,M", help="subtracted from each channel (default: 0)")
    parser.add_argument("--std", metavar="S,S,S", help="divides each channel (default: 1)")
    parser.add_argument("--order", default="auto", choices=("auto", "chw", "hwc"), help="axes of the network's input")
    parser.add_argument("--crop", type=int, metavar="N", help="only the middle N x N pixels (TinyImageNet: 56)")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--steps", type=int, default=100, help="steps of the PGD attack (100); 0: no attack")
    parser.add_argument("--restarts", type=int, default=20, help="restarts of the PGD attack (20)")
    parser.add_argument("--batch", type=int, default=100, help="images attacked at a time (100); changes no result")
    parser.add_argument("--bounds", default="crown", help="up to which bound: crown, alpha or bab (crown)")
    parser.add_argument(
        "--seconds-per-image", type=float, default=5.0, metavar="S", help="for what follows plain CROWN (5)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="images bounded at a time (1)")
    parser.add_argument(
        "--select",
        type=Path,
        metavar="LIST",
        help="write the images that are right, standing after "
        "the attack and not proved by plain CROWN, one number a line",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="findings, adversarial images and record.json")
    parser.add_argument("--fresh", action="store_true", help="forget what --out holds")
    add_settings(parser)
    parser.set_defaults(run=evaluate_command)


def evaluate_command(options: argparse.Namespace) -> int:
    import torch

    from bitcrown.evaluate.data import centre_crop, read_images
    from bitcrown.evaluate.evaluation import Evaluator, selected
    from bitcrown.evaluate.journal import Journal
    from bitcrown.evaluate.summary import record_of, table
    from bitcrown.harness.outcome import write_whole

    started = time.monotonic()
    plan = plan_of(options)
    torch.set_num_threads(plan.settings.thread_count())
    images = read_images(options.data, first=options.first)
    if options.crop is not None:
        images = replace(images, images=centre_crop(images.images, options.crop))
    line = ProgressLine()
    evaluator = Evaluator(plan, images, Journal(options.out, plan.identity(), options.fresh), line.show)
    try:
        outcomes = evaluator.run()
    finally:
        line.end()
    record = record_of(evaluator, outcomes, time.monotonic() - started)
    if options.out is not None:
        write_whole(options.out / "record.json", json.dumps(record, indent=1) + "\n", sync=False)
    if options.select is not None:
        numbers = selected(outcomes)
        write_whole(options.select, "".join(f"{number}\n" for number in numbers), sync=False)
        print(f"{len(numbers)} images selected: {options.select}")
    print(table(record), end="")
    if record["contradictions"]:
        print(f"WRONG: broken and proved at once: images {record['contradictions']}", file=sys.stderr)
        return WRONG
    return DONE


def plan_of(options: argparse.Namespace) -> Plan:
    """The options as a plan. Raises ``SettingsError``."""
    from bitcrown.evaluate.evaluation import Plan
    from bitcrown.evaluate.proving import parse_levels

    settings = Settings.from_mapping(given_settings(options))
    if options.select is not None and not (options.steps > 0 and options.restarts > 0):
        raise SettingsError("--select needs the attack: steps and restarts above 0")
    return Plan(
        options.model,
        exact_number(options.eps, "--eps"),
        exact_numbers(options.mean, "--mean"),
        exact_numbers(options.std, "--std"),
        options.order,
        options.steps,
        options.restarts,
        parse_levels(options.bounds),
        options.seconds_per_image,
        options.batch,
        options.jobs,
        settings,
    )


def exact_number(word: str, name: str) -> Fraction:
    """``1/255``, ``0.5`` or ``1e-3``, exactly."""
    try:
        return Fraction(word.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(f"{name} needs a number such as 1/255 or 0.5, but got {word!r}") from error


def exact_numbers(words: str | None, name: str) -> tuple[Fraction, ...] | None:
    return None if words is None else tuple(exact_number(word, name) for word in words.split(","))


class ProgressLine:
    """One line on stderr: written over on a terminal, elsewhere a plain line every ``PLAIN_SECONDS``."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.stage, self.started, self.shown = "", time.monotonic(), 0.0

    def show(self, stage: str, done: int, total: int, counts: dict[str, int]) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started = stage, now
        seconds = now - self.started
        left = f", {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
        facts = ", ".join(f"{value} {name}" for name, value in counts.items())
        line = f"{stage} [{done}/{total}] {facts}; {seconds:.0f} s{left}"
        if self.live:
            print(f"\r\x1b[K{line}"[:150], end="", file=sys.stderr, flush=True)
        elif done == total or now - self.shown > PLAIN_SECONDS:
            self.shown = now
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            print(file=sys.stderr)
