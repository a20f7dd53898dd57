"""Documents that a checker takes, and the fixed-point files that it rebuilds by itself."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitcrown.api import load
from bitcrown.budget import Budget
from bitcrown.certificates.files import check_certificate, forms_of
from bitcrown.check.certificates.documents import NotJson, Reject, parsed
from bitcrown.check.certificates.integers.fixed_point_file import canonical_form
from bitcrown.errors import ModelError
from bitcrown.quant.formats.fixed_point import read_h5
from bitcrown.quant.proof.writer import certificate_form, network_form
from bitcrown.quant.query import split_by_box
from bitcrown.quant.search.decide import decide_query
from bitcrown.search.quantized import covering
from bitcrown.verdict import Status
from tests.unit.quant.formats.test_fixed_point import write

GOOD: list[Any] = [{}, [], 0, -(2**1023), "text", {"a": [1, {"b": []}]}]
BAD = [
    ('{"a": 1, "a": 1}', "given twice"),
    ("[1.0]", "not an integer"),
    ("[1e3]", "not an integer"),
    ("[NaN]", "not an integer"),
    ("[-Infinity]", "not an integer"),
    ("[true]", "not an integer"),
    ("[null]", "not an integer"),
    (f"[{2**1024}]", "bits"),
    ("[" + "9" * 100_000 + "]", "bits"),
    ("[" * 30 + "]" * 30, "deep"),
    ("[" * 100_000 + "]" * 100_000, "deep"),
    (json.dumps("x" * 5000), "letters"),
]


@pytest.mark.parametrize("content", GOOD)
def test_objects_lists_strings_and_integers_are_taken(content: Any) -> None:
    assert parsed(json.dumps(content)) == content


@pytest.mark.parametrize("text, words", BAD)
def test_everything_else_is_named(text: str, words: str) -> None:
    with pytest.raises(Reject, match=words):
        parsed(text)


@pytest.mark.parametrize("text", ["", "{", "[01]", "[1] 2", "\ufeff{}", "nul"])
def test_what_is_no_json_is_told_apart(text: str) -> None:
    with pytest.raises(NotJson):
        parsed(text)


def perceptron(seed: int, path: Path, shift: float = 0.0) -> Path:
    random = np.random.default_rng(seed)
    layers = [
        (
            random.normal(size=(n, m)).astype(np.float32) / 2,
            random.normal(size=m).astype(np.float32) / 2 + shift,
        )
        for n, m in ((3, 5), (5, 2))
    ]
    return write(path, layers)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["net.h5", "x_in_4_qu_5.h5", "x_in_8_qu_10.h5"])
def test_both_readers_of_fixed_point_files_agree(seed: int, name: str, tmp_path: Path) -> None:
    path = perceptron(seed, tmp_path / name)
    assert canonical_form(path) == network_form(read_h5(path))


def test_damaged_fixed_point_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = perceptron(0, tmp_path / "net.h5")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ModelError):
        canonical_form(path)


def test_certificates_of_fixed_point_files(tmp_path: Path) -> None:
    """Accepted for the file; rejected for another one, and for a property that is violated,
    whatever is carried."""
    model, vnnlib, proof = (
        perceptron(1, tmp_path / "net.h5"),
        tmp_path / "p.vnnlib",
        tmp_path / "proof.json",
    )
    network = read_h5(model)
    points = np.array(list(product(range(90, 96), range(20, 25), range(200, 204))))
    least = int(network.evaluate(points)[:, 0].min())
    box = [f"(declare-const {v}_{i} Real)" for v, n in (("X", 3), ("Y", 2)) for i in range(n)]
    for i, (a, b) in enumerate(((90, 95), (20, 24), (200, 203))):
        box += [f"(assert (>= X_{i} {a}))", f"(assert (<= X_{i} {b}))"]

    def ask(relation: str) -> None:
        vnnlib.write_text("\n".join([*box, f"(assert ({relation} Y_0 {least}))"]))

    ask("<")
    problem = load(model, vnnlib)
    (query,) = split_by_box(covering(problem, ["float32"] * problem.n_inputs), network)
    decision = decide_query(query, Budget.of_seconds(60), 0, True)
    assert decision.status is Status.UNSAT and decision.proof is not None
    for with_forms in (True, False):
        certificate = certificate_form(query, decision.proof, decision.roots, with_forms=with_forms)
        proof.write_text(json.dumps(certificate))
        assert check_certificate(model, vnnlib, proof).accepted
    proof.write_text(
        json.dumps(certificate_form(query, decision.proof, decision.roots, with_forms=True))
    )
    other = perceptron(1, tmp_path / "other.h5", 0.25)
    assert forms_of(other, vnnlib)[0] != forms_of(model, vnnlib)[0]
    assert "another network" in check_certificate(other, vnnlib, proof).message
    ask("<=")
    assert "implies no case" in check_certificate(model, vnnlib, proof).message
