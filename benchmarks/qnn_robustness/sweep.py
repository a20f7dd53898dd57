"""Robustness of test images under any quantized network and radius: sweep.py NETWORK... --images
FILE --eps 1 2 4.

NETWORK is an ``.h5`` file of the benchmark's family or a quantized ONNX file; ``--images`` and
``--labels`` are idx files (gzipped). Every input within eps of the image, clipped to 0..255, must
get the image's label (first index of the largest output). A network with float inputs takes pixels
divided by ``--divide`` (1: pixels as they are, 255: [0, 1]); its box holds all float32 numbers
between the ends. ``--max-radius`` searches the largest robust eps instead.

Every answer becomes one JSON record in ``--out`` at once, and a later run goes on after them; what
was open under another time limit is asked again. ``--check`` has the independent checker go through
every proof. A counterexample is run by onnxruntime where it runs the file. The table at the end
counts the records asked for. Exit codes: 0 nothing contradicts its evidence, 1 something does, 2
bad input.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from maximum_radius import maximum_radius

from bitcrown.budget import Budget
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.errors import BitcrownError
from bitcrown.files import append_record, read_records
from bitcrown.harness.instance import parse_timeout
from bitcrown.provenance import commit, machine
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.formats.fixed_point import read_h5
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.entry import WholeEntry
from bitcrown.quant.network.graph import IntegerNetwork
from bitcrown.quant.proof.writer import certificate_form, form_digest, network_form, property_form
from bitcrown.quant.query import IntegerQuery, real_robustness_query
from bitcrown.quant.search.decide import Decision, decide_query
from bitcrown.verdict import Status

DECIDED, WRONG, BAD_INPUT = 0, 1, 2
WORDS = {Status.SAT: "vulnerable", Status.UNSAT: "robust", Status.TIMEOUT: "timeout"}
COLUMNS = ("robust", "vulnerable", "misclassified", "timeout", "unknown")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with what its queries share; ``divide``: what a pixel is divided by on its way to a
    float input."""

    name: str
    network: IntegerNetwork
    program: Program
    form_digest: str
    divide: int

    def tensor(self, pixels: np.ndarray) -> np.ndarray:
        """[784] pixels as the file takes them."""
        if isinstance(self.network.entry, WholeEntry):
            return pixels.astype(self.network.entry.dtype)
        return pixels.astype(np.float32) / np.float32(self.divide)

    def label(self, values: np.ndarray) -> int:
        """First index of the largest output, by the file's own runtime where there is one."""
        if self.network.runtime is not None:
            return int(self.network.runtime(values[None])[0].argmax())
        return int(self.network.evaluate(self.network.entry.integers(values[None]))[0].argmax())

    def query(self, pixels: np.ndarray, label: int, eps: int) -> IntegerQuery:
        ends = np.clip(pixels - eps, 0, 255), np.clip(pixels + eps, 0, 255)
        divide = 1 if isinstance(self.network.entry, WholeEntry) else self.divide
        lower, upper = (tuple(Fraction(int(v), divide) for v in end) for end in ends)
        return real_robustness_query(self.network, lower, upper, label)


def main() -> int:
    options = arguments().parse_args()
    try:
        images = read_idx(options.images, 16).reshape(-1, 784).astype(np.int64)
        labels = read_idx(options.labels, 8).astype(np.int64)
        old = read_records(options.out) if options.out.exists() else []
        known = {key(row): row for row in old if answers(row, options.seconds)}
        first, _, last = options.samples.partition("-")
        rows = []
        for path in options.networks:
            subject = None
            radii: list[int | None] = [None] if options.max_radius else options.eps
            for eps in radii:
                for sample in range(int(first), int(last or first) + 1):
                    asked = {
                        "network": path.name,
                        "eps": eps,
                        "sample": sample,
                        "seconds": options.seconds,
                        "clock": "cpu",
                    }
                    if key(asked) not in known:
                        subject = subject or read(path, options.divide)
                        given = subject, images[sample], int(labels[sample]), options
                        found = radius(*given) if eps is None else robustness(*given, eps)
                        append_record(
                            options.out, asked | found | {"commit": commit(), "machine": machine()}
                        )
                        known[key(asked)] = asked | found
                    rows.append(known[key(asked)])
    except (BitcrownError, OSError, ValueError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return BAD_INPUT
    print(radius_table(rows) if options.max_radius else table(rows))
    return WRONG if any(row.get("wrong") for row in rows) else DECIDED


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="robustness of quantized networks", allow_abbrev=False
    )
    parser.add_argument("networks", type=Path, nargs="+", metavar="NETWORK")
    parser.add_argument("--images", type=Path, required=True, metavar="FILE")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE")
    parser.add_argument("--samples", default="0-49", metavar="A-B", help="(default: 0-49)")
    parser.add_argument(
        "--eps", type=int, nargs="+", default=[1, 2, 4], metavar="E", help="in pixel steps"
    )
    parser.add_argument(
        "--max-radius", action="store_true", help="search the largest robust eps instead"
    )
    parser.add_argument(
        "--seconds",
        type=parse_timeout,
        default=60.0,
        metavar="S",
        help="of computing, a sample (60)",
    )
    parser.add_argument(
        "--divide", type=int, default=1, metavar="D", help="of pixels for float inputs (default: 1)"
    )
    parser.add_argument(
        "--check", action="store_true", help="run the certificate checker on every proof"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/qnn_robustness/sweep.jsonl"), metavar="FILE"
    )
    return parser


def answers(row: dict[str, Any], seconds: float) -> bool:
    """Whether a record tells what happens within ``seconds``: it had as many, or was decided in
    fewer."""
    is_open = row.get("verdict") == "timeout" or row.get("is_exact") is False
    return row["seconds"] == seconds or (row["seconds"] < seconds and not is_open)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["eps"], row["sample"]


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of a gzipped idx file after its ``header`` bytes."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def read(path: Path, divide: int) -> Subject:
    network = read_h5(path) if path.suffix == ".h5" else read_onnx(path)
    return Subject(path.name, network, Program(network), form_digest(network_form(network)), divide)


def robustness(
    subject: Subject, pixels: np.ndarray, label: int, options: argparse.Namespace, eps: int
) -> Any:
    """The record's fields for one query; the time is that of the decision alone."""
    predicted = subject.label(subject.tensor(pixels))
    if predicted != label:
        return {"verdict": "misclassified", "seen": predicted, "cpu_s": 0.0}
    query = subject.query(pixels, label, eps)
    started = time.process_time()
    found = decide_query(
        query,
        Budget.of_cpu_seconds(options.seconds),
        want_certificate=options.check,
        program=subject.program,
    )
    row: dict[str, Any] = {
        "verdict": WORDS.get(found.status, "unknown"),
        "cpu_s": round(time.process_time() - started, 3),
        "decided_by": found.decided_by or found.detail,
        "counters": found.counters,
    }
    return row | evidence(subject, query, label, found, options.check)


def evidence(
    subject: Subject, query: IntegerQuery, label: int, found: Decision, is_checked: bool
) -> dict[str, Any]:
    """What the runtime says about a counterexample, and the checker about a proof."""
    if found.status is Status.SAT:
        assert found.witness is not None and query.real_box is not None
        seen = subject.label(subject.network.entry.representative(found.witness, *query.real_box))
        return {"seen": seen, "wrong": seen == label}
    if found.status is Status.UNSAT and is_checked:
        assert found.proof is not None
        network = network_form(subject.network)
        certificate = certificate_form(query, found.proof, found.roots, form_digest(network))
        finding = check_integer_proof(network, property_form(query), certificate)
        return {
            "rejected": "" if finding.accepted else finding.message,
            "wrong": not finding.accepted,
        }
    return {}


def radius(subject: Subject, pixels: np.ndarray, label: int, options: argparse.Namespace) -> Any:
    started = time.process_time()
    budget = Budget.of_cpu_seconds(options.seconds)
    found = maximum_radius(subject.network, pixels, label, budget, program=subject.program)
    return {
        "proved": found.proved,
        "refuted": found.refuted,
        "is_exact": found.is_exact(),
        "queries": found.queries,
        "cpu_s": round(time.process_time() - started, 3),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| network | eps | {' | '.join(COLUMNS)} | decided | median s | sum s | proofs checked | "
        "wrong |",
        "|---|" + "---|" * (len(COLUMNS) + 6),
    ]
    for network, eps in dict.fromkeys((row["network"], row["eps"]) for row in rows):
        group = [row for row in rows if (row["network"], row["eps"]) == (network, eps)]
        count = Counter(row["verdict"] for row in group)
        times = [row["cpu_s"] for row in group if row["verdict"] != "misclassified"]
        decided = count["robust"] + count["vulnerable"]
        lines.append(
            f"| {network} | {eps} | {' | '.join(str(count[word]) for word in COLUMNS)} | "
            f"{decided}/{len(times)} | "
            f"{statistics.median(times or [0]):.2f} | {sum(times):.0f} | "
            f"{sum('rejected' in row for row in group)} | "
            f"{sum(bool(row.get('wrong')) for row in group)} |"
        )
    return "\n".join(lines)


def radius_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | samples | misclassified | exact | bracket only | mean of exact | sum s |",
        "|" + "---|" * 7,
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        group = [row for row in rows if row["network"] == network]
        exact = [row["proved"] for row in group if row["is_exact"] and row["proved"] >= 0]
        wrong = sum(row["proved"] < 0 and row["refuted"] == 0 for row in group)
        lines.append(
            f"| {network} | {len(group)} | {wrong} | {len(exact)} | "
            f"{len(group) - len(exact) - wrong} | "
            f"{statistics.mean(exact or [0]):.2f} | {sum(row['cpu_s'] for row in group):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
