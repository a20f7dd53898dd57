"""Solvers: deadlines and memory from inside a hard query, wrong answers are raised, exports mean
the same elsewhere."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

import bitcrown.quant.smt.solvers as smt
from bitcrown.budget import Budget
from bitcrown.errors import ResourceError
from bitcrown.quant.network.graph import IntegerNetwork, QuantError
from bitcrown.quant.smt.formula import Style, encode
from bitcrown.quant.smt.smtlib import smtlib_script
from bitcrown.quant.smt.solvers import decide_by_bitvectors, installed_solvers, solve
from bitcrown.quant.smt.terms import BitvectorFormula, TermBuilder
from bitcrown.verdict import Reason, Status
from tests.unit.quant.smt.tiny_networks import (
    all_points,
    random_box,
    random_cases,
    random_network,
    violated,
)

SOLVERS = [
    "boolector",
    pytest.param(
        "bitwuzla",
        marks=pytest.mark.skipif(
            "bitwuzla" not in installed_solvers(), reason="bitwuzla is not installed"
        ),
    ),
]
SEEDS = range(16)


def factoring(product: int, width: int) -> BitvectorFormula:
    """Two nontrivial factors of ``product`` below 2^(width / 2): hard when both are large
    primes."""
    build = TermBuilder()
    factors = [build.variable(name, width) for name in ("a", "b")]
    held = [build.compare("bvult", build.constant(1, width), factor) for factor in factors]
    held += [
        build.compare("bvult", factor, build.constant(1 << width // 2, width)) for factor in factors
    ]
    target, made = build.constant(product, width), build.mul(*factors)
    held += [build.compare("bvule", target, made), build.compare("bvule", made, target)]
    return BitvectorFormula(tuple(build.terms), tuple(held), (), (), "improved", True)


HARD = factoring(1_000_000_007 * 998_244_353, 64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_deadline_inside_a_hard_query(solver: str) -> None:
    assert solve(HARD, Budget.of_seconds(1.0), solver) == (Status.TIMEOUT, Reason.DEADLINE, {})


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_inside_a_hard_query(solver: str) -> None:
    budget = Budget.of_cpu_seconds(120.0, memory=0)
    assert solve(HARD, budget, solver) == (Status.UNKNOWN, Reason.MEMORY, {})


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_works_after_another_was_stopped(solver: str) -> None:
    assert solve(HARD, Budget.of_seconds(0.2), solver)[0] is Status.TIMEOUT
    status, _, assignment = solve(factoring(35, 16), Budget.of_cpu_seconds(60.0), solver)
    assert status is Status.SAT
    assert sorted(assignment.values()) == [5, 7]
    assert solve(factoring(37, 16), Budget.of_cpu_seconds(60.0), solver)[0] is Status.UNSAT


def test_time_is_up_before_the_first_term() -> None:
    network, low, high, cases, _ = question(1)
    for style in Style:
        answer = decide_by_bitvectors(network, low, high, cases, Budget.of_seconds(-1.0), style)
        assert (answer.status, answer.reason) == (Status.TIMEOUT, Reason.DEADLINE)


def question(seed: int) -> tuple[IntegerNetwork, np.ndarray, np.ndarray, tuple, Status]:
    random = np.random.default_rng(4000 + seed)
    network = random_network(seed)
    low, high = random_box(random, network)
    outputs = network.evaluate(all_points(low, high))
    cases = random_cases(random, outputs)
    return network, low, high, cases, Status.SAT if violated(outputs, cases).any() else Status.UNSAT


@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("seed", SEEDS)
def test_export_read_back_by_boolector(seed: int, style: Style, tmp_path: Path) -> None:
    """The text, through a parser that knows nothing of our terms."""
    from pyboolector import Boolector

    network, low, high, cases, expected = question(seed)
    path = tmp_path / "question.smt2"
    path.write_text(smtlib_script(encode(network, low, high, cases, style)))
    solver = Boolector()
    result, _, message = solver.Parse(str(path))
    assert message is None
    assert result == {Status.SAT: solver.SAT, Status.UNSAT: solver.UNSAT}[expected]


@pytest.mark.skipif("bitwuzla" not in installed_solvers(), reason="bitwuzla is not installed")
@pytest.mark.parametrize("style", list(Style))
@pytest.mark.parametrize("seed", SEEDS)
def test_export_solved_by_bitwuzla(seed: int, style: Style, tmp_path: Path) -> None:
    """The file as a user would give it to bitwuzla, and its model read back by the header alone."""
    import bitwuzla

    network, low, high, cases, expected = question(seed)
    text = smtlib_script(encode(network, low, high, cases, style))
    path = tmp_path / "question.smt2"
    path.write_text(text)
    options = bitwuzla.Options()
    options.set(bitwuzla.Option.PRODUCE_MODELS, True)
    parser = bitwuzla.Parser(bitwuzla.TermManager(), options)
    parser.parse(str(path), True, True)
    solver = parser.bitwuzla()
    result = solver.check_sat()
    assert (
        result == {Status.SAT: bitwuzla.Result.SAT, Status.UNSAT: bitwuzla.Result.UNSAT}[expected]
    )
    if expected is Status.UNSAT:
        return
    bits = {
        symbol.symbol(): solver.get_value(symbol).value(2) for symbol in parser.get_declared_funs()
    }
    point = read_by_header(text, bits)
    assert sorted(point) == list(range(len(low)))
    values = np.array([point[n] for n in range(len(low))])
    assert (low <= values).all() and (values <= high).all()
    assert violated(network.evaluate(values[None]), cases).all()


def read_by_header(text: str, bits: dict[str, str]) -> dict[int, int]:
    """Input element -> value, from the comments of the script and a model in binary."""
    point: dict[int, int] = {}
    for index, origin, name, kind in re.findall(
        r"^;   input (\d+) = (-?\d+) \+ (\S+) \((\w+),", text, re.M
    ):
        digits = bits[name]
        negative = kind == "signed" and digits[0] == "1"
        point[int(index)] = int(origin) + int(digits, 2) - (1 << len(digits) if negative else 0)
    for line in re.findall(r"^;   (\d+=.*)$", text, re.M):
        point |= {int(n): int(value) for n, value in (pair.split("=") for pair in line.split())}
    return point


def test_a_wrong_model_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that lies about a model meets the integers."""
    network, low, high, cases, _ = next(q for q in map(question, SEEDS) if q[-1] is Status.UNSAT)
    formula = encode(network, low, high, cases)
    names = {str(formula.terms[c.term].data) for c in formula.coordinates}
    monkeypatch.setitem(smt.BACKENDS, "boolector", lambda *_: ("sat", dict.fromkeys(names, 0)))
    with pytest.raises(RuntimeError, match="does not violate the property in integers"):
        decide_by_bitvectors(network, low, high, cases, Budget.of_cpu_seconds(60.0))
    full = {
        str(formula.terms[c.term].data): (1 << formula.terms[c.term].width) - 1
        for c in formula.coordinates
    }
    monkeypatch.setitem(
        smt.BACKENDS, "boolector", lambda *_: ("sat", {n: bits + 1000 for n, bits in full.items()})
    )
    with pytest.raises(RuntimeError, match="leaves the box"):
        decide_by_bitvectors(network, low, high, cases, Budget.of_cpu_seconds(60.0))


def test_a_solver_that_never_asks_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> tuple[str, dict[str, int]]:
        while True:
            pass

    monkeypatch.setitem(smt.BACKENDS, "boolector", endless)
    assert solve(HARD, Budget.of_seconds(0.2)) == (Status.TIMEOUT, Reason.DEADLINE, {})


def test_a_solver_that_grows_and_never_asks_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> tuple[str, dict[str, int]]:
        held = np.ones(1 << 24)
        while True:
            held[0] += 1

    monkeypatch.setitem(smt.BACKENDS, "boolector", greedy)
    budget = Budget.of_cpu_seconds(60.0, memory=1 << 26)
    assert solve(HARD, budget) == (Status.UNKNOWN, Reason.MEMORY, {})


def test_a_solver_that_dies_or_fails_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> tuple[str, dict[str, int]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return "unsat", {}

    def fails(*_: object) -> tuple[str, dict[str, int]]:
        raise ValueError("two widths")

    monkeypatch.setitem(smt.BACKENDS, "boolector", dies)
    assert solve(HARD, Budget.of_cpu_seconds(60.0)) == (Status.UNKNOWN, Reason.CRASHED, {})
    monkeypatch.setitem(smt.BACKENDS, "boolector", fails)
    with pytest.raises(
        RuntimeError, match="boolector refused a formula of ours: ValueError: two widths"
    ):
        solve(HARD, Budget.of_cpu_seconds(60.0))


def test_unknown_and_missing_solvers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        QuantError, match="no bit-vector solver 'z9'; choose one of boolector, bitwuzla"
    ):
        solve(HARD, Budget.of_seconds(1.0), "z9")
    monkeypatch.setattr(smt, "find_spec", lambda _: None)
    assert installed_solvers() == ()
    with pytest.raises(ResourceError, match="install the Python package pyboolector"):
        solve(HARD, Budget.of_seconds(1.0))
