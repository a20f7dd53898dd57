"""Certificates of files: for every right ``unsat`` on random quantized files of every form, one that is accepted.

Truth is onnxruntime on every input of the box. The checker reads network and property with readers of its own; where it
does not know a form it would have to reject, so an accepted certificate for each form is also a test of those readers.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.certificates import check_files
from bitcrown.quant.certificate import certificate_form
from bitcrown.quant.decide import decide
from bitcrown.quant.integer_graph import QuantError
from bitcrown.quant.onnx_quant import looks_quantized, read_onnx
from bitcrown.quant.query import split_by_box
from bitcrown.search.quantized import covering
from bitcrown.verdict import Status
from tests.tiny_quantized_files import (
    FORMS,
    box_and_points,
    outputs_at,
    random_file,
    random_property,
)


def trial(seed: int, form: str, folder: Path) -> str:
    """ "sat", "unknown", "vacuous", "refused", or "unsat" with an accepted certificate; all else is an assertion."""
    rng = np.random.default_rng([seed, FORMS.index(form)])
    file = random_file(rng, form)
    lower, upper, points = box_and_points(rng, file)
    outputs = outputs_at(file.writer, file.output, points)
    prop = random_property(rng, (lower, upper), outputs)
    truth = any(prop.holds_at(row) for row in outputs.astype(np.float64).tolist())
    model, vnnlib, proof = (folder / f"{seed}{suffix}" for suffix in (".onnx", ".vnnlib", ".json"))
    onnx.save(file.writer.model(file.output), model)
    vnnlib.write_text(prop.text(outputs.shape[1]))
    problem = covering(load(model, vnnlib))
    if not problem.cases:
        return "vacuous"
    assert looks_quantized(model)
    try:
        network = read_onnx(model, seed=seed)
    except QuantError:
        return "refused"
    (query,) = split_by_box(problem, network)
    decision = decide(query, Budget.of_seconds(60), seed, True)
    assert decision.status is not (Status.UNSAT if truth else Status.SAT)
    if decision.status is not Status.UNSAT:
        return decision.status.value
    assert decision.proof is not None
    proof.write_text(json.dumps(certificate_form(query, decision.proof, decision.roots)))
    finding = check_files(model, vnnlib, proof)
    assert finding.accepted, finding.message
    return "unsat"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [4, pytest.param(40, marks=[pytest.mark.slow])])
def test_certificates_of_right_verdicts_are_accepted(form: str, count: int, tmp_path: Path) -> None:
    found = Counter(trial(seed, form, tmp_path) for seed in range(count))
    assert found["unsat"] > 0 and found["refused"] < count
