"""The standing fuzzer: is any answer false, does any witness fail, does anything crash?

    python tests/fuzz/soundness.py --minutes 30 --seed 1 --family float

Instances are numbered: a family, a seed and a number give the same instance again
(``--only NUMBER``). Failures are shrunk and written to ``--out``, one folder each; the last line of
the output is the count of every kind as JSON. Exit code 1 says that something failed. ``--count``
in place of ``--minutes`` makes the run depend on nothing but the seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fuzz.isolation import results  # noqa: E402

FAILURES = (
    "false unsat",
    "false sat",
    "witness fails",
    "traceback",
    "hang",
    "crash",
    "false proof",
    "true proof rejected",
)
FAMILIES = ("float", "integer", "mixed", "parser", "certificate", "pairs")
CPU_SECONDS = 10.0
"""Limit of one instance; bitcrown itself is given a fraction of it."""
SHRINKING_SECONDS = 60.0
SHOWN = 2
"""Failures of one signature that are shrunk and written; all are counted."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--family", choices=FAMILIES, action="append", help="default: all, one after the other"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for each family")
    parser.add_argument(
        "--count", type=int, default=0, help="instances of each family, in place of --minutes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=-1, help="one instance by its number")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "fuzz", help="folder for failures"
    )
    parser.add_argument("--no-shrink", action="store_true", help="count failures, but write none")
    options = parser.parse_args(arguments)
    failed = False
    for name in options.family or FAMILIES:
        report = run_family(name, options)
        print(table(report))
        print(json.dumps(report))
        failed = failed or any(report["kinds"].get(kind) for kind in FAILURES)
    return int(failed)


def family_of(name: str) -> Any:
    """The module of a family: ``trial(seed, number)`` and
    ``explained(seed, number, result, folder)``."""
    import torch

    torch.set_num_threads(1)
    module = __import__(f"tests.fuzz.{name}_family", fromlist=["trial"])
    return module


def run_family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    family, started = family_of(name), time.time()
    kinds: Counter[str] = Counter()
    signatures: dict[str, list[int]] = {}
    numbers: Iterator[int] = itertools.count()
    if options.only >= 0:
        numbers = iter([options.only])
    elif options.count:
        numbers = iter(range(options.count))
    limits = getattr(family, "CPU_SECONDS", CPU_SECONDS), getattr(family, "CPU_CLOCK", True)
    for number, result in results(lambda k: family.trial(options.seed, k), numbers, *limits):
        kinds[result["kind"]] += 1
        if result["kind"] in FAILURES:
            signature = result.get("signature", result["kind"])
            seen = signatures.setdefault(signature, [])
            seen.append(number)
            print(f"{name} {options.seed} {number}: {json.dumps(result, default=str)}", flush=True)
            if len(seen) <= SHOWN and not options.no_shrink:
                write_failure(family, name, options, number, result)
        elif options.only >= 0:
            print(json.dumps(result, default=str))
        if not options.count and options.only < 0 and time.time() - started > 60 * options.minutes:
            break
    found = {
        text: {"count": len(places), "first": places[:SHOWN]} for text, places in signatures.items()
    }
    seconds = round(time.time() - started, 1)
    total = sum(kinds.values())
    return {
        "family": name,
        "seed": options.seed,
        "instances": total,
        "seconds": seconds,
        "kinds": dict(sorted(kinds.items())),
        "failures": found,
    }


def write_failure(
    family: Any, name: str, options: argparse.Namespace, number: int, result: dict[str, Any]
) -> None:
    """The shrunk instance in a folder of its own, made in a child as well; a line in the folder's
    README."""
    folder = options.out / f"{name}_{options.seed}_{number}"
    folder.mkdir(parents=True, exist_ok=True)

    def explain(number: int) -> dict[str, Any]:
        return {"kind": "explained", "line": family.explained(options.seed, number, result, folder)}

    (_, answer), *_ = results(
        explain, [number], SHRINKING_SECONDS, getattr(family, "CPU_CLOCK", True)
    )
    line = answer.get(
        "line",
        f"{result['kind']}: {result.get('signature', '')} (shrinking it failed: {answer['kind']})",
    )
    print(f"  {folder}: {line}", flush=True)
    with open(options.out / "README.md", "a", encoding="utf-8") as file:
        file.write(f"| `{folder.name}` | {line} |\n")


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['family']} (seed {report['seed']}): {report['instances']} instances, "
        f"{report['seconds']} s"
    ]
    lines += [f"  {kind:24} {count:8}" for kind, count in report["kinds"].items()]
    for text, found in report["failures"].items():
        lines.append(
            f"  ! {found['count']:5} x {text}   (first: {', '.join(map(str, found['first']))})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
