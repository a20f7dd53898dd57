"""Decides one robustness query: check_mnist_robustness.py --sample_id 115 --eps 2 [--dataset
fashion-mnist] [--images FOLDER].

Prints the accuracy of the network, and the verdict in one line. ``--export`` writes the query as an
SMT-LIB 2 script instead (``sat`` means vulnerable), for any solver of QF_BV; ``--certificate FILE``
writes the proof of a robust verdict, which ``bitcrown check-certificate`` checks; ``--max-radius``
searches the largest eps at which the sample is robust. Exit codes: 0 decided or written, 2 bad
input, 3 undecided.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from decision import answer, save_certificate
from samples import DATASETS, MISCLASSIFIED, ROBUST, VULNERABLE, Benchmark, Query

from bitcrown.budget import Budget
from bitcrown.errors import BitcrownError
from bitcrown.harness.instance import parse_timeout
from bitcrown.quant.query import IntegerQuery, robustness_query

DECIDED, BAD_INPUT, UNDECIDED = 0, 2, 3
SIDE = 28


def main() -> int:
    parser = argparse.ArgumentParser(
        description="robustness of one test image, decided exactly", allow_abbrev=False
    )
    parser.add_argument(
        "--sample_id", type=int, default=0, metavar="N", help="number in the test set (default: 0)"
    )
    parser.add_argument(
        "--eps",
        type=int,
        default=1,
        metavar="E",
        help="radius in pixel steps, of 0 to 255 (default: 1)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="idx files of the whole test set (default: the images of the published queries)",
    )
    parser.add_argument("--dataset", choices=DATASETS, default="mnist")
    parser.add_argument("--seconds", default="60", metavar="S", help="CPU seconds (default: 60)")
    parser.add_argument(
        "--encoding",
        default="improved",
        help="of --export: baseline, published or improved (default)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--export", action="store_true", help="write smt2/DATASET_NNNN.smt2 and decide nothing"
    )
    what.add_argument(
        "--certificate", type=Path, metavar="FILE", help="write the proof of a robust verdict"
    )
    what.add_argument("--max-radius", action="store_true", help="search the largest robust eps")
    options = parser.parse_args()
    try:
        options.seconds = parse_timeout(options.seconds)
        if options.max_radius:
            return radius(options)
        return export(options) if options.export else decide(options)
    except (BitcrownError, OSError) as error:
        print(f"check_mnist_robustness: {error}", file=sys.stderr)
        return BAD_INPUT


def opened(options: argparse.Namespace) -> Benchmark:
    """The data set that is asked for; says how good the network is on it."""
    benchmark = Benchmark.of(options.dataset, options.images)
    right, total = benchmark.accuracy()
    which = "stored" if options.images is None else "all"
    print(f"test accuracy: {right / total:.2%} ({right} of {total} images, {which})")
    return benchmark


def decide(options: argparse.Namespace) -> int:
    benchmark = opened(options)
    query = Query(options.dataset, options.sample_id, options.eps)
    found = answer(benchmark, query, options.seconds, options.certificate is not None)
    title = f"{query.dataset} sample {query.sample_id}, label {found.label}"
    if found.verdict == MISCLASSIFIED:
        print(f"{title}: misclassified as {found.seen}")
        return DECIDED
    print(f"{title}, eps {query.eps}: {found.verdict} ({found.detail}; {found.cpu_s:.3f} s)")
    if found.verdict == VULNERABLE:
        assert found.witness is not None
        print(f"counterexample, labelled {found.seen}, {SIDE} by {SIDE} pixels:")
        for row in found.witness.reshape(SIDE, SIDE).tolist():
            print(" ".join(f"{pixel:3}" for pixel in row))
    if found.certificate is not None:
        save_certificate(found.certificate, options.certificate)
        print(f"certificate: {options.certificate}")
    return DECIDED if found.verdict in (ROBUST, VULNERABLE) else UNDECIDED


def export(options: argparse.Namespace) -> int:
    from bitcrown.quant.smt.formula import encode
    from bitcrown.quant.smt.smtlib import smtlib_script

    benchmark = Benchmark.of(options.dataset, options.images)
    image, label = benchmark.samples.sample(options.sample_id)
    query = robustness_query(benchmark.network, image, label, options.eps)
    formula = encode(query.network, query.low, query.high, dense_cases(query), options.encoding)
    path = Path("smt2") / f"{options.dataset}_{options.sample_id:04}.smt2"
    path.parent.mkdir(exist_ok=True)
    path.write_text(smtlib_script(formula))
    print(f"{path}: sat means vulnerable, unsat means robust")
    return DECIDED


def dense_cases(query: IntegerQuery) -> tuple[tuple[tuple[tuple[int, ...], int], ...], ...]:
    """The cases with a coefficient for every output, as the bit-vector encoder takes them."""
    outputs = int(np.prod(query.network.nodes[query.network.output].shape))
    cases = []
    for case in query.cases:
        rows = [(dict(constraint.terms), constraint.bound) for constraint in case]
        cases.append(
            tuple((tuple(terms.get(i, 0) for i in range(outputs)), bound) for terms, bound in rows)
        )
    return tuple(cases)


def radius(options: argparse.Namespace) -> int:
    from maximum_radius import maximum_radius

    benchmark = opened(options)
    image, label = benchmark.samples.sample(options.sample_id)
    started = time.process_time()
    budget = Budget.of_cpu_seconds(options.seconds)
    found = maximum_radius(benchmark.network, image, label, budget, program=benchmark.program)
    title = f"{options.dataset} sample {options.sample_id}, label {label}"
    if found.proved < 0 and found.refuted == 0:
        print(f"{title}: misclassified as {benchmark.predicted(image)}")
        return DECIDED
    spent = f"{found.queries} queries; {time.process_time() - started:.3f} s"
    if found.is_exact():
        print(f"{title}: maximum robust radius {found.proved} ({spent})")
        return DECIDED
    upper = "" if found.refuted is None else f" and at most {found.refuted - 1}"
    print(
        f"{title}: maximum robust radius at least {max(found.proved, 0)}{upper}, not settled in "
        f"the time ({spent})"
    )
    return UNDECIDED


if __name__ == "__main__":
    sys.exit(main())
