"""The option ``--output``: a question about one tensor of a network that computes several."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def add_output_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="NAME", help="the tensor that the property is about (default: all)"
    )


@contextmanager
def network_with(onnx: str, output: str | None) -> Iterator[str]:
    """``onnx`` itself, or a copy that computes ``output`` alone, for as long as the block runs.

    Raises ``ModelError``.
    """
    if output is None:
        yield onnx
        return
    from bitcrown.files import write_whole
    from bitcrown.model.file import NetworkFile
    from bitcrown.model.one_output import with_one_output

    content = with_one_output(NetworkFile(Path(onnx)), output)
    with TemporaryDirectory(prefix="bitcrown-") as folder:
        copy = Path(folder, Path(onnx).name.removesuffix(".gz"))
        write_whole(copy, content)
        yield str(copy)
