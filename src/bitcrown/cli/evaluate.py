"""``bitcrown evaluate``: accuracies of a network over a data set, as one table and one record.

An image that is both broken and proved is a wrong answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.exit_codes import DONE, WRONG
from bitcrown.cli.options import (
    Verbosity,
    add_options,
    add_verbosity,
    given_options,
    verbosity_of,
)
from bitcrown.cli.progress import ProgressLine
from bitcrown.cli.scheduling import add_ray_option, chosen_scheduler
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings

if TYPE_CHECKING:
    from bitcrown.evaluation.data.sets import ImageSet
    from bitcrown.evaluation.plan import Plan

_PLAIN_SECONDS = 30.0
"""Seconds between two progress lines where they are not written over each other."""


def add_evaluate_command(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="clean, attacked and verified accuracy over a data set",
        description="Clean, attacked and verified accuracy of a network over labelled images. "
        "Interrupted runs go on "
        "where they stopped if --out names the same folder.",
    )
    add = parser.add_argument
    add("model", help="ONNX or .h5 file, or zoo:NAME (NAME[:no-blocks][:per-image])")
    add("--data", type=Path, required=True, metavar="PATH", help="labelled images (file or folder)")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of a zoo network: TensorFlow checkpoint or .npz",
    )
    add(
        "--eps",
        required=True,
        metavar="E[,E...]",
        help="radii in pixels of [0, 1], for example 1/255",
    )
    add("--norm", default="Linf", help="of the ball: Linf, L2 or L1 (Linf)")
    add("--mean", metavar="M,M,M", help="subtracted from each channel (default: 0)")
    add("--std", metavar="S,S,S", help="divides each channel (default: 1)")
    add(
        "--order",
        default="auto",
        choices=("auto", "chw", "hwc"),
        help="axes of the network's input",
    )
    add("--crop", type=int, metavar="N", help="only the middle N x N pixels (TinyImageNet: 56)")
    add("--first", type=int, metavar="N", help="only the first N images")
    _add_attack_options(parser)
    _add_bounds_options(parser)
    add("--out", type=Path, metavar="DIR", help="findings, adversarial images and record.json")
    add("--html", type=Path, metavar="FILE", help="a report with tables, curves and pictures")
    add("--fresh", action="store_true", help="forget what --out holds")
    add_verbosity(parser)
    add_options(parser)
    parser.set_defaults(run=evaluate_command)


def _add_attack_options(parser: Any) -> None:
    add = parser.add_argument
    add(
        "--attack",
        default="pgd",
        metavar="SUITE",
        help="standard, plus, rand, black-box (suites), pgd (see --steps) or none (pgd)",
    )
    add(
        "--bpda",
        default="none",
        metavar="RULE[,RULE...]",
        help="gradients of the suite: none (the network's own), identity, removed, "
        "straight-through, smooth; several "
        "are run one after the other and compared (none)",
    )
    add("--steps", type=int, default=100, help="steps of the PGD attack (100); 0: no attack")
    add("--restarts", type=int, default=20, help="restarts of the PGD attack (20)")
    add(
        "--batch",
        type=int,
        default=100,
        help="images attacked at a time (100); changes no result, except of networks whose logits "
        "depend on the batch",
    )


def _add_bounds_options(parser: Any) -> None:
    add = parser.add_argument
    add("--verify", action="store_true", help="prove what is not broken; short for --bounds bab")
    add(
        "--bounds",
        help="prove up to this bound: none, crown, alpha or bab (none; with --select: crown)",
    )
    add(
        "--seconds-per-image",
        type=float,
        default=5.0,
        metavar="S",
        help="for the bounds of one image (5)",
    )
    add(
        "--cpu-seconds-per-image",
        type=float,
        metavar="S",
        help="the same, in seconds of computing: not of the clock",
    )
    add(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="blocks of images attacked (PGD) and bounded at a time, each on cores of its own (1); "
        "with --ray: on each node",
    )
    add_ray_option(parser)
    add(
        "--select",
        type=Path,
        metavar="LIST",
        help="write the images that are right, standing after "
        "the attack and not proved by plain CROWN, one number a line",
    )


def evaluate_command(options: argparse.Namespace) -> int:
    import torch

    from bitcrown.evaluation.accuracies import selected
    from bitcrown.evaluation.data.sets import centre_crop, read_images
    from bitcrown.evaluation.runs import evaluate_runs
    from bitcrown.files import write_whole
    from bitcrown.harness.bench import packed_file

    plan = plan_of(options)
    radii = [exact_number(word, "--eps") for word in options.eps.split(",")]
    rules = ["" if word.strip() == "none" else word.strip() for word in options.bpda.split(",")]
    if options.select is not None and len(radii) * len(rules) > 1:
        raise SettingsError("--select needs one radius and one rule of gradients")
    if options.ray is not None and not plan.levels and (plan.has_suite or not plan.has_attack):
        raise SettingsError(
            "--ray runs PGD and bounds on the cluster: give --attack pgd, --bounds or --verify"
        )
    torch.set_num_threads(plan.settings.thread_count())
    images = read_images(options.data, first=options.first)
    tell_classes(images)
    if options.crop is not None:
        images = replace(images, images=centre_crop(images.images, options.crop))
    say = verbosity_of(options)
    progress = StageProgress(say)
    try:
        with ExitStack() as stack:
            scheduler = None
            if options.ray is not None:
                where = options.ray, options.jobs, plan.settings, packed_file
                scheduler = stack.enter_context(chosen_scheduler(*where))
            asked = plan, radii, rules, images, options.out, options.fresh, progress.show
            found = evaluate_runs(*asked, scheduler=scheduler)
    finally:
        progress.line.end()
    if options.out is not None:
        write_whole(options.out / "record.json", json.dumps(found.record, indent=1) + "\n")
    if options.select is not None:
        numbers = selected(found.outcomes[0])
        write_whole(options.select, "".join(f"{number}\n" for number in numbers))
        if not say.is_json:
            print(f"{len(numbers)} images selected: {options.select}")
    if say.is_json:
        say.json("evaluate", {"record": found.record})
    else:
        print(found.table(), end="")
    if found.record["contradictions"]:
        print(
            f"WRONG: broken and proved at once: images {found.record['contradictions']}",
            file=sys.stderr,
        )
        return WRONG
    if options.html is not None:
        write_whole(options.html, found.html())
    return DONE


def tell_classes(images: ImageSet) -> None:
    """Which label each named class has: a network may have learned them in another order."""
    if images.classes:
        named = ", ".join(f"{number} {name}" for number, name in enumerate(images.classes))
        print(f"bitcrown: labels of {images.name}: {named}", file=sys.stderr)


def plan_of(options: argparse.Namespace) -> Plan:
    """The options as a plan for the first radius. Raises ``SettingsError``."""
    from bitcrown.evaluation.plan import Plan
    from bitcrown.evaluation.proving import parse_levels
    from bitcrown.evaluation.subjects import ZOO

    settings = Settings.from_mapping(given_options(options))
    if options.verify and options.bounds not in (None, "bab"):
        raise SettingsError(
            f"--verify means --bounds bab, which is not --bounds {options.bounds}; give one of them"
        )
    usual = "bab" if options.verify else "crown" if options.select is not None else "none"
    plan = Plan(
        options.model if options.model.startswith(ZOO) else Path(options.model),
        exact_number(options.eps.split(",")[0], "--eps"),
        exact_numbers(options.mean, "--mean"),
        exact_numbers(options.std, "--std"),
        options.order,
        options.steps,
        options.restarts,
        parse_levels(options.bounds or usual),
        options.seconds_per_image
        if options.cpu_seconds_per_image is None
        else options.cpu_seconds_per_image,
        options.batch,
        options.jobs,
        settings,
        options.norm,
        options.attack,
        weights=options.weights,
        counts_cpu=options.cpu_seconds_per_image is not None,
    )
    if options.select is not None and not (plan.has_attack and plan.levels):
        raise SettingsError("--select needs an attack, and --bounds crown or more")
    return plan


def exact_number(word: str, name: str) -> Fraction:
    """``1/255``, ``0.5`` or ``1e-3``, exactly."""
    try:
        return Fraction(word.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise SettingsError(
            f"{name} needs a number such as 1/255 or 0.5, but got {word!r}"
        ) from error


def exact_numbers(words: str | None, name: str) -> tuple[Fraction, ...] | None:
    return None if words is None else tuple(exact_number(word, name) for word in words.split(","))


class StageProgress:
    """How far a stage has come; where lines are not written over, one every ``_PLAIN_SECONDS``."""

    def __init__(self, say: Verbosity) -> None:
        self.line = ProgressLine(say.is_quiet)
        self.pause = _PLAIN_SECONDS if not say.is_verbose else _PLAIN_SECONDS / 3
        self.stage, self.shown = "", 0.0
        self.started = self.last = time.monotonic()

    def show(self, stage: str, done: int, total: int, counts: dict[str, int]) -> None:
        now = time.monotonic()
        if stage != self.stage:
            # A stage is announced when its first block is done: it began when the last one ended.
            self.stage, self.started = stage, self.last
        self.last = now
        seconds = now - self.started
        left = f", {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
        facts = ", ".join(f"{value} {name}" for name, value in counts.items())
        stays = done == total or (not self.line.live and now - self.shown > self.pause)
        if stays:
            self.shown = now
        self.line.show(f"{stage} [{done}/{total}] {facts}; {seconds:.0f} s{left}", stays)
