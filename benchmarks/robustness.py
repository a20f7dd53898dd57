"""Does an answer hang on luck, or on one rule? Instances again with other seeds, without one rule
after the other, and beside a busy core.

    python benchmarks/robustness.py LIST JOURNAL [--cpu-seconds 60] [--total 1800] [--kinds seeds]

``LIST`` has a row ``family,network,property`` for each instance, paths from the current folder. A
variation is a process of its own, limited by seconds of computing. Its row is written to
``JOURNAL`` (a line of JSON each) as soon as it is known; rows that stand there are not run again.
``--draw RESULTS_FOLDER DATA_FOLDER`` writes ``LIST`` first, from the results of a bench: two
instances of each family that were decided in less than 20 s, drawn by ``random.Random(0)``.

Variations: the default; ``--seeds``; for instances that came to a search, each rule that may have
competed there left out (``Settings.without``); and a neighbour that keeps the other core busy.
What counts is a variation that ends as ``timeout`` where the default took less than 20 s.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUICK = 20.0
"""Seconds below which an instance is thought to be easy."""
COUNT = 40
NEIGHBOUR = "while True: sum(range(100000))"

Row = dict[str, Any]


def drawn(results: Path, data: Path) -> list[list[str]]:
    """``family, network, property`` of up to two quick instances of each family, ``COUNT`` in
    all."""
    rng, found = random.Random(0), []
    for file in sorted(results.glob("*/results.csv")):
        rows = list(csv.reader(file.open()))
        quick = [row for row in rows if row[4] in ("sat", "unsat") and float(row[5]) < QUICK]
        for row in sorted(rng.sample(quick, min(2, len(quick)))):
            found.append([row[0], *(str(data / row[0] / name) for name in row[1:3])])
    rng.shuffle(found)
    return found[:COUNT]


def named(path: str) -> str:
    """The file itself, or the packed one beside it."""
    return path if Path(path).exists() else path + ".gz"


def once(network: str, formula: str, cpu_seconds: float, seed: int, without: list[str]) -> Row:
    """One decision in this process."""
    import bitcrown
    from bitcrown.settings import Settings

    settings = Settings(seed=seed, without=tuple(without))
    problem = bitcrown.load(named(network), named(formula))
    verdict = bitcrown.verify(problem, settings, cpu_seconds=cpu_seconds)
    names = ("tactic", "domains", "boxes_bounded", "refined_neurons", "tightened_cases")
    return {
        "status": verdict.status.value,
        "decided_by": verdict.decided_by,
        "phases": sorted(verdict.phases),
        "cpu": round(time.process_time(), 2),
        **{name: verdict.counters[name] for name in names if name in verdict.counters},
    }


def rules_of(default: Row) -> list[str]:
    """Names of the rules that may have competed in the run ``default``."""
    from bitcrown.search.inputs.rules import SPLIT_RULES
    from bitcrown.search.neurons.rules import TACTICS
    from bitcrown.search.neurons.tightening import CASE_BOUNDS, REFINEMENT
    from bitcrown.search.ranges.bounder import RANGES

    if "input split" in default["phases"]:
        return [rule.name for rule in SPLIT_RULES]
    if "neuron split" in default["phases"]:
        return [tactic.name for tactic in (*TACTICS, RANGES)] + [REFINEMENT, CASE_BOUNDS]
    return []


def variations(kinds: list[str], seeds: list[int], default: Row) -> Iterator[Row]:
    """Settings of the runs of one instance, after its default."""
    for seed in seeds if "seeds" in kinds else []:
        yield {"kind": "seed", "seed": seed, "without": []}
    for rule in rules_of(default) if "rules" in kinds else []:
        yield {"kind": "without", "seed": 0, "without": [rule]}
    if "busy" in kinds:
        yield {"kind": "busy", "seed": 0, "without": []}


class Journal:
    """Rows that are known, by instance and variation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def known(self, key: Row) -> Row | None:
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run(key: Row, cpu_seconds: float) -> Row:
    """``key`` in a process of its own: what it found, or what went wrong."""
    command = [sys.executable, __file__, "--once", json.dumps([key, cpu_seconds])]
    neighbour = None
    if key["kind"] == "busy":
        neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not last:
        return {**key, "status": "error", "detail": done.stderr[-300:], "cpu": 0.0}
    return {**key, **json.loads(last[0])}


def measure(instances: list[list[str]], journal: Journal, chosen: argparse.Namespace) -> None:
    """Default and variations of every instance, as far as ``--total`` seconds of computing go:
    kind by kind, so that a run that is cut short has looked at all instances."""
    spent = 0.0
    for kind in ("default", *chosen.kinds):
        for family, network, formula in instances:
            names = {"family": family, "network": network, "property": formula}
            first = {**names, "kind": "default", "seed": 0, "without": []}
            known = journal.known(first)
            keys = [first] if kind == "default" else []
            if known is not None and known["status"] in ("sat", "unsat"):
                keys += [{**names, **v} for v in variations([kind], chosen.seeds, known)]
            for key in keys:
                if journal.known(key) is not None:
                    continue
                if spent > chosen.total:
                    return
                row = run(key, chosen.cpu_seconds)
                spent += row["cpu"]
                journal.add(row)


def table(journal: Journal) -> Iterator[str]:
    """Markdown: by kind of variation the runs, their answers, and those that broke."""
    firsts = {(r["network"], r["property"]): r for r in journal.rows if r["kind"] == "default"}
    yield "| variation | runs | decided as by default | of quick ones not decided | slowest |"
    yield "|---|---:|---:|---:|---:|"
    labels = {(r["kind"], *r["without"]) for r in journal.rows}
    broken = []
    for label in sorted(labels):
        rows = [r for r in journal.rows if (r["kind"], *r["without"]) == label]
        same, lost = 0, 0
        for row in rows:
            first = firsts[row["network"], row["property"]]
            same += row["status"] == first["status"]
            if first["cpu"] < QUICK and row["status"] != first["status"]:
                lost += 1
                broken.append(f"{' '.join(label)}: {row['family']} {Path(row['property']).name}")
        slowest = max(row["cpu"] for row in rows)
        yield f"| {' '.join(label)} | {len(rows)} | {same} | {lost} | {slowest:.1f} |"
    yield from broken


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("list", type=Path, nargs="?")
    options.add_argument("journal", type=Path, nargs="?")
    options.add_argument("--once", help=argparse.SUPPRESS)
    options.add_argument("--draw", type=Path, nargs=2, metavar=("RESULTS", "DATA"))
    options.add_argument("--cpu-seconds", type=float, default=60.0)
    options.add_argument("--total", type=float, default=1800.0)
    options.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    options.add_argument("--kinds", nargs="*", default=["seeds", "rules", "busy"])
    chosen = options.parse_args()
    if chosen.once:
        key, cpu_seconds = json.loads(chosen.once)
        found = once(key["network"], key["property"], cpu_seconds, key["seed"], key["without"])
        print(json.dumps(found))
        return
    if chosen.draw:
        with chosen.list.open("w", newline="") as file:
            csv.writer(file).writerows(drawn(*chosen.draw))
    journal = Journal(chosen.journal)
    measure(list(csv.reader(chosen.list.open())), journal, chosen)
    print("\n".join(table(journal)))


if __name__ == "__main__":
    main()
