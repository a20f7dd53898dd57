"""Result sets of a size that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert('x')</script>&\"'.onnx"


def row(
    result: str,
    network: str = "onnx/n.onnx",
    prop: str = "vnnlib/p.vnnlib",
    wall: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    """A row of a bench; ``more`` goes over it."""
    category = more.pop("category", "acas")
    timeout = more.pop("timeout", 60.0)
    facts: dict[str, Any] = {
        "format": 1,
        "time": "2026-11-28T02:50:20Z",
        "version": "0.1.0",
        "commit": "c0ffee",
        "machine": {"cpu": "Z80", "cores": 1},
        "settings": {"seed": 7},
        "seed": 7,
        "category": category,
        "network": network,
        "vnnlib": prop,
        "timeout": timeout,
        "expected": "",
        "result": result,
        "wall_s": wall,
        "peak_mib": 10,
        "phases": {"import": 0.5, "attack": wall / 4, "neuron split": wall / 2},
        "key": [category, "", network, prop, timeout],
    }
    return facts | more


def open_row(**more: Any) -> dict[str, Any]:
    return row(
        "timeout",
        wall=60.0,
        counters={"worst": -2.0, "open": 9},
        progress={"phase": "neuron split", "facts": {"domains": 40, "open": 7, "worst": -0.5}},
        curve=[[3.0, -2.0, 9], [20.0, -1.0, 30], [59.0, -0.5, 7]],
        **more,
    )


def records_file(folder: Path, *rows: dict[str, Any], name: str = "records.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def results_csv(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def evaluation(**changes: Any) -> dict[str, Any]:
    """A record of ``evaluate`` at two radii."""

    def run(eps: str, proved: int, left: int) -> dict[str, Any]:
        share = {"count": 9, "share": 0.9, "interval95": [0.6, 0.98]}
        standing = {"count": proved + left, "share": (proved + left) / 10, "interval95": [0.1, 0.9]}
        status = {"wrong": 1, "broken": 9 - proved - left, "proved": proved, "open": left}
        return {
            "eps": eps,
            "norm": "Linf",
            "bpda": None,
            "attack": {"name": "pgd", "steps": 10, "restarts": 2},
            "images": 10,
            "bounds": ["crown"],
            "accuracy": {"clean": share, "attack": standing, "crown": share},
            "status": status,
            "warnings": [],
            "contradictions": [],
        }

    found = {
        "format": 2,
        "version": "0.1.0",
        "model": "resnet",
        "data": "cifar",
        "settings": {"seed": 7},
        "contradictions": [],
        "runs": [run("1/255", 6, 2), run("2/255", 3, 1)],
    }
    return found | changes
