"""The script that measures root bounds: each method at least as tight as the one before, one record
each."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = (
    Path(__file__).resolve().parents[3]
    / "benchmarks"
    / "cifar100_tinyimagenet_resnet"
    / "root_bounds.py"
)


def test_methods_are_ordered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("root_bounds", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = []
    assert script.processes(script.METHODS) == ["interval", "alpha"]
    for method in script.processes(script.METHODS):
        words = [
            "--one",
            "--model",
            "resnet_mini",
            "--method",
            method,
            "--eps",
            "0.0001",
            "--iterations",
            "3",
        ]
        monkeypatch.setattr(sys, "argv", ["root_bounds.py", *words, "--memory-gib", "0.25"])
        assert script.main() == 0
        rows += map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["method"] for row in rows] == list(script.METHODS)
    interval, crown, alpha = rows
    assert interval["least"] < crown["least"] <= alpha["least"]
    assert interval["unstable"] > crown["unstable"] == alpha["unstable"] > 0
    assert all(row["rows"] == 99 and row["peak_gib"] > 0 for row in rows)
    many = [
        "x",
        "--model",
        "a",
        "--method",
        "b",
        "--model",
        "c",
        "--eps",
        "1",
        "--method",
        "d",
        "--one",
    ]
    assert script.without_choices(many) == [
        "x",
        "--model",
        "c",
        "--eps",
        "1",
        "--method",
        "d",
        "--one",
    ]
