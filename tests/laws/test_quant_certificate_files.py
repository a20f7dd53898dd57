"""Certificates of files: for every right ``unsat`` on random quantized files of every form, one
that is accepted.

Truth is onnxruntime on every input of the box. The checker reads network and property with readers
of its own; where it does not know a form it would have to reject, so an accepted certificate for
each form is also a test of those readers.
"""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.certificates.files import check_certificate, input_kind
from bitcrown.check.certificates.documents import content_digest
from bitcrown.model.file import NetworkFile
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import QuantError, Stairs
from bitcrown.quant.proof.writer import certificate_form
from bitcrown.quant.query import split_by_box
from bitcrown.quant.search.decide import decide_query
from bitcrown.search.quantized import covering
from bitcrown.verdict import Status
from tests.fuzz.mutations import mutations
from tests.quant_models import UINT8, Writer, run
from tests.tiny_quantized_files import (
    FORMS,
    Property,
    TinyFile,
    box_and_points,
    outputs_at,
    random_file,
    random_property,
)


def trial(seed: int, form: str, folder: Path) -> str:
    """ "sat", "unknown", "vacuous", "refused", or "unsat" with an accepted certificate; all else is
    an assertion."""
    rng = np.random.default_rng([seed, FORMS.index(form)])
    file = random_file(rng, form)
    lower, upper, points = box_and_points(rng, file)
    outputs = outputs_at(file.writer, file.output, points)
    prop = random_property(rng, (lower, upper), outputs)
    truth = any(prop.holds_at(row) for row in outputs.astype(np.float64).tolist())
    model, vnnlib, proof = (folder / f"{seed}{suffix}" for suffix in (".onnx", ".vnnlib", ".json"))
    onnx.save(file.writer.model(file.output), model)
    vnnlib.write_text(prop.text(outputs.shape[1]))
    problem = load(model, vnnlib)
    problem = covering(problem, [input_kind(model)] * problem.n_inputs)
    if not problem.cases:
        return "vacuous"
    assert NetworkFile(model).is_quantized
    try:
        network = read_onnx(model, seed=seed)
    except QuantError:
        return "refused"
    (query,) = split_by_box(problem, network)
    decision = decide_query(query, Budget.of_seconds(60), seed, True)
    assert decision.status is not (Status.UNSAT if truth else Status.SAT)
    if decision.status is not Status.UNSAT:
        return decision.status.value
    assert decision.proof is not None
    proof.write_text(json.dumps(certificate_form(query, decision.proof, decision.roots)))
    finding = check_certificate(model, vnnlib, proof)
    assert finding.accepted, finding.message
    return "unsat"


@pytest.mark.parametrize(
    "count, proofs", [(4, 12), pytest.param(36, 118, marks=[pytest.mark.slow])]
)
def test_certificates_of_right_verdicts_are_accepted(
    count: int, proofs: int, tmp_path: Path
) -> None:
    found = Counter(trial(seed, form, tmp_path) for form in FORMS for seed in range(count))
    assert found["unsat"] >= proofs and found["refused"] < found["unsat"]


def saved(file: TinyFile, folder: Path) -> Path:
    path = folder / "network.onnx"
    onnx.save(file.writer.model(file.output), path)
    return path


def proof_of(
    model: Path, prop: Property, folder: Path, outputs: int
) -> tuple[Path, dict[str, Any] | None]:
    """The property as a file, and a certificate that carries its forms, where there is one."""
    vnnlib = folder / "property.vnnlib"
    vnnlib.write_text(prop.text(outputs))
    network = read_onnx(model)
    problem = load(model, vnnlib)
    (query,) = split_by_box(covering(problem, [input_kind(model)] * problem.n_inputs), network)
    decision = decide_query(query, Budget.of_seconds(60), 0, True)
    if decision.status is not Status.UNSAT or decision.proof is None:
        return vnnlib, None
    return vnnlib, certificate_form(query, decision.proof, decision.roots, with_forms=True)


def signed(document: Any) -> dict[str, Any]:
    """All digests that make a damaged certificate whole again."""
    forms = document["forms"]
    bound = {
        "network": content_digest(forms["network"]),
        "property": content_digest(forms["property"]),
    }
    return {
        **bound,
        "digest": content_digest({k: v for k, v in {**document, **bound}.items() if k != "digest"}),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count, each", [(1, 25), pytest.param(3, 100, marks=[pytest.mark.slow])])
def test_no_certificate_is_accepted_for_a_file_that_violates_its_property(
    form: str, count: int, each: int, tmp_path: Path
) -> None:
    """Proofs of a neighbouring property that holds; network, property and proof are then damaged,
    and signed again."""
    tried = 0
    for seed in range(60):
        rng = np.random.default_rng([seed, FORMS.index(form), 2])
        file = random_file(rng, form)
        lower, upper, points = box_and_points(rng, file)
        outputs = outputs_at(file.writer, file.output, points).astype(np.float64)
        rule = ({0: 1}, Fraction(float(outputs[:, 0].min())), False)
        model = saved(file, tmp_path)
        try:
            true = Property(lower, upper, [[(rule[0], rule[1], True)]])
            _, certificate = proof_of(model, true, tmp_path, outputs.shape[1])
            false, none = proof_of(
                model, Property(lower, upper, [[rule]]), tmp_path, outputs.shape[1]
            )
        except QuantError:
            continue
        assert none is None
        if certificate is None:
            continue
        proof = tmp_path / "proof.json"
        stream = mutations(
            json.dumps(certificate).encode(),
            Random(seed),
            ("value", "value", "tree", "type"),
            signed,
        )
        for mutation in islice(stream, each):
            proof.write_bytes(mutation.content)
            assert not check_certificate(model, false, proof).accepted, mutation.what
            tried += 1
        if tried >= count * each:
            break
    assert tried >= count * each


def crossing(folder: Path) -> Path:
    """A QLinearAdd of two tensors with few values each: between its attainable sums early and late
    thresholds cross."""
    w = Writer([1, 2], UINT8)
    parts = []
    for scale, ints in ((0.37, [[3, -5], [2, 7]]), (0.61, [[-4, 1], [6, -2]])):
        matrix = w.constant(ints, np.int8), w.constant(np.float32(0.02)), w.constant(0, np.int8)
        target = w.constant(np.float32(scale)), w.constant(4, np.uint8)
        source = w.constant(np.float32(0.05)), w.constant(0, np.uint8)
        parts += [w.add("QLinearMatMul", "x", *source, *matrix, *target), *target]
    y = w.add(
        "QLinearAdd",
        *parts,
        w.constant(np.float32(0.45)),
        w.constant(9, np.uint8),
        domain="com.microsoft",
    )
    return w.save(folder, y)


def test_thresholds_that_cross_between_attainable_sums_are_accepted(tmp_path: Path) -> None:
    model = crossing(tmp_path)
    network = read_onnx(model)
    assert any((node.early > node.late).any() for node in network.nodes if isinstance(node, Stairs))
    points = np.array(list(product(range(100, 112), range(30, 40))), dtype=np.uint8)
    least = Fraction(int(run(model, points)[:, 0].min()))
    for strict in (True, False):
        prop = Property([100.0, 30.0], [111.0, 39.0], [[({0: 1}, least, strict)]])
        vnnlib, certificate = proof_of(model, prop, tmp_path, 2)
        assert (certificate is not None) == strict
        if certificate is not None:
            (tmp_path / "proof.json").write_text(json.dumps(certificate))
            assert check_certificate(model, vnnlib, tmp_path / "proof.json").accepted


def test_cases_that_no_output_reaches_need_no_proof(tmp_path: Path) -> None:
    """Float32 products of a scale are not quite evenly spaced, so that the integers allow what the
    values exclude."""
    w = Writer([1, 1], UINT8)
    x = w.add("DequantizeLinear", "x", w.constant(np.float32(0.7324)), w.constant(0, np.uint8))
    model = w.save(tmp_path, w.quantized(x, np.float32(0.1320939), 0, np.uint8))
    greatest = Fraction(float(run(model, np.array([[255]], dtype=np.uint8))[0, 0]))

    def asked(excess: Fraction) -> tuple[Path, dict[str, Any] | None]:
        return proof_of(
            model, Property([2.0], [74.0], [[({0: -1}, -greatest - excess, False)]]), tmp_path, 1
        )

    vnnlib, certificate = asked(Fraction(1, 10**9))
    assert certificate is not None and certificate["forms"]["property"]["cases"] == [
        [{"bound": -255, "terms": [[0, -1]]}]
    ]
    (tmp_path / "proof.json").write_text(json.dumps(certificate))
    finding = check_certificate(model, vnnlib, tmp_path / "proof.json")
    assert finding.accepted, finding.message
    vnnlib, none = asked(Fraction(0))
    assert none is None and not check_certificate(model, vnnlib, tmp_path / "proof.json").accepted


def test_a_certificate_that_misreads_the_property_is_rejected(tmp_path: Path) -> None:
    """Network and proof are right, but the property carried along asks less: another box, a missing
    case, a bound."""
    rng = np.random.default_rng(1)
    file = random_file(rng, "qlinear")
    lower, upper, points = box_and_points(rng, file)
    outputs = outputs_at(file.writer, file.output, points)
    model = saved(file, tmp_path)
    bounds = [Fraction(int(outputs[:, i].min())) for i in (0, 1)]
    prop = Property(lower, upper, [[({i: 1}, bounds[i], True)] for i in (0, 1)])
    vnnlib, certificate = proof_of(model, prop, tmp_path, 2)
    assert certificate is not None
    proof = tmp_path / "proof.json"
    for change, words in (
        (lambda f: f, "accepted"),
        (
            lambda f: {**f, "low": [f["low"][0] + 1, *f["low"][1:]]},
            "outside of the certificate's box",
        ),
        (lambda f: {**f, "cases": f["cases"][:1]}, "implies no case"),
        (
            lambda f: {
                **f,
                "cases": [[{**c, "bound": c["bound"] - 1} for c in k] for k in f["cases"]],
            },
            "implies no case",
        ),
    ):
        forms = {**certificate["forms"], "property": change(certificate["forms"]["property"])}
        proof.write_text(
            json.dumps({**certificate, "forms": forms, **signed({**certificate, "forms": forms})})
        )
        assert words in check_certificate(model, vnnlib, proof).message
