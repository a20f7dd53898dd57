"""Large property files, made and read: what ``prepare`` and the start of ``run`` cost.

    python benchmarks/large_properties.py --folder /tmp/large > table.md

For each style, in VNN-LIB 1 and 2: the file is written (seed 1), read and kept by a process of its
own as ``prepare`` does (``bitcrown.spec.kept``), and found by another as ``run`` does. CPU seconds
and peak memory are those of the processes.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FOUND = "from pathlib import Path; import sys; from bitcrown.spec.kept import kept_problem"
RUN = f"{FOUND}; p, q = map(Path, sys.argv[1:]); print(len(kept_problem(p, 'n.onnx', q).cases))"


class Writer:
    """Names of elements in one of the two versions, and random bounds."""

    def __init__(self, version: int) -> None:
        self.version, self.random = version, random.Random(1)

    def head(self, n: int, m: int) -> Iterator[str]:
        if self.version == 2:
            yield f"(vnnlib-version <2.0>)\n(declare-network N\n  (declare-input X real [1,{n}])\n"
            yield f"  (declare-output Y real [1,{m}]))\n"
        else:
            yield from (f"(declare-const X_{k} Real)\n" for k in range(n))
            yield from (f"(declare-const Y_{k} Real)\n" for k in range(m))

    def name(self, tensor: str, k: int) -> str:
        return f"{tensor}[0,{k}]" if self.version == 2 else f"{tensor}_{k}"

    def number(self, digits: int = 12) -> str:
        return f"{self.random.uniform(-1, 1):.{digits}f}"

    def ends(self, k: int, digits: int) -> list[str]:
        low, name = self.random.uniform(-1, 1), self.name("X", k)
        return [f"(>= {name} {low:.{digits}f})", f"(<= {name} {low + 0.01:.{digits}f})"]

    def box(self, n: int, digits: int) -> str:
        return " ".join(end for k in range(n) for end in self.ends(k, digits))


def small_boxes(w: Writer) -> Iterator[str]:
    yield from w.head(8, 5)
    yield "(assert (or\n"
    for k in range(150_000):
        compare = f"(<= {w.name('Y', k % 5)} {w.name('Y', (k + 1) % 5)})"
        yield f"  (and {w.box(8, 16)} {compare} (>= {w.name('Y', 0)} {w.number()}))\n"
    yield "))\n"


def index_lookups(w: Writer) -> Iterator[str]:
    yield from w.head(1, 1)
    yield "(assert (or\n"
    for k in range(820_000 if w.version == 1 else 700_000):
        yield f"  (and {w.box(1, 12)} ({'<>'[k % 2]}= {w.name('Y', 0)} {w.number()}))\n"
    yield "))\n"


def one_box(w: Writer) -> Iterator[str]:
    yield from w.head(1_000_000, 10)
    for k in range(1_000_000):
        yield "".join(f"(assert {end})\n" for end in w.ends(k, 9))
    others = " ".join(f"(>= {w.name('Y', k)} {w.name('Y', 0)})" for k in range(1, 10))
    yield f"(assert (or {others}))\n"


def big_boxes(w: Writer) -> Iterator[str]:
    yield from w.head(12_296, 20)
    yield "(assert (or\n"
    for _ in range(120):
        yield f"(and {w.box(12_296, 9)} (<= {w.name('Y', 0)} 0.5))\n"
    yield "))\n"


def hyperplanes(w: Writer) -> Iterator[str]:
    yield from w.head(100, 50)
    for k in range(100):
        yield f"(assert (<= {w.name('X', k)} 1.0))\n(assert (>= {w.name('X', k)} -1.0))\n"
    for k in range(20_000):
        places = [w.name("XY"[k % 2], w.random.randrange(50)) for _ in range(30)]
        terms = " ".join(f"(* {w.number()} {place})" for place in places)
        yield f"(assert (<= (+ {terms}) {w.random.uniform(5, 9):.6f}))\n"


STYLES: dict[str, Callable[[Writer], Iterator[str]]] = {
    "150,000 small boxes": small_boxes,
    "one input, 700,000 cases and more": index_lookups,
    "one box of 1,000,000 inputs": one_box,
    "120 boxes of 12,296 inputs": big_boxes,
    "20,000 rows of 30 terms": hyperplanes,
}


def cost_of(arguments: list[str]) -> tuple[str, float, int]:
    """Output, CPU seconds, and peak MiB of a process."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = child.stdout.read().strip()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: ended with {status}")
    return said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the files, one at a time")
    parser.add_argument("--only", default="", help="styles whose name has this in it")
    options = parser.parse_args()
    kept = options.folder / "kept"
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    print("| file | version | MB | cases | prepare: CPU s, MiB | run: CPU s, MiB |")
    print("|---|---|---|---|---|---|")
    for name, style in STYLES.items():
        for version in (1, 2):
            if options.only not in name:
                continue
            path = options.folder / "property.vnnlib"
            with path.open("w", encoding="ascii") as file:
                file.writelines(style(Writer(version)))
            _, seconds, memory = cost_of(["-m", "bitcrown.spec.kept", str(kept), str(path)])
            cases, seconds_run, memory_run = cost_of(["-c", RUN, str(kept), str(path)])
            size = path.stat().st_size / 1e6
            print(
                f"| {name} | {version} | {size:.0f} | {cases} | {seconds:.1f}, {memory} |", end=""
            )
            print(f" {seconds_run:.1f}, {memory_run} |", flush=True)
            for leftover in (path, *kept.iterdir()):
                leftover.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
