"""The options ``--output`` and ``--input-shape``: a question about one tensor of a network that
computes several, and about one shape of a network whose file leaves extents open."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bitcrown.errors import SettingsError

if TYPE_CHECKING:
    from bitcrown.model.file import NetworkFile


def add_network_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", metavar="NAME", help="the tensor that is asked about (default: all outputs)")
    add("--input-shape", metavar="N,...", help="extents of an input that the file leaves free")


def is_chosen(options: argparse.Namespace) -> bool:
    """Whether the question is about a part of the file, or one of its shapes."""
    return options.output is not None or options.input_shape is not None


@contextmanager
def network_with(onnx: str, options: argparse.Namespace) -> Iterator[str]:
    """``onnx`` itself, or a copy that computes what the options ask for, for as long as the block
    runs.

    Raises ``ModelError``, or ``SettingsError`` for a shape that is none or another than the file's.
    """
    if not is_chosen(options):
        yield onnx
        return
    from bitcrown.files import write_whole
    from bitcrown.model.file import NetworkFile
    from bitcrown.model.one_output import with_one_output

    if onnx.lstrip().startswith("["):
        raise SettingsError("--output and --input-shape are about one network, not about several")
    with TemporaryDirectory(prefix="bitcrown-") as folder:
        copy, file = Path(folder, Path(onnx).name.removesuffix(".gz")), NetworkFile(Path(onnx))
        if options.output is not None:
            file = NetworkFile(file.path, with_one_output(file, options.output))
        write_whole(copy, file.content)
        if options.input_shape is not None:
            _settle(NetworkFile(copy), _extents(options.input_shape))
        yield str(copy)


def _extents(word: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in word.split(","))
    except ValueError as error:
        raise SettingsError(
            f"--input-shape needs whole numbers such as 1,3,32,32, not {word!r}"
        ) from error
    if any(extent < 1 for extent in shape):
        raise SettingsError("--input-shape needs extents from 1")
    return shape


def _settle(copy: NetworkFile, shape: tuple[int, ...]) -> None:
    """Write ``shape`` into the file ``copy``."""
    from bitcrown.model.input_shape import input_extents, with_input_shape

    words = input_extents(copy)
    found = with_input_shape(copy, shape, copy.path.parent).inputs[0].shape
    if found not in (shape, (1, *shape)):
        raise SettingsError(f"--input-shape {list(shape)} does not fit the file's input ({words})")
