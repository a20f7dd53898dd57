"""Runs of small cases, read and normalised as arrays, mean what they mean case by case.

Two spaces instead of one keep a text from being such a run. So every property here is read twice,
and both readings agree on everything: cases in their order, notes, which boxes are shared, and
which points satisfy the assertion. What was kept of it by ``prepare`` is the same, too.
"""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bitcrown.check.truth import AssertionCheck, mentions, worst_atom
from bitcrown.errors import PropertyError
from bitcrown.spec import case_boxes
from bitcrown.spec.case_table import CaseTable
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.packed import arrays_of_property, property_from_arrays
from bitcrown.spec.printer import print_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.query import And, Formula, ManyCases, Or, Query
from bitcrown.spec.reader import parse_query

N, M = 3, 4
FILES = {"N": Path("n.onnx")}


def number(rng: random.Random, centre: float) -> str:
    value = centre + rng.uniform(-0.5, 0.5)
    return rng.choice([repr(value), f"{value:.3f}", f"{value:.25f}", f"{value:.4e}", f"{centre}"])


def names(version: int) -> tuple[list[str], list[str]]:
    if version == 1:
        return [f"X_{k}" for k in range(N)], [f"Y_{k}" for k in range(M)]
    return [f"X[0,{k}]" for k in range(N)], [f"Y[{k // 2},{k % 2}]" for k in range(M)]


def case_of(rng: random.Random, version: int, oddity: float) -> str:
    """Ends of the inputs and bounds of outputs; sometimes something that makes it special."""
    inputs, outputs = names(version)
    atoms = []
    for name in inputs:
        low, high = number(rng, -1), number(rng, 1)
        if rng.random() < oddity / 2:
            low, high = high, low
        if rng.random() < 0.2:
            high = low
        atoms += [f"(<= {name} {high})"] * (rng.random() >= oddity)
        atoms += [f"(>= {name} {low})"] * (rng.random() >= oddity)
        if rng.random() < oddity:
            atoms.append(f"(<= {name} {number(rng, 1)})")
    for _ in range(rng.randrange(3)):
        one, other = rng.sample(outputs, 2)
        atoms.append(f"({rng.choice('<>')}= {one} {rng.choice([other, number(rng, 0)])})")
    for given in (inputs, inputs + outputs, outputs):
        if rng.random() < oddity / 2:
            atoms.append(f"(<= {rng.choice(given)} {rng.choice(given)})")
    if rng.random() < 0.3:
        rng.shuffle(atoms)
    gap = rng.choice([" ", "\n  ", " ; a comment\n", ""])
    return f"(and {gap.join(atoms)})" if atoms else f"(and (<= {outputs[0]} {outputs[1]}))"


def text_of(rng: random.Random, version: int, oddity: float) -> str:
    inputs, outputs = names(version)
    if version == 1:
        lines = [f"(declare-const {name} Real)" for name in inputs + outputs]
    else:
        dtype = rng.choice(["real", "float32"])
        lines = ["(vnnlib-version <2.0>)", f"(declare-network N (declare-input X {dtype} [1,{N}])"]
        lines.append(f"(declare-output Y {dtype} [2,2]))")
    if rng.random() < 0.7:
        for name in inputs:
            lines.append(f"(assert (<= {name} {number(rng, 1)}))")
            lines.append(f"(assert (>= {name} {number(rng, -1)}))")
    if rng.random() < 0.5:
        lines.append(f"(assert (<= {outputs[0]} {rng.choice([outputs[1], number(rng, 1)])}))")
    if rng.random() < oddity:
        lines.append(f"(assert (<= (+ {inputs[0]} {inputs[1]}) 0.5))")
    if rng.random() < oddity:
        lines.append(f"(assert (< {inputs[2]} 0.75))")
    count = rng.choice([16, 17, 40])
    cases = [case_of(rng, version, oddity) for _ in range(count)]
    cases += rng.sample(cases, 4)
    if rng.random() < 0.3:
        cases.insert(rng.choice([0, len(cases)]), f"(< {outputs[2]} -0.25)")
    lines.append("(assert (or " + rng.choice(["\n", " "]).join(cases) + "))")
    if rng.random() < oddity:
        lines.append(f"(assert (or (<= {outputs[3]} 0.1) (>= {outputs[3]} 0.3)))")
    return "\n".join(lines) + "\n"


def has_run(formula: Formula) -> bool:
    if isinstance(formula, And | Or):
        return any(map(has_run, formula.args))
    return isinstance(formula, ManyCases)


def both(text: str) -> tuple[tuple[Query, Problem], tuple[Query, Problem]]:
    one, other = parse_query(text), parse_query(text.replace("= X", "=  X").replace("= Y", "=  Y"))
    assert has_run(one.assertion) and not has_run(other.assertion)
    return (one, problem_from_query(one, FILES)), (other, problem_from_query(other, FILES))


def sharing(problem: Problem) -> list[tuple[int, int]]:
    """Which cases have which end in common with which before."""
    seen: dict[int, int] = {}
    sides = [(c.lower, c.upper) for c in problem.cases]
    return [
        (seen.setdefault(id(a), k), seen.setdefault(id(b), k)) for k, (a, b) in enumerate(sides)
    ]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("oddity", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("seed", range(12))
def test_arrays_and_trees_give_the_same_problem(version: int, oddity: float, seed: int) -> None:
    rng = random.Random(1000 * seed + 10 * version + int(oddity * 100))
    (query, problem), (plain, wanted) = both(text_of(rng, version, oddity))
    if not oddity:
        assert isinstance(problem.cases, CaseTable)
    assert problem.notes == wanted.notes and problem.covers_all == wanted.covers_all
    assert len(problem.cases) == len(wanted.cases)
    for case, due in zip(problem.cases, wanted.cases, strict=True):
        assert tuple(case.lower) == tuple(due.lower) and tuple(case.upper) == tuple(due.upper)
        assert case.constraints == due.constraints
    assert problem.cases == wanted.cases and problem.cases[3:5] == wanted.cases[3:5]
    restored = property_from_arrays(*arrays_of_property(problem))
    assert isinstance(restored, Problem) and restored.query == query
    assert restored.cases == problem.cases and restored.notes == problem.notes
    assert sharing(restored) == sharing(problem)
    assert property_from_arrays(*arrays_of_property(plain)) == plain
    check, due_check = AssertionCheck(query), AssertionCheck(plain)
    agreed = 0
    for _ in range(60):
        low, high = rng.choice([(case.lower, case.upper) for case in wanted.cases])
        share = Fraction(rng.choice([0.0, 1.0, 0.5, rng.random()]))
        x = [float(a + (b - a) * share) for a, b in zip(low, high, strict=True)]
        y = [rng.choice([rng.uniform(-1, 1), 0.0]) for _ in range(M)]
        for kind in (np.float32, np.float64):
            values = {"X": np.array(x, kind), "Y": np.array(y, kind)}
            for rounded in ((), ("X",)):
                assert check.holds(values, rounded) == due_check.holds(values, rounded)
            agreed += check.holds(values, ("X",))
    assert agreed or oddity


def test_cases_are_read_from_one_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain ones go through arrays, and only odd ones through trees."""
    text = text_of(random.Random(3), 1, 0.0)
    wanted = problem_from_query(parse_query(text), FILES)
    monkeypatch.setattr(case_boxes, "_MOST_ENTRIES", 0)
    assert problem_from_query(parse_query(text), FILES).cases == wanted.cases
    assert isinstance(wanted.cases, CaseTable)


def test_equal_boxes_are_one_object() -> None:
    inputs = " ".join(f"(<= X_{k} 1.0) (>= X_{k} 0.0)" for k in range(N))
    cases = " ".join(f"(and {inputs} (>= Y_0 {k}.0))" for k in range(20))
    head = "".join(f"(declare-const X_{k} Real)" for k in range(N)) + "(declare-const Y_0 Real)"
    problem = problem_from_query(parse_query(f"{head}(assert (or {cases}))"), FILES)
    assert len({id(case.lower) for case in problem.cases}) == 1
    assert problem.cases[7] is problem.cases[7]


def test_a_run_elsewhere_than_in_an_or() -> None:
    """In an ``and``, under a ``not``, and where none may stand."""
    head = (
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1.0))(assert (>= X_0 0.0))"
    )
    run = " ".join(f"(and (>= X_0 0.{k}) (<= Y_0 {k}.0))" for k in range(10, 30))
    all_of = problem_from_query(parse_query(f"{head}(assert (and {run}))"), FILES)
    assert len(all_of.cases) == 1 and all_of.cases[0].lower[0] == Fraction(29, 100)
    none_of = parse_query(f"{head}(assert (not (or {run})))")
    plain = parse_query(f"{head}(assert (not (or {run.replace('= X', '=  X')})))")
    assert none_of == plain and not has_run(none_of.assertion)
    for wrong in (
        f"(assert {run})",
        run,
        f"(assert (+ {run}))",
        f"(assert (or {run}) (<= X_0 1.0))",
    ):
        with pytest.raises(PropertyError, match="line"):
            parse_query(head + wrong)


@pytest.mark.parametrize(
    ("dtypes", "change", "what"),
    [
        (("float32", "float32"), ("", ""), ""),
        (("float32", "real"), ("", ""), ""),
        (("float32", "real"), ("(<= Y[0] 3.0)", "(<= Y[0] X[0])"), "has the type"),
        (("float32", "float32"), ("3.0)", "1e+39)"), "is no number of the type"),
        (("float16", "float16"), ("3.0)", "70000.0)"), "is no number of the type"),
        (("int8", "int8"), ("", ""), "is no number of the type"),
        (("float32", "float32"), ("Y[0] 3.0", "Z[0] 3.0"), "neither a number nor"),
        (("float32", "float32"), ("Y[0] 3.0", "Y[1] 3.0"), "out of range"),
    ],
)
def test_types_and_names_are_checked(
    dtypes: tuple[str, str], change: tuple[str, str], what: str
) -> None:
    head = (
        f"(vnnlib-version <2.0>)\n(declare-network N (declare-input X {dtypes[0]} [1]) "
        f"(declare-output Y {dtypes[1]} [1]))\n(assert (or\n"
    )
    cases = "\n".join(f"(and (<= X[0] {k}.0) (<= Y[0] {k}.0))" for k in range(20))
    text = head + cases.replace(*change) + "))"
    if not what:
        assert has_run(parse_query(text).assertion)
        return
    with pytest.raises(PropertyError, match=r"line \d+: ") as caught:
        parse_query(text)
    assert what in str(caught.value)


def test_what_is_told_of_a_failure() -> None:
    text = text_of(random.Random(5), 1, 0.0)
    (query, problem), (plain, _) = both(text)
    values = {"X": np.full(N, 9.0), "Y": np.full(M, 9.0)}
    runs, trees = query.assertion.args[-1], plain.assertion.args[-1]
    assert mentions(runs) == mentions(trees) == {"X", "Y"}
    assert worst_atom(runs, values) == worst_atom(trees, values)
    assert problem_from_query(parse_query(print_query(query)), FILES).cases == problem.cases
