"""Networks with quantized operators: decided in integers, exactly as onnxruntime computes them.

A network whose file ``is_quantized`` is read as an ``IntegerNetwork``; the property's boxes become
boxes of integers, its cases integer constraints, and ``quant.decide`` searches. A counterexample is
a lattice point; the input that represents it inside the property's box is replayed on the original
file like every other witness. Where integers resist, descents in floats (``twins``) propose points.

An input box counts as what a scorer reads from it: where a bound is no number of the input's type,
the nearest one belongs to the box as well, so proofs cover it. Where the network cannot be read as
integers the float engine has its turn; the counters then hold the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.entry import WholeEntry
from bitcrown.quant.network.graph import IntegerNetwork, Ints, QuantError
from bitcrown.quant.proof.writer import certificate_form
from bitcrown.quant.query import IntegerQuery, split_by_box
from bitcrown.quant.search.decide import decide_query
from bitcrown.search.twins import FloatDescents
from bitcrown.spec.problem import Case, Problem
from bitcrown.spec.rounding import Kind, box_of
from bitcrown.verdict import Reason, Status, Verdict

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run


def decide_in_integers(run: Run) -> Verdict | None:
    """The verdict on a quantized network; None where the float engine should try."""
    found = read_in_integers(run)
    if found is None:
        return None
    network, queries = found
    file = next(iter(run.files.values()))
    run.files.clear()
    run.counters["is_exact"] = int(network.is_exact())
    with run.phase("integers"):
        return _decide_queries(run, network, queries, FloatDescents(run, file))


def read_in_integers(run: Run) -> tuple[IntegerNetwork, list[IntegerQuery]] | None:
    """The network in integers and what is asked of it, a query for each box; None where the file is
    no such network, and then the counters hold the reason."""
    if len(run.problem.networks) != 1:
        return None
    file = next(iter(run.files.values()))
    if not file.is_quantized:
        return None
    try:
        with run.phase("read"):
            network = run.integers or read_onnx(file, seed=run.settings.seed)
            return network, _queries(run, network)
    except QuantError as error:
        run.counters["not_read_as_integers"] = str(error)
        return None


def _queries(run: Run, network: IntegerNetwork) -> list[IntegerQuery]:
    """One for every input box; each knows which integers the inputs of a witness may become."""
    wide = covering(run.problem, run.replay.dtypes())
    queries = split_by_box(wide, network)
    if isinstance(network.entry, WholeEntry):
        return queries
    strict: dict[Any, tuple[Ints, Ints]] = {}
    for case, widened in zip(run.problem.cases, wide.cases, strict=True):
        key = widened.lower, widened.upper
        if key not in strict:
            box = run.confirmer.box(case)
            ends = network.entry.integers(np.stack([box.lower, box.upper]))
            strict[key] = ends.min(axis=0), ends.max(axis=0)
    return [
        query if query.real_box is None else replace(query, inner=strict[query.real_box])
        for query in queries
    ]


def covering(problem: Problem, kinds: Iterable[Kind]) -> Problem:
    """The problem with every box widened to the reading of its bounds in the types ``kinds [n]`` of
    the inputs.

    An end beyond all numbers of float64 stays as it is.
    """
    types = list(kinds)

    def widened(case: Case) -> Case:
        ends = [box_of(*interval) for interval in zip(case.lower, case.upper, types, strict=True)]
        lower = [
            exact if math.isinf(end) else Fraction(end)
            for (end, _), exact in zip(ends, case.lower, strict=True)
        ]
        upper = [
            exact if math.isinf(end) else Fraction(end)
            for (_, end), exact in zip(ends, case.upper, strict=True)
        ]
        return replace(case, lower=tuple(lower), upper=tuple(upper))

    return replace(problem, cases=tuple(widened(case) for case in problem.cases))


def _decide_queries(
    run: Run,
    network: IntegerNetwork,
    queries: list[IntegerQuery],
    floats: FloatDescents,
) -> Verdict:
    def whole(budget: Budget) -> Iterator[Ints]:
        for points in floats.proposals(budget):
            if isinstance(network.entry, WholeEntry):
                points = np.clip(np.rint(points), network.entry.low, network.entry.high)
            yield network.entry.integers(points)

    program = Program(network)
    open_: list[Verdict] = []
    keeps_proof = run.want_certificate and len(queries) == 1
    certificate: dict[str, Any] | None = None
    for query in queries:
        decision = decide_query(
            query, run.budget, run.settings.seed, keeps_proof, program, proposals=whole
        )
        for name, value in decision.counters.items():
            run.counters[name] = (
                run.counters.get(name, 0) + value if isinstance(value, int) else value
            )
        if floats.witness is not None:
            return run.sat(floats.witness, "attack")
        if decision.status is Status.SAT:
            assert decision.witness is not None and query.real_box is not None
            x = network.entry.representative(decision.witness, *query.real_box)
            witness = run.confirm(np.asarray(x, dtype=np.float64))
            if witness is not None:
                return run.sat(witness, f"integers: {decision.decided_by}")
            open_.append(
                run.unknown(
                    Reason.REPLAY, "the lattice point found has no representative in the box"
                )
            )
        elif decision.status is Status.UNSAT:
            if keeps_proof and decision.proof is not None:
                certificate = certificate_form(
                    query, decision.proof, decision.roots, with_forms=True
                )
        else:
            open_.append(
                run.verdict(decision.status, reason=decision.reason, detail=decision.detail)
            )
    return (
        open_[0]
        if open_
        else run.verdict(Status.UNSAT, "integers: staircase bounds", certificate=certificate)
    )
