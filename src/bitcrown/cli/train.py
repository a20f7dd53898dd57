"""``bitcrown train``: images in, a network that verifies out.

The folder of a run holds ``checkpoint.pt`` (after every epoch), ``MODEL.onnx`` (normalisation
outside) and ``record.json`` (settings, data, history, commit, machine). Nothing is downloaded: the
data is what ``--data`` names.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.cli.evaluate import tell_classes
from bitcrown.cli.exit_codes import DONE
from bitcrown.cli.options import add_options, given_options
from bitcrown.cli.progress import ProgressLine
from bitcrown.errors import DataError, SettingsError
from bitcrown.files import write_whole
from bitcrown.train.architectures import ARCHITECTURES, architecture
from bitcrown.train.settings import TRAIN_OPTIONS, TrainSettings, radius_of

if TYPE_CHECKING:
    from bitcrown.evaluation.data.sets import ImageSet
    from bitcrown.train.images import Normalisation
    from bitcrown.train.training import Images, TrainingRun

_MEASURED = 500
"""Held-out images that are measured after each epoch unless told otherwise."""


def add_train_command(commands: Any) -> None:
    train = commands.add_parser(
        "train", help="train a network that can be verified (natural, PGD, CROWN-IBP, mixed)"
    )
    add = train.add_argument
    add("--model", required=True, metavar="NAME", help=f"one of {', '.join(ARCHITECTURES)}")
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="training images, labelled",
    )
    add("--eps", required=True, metavar="E", help="radius around images in [0, 1], such as 1/255")
    add(
        "--out", type=Path, required=True, metavar="FOLDER", help="checkpoint, ONNX file and record"
    )
    add("--held-out", type=Path, metavar="PATH", help="images to measure after each epoch")
    add(
        "--held-out-first", type=int, default=_MEASURED, metavar="N", help="how many (default: 500)"
    )
    add("--first", type=int, metavar="N", help="only the first N images of each training file")
    _add_input_options(train)
    add(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the folder, if there is one",
    )
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after the epoch in which M minutes are over",
    )
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0: all that may be used")
    add_options(train, TRAIN_OPTIONS)
    train.set_defaults(run=train_command)


def _add_input_options(train: argparse.ArgumentParser) -> None:
    """What the network sees of an image, and how many classes it tells apart."""
    add = train.add_argument
    add(
        "--normalisation",
        default="none",
        metavar="NAME",
        help="none, cifar10, cifar100, tinyimagenet",
    )
    add("--mean", metavar="M,M,M", help="instead of a named normalisation, with --std")
    add("--std", metavar="S,S,S")
    add("--classes", type=int, metavar="N", help="(default: those of the model)")
    add("--input", metavar="C,H,W", help="size of the network's input (default: that of the model)")


def train_command(options: argparse.Namespace) -> int:
    import torch

    from bitcrown.evaluation.data.sets import read_images
    from bitcrown.settings import usable_cores
    from bitcrown.train.checkpoint import save_checkpoint
    from bitcrown.train.onnx_export import write_onnx
    from bitcrown.train.training import train

    started = time.monotonic()
    torch.set_num_threads(options.threads if options.threads > 0 else usable_cores())
    run, checkpoint = started_run(options)
    found = [read_images(path, first=options.first, train=True) for path in options.data]
    for one in found:
        tell_classes(one)
    data = images_of(found, run)
    held_out = None
    if options.held_out:
        held_out = images_of([_spread(read_images(options.held_out), options.held_out_first)], run)
    print(
        f"bitcrown: {run.network.size()} weights, {len(data.labels)} images, epoch {run.epoch}",
        file=sys.stderr,
    )
    for state in train(run, data, held_out, progress_line()):
        save_checkpoint(state, checkpoint)
        if options.minutes is not None and time.monotonic() - started > options.minutes * 60:
            break
    onnx = options.out / f"{options.model}.onnx"
    write_onnx(run.network, onnx)
    write_record(options, run, len(data.labels))
    if run.epoch < run.settings.epochs:
        print(
            f"bitcrown: stopped after epoch {run.epoch} of {run.settings.epochs}; --resume goes on",
            file=sys.stderr,
        )
    print(onnx)
    return DONE


def started_run(options: argparse.Namespace) -> tuple[TrainingRun, Path]:
    """A new run, or the one to resume. Raises ``SettingsError`` where the folder holds another
    one."""
    from bitcrown.train.checkpoint import load_checkpoint
    from bitcrown.train.training import new_run

    settings = TrainSettings.from_mapping(
        {"eps": radius_of(options.eps), **given_options(options, TRAIN_OPTIONS)}
    )
    shape = _numbers(options.input, int, 3) if options.input else None
    wanted = architecture(
        options.model, options.classes, (shape[0], shape[1], shape[2]) if shape else None
    )
    normalisation = normalisation_of(options)
    checkpoint: Path = options.out / "checkpoint.pt"
    if not checkpoint.exists():
        return new_run(wanted, settings, normalisation), checkpoint
    if not options.resume:
        raise SettingsError(
            f"{checkpoint} exists; go on with --resume, or name another --out folder"
        )
    run = load_checkpoint(checkpoint, settings.device)
    if (
        run.settings != settings
        or run.network.architecture != wanted
        or run.normalisation != normalisation
    ):
        raise SettingsError(
            f"{checkpoint} was made with other options; give the same ones, or another --out folder"
        )
    return run, checkpoint


def normalisation_of(options: argparse.Namespace) -> Normalisation:
    from bitcrown.train.images import NORMALISATIONS, Normalisation

    if options.mean or options.std:
        if not (options.mean and options.std):
            raise SettingsError("--mean and --std belong together")
        return Normalisation(_numbers(options.mean, float), _numbers(options.std, float))
    if options.normalisation not in NORMALISATIONS:
        raise SettingsError(
            f"--normalisation is one of {', '.join(NORMALISATIONS)}, not {options.normalisation!r}"
        )
    return Normalisation(*NORMALISATIONS[options.normalisation])


def _numbers(text: str, kind: Callable[[str], Any], count: int | None = None) -> tuple[Any, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"{text!r} is not a list of numbers with commas") from error
    if count is not None and len(found) != count:
        raise SettingsError(f"{text!r} needs {count} numbers with commas")
    return found


def _spread(found: ImageSet, count: int) -> ImageSet:
    """``count`` images evenly spaced over the file: it may be sorted by class."""
    import numpy as np

    if count < 1:
        raise SettingsError(f"--held-out-first needs a whole number from 1, but got {count}")
    return found.select(np.arange(0, len(found), max(1, -(-len(found) // count))))


def images_of(sets: list[ImageSet], run: TrainingRun) -> Images:
    """The images of all files, one after the other, on the device of ``run``."""
    import numpy as np

    from bitcrown.train.training import Images, training_device

    if len({found.shape for found in sets}) != 1:
        raise DataError("the files of --data hold images of different sizes")
    images = np.concatenate([found.images for found in sets])
    labels = np.concatenate([found.labels for found in sets])
    return Images.of(images, labels, training_device(run.settings))


def progress_line() -> Callable[[dict[str, Any]], None]:
    """Shows how far an epoch is, and keeps one line an epoch."""
    line = ProgressLine()
    started = time.monotonic()
    hidden = ("finished", "epoch", "step", "steps", "seconds")

    def show(facts: dict[str, Any]) -> None:
        done = "" if facts["finished"] else f" {facts['step']}/{facts['steps']}"
        values = " ".join(f"{key} {value:.4g}" for key, value in facts.items() if key not in hidden)
        seconds = time.monotonic() - started
        line.show(f"epoch {facts['epoch']}{done} {seconds:.0f} s: {values}", facts["finished"])

    return show


def write_record(options: argparse.Namespace, run: TrainingRun, images: int) -> None:
    from bitcrown.provenance import commit, machine, version

    record = {
        "model": options.model,
        "weights": run.network.size(),
        "settings": run.settings.as_dict(),
        "normalisation": {"mean": run.normalisation.mean, "std": run.normalisation.std},
        "data": [path.name for path in options.data],
        "images": images,
        "epochs_done": run.epoch,
        "seconds": round(run.seconds, 1),
        "history": run.history,
        "version": version(),
        "commit": commit(),
        "machine": machine(),
    }
    write_whole(options.out / "record.json", json.dumps(record, indent=1) + "\n")
