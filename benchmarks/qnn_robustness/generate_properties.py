"""Writes the benchmark as VNN-COMP instances: generate_properties.py SEED [--count N] [--version
1|2] [--out DIR].

Without ``--count`` the selection is fixed and SEED has no influence on it: the 655 published
queries whose image the network classifies correctly (the other 45 are violated by the image
itself). With ``--count N``, N queries are drawn from SEED: a data set, a stored image that is
classified correctly, and a radius of 1 to 4. ``--query`` names single queries instead; the
instances that come with the suite were written by it (README.md has the command).

A property states the violation, so ``unsat`` means robust. With y the label and first-index argmax,
it is the OR over all other outputs i of ``Y_i >= Y_y`` (i < y) or ``Y_i >= Y_y + 1`` (i > y):
outputs are integers, and VNN-LIB 1.0 has no strict comparison. VNN-LIB 2.0 declares integer tensors
and writes the second as ``Y_i > Y_y``. Files are gzipped.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from samples import (
    DATASETS,
    HERE,
    MISCLASSIFIED,
    ROBUST,
    VULNERABLE,
    Benchmark,
    Query,
    network_path,
    published,
)

from bitcrown.files import read_records

SECONDS = 60
RADII = (1, 2, 3, 4)
OUTPUTS = 32
TRUTH = {ROBUST: "unsat", VULNERABLE: "sat"}
NETWORK = "N"


@dataclass(frozen=True)
class Written:
    """One instance: the network field and the property as ``instances.csv`` has them."""

    network: str
    vnnlib: str
    query: Query


def property_text(query: Query, image: np.ndarray, label: int, version: int) -> str:
    """The VNN-LIB file of a query on ``image`` [784] with ``label``."""
    low, high = np.maximum(image - query.eps, 0), np.minimum(image + query.eps, 255)
    x, y = ("X_{}", "Y_{}") if version == 1 else ("X[0,{}]", "Y[0,{}]")
    own = y.format(label)
    lines = [
        f"; {query.dataset} test image {query.sample_id}, label {label}: all inputs within "
        f"{query.eps} of it",
        "",
    ]
    if version == 1:
        lines += [f"(declare-const X_{i} Real)" for i in range(len(image))]
        lines += [f"(declare-const Y_{i} Real)" for i in range(OUTPUTS)]
    else:
        tensors = (
            f"(declare-input X uint8 [1,{len(image)}])",
            f"(declare-output Y int32 [1,{OUTPUTS}])",
        )
        lines += [
            "(vnnlib-version <2.0>)",
            f"(declare-network {NETWORK}",
            *(f"    {part}" for part in tensors),
            ")",
        ]
    lines.append("")
    for i, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        lines += [f"(assert (>= {x.format(i)} {least}))", f"(assert (<= {x.format(i)} {most}))"]
    strict = f"(and (>= {{}} (+ {own} 1)))" if version == 1 else f"(> {{}} {own})"
    plain = f"(and (>= {{}} {own}))" if version == 1 else f"(>= {{}} {own})"
    lines += ["", "(assert (or"]
    lines += [
        f"    {(plain if i < label else strict).format(y.format(i))}"
        for i in range(OUTPUTS)
        if i != label
    ]
    return "\n".join([*lines, "))", ""])


def drawn(seed: str, count: int, benchmarks: dict[str, Benchmark]) -> Iterator[Query]:
    """``count`` different queries; the same for the same seed."""
    known = {
        (q.dataset, q.sample_id, q.eps): q.published
        for dataset in DATASETS
        for q in published(dataset)
    }
    candidates = []
    for dataset, benchmark in benchmarks.items():
        right = (
            benchmark.network.evaluate(benchmark.samples.images).argmax(axis=1)
            == benchmark.samples.labels
        )
        candidates += [
            (dataset, sample_id, eps)
            for sample_id in benchmark.samples.ids[right].tolist()
            for eps in RADII
        ]
    if count > len(candidates):
        raise SystemExit(f"--count {count} is more than the {len(candidates)} queries there are")
    for key in random.Random(seed).sample(candidates, count):
        yield Query(*key, known.get(key, ""))


def named(text: str) -> tuple[Query, int | None]:
    """``mnist:115:2`` or ``mnist:115:2:1``, the last being the VNN-LIB version."""
    try:
        dataset, sample_id, eps, *version = text.split(":")
        numbers = [int(number) for number in (sample_id, eps, *version)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not DATASET:SAMPLE:EPS[:VERSION]") from error
    if (
        dataset not in DATASETS
        or numbers[1] < 0
        or len(numbers) > 3
        or (version and numbers[2] not in (1, 2))
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not DATASET:SAMPLE:EPS[:VERSION], DATASET one of {DATASETS}"
        )
    match = [q for q in published(dataset) if (q.sample_id, q.eps) == (numbers[0], numbers[1])]
    query = match[0] if match else Query(dataset, numbers[0], numbers[1])
    return query, numbers[2] if version else None


def write(query: Query, version: int, benchmark: Benchmark, out: Path) -> Written:
    image, label = benchmark.samples.sample(query.sample_id)
    suffix = "_v2" if version == 2 else ""
    name = f"vnnlib/{query.dataset}_{query.sample_id:04}_eps{query.eps}{suffix}.vnnlib"
    text = property_text(query, image, label, version)
    (out / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    path = Path(os.path.relpath(network_path(query.dataset), out.resolve())).as_posix()
    return Written(path if version == 1 else repr([(NETWORK, path)]), name, query)


def truths(records: Path | None) -> dict[tuple[str, int, int], tuple[str, str]]:
    """(sat or unsat, evidence) by query: of the publication, and of table.py's records with
    evidence."""
    rows = [] if records is None else read_records(records)
    known = {}
    for row in rows:
        key = row.get("dataset", ""), row.get("sample_id", -1), row.get("eps", -1)
        if row.get("verdict") == ROBUST and row.get("rejected") == "":
            known[key] = "unsat", "certificate accepted"
        elif row.get("verdict") == VULNERABLE and row.get("seen") != row.get("label"):
            known[key] = "sat", "counterexample replayed"
    for query in (query for dataset in DATASETS for query in published(dataset)):
        if query.published in TRUTH:
            known[query.dataset, query.sample_id, query.eps] = TRUTH[query.published], "published"
    return known


def write_lists(written: list[Written], out: Path, records: Path | None) -> None:
    """``instances.csv``, and ``expected.csv`` with the truth as far as it is known."""
    known = truths(records)
    with (out / "instances.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            (one.network, one.vnnlib, SECONDS) for one in written
        )
    with (out / "expected.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("onnx", "vnnlib", "expected", "evidence"))
        for one in written:
            key = one.query.dataset, one.query.sample_id, one.query.eps
            if key in known:
                rows.writerow((one.network, one.vnnlib, *known[key]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The AAAI 2021 quantized-network queries as VNN-COMP instances"
    )
    parser.add_argument(
        "seed", metavar="SEED", help="what --count draws from; the published selection ignores it"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="N random queries instead of the published ones"
    )
    parser.add_argument(
        "--version", type=int, choices=(1, 2), default=1, help="of VNN-LIB (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "generated", help="folder (default: generated/ here)"
    )
    parser.add_argument(
        "--query", type=named, action="append", metavar="DATASET:SAMPLE:EPS[:VERSION]"
    )
    parser.add_argument(
        "--records", type=Path, metavar="FILE", help="of table.py --check: more known verdicts"
    )
    options = parser.parse_args()
    benchmarks = {dataset: Benchmark.of(dataset) for dataset in DATASETS}
    if options.query:
        chosen = [(query, version or options.version) for query, version in options.query]
    elif options.count is not None:
        chosen = [
            (query, options.version) for query in drawn(options.seed, options.count, benchmarks)
        ]
    else:
        queries = [
            query
            for dataset in DATASETS
            for query in published(dataset)
            if query.published != MISCLASSIFIED
        ]
        chosen = [(query, options.version) for query in queries]
    (options.out / "vnnlib").mkdir(parents=True, exist_ok=True)
    written = [
        write(query, version, benchmarks[query.dataset], options.out) for query, version in chosen
    ]
    write_lists(written, options.out, options.records)
    print(f"{len(written)} instances: {options.out / 'instances.csv'}")


if __name__ == "__main__":
    main()
