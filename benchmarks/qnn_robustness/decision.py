"""One query decided in integers, with the evidence looked at again by code that the prover does not
share."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from samples import MISCLASSIFIED, ROBUST, TIMEOUT, VULNERABLE, Benchmark, Query

from bitcrown.budget import Budget
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.quant.proof.writer import certificate_form, form_digest, network_form, property_form
from bitcrown.quant.query import robustness_query
from bitcrown.quant.search.decide import decide_query
from bitcrown.verdict import Status

WORDS = {Status.SAT: VULNERABLE, Status.UNSAT: ROBUST, Status.TIMEOUT: TIMEOUT}


@dataclass(frozen=True, eq=False)
class Answer:
    """``verdict``: one of ``samples.VERDICTS`` or "unknown"; ``cpu_s``: of the decision alone.

    ``witness``: [784] pixels that the network labels ``seen``; ``certificate``: of a robust
    verdict, where asked for.
    """

    verdict: str
    label: int
    cpu_s: float = 0.0
    detail: str = ""
    seen: int | None = None
    witness: np.ndarray | None = None
    certificate: dict[str, Any] | None = None
    counters: dict[str, Any] = field(default_factory=dict)


def answer(
    benchmark: Benchmark, query: Query, seconds: float, want_certificate: bool = False
) -> Answer:
    """The verdict on ``query`` within ``seconds`` of computing.

    A counterexample has been run by onnxruntime on the network file as well.
    """
    image, label = benchmark.samples.sample(query.sample_id)
    predicted = benchmark.predicted(image)
    if predicted != label:
        return Answer(MISCLASSIFIED, label, seen=predicted)
    program = benchmark.program
    asked = robustness_query(benchmark.network, image, label, query.eps)
    started = time.process_time()
    found = decide_query(
        asked, Budget.of_cpu_seconds(seconds), want_certificate=want_certificate, program=program
    )
    spent = time.process_time() - started
    verdict = WORDS.get(found.status, "unknown")
    detail = found.decided_by or found.detail
    if found.status is Status.SAT:
        assert found.witness is not None
        return Answer(
            verdict,
            label,
            spent,
            detail,
            replayed(benchmark, query, found.witness),
            found.witness,
            None,
            found.counters,
        )
    certificate = None
    if want_certificate and found.status is Status.UNSAT:
        assert found.proof is not None
        certificate = certificate_form(asked, found.proof, found.roots, network_digest(benchmark))
    return Answer(verdict, label, spent, detail, certificate=certificate, counters=found.counters)


def replayed(benchmark: Benchmark, query: Query, witness: np.ndarray) -> int:
    """The label that onnxruntime gives ``witness`` [784], which must lie in the box.

    The outputs must equal the integers that were decided about.
    """
    image, _ = benchmark.samples.sample(query.sample_id)
    if (abs(witness - image) > query.eps).any() or witness.min() < 0 or witness.max() > 255:
        raise AssertionError("the counterexample lies outside the box")
    runtime = benchmark.network.runtime
    assert runtime is not None
    outputs = runtime(witness[None].astype(np.uint8))[0]
    if (outputs != benchmark.network.evaluate(witness[None])[0]).any():
        raise AssertionError(
            "onnxruntime computes other integers than the network that was decided"
        )
    return int(outputs.argmax())


def network_digest(benchmark: Benchmark) -> str:
    return form_digest(network_form(benchmark.network))


def accepts(benchmark: Benchmark, query: Query, certificate: dict[str, Any]) -> str:
    """ "" if the independent checker accepts ``certificate``, else what it says."""
    image, label = benchmark.samples.sample(query.sample_id)
    asked = property_form(robustness_query(benchmark.network, image, label, query.eps))
    finding = check_integer_proof(network_form(benchmark.network), asked, certificate)
    return "" if finding.accepted else finding.message


def save_certificate(certificate: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(certificate, sort_keys=True, separators=(",", ":")) + "\n")
