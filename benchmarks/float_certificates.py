"""Proofs of float networks as files: how long they take to write and to check, and how large they
are.

    python benchmarks/float_certificates.py SUITE [SUITE ...] [--filter GLOB] [--most 3] [--timeout
    300] [--mutations 9]

SUITE is a folder with ``instances.csv`` and ``expected.csv``. Each instance whose truth is
``unsat`` (until ``--most`` of a suite are decided) is verified with ``--certificate`` and checked,
both as a user would, in processes of their own. Then damaged copies of the file are checked; an
accepted one still proves what is true, so they are only counted. A JSON line an instance goes to
stdout; ``proof_s`` and ``write_s`` are phases of the run, ``check_s`` is the whole command,
``check_cpu_s`` what it took of a processor.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def command(*arguments: str) -> tuple[int, str, str, float, float]:
    """Exit code, stdout, stderr, seconds and CPU seconds."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "bitcrown.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        done.returncode,
        done.stdout.strip(),
        done.stderr.strip(),
        time.monotonic() - started,
        spent,
    )


def damaged(onnx: Path, prop: Path, certificate: Path, count: int) -> dict[str, int]:
    """How many of ``count`` damaged copies are rejected or still accepted."""
    import numpy as np

    from bitcrown.api import load
    from bitcrown.check.certificates.floats.checker import check_float_proof, subject_of
    from bitcrown.check.certificates.floats.format import encoded
    from tests.float_certificates import mutated

    random, subject = np.random.default_rng(0), subject_of(load(onnx, prop))
    data, found = certificate.read_bytes(), {"rejected": 0, "accepted": 0}
    for _ in range(count):
        try:
            outcome = check_float_proof(encoded(mutated(random, data)), subject)
        except ValueError:  # NaN is no JSON
            continue
        found["accepted" if outcome.accepted else "rejected"] += 1
    return found


def measure(suite: Path, onnx: str, prop: str, timeout: str, mutations: int) -> dict[str, object]:
    network = suite / onnx if (suite / onnx).exists() else suite / f"{onnx}.gz"
    with tempfile.TemporaryDirectory() as folder:
        certificate, record = Path(folder) / "proof.gz", Path(folder) / "record.jsonl"
        files = str(network), str(suite / prop)
        keep = ("--certificate", str(certificate), "--record", str(record))
        _, answer, notes, _, _ = command("verify", *files, "--timeout", timeout, *keep)
        run = json.loads(record.read_text().splitlines()[-1])
        phases = {name: round(float(seconds), 3) for name, seconds in run["phases"].items()}
        writing = phases.pop("certificate", 0.0)
        row: dict[str, object] = {
            "suite": suite.name,
            "network": onnx,
            "property": prop,
            "answer": answer.partition("\n")[0],
        }
        row |= {
            "decided_by": run["decided_by"],
            "proof_s": round(sum(phases.values()), 2),
            "write_s": round(writing, 2),
        }
        if not certificate.exists():
            return row | {"certificate": notes.splitlines()[0] if notes else ""}
        code, said, _, seconds, spent = command("check-certificate", *files, str(certificate))
        row |= {
            "bytes": certificate.stat().st_size,
            "check_s": round(seconds, 2),
            "check_cpu_s": round(spent, 2),
            "check": said,
            "exit": code,
        }
        return row | (damaged(network, suite / prop, certificate, mutations) if mutations else {})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+", type=Path)
    parser.add_argument("--filter", default="*", help="only networks whose names match")
    parser.add_argument("--most", type=int, default=3)
    parser.add_argument("--timeout", default="300")
    parser.add_argument("--mutations", type=int, default=0)
    options = parser.parse_args()
    is_right = True
    for suite in options.suites:
        with (suite / "expected.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["expected"] == "unsat"]
        done = 0
        for row in rows:
            if done == options.most or not fnmatch.fnmatch(row["onnx"], f"*{options.filter}*"):
                continue
            found = measure(suite, row["onnx"], row["vnnlib"], options.timeout, options.mutations)
            print(json.dumps(found), flush=True)
            done += found["answer"] == "unsat"
            is_right &= found["answer"] != "unsat" or found.get("check") == "accepted"
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
