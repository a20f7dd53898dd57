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
    add(
        "--input-shape",
        metavar="[NAME=]N,...",
        action="append",
        help="extents of an input that the file leaves free; with its NAME if there are several",
    )


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
            _settle(NetworkFile(copy), options.input_shape)
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


def _settle(copy: NetworkFile, words: list[str]) -> None:
    """Write the shapes in ``words`` into the file ``copy``."""
    from bitcrown.model.input_shape import input_extents, settled_content, settled_extents

    names = [tensor.name for tensor in copy.inputs]
    shapes: list[list[int] | None] = [None for _ in names]
    for word in words:
        name, _, extents = word.rpartition("=")
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise SettingsError(
                f"--input-shape {word} is about none of the inputs {', '.join(names)}: give "
                "NAME=N,... for each that has free extents"
            )
        place, shape = names.index(name), _extents(extents)
        settled = settled_extents(copy, place, shape)
        if settled is None:
            raise SettingsError(
                f"--input-shape {list(shape)} does not fit the file's input "
                f"({input_extents(copy, place)})"
            )
        shapes[place] = settled
    copy.path.write_bytes(settled_content(copy, shapes))
