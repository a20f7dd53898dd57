"""Decides the published queries in one process and prints our verdicts beside the published ones.

table.py [--dataset mnist|fashion-mnist] [--samples 0-99] [--seconds 60] [--out FILE] [--check].
Every decided sample becomes one JSON record in FILE at once; a later run goes on after them,
whatever commit wrote them. Robust verdicts come with a certificate, whose size is recorded;
``--check`` also has the independent checker go through each, and ``--certificates FOLDER`` keeps
them. CPU seconds, of the limit and of the table, are those of the decision, with the recording of
the proof, on one thread; reading the network is not in them. Exit codes: 0 all decided and none
contradicts a published verdict, 1 a contradiction, 2 bad input, 3 some undecided.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from decision import accepts, answer, save_certificate
from samples import (
    DATASETS,
    MISCLASSIFIED,
    ROBUST,
    TIMEOUT,
    VERDICTS,
    VULNERABLE,
    Benchmark,
    Query,
    published,
    ranges,
)

from bitcrown.errors import BitcrownError, SettingsError
from bitcrown.files import append_record, read_records
from bitcrown.harness.instance import parse_timeout
from bitcrown.provenance import commit, machine

DECIDED, WRONG, BAD_INPUT, UNDECIDED = 0, 1, 2, 3
UNKNOWN = "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="our verdicts beside the published ones", allow_abbrev=False
    )
    parser.add_argument("--dataset", choices=DATASETS, action="append", help="(default: both)")
    parser.add_argument(
        "--samples", default="0-9999", metavar="A-B", help="only these numbers of the test set"
    )
    parser.add_argument(
        "--seconds", default="60", metavar="S", help="CPU seconds a sample (default: 60)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/qnn_robustness/table.jsonl"), metavar="FILE"
    )
    parser.add_argument(
        "--check", action="store_true", help="run the certificate checker on every certificate"
    )
    parser.add_argument("--certificates", type=Path, metavar="FOLDER", help="keep the certificates")
    options = parser.parse_args()
    try:
        first, last = sample_range(options.samples)
        options.seconds = parse_timeout(options.seconds)
        rows = []
        for dataset in options.dataset or DATASETS:
            queries = [query for query in published(dataset) if first <= query.sample_id <= last]
            rows += decided(dataset, queries, options)
    except (BitcrownError, OSError) as error:
        print(f"table: {error}", file=sys.stderr)
        return BAD_INPUT
    print(table(rows))
    return exit_code(rows)


def sample_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise SettingsError(f"--samples is a number or a range such as 0-99, but got {text!r}")
    return int(first), int(last) if dash else int(first)


def decided(
    dataset: str, queries: list[Query], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The records of ``queries``, old ones of the file included, in the order of the queries."""
    old = read_records(options.out) if options.out.exists() else []
    done = {
        (row["dataset"], row["sample_id"], row["eps"]): row for row in old if is_done(row, options)
    }
    benchmark = Benchmark.of(dataset)
    rows = []
    for query in queries:
        row = done.get((query.dataset, query.sample_id, query.eps))
        if row is None:
            row = record(benchmark, query, options)
            append_record(options.out, row)
        rows.append(row)
    return rows


def is_done(row: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Whether an old record answers what is asked now; an undecided one does not where more time is
    given."""
    if "sample_id" not in row or (
        row["verdict"] in (TIMEOUT, UNKNOWN) and row["seconds"] < options.seconds
    ):
        return False
    return not options.check or row["verdict"] != ROBUST or "rejected" in row


def record(benchmark: Benchmark, query: Query, options: argparse.Namespace) -> dict[str, Any]:
    found = answer(benchmark, query, options.seconds, want_certificate=True)
    row: dict[str, Any] = {
        "dataset": query.dataset,
        "sample_id": query.sample_id,
        "eps": query.eps,
        "label": found.label,
        "published": query.published,
        "verdict": found.verdict,
        "detail": found.detail,
        "cpu_s": round(found.cpu_s, 4),
        "counters": found.counters,
        "seconds": options.seconds,
        "clock": "cpu",
        "commit": commit(),
        "machine": machine(),
    }
    if found.witness is not None:
        row |= {"seen": found.seen, "witness": found.witness.tolist()}
    if found.certificate is not None:
        row["certificate_bytes"] = len(json.dumps(found.certificate))
        if options.check:
            row["rejected"] = accepts(benchmark, query, found.certificate)
        if options.certificates is not None:
            name = f"{query.dataset}_{query.sample_id:04}_eps{query.eps}.json"
            save_certificate(found.certificate, options.certificates / name)
    return row


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether a verdict contradicts a published one, or its evidence does not hold."""
    if row.get("rejected") or (row["verdict"] == VULNERABLE and row["seen"] == row["label"]):
        return True
    if MISCLASSIFIED in (row["published"], row["verdict"]):
        return bool(row["published"] != row["verdict"])
    return {row["published"], row["verdict"]} == {ROBUST, VULNERABLE}


def exit_code(rows: Iterable[Mapping[str, Any]]) -> int:
    if any(is_wrong(row) for row in rows):
        return WRONG
    return UNDECIDED if any(row["verdict"] in (TIMEOUT, UNKNOWN) for row in rows) else DECIDED


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for every data set, radius and verdict that occurs; then what the published
    method left open."""
    lines = [
        "| samples | eps | verdict | published | ours | CPU s | ours, by sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset in DATASETS:
        for eps in sorted({row["eps"] for row in rows}):
            group = [row for row in rows if (row["dataset"], row["eps"]) == (dataset, eps)]
            for verdict in (*VERDICTS, UNKNOWN):
                ours = [row for row in group if row["verdict"] == verdict]
                theirs = sum(row["published"] == verdict for row in group)
                if ours or theirs:
                    name = f"{dataset} {ranges_of(group)}"
                    ids = (
                        "remaining"
                        if verdict == ROBUST
                        else ", ".join(str(row["sample_id"]) for row in ours) or "-"
                    )
                    spent = sum(row["cpu_s"] for row in ours)
                    lines.append(
                        f"| {name} | {eps} | {verdict} | {theirs} | {len(ours)} | {spent:.2f} | "
                        f"{ids} |"
                    )
    return "\n".join([*lines, "", *summary(rows)])


def ranges_of(rows: list[dict[str, Any]]) -> str:
    return ranges(np.array([row["sample_id"] for row in rows]))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    count = Counter(row["verdict"] for row in rows)
    open_ = [row for row in rows if row["published"] == TIMEOUT]
    now = Counter(row["verdict"] for row in open_)
    slowest = max(rows, key=lambda row: row["cpu_s"], default=None)
    lines = [
        f"{len(rows)} samples: "
        + ", ".join(f"{number} {verdict}" for verdict, number in count.items()),
        f"published as timeout: {len(open_)}, now "
        + (", ".join(f"{n} {word}" for word, n in now.items()) or "none"),
        f"CPU seconds of all decisions: {sum(row['cpu_s'] for row in rows):.2f}",
    ]
    if slowest is not None:
        lines.append(
            f"slowest: {slowest['dataset']} {slowest['sample_id']}, {slowest['cpu_s']:.2f} s"
        )
    checked = [row for row in rows if "rejected" in row]
    if checked:
        lines.append(
            f"certificates: {len(checked)} checked, "
            f"{sum(bool(row['rejected']) for row in checked)} rejected"
        )
    lines += [
        f"WRONG: {row['dataset']} {row['sample_id']}: {row['verdict']}"
        for row in rows
        if is_wrong(row)
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
