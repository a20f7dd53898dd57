"""Instances as the competition writes them: the CSV of every year, the network field, the time
limit.

An instance is keyed by its network field and its property, because one property file serves several
networks and one file name several folders. Paths stay relative to the folder of the CSV until
somebody opens them.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitcrown.errors import PropertyError, said_by
from bitcrown.spec.network_field import parse_network

_VERSION_FOLDERS = ("1.0", "2.0")


@dataclass(frozen=True, slots=True)
class Instance:
    """One row: ``network`` is a path or the text of a list of (name, path) pairs, as in the CSV,
    paths tidied."""

    network: str
    vnnlib: str
    timeout: float

    def key(self) -> tuple[str, str]:
        return self.network, self.vnnlib


def parse_timeout(text: str) -> float:
    """Seconds. Raises ``PropertyError`` unless ``text`` is a positive finite number."""
    try:
        seconds = float(text)
    except ValueError as error:
        raise PropertyError(
            f"the time limit must be a number of seconds, but is {text!r}"
        ) from error
    if not (math.isfinite(seconds) and seconds > 0.0):
        raise PropertyError(
            f"the time limit must be a positive finite number of seconds, but is {text!r}"
        )
    return seconds


def tidy_path(path: str) -> str:
    """``./onnx/./x.onnx`` -> ``onnx/x.onnx``; ``..`` and absolute paths stay. Raises
    ``PropertyError`` for what can be no path."""
    if "\0" in path:
        raise PropertyError(f"{path!r} is no path")
    return str(PurePosixPath(path.strip()))


def network_field(pairs: tuple[tuple[str, str], ...]) -> str:
    """The argument that the harness passes for ``pairs``: the path, or the ``repr`` of the list."""
    if len(pairs) == 1 and not pairs[0][0]:
        return pairs[0][1]
    return repr(list(pairs))


def _tidy_field(text: str) -> str:
    return network_field(tuple((name, tidy_path(path)) for name, path in parse_network(text)))


def resolve(field: str, folder: Path) -> str:
    """The network field with every path put under ``folder``."""
    return network_field(tuple((name, str(folder / path)) for name, path in parse_network(field)))


def csv_rows(file: Path, what: str) -> list[list[str]]:
    """The rows of a CSV file in UTF-8, whatever its line ends. Raises ``PropertyError``, which
    calls it ``what``."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        words = "it is no text" if isinstance(error, UnicodeDecodeError) else said_by(error)
        raise PropertyError(f"{what} {file} cannot be read: {words}") from error
    try:
        return list(csv.reader(io.StringIO(text), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise PropertyError(f"{what} {file} is not a CSV file: {error}") from error


def read_instances(file: Path) -> tuple[Instance, ...]:
    """All rows of an instances CSV. Raises ``PropertyError`` with the line of the first row that
    cannot be used."""
    instances = []
    for number, row in enumerate(csv_rows(file, "the instances file"), start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and _is_header(cells)):
            continue
        while len(cells) > 3 and not cells[-1]:  # commas at the end of a line
            cells.pop()
        if len(cells) != 3:
            raise PropertyError(
                f"{file} row {number}: expected network,property,timeout but found {len(cells)} "
                "columns"
            )
        try:
            field, vnnlib = _tidy_field(cells[0]), tidy_path(cells[1])
            instances.append(Instance(field, vnnlib, parse_timeout(cells[2])))
        except PropertyError as error:
            raise PropertyError(f"{file} row {number}: {error}") from error
    return tuple(instances)


def _is_header(cells: list[str]) -> bool:
    return len(cells) >= 3 and cells[0].lower() in ("onnx", "network", "model")


@dataclass(frozen=True, slots=True)
class Suite:
    """One instances CSV. ``category`` is the bare benchmark name, ``version`` the 2026 folder
    (``1.0``) or ``""``."""

    category: str
    version: str
    file: Path

    @property
    def folder(self) -> Path:
        return self.file.parent


def find_suites(path: Path) -> tuple[Suite, ...]:
    """Suites at ``path``: a CSV, a folder with ``instances.csv`` (or 2021's name), or a folder of
    such folders.

    Where a benchmark has version folders, the first version found counts (both list the same
    instances). Raises ``PropertyError`` if there is none.
    """
    if path.is_file():
        return (_suite_of(path),)
    if not path.is_dir():
        raise PropertyError(
            f"{path} does not exist: give a suite folder, an instances CSV or a folder of suites"
        )
    own = _instances_file(path)
    if own is not None:
        return (_suite_of(own),)
    files = [_instances_file(folder) for folder in sorted(path.iterdir()) if folder.is_dir()]
    found = tuple(_suite_of(file) for file in files if file is not None)
    if not found:
        raise PropertyError(f"{path} holds no instances.csv, neither itself nor in its folders")
    return found


def _instances_file(folder: Path) -> Path | None:
    names = ["instances.csv", f"{folder.resolve().name}_instances.csv"]
    names += [f"{version}/instances.csv" for version in _VERSION_FOLDERS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _suite_of(file: Path) -> Suite:
    folder = file.resolve().parent
    version = folder.name if folder.name in _VERSION_FOLDERS else ""
    category = folder.parent.name if version else folder.name
    if file.name != "instances.csv" and file.name.endswith("_instances.csv"):
        category = file.name.removesuffix("_instances.csv")
    return Suite(category, version, file)


def read_expected(path: Path) -> dict[tuple[str, str], str]:
    """Truth by (network field, property); columns ``onnx,vnnlib,expected`` and whatever follows.
    Empty if no file."""
    if not path.is_file():
        return {}
    truth = {}
    for number, row in enumerate(csv_rows(path, "the truth"), start=1):
        if not row or (number == 1 and row[:3] == ["onnx", "vnnlib", "expected"]):
            continue
        if len(row) < 3:
            raise PropertyError(
                f"{path} row {number}: expected at least the columns onnx,vnnlib,expected"
            )
        truth[_tidy_field(row[0]), tidy_path(row[1])] = row[2].strip().lower()
    return truth
