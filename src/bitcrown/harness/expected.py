"""``expected.csv``: the known truth of instances, and the comparison of results with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bitcrown.errors import PropertyError
from bitcrown.harness.instance import csv_rows, network_field, tidy_path
from bitcrown.spec.network_field import parse_network

KNOWN = ("sat", "unsat")


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
        pairs = tuple((name, tidy_path(file_name)) for name, file_name in parse_network(row[0]))
        truth[network_field(pairs), tidy_path(row[1])] = row[2].strip().lower()
    return truth


def is_known(row: Mapping[str, Any]) -> bool:
    return row.get("expected") in KNOWN


def is_decided(row: Mapping[str, Any]) -> bool:
    return row["result"] in KNOWN


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether the answer contradicts the known truth."""
    return is_known(row) and is_decided(row) and row["result"] != row["expected"]


def wrong_rows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if is_wrong(row)]
