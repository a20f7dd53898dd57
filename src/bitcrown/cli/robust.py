"""``bitcrown robust``: does every input around this one keep its class? In one sentence.

The counterexample is written as an array, and as a picture where the input is one; a picture has
eight bits, so it is asked again, and what is said of it is true of the file.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.chosen_output import add_network_options, network_with
from bitcrown.cli.exit_codes import DONE, UNDECIDED
from bitcrown.cli.explain import Ending, explanation
from bitcrown.cli.options import add_options, add_verbosity, given_options, verbosity_of
from bitcrown.cli.progress import PhaseLine
from bitcrown.errors import SettingsError
from bitcrown.settings import Settings
from bitcrown.verdict import Status

if TYPE_CHECKING:
    from bitcrown.evaluation.around import Robustness

_NORMALISATIONS = {
    "mnist": ("0.1307", "0.3081"),
    "cifar10": ("0.4914,0.4822,0.4465", "0.2470,0.2435,0.2616"),
    "cifar100": ("0.5071,0.4865,0.4409", "0.2673,0.2564,0.2761"),
    "tinyimagenet": ("0.4802,0.4481,0.3975", "0.2302,0.2265,0.2262"),
    "imagenet": ("0.485,0.456,0.406", "0.229,0.224,0.225"),
}
"""Mean and deviation of the channels of the training images, as their users publish them."""


def add_robust_command(commands: Any) -> None:
    parser = commands.add_parser(
        "robust",
        help="does every input around this one keep its class?",
        description="Decide whether some input around IMAGE has another class than IMAGE, and say "
        "so in one sentence.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="ONNX file (also quantized) or .h5")
    add("image", metavar="IMAGE", help="picture, .npy file, or SET:INDEX (a data set's image)")
    add("--eps", default="1/255", metavar="E", help="radius, pixels being in [0, 1] (1/255)")
    add("--radius", action="store_true", help="find the largest proved and the smallest broken eps")
    add("--norm", default="Linf", help="of the ball: Linf, L2 or L1 (Linf)")
    add("--label", type=int, metavar="K", help="class that is to stay (default: the network's)")
    add("--target", type=int, metavar="K", help="only this other class counts")
    add("--eps-map", type=Path, metavar="NPY", help="multiplies eps for each value")
    add("--mask", type=Path, metavar="NPY", help="only values where this is not zero may move")
    add("--brightness", default="0", metavar="B", help="in place of eps: x + b, |b| at most B")
    add("--contrast", default="0", metavar="C", help="in place of eps: (1 + c)(x - 1/2) + 1/2")
    add("--limits", metavar="L,H", help="range of values, or none (pictures: 0,1)")
    add("--normalisation", metavar="NAME", help=f"{', '.join(_NORMALISATIONS)} (default: none)")
    add("--mean", metavar="M,M,M", help="subtracted from each channel before the network sees it")
    add("--std", metavar="S,S,S", help="divides each channel")
    add("--order", default="auto", choices=("auto", "chw", "hwc"), help="axes of the input")
    add("--timeout", metavar="S", default="60", help="seconds (60)")
    add("--cpu-seconds", metavar="S", help="seconds of computing, whatever else the machine does")
    add("--out", type=Path, metavar="PREFIX", help="where a counterexample goes: PREFIX.npy, .png")
    add("--vnnlib", type=Path, metavar="FILE", help="write the question as a property")
    add_network_options(parser)
    add_verbosity(parser)
    add_options(parser)
    parser.set_defaults(run=robust_command)


def robust_command(options: argparse.Namespace) -> int:
    import torch

    from bitcrown.api import robust
    from bitcrown.harness.instance import parse_timeout

    started = time.monotonic()
    mean, std = _normalisation(options)
    settings = Settings.from_mapping(given_options(options))
    torch.set_num_threads(settings.thread_count())
    say = verbosity_of(options)
    line = PhaseLine(say)
    line.tick()
    cpu = None if options.cpu_seconds is None else parse_timeout(options.cpu_seconds)
    try:
        with network_with(options.model, options) as model:
            found = robust(
                model,
                options.image,
                options.eps,
                label=options.label,
                target=options.target,
                norm=options.norm,
                eps_map=_array(options.eps_map),
                mask=_array(options.mask),
                brightness=options.brightness,
                contrast=options.contrast,
                limits=_limits(options.limits),
                mean=mean,
                std=std,
                order=options.order,
                radius=options.radius,
                seconds=parse_timeout(options.timeout),
                cpu_seconds=cpu,
                settings=settings,
                report=line.report,
                vnnlib=options.vnnlib,
            )
    finally:
        line.end()
    seconds = time.monotonic() - started
    written = write_counterexample(found, options)
    ending = Ending.of(found.verdict)
    if say.is_json:
        files = [str(path) for path in written]
        say.json(
            "robust", {**ending.as_dict(), **found.as_dict(), "seconds": seconds, "files": files}
        )
    else:
        print(found.sentence())
        if written:
            print(f"Written to {' and '.join(str(path) for path in written)}.")
        say.note(f"bitcrown: {found.verdict.decided_by or 'nothing decided it'}; {seconds:.2f} s")
        for sentence in [*explanation(ending), *_next_steps(found)]:
            say.note(f"bitcrown: {sentence}")
    if found.has_radius:
        return UNDECIDED if found.proved is None and found.broken is None else DONE
    return DONE if found.status in (Status.SAT, Status.UNSAT) else UNDECIDED


def _normalisation(options: argparse.Namespace) -> tuple[list[str] | None, list[str] | None]:
    """The words of mean and deviation."""
    name = options.normalisation
    if name is not None and name != "none":
        if options.mean or options.std:
            raise SettingsError("give --normalisation, or --mean and --std, not both")
        if name not in _NORMALISATIONS:
            raise SettingsError(
                f"--normalisation is one of {', '.join(_NORMALISATIONS)} or none, not {name!r}"
            )
        mean, std = _NORMALISATIONS[name]
        return mean.split(","), std.split(",")
    return (
        None if options.mean is None else options.mean.split(","),
        None if options.std is None else options.std.split(","),
    )


def _limits(word: str | None) -> tuple[str, str] | str | None:
    if word is None:
        return "auto"
    if word == "none":
        return None
    low, _, high = word.partition(",")
    if not (low and high):
        raise SettingsError(f"--limits takes none, or two numbers such as 0,1, not {word!r}")
    return low, high


def _array(path: Path | None) -> Any:
    from bitcrown.archives import read_array

    return None if path is None else read_array(path)


def write_counterexample(found: Robustness, options: argparse.Namespace) -> list[Path]:
    """The files written: the values themselves, and a picture of them."""
    import io

    import numpy as np

    from bitcrown.evaluation.around import BY_ITSELF
    from bitcrown.evaluation.report.png import levels, png
    from bitcrown.files import write_whole

    if found.adversarial is None or found.verdict.decided_by == BY_ITSELF:
        return []
    prefix = options.out or Path(f"{Path(options.image).stem.replace(':', '-')}-adversarial")
    values = found.adversarial
    buffer = io.BytesIO()
    np.save(buffer, values)
    written = [prefix.with_name(prefix.name + ".npy")]
    write_whole(written[0], buffer.getvalue())
    is_picture = found.limits is not None and values.shape[0] in (1, 3) and values.shape[1] > 1
    if is_picture and values.min() >= 0 and values.max() <= 1:
        written.append(prefix.with_name(prefix.name + ".png"))
        write_whole(written[1], png(levels(values)))
        if not found.holds_in_eight_bits:
            print(
                f"bitcrown: {written[1]} is rounded to eight bits and keeps the class; "
                f"{written[0]} does not",
                file=sys.stderr,
            )
    return written


def _next_steps(found: Robustness) -> list[str]:
    """What somebody with this answer would ask next."""
    from bitcrown.evaluation.around import BY_ITSELF
    from bitcrown.evaluation.radii import radius_words

    if found.has_radius or found.around.light is not None:
        return []
    if found.status is Status.SAT and found.verdict.decided_by == BY_ITSELF:
        return ["next: leave --label out, which then is the network's own class"]
    if found.status not in (Status.SAT, Status.UNSAT):
        return []
    following = found.around.eps * 2 if found.status is Status.UNSAT else found.around.eps / 2
    words = radius_words(following).partition(" ")[0]
    return [f"next: --eps {words}, or --radius for the largest that is proved"]
