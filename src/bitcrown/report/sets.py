"""Result sets: what ``bitcrown report`` was given, read and put into one form.

A set is what one tool, or one version of it, said about instances (and, with ``evaluate``, about
images). It comes from ``records.jsonl`` of a bench or of single runs, ``record.json`` of an
evaluation, or a competition's ``results.csv`` (no header; category, network, property, seconds of
preparing, result, seconds of running). A row is a record as JSON has it; a row of a ``results.csv``
has the same fields as far as the file says them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bitcrown.check.result_file import split_word
from bitcrown.errors import PropertyError, ResourceError
from bitcrown.files import read_records
from bitcrown.harness.instance import csv_rows, find_suites, read_expected, read_instances
from bitcrown.harness.records import is_result
from bitcrown.harness.tables import is_decided
from bitcrown.spec.network_field import parse_network

ResultRow = Mapping[str, Any]
Identity = tuple[str, str, str]
"""Category, network and property, the same for every tool and machine."""
_NAMES = ("records.jsonl", "record.json", "results.csv")
"""What a folder is looked through for; the first kind that it holds counts."""
_TOY = ("test_nano", "test_tiny")
"""Instances that the competition runs and does not count."""
_COLUMNS = 6
_LARGEST = 1e300


@dataclass(frozen=True)
class ResultSet:
    """``rows``: one for each instance, the last run of it. ``homes``: the folder of each row's
    file. ``repeated``: rows that a later one replaced; ``clashes``: pairs (earlier, later) of runs
    of one instance of which one said sat and one unsat."""

    name: str
    rows: tuple[ResultRow, ...] = ()
    homes: tuple[Path, ...] = ()
    repeated: int = 0
    clashes: tuple[tuple[ResultRow, ResultRow], ...] = ()
    evaluations: tuple[ResultRow, ...] = ()

    def by_instance(self) -> dict[Identity, ResultRow]:
        return {identity(row): row for row in self.rows}


@dataclass(frozen=True)
class Suites:
    """What the suites at hand say of their instances: truth, time limit, folder."""

    truth: Mapping[Identity, str] = field(default_factory=dict)
    limits: Mapping[Identity, float] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)


def finite_number(value: object) -> float | None:
    """What JSON had there, if it is a number that can be drawn."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and -_LARGEST < value < _LARGEST else None  # type: ignore


def identity(row: ResultRow) -> Identity:
    """The instance of a row. Paths count from the folder of their category on, without the version
    folder of 2026 and ``.gz``, as far as the category stands in them."""
    return identity_of(str(row["category"]), str(row["network"]), str(row["vnnlib"]))


def identity_of(category: str, network: str, vnnlib: str) -> Identity:
    try:
        pairs = parse_network(network)
    except PropertyError:
        pairs = (("", network),)
    files = [f"{name}:{_below(path, category)}".removeprefix(":") for name, path in pairs]
    return category, " + ".join(files), _below(vnnlib, category)


def _below(path: str, category: str) -> str:
    parts = list(PurePosixPath(path.strip()).parts)
    if category in parts:
        parts = parts[len(parts) - parts[::-1].index(category) :]
        parts = parts[1:] if parts[:1] in (["1.0"], ["2.0"]) else parts
    return str(PurePosixPath(*parts)).removesuffix(".gz")


def read_sets(words: Sequence[str]) -> list[ResultSet]:
    """``NAME=PATH`` or ``PATH``, each a set; those with one NAME are one. PATH: a file, or a folder
    with such files in it. Raises ``PropertyError`` where there is nothing to show, and
    ``ResourceError`` where a file cannot be read."""
    files: dict[str, list[Path]] = {}
    for word in words:
        name, path = _named(word)
        found = _files(path)
        if not name:
            name = _free_name(_own_name(path), files)
        files.setdefault(name, []).extend(found)
    sets = [_read_set(name, paths) for name, paths in files.items()]
    for results in sets:
        if not results.rows and not results.evaluations:
            where = ", ".join(str(path) for path in files[results.name])
            raise PropertyError(f"the files hold no records: {where}")
    return sets


def _named(word: str) -> tuple[str, Path]:
    name, mark, path = word.partition("=")
    if mark and name and path and "/" not in name and not Path(word).exists():
        return name.strip(), Path(path)
    return "", Path(word)


def _own_name(path: Path) -> str:
    whole = path.resolve()
    return whole.parent.name if whole.name in _NAMES else whole.name if path.is_dir() else path.stem


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    number, free = 1, name or "records"
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for name in _NAMES:
        if found := sorted(path.rglob(name)):
            return found
    raise PropertyError(f"{path} holds none of {', '.join(_NAMES)}, neither itself nor below")


def _read_set(name: str, paths: Iterable[Path]) -> ResultSet:
    rows: list[tuple[ResultRow, Path]] = []
    evaluations: list[ResultRow] = []
    for path in paths:
        for record in _records(path):
            if _is_evaluation(record):
                evaluations.append(record)
            elif is_result(record):
                rows.append((record, path.parent))
    kept, clashes = _last_runs(rows)
    return ResultSet(
        name,
        tuple(row for row, _ in kept),
        tuple(home for _, home in kept),
        len(rows) - len(kept),
        tuple(clashes),
        tuple(evaluations),
    )


def _records(path: Path) -> list[ResultRow]:
    if path.suffix == ".csv":
        return list(_competition_rows(path))
    try:
        whole = json.loads(path.read_bytes())
    except OSError as error:
        raise ResourceError(
            f"the records {path} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError):  # several lines, each an object
        return list(read_records(path))
    return [whole] if isinstance(whole, dict) else []


def _is_evaluation(record: ResultRow) -> bool:
    """Whether this is what ``evaluate --out`` writes, with all that is shown of it."""
    runs = record.get("runs")
    if not (isinstance(runs, list) and runs and isinstance(record.get("model"), str)):
        return False
    return all(
        isinstance(run, dict)
        and isinstance(run.get("images"), int)
        and run["images"] > 0
        and all(isinstance(run.get(name), dict) for name in ("accuracy", "status"))
        and "clean" in run["accuracy"]
        and all(isinstance(run.get(name), str) for name in ("eps", "norm"))
        for run in runs
    )


def _competition_rows(path: Path) -> Iterator[ResultRow]:
    for number, cells in enumerate(csv_rows(path, "the results"), start=1):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != _COLUMNS:
            raise PropertyError(
                f"{path} row {number}: expected category,network,property,prepare_time,result,"
                f"run_time but found {len(cells)} columns"
            )
        category, network, vnnlib, prepare, result, seconds = (cell.strip() for cell in cells)
        if any(toy in vnnlib for toy in _TOY):
            continue
        yield {
            "category": category,
            "network": network,
            "vnnlib": vnnlib,
            "prepare_s": _seconds(prepare, path, number),
            "result": competition_word(result),
            "wall_s": _seconds(seconds, path, number),
        }


def _seconds(text: str, path: Path, number: int) -> float:
    """What was not run has the time -1, or none."""
    try:
        seconds = float(text or 0)
    except ValueError as error:
        raise PropertyError(f"{path} row {number}: {text!r} is no number of seconds") from error
    if not math.isfinite(seconds):
        raise PropertyError(f"{path} row {number}: {text!r} is no number of seconds")
    return max(0.0, seconds)


def competition_word(text: str) -> str:
    """A result as the scorers of all years map it, by its beginning; other words stay."""
    word = text.strip().lower()
    if not word or word.startswith(("no_result_in_file", "error_nonmaximal")):
        return "unknown"
    if word.startswith("run_instance_timeout"):
        return "timeout"
    return split_word(word)[0] or word


def _last_runs(
    rows: Sequence[tuple[ResultRow, Path]],
) -> tuple[list[tuple[ResultRow, Path]], list[tuple[ResultRow, ResultRow]]]:
    """The last run of each instance of a bench or a competition, and runs that contradict each
    other. Single runs, which have a format and no key, are what somebody put side by side: they
    all stay."""
    kept: dict[object, tuple[ResultRow, Path]] = {}
    answers: dict[Identity, ResultRow] = {}
    clashes = []
    for place, (row, home) in enumerate(rows):
        instance = identity(row)
        name = place if "key" not in row and "format" in row else instance
        kept.pop(name, None)
        kept[name] = row, home
        if is_decided(row):
            earlier = answers.get(instance)
            if earlier is not None and earlier["result"] != row["result"]:
                clashes.append((earlier, row))
            answers[instance] = row
    return list(kept.values()), clashes


def read_suites(paths: Iterable[Path]) -> Suites:
    """Suites as ``bench`` takes them. Raises ``PropertyError``."""
    truth: dict[Identity, str] = {}
    limits: dict[Identity, float] = {}
    folders: dict[str, Path] = {}
    for suite in (suite for path in paths for suite in find_suites(path)):
        folders[suite.category] = suite.folder
        for key, word in read_expected(suite.folder / "expected.csv").items():
            truth[identity_of(suite.category, *key)] = word
        for instance in read_instances(suite.file):
            limits[identity_of(suite.category, *instance.key())] = instance.timeout
    return Suites(truth, limits, folders)
