"""Laws of witnesses: what is confirmed holds exactly as written; boxes round inward; planted violations are found.

Judged here by code of its own: rationals over the parsed text, not ``check.evaluate``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bitcrown.attack.pgd import Target, pgd
from bitcrown.attack.probes import probe
from bitcrown.budget import Budget
from bitcrown.check.evaluate import Checker, formula_holds
from bitcrown.check.replay import Replay
from bitcrown.check.result_file import check_result
from bitcrown.check.witness import Confirmer, format_witness, inward_box
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.query import And, Compare, Const, NetworkDecl, Or, Product, Query, Sum, TensorDecl, Var
from bitcrown.spec.reader import parse_query

PAIR = re.compile(r"\(([XY])_(\d+) (\S+?)\)")
KINDS = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE, np.float16: TensorProto.FLOAT16}
decimals = st.decimals(min_value=-20, max_value=20, allow_nan=False, places=4)
short = settings(max_examples=60, deadline=None)


class Planted(NamedTuple):
    """A random ReLU network with a property that is violated around ``point``."""

    path: Path
    vnnlib: Path
    text: str
    point: np.ndarray


def relu_net(path: Path, seed: int, n: int, m: int, kind: type = np.float32, batch: int | str = 1) -> Path:
    random = np.random.default_rng(seed)
    sizes = [n, 6, 5, m]
    nodes, weights, current = [], [], "x"
    for k in range(3):
        weight = random.normal(size=(sizes[k], sizes[k + 1])) / np.sqrt(sizes[k])
        weights += [
            numpy_helper.from_array(weight.astype(kind), f"w{k}"),
            numpy_helper.from_array((0.3 * random.normal(size=sizes[k + 1])).astype(kind), f"b{k}"),
        ]
        nodes += [
            helper.make_node("MatMul", [current, f"w{k}"], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"]),
        ]
        current = f"a{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [current], [f"r{k}"]))
            current = f"r{k}"
    proto = KINDS[kind]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", proto, [batch, n])],
        [helper.make_tensor_value_info(current, proto, [batch, m])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def plant(folder: Path, seed: int, n: int, m: int, kind: type = np.float32) -> Planted:
    """The violation: output 0 at least as large as at ``point``, less a tenth of its spread over the box."""
    path = relu_net(folder / "net.onnx", seed, n, m, kind)
    random = np.random.default_rng(seed + 1)
    low = np.round(random.uniform(-1, 0.5, n), 3)
    high = np.round(low + random.uniform(0, 1, n), 3)
    head = [f"(declare-const X_{i} Real)" for i in range(n)] + [f"(declare-const Y_{i} Real)" for i in range(m)]
    box = [f"(assert (>= X_{i} {low[i]}))(assert (<= X_{i} {high[i]}))" for i in range(n)]
    replay = Replay(parse_query("\n".join([*head, *box])), {"N": path})
    points = random.uniform(low, high, (300, n))
    y = replay.run_batch(points)[:, 0]
    best = int(y.argmax())
    level = float(y[best] - 0.1 * np.ptp(y) - 1e-3)
    text = "\n".join([*head, *box, f"(assert (>= Y_0 {level:.17f}))"])
    (folder / "prop.vnnlib").write_text(text)
    return Planted(path, folder / "prop.vnnlib", text, points[best])


def holds_exactly(text: str, written: str) -> bool:
    """The assertions of ``plant`` at the numbers of a result file, in rationals."""
    found = {f"{name}_{index}": Fraction(float(number)) for name, index, number in PAIR.findall(written)}
    for op, name, number in re.findall(r"\(assert \(([<>]=) (\S+) (\S+?)\)\)", text):
        value, bound = found[name], Fraction(number)
        if (value < bound) if op == ">=" else (value > bound):
            return False
    return True


@short
@given(st.lists(st.tuples(decimals, decimals), min_size=1, max_size=8), st.sampled_from(list(KINDS)))
def test_the_inward_box_lies_inside(pairs: list[tuple[object, object]], kind: type) -> None:
    exact = [sorted((Fraction(str(a)), Fraction(str(b)))) for a, b in pairs]
    lower, upper = [a for a, _ in exact], [b for _, b in exact]
    low, high, is_off = inward_box(lower, upper, [kind] * len(exact))
    for i in range(len(exact)):
        assert float(kind(low[i])) == low[i] and float(kind(high[i])) == high[i]
        if is_off[i]:
            below, above = np.nextafter(kind(low[i]), kind(-np.inf)), np.nextafter(kind(low[i]), kind(np.inf))
            for number in (below, kind(low[i]), above):
                assert not lower[i] <= Fraction(float(number)) <= upper[i]
        else:
            assert lower[i] <= Fraction(low[i]) <= Fraction(high[i]) <= upper[i]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.sampled_from([np.float32, np.float64]))
def test_what_is_confirmed_holds_as_written(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, m: int, kind: type
) -> None:
    folder = tmp_path_factory.mktemp("net")
    planted = plant(folder, seed, n, m, kind)
    problem = problem_from_query(parse_query(planted.text), {"N": planted.path})
    confirmer = Confirmer(problem, Replay(problem.query, problem.networks))
    random = np.random.default_rng(seed)
    candidates = [planted.point + random.normal(size=n) * scale for scale in (0, 0.01, 0.1, 1, 10)]
    for candidate in candidates:
        witness = confirmer.confirm(candidate)
        if witness is None:
            continue
        written = format_witness(problem.query, witness)
        assert holds_exactly(planted.text, written)
        (folder / "result.txt").write_text(written)
        outcome = check_result(folder / "result.txt", str(planted.path), planted.vnnlib)
        assert outcome.accepted, outcome.sentence
    is_inside = not confirmer.box(problem.cases[0]).is_off.any()
    assert not is_inside or confirmer.confirm(planted.point) is not None


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_probes_find_planted_violations(tmp_path_factory: pytest.TempPathFactory, seed: int, n: int) -> None:
    planted = plant(tmp_path_factory.mktemp("net"), seed, n, 2)
    problem = problem_from_query(parse_query(planted.text), {"N": planted.path})
    replay = Replay(problem.query, problem.networks)
    witness = probe(problem, replay, Confirmer(problem, replay), Budget.of_seconds(60), 0, 10.0)
    assert witness is not None
    assert holds_exactly(planted.text, format_witness(problem.query, witness))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]))
def test_descent_finds_planted_violations(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, dtype: torch.dtype
) -> None:
    planted = plant(tmp_path_factory.mktemp("net"), seed, n, 2)
    problem = problem_from_query(parse_query(planted.text), {"N": planted.path})
    network = Network(read_graph(planted.path), dtype)
    (case,) = problem.cases
    (constraint,) = case.constraints
    target = Target(
        torch.tensor([[[float(constraint.terms[0][1]), 0.0]]], dtype=dtype),
        None,
        torch.tensor([[float(constraint.bound)]], dtype=dtype),
    )
    lower = torch.tensor([[float(value) for value in case.lower]], dtype=dtype)
    upper = torch.tensor([[float(value) for value in case.upper]], dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    points, cases = pgd(network, lower, upper, target, generator, 60, 32, Budget.of_seconds(60))
    assert points.shape[1] == n and not cases.any()
    assert bool((points >= lower).all()) and bool((points <= upper).all())
    confirmer = Confirmer(problem, Replay(problem.query, problem.networks))
    assert any(confirmer.confirm(point.double().numpy(), case) is not None for point in points[:4])


numbers = st.one_of(
    st.integers(-3, 3).map(Fraction),
    decimals.map(lambda value: Fraction(str(value))),
    st.floats(-4, 4, width=32).map(Fraction),
)
variables = st.builds(Var, st.sampled_from(["X", "Y"]), st.integers(0, 2))
leaves = st.one_of(variables, numbers.map(Const))
terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda args: Sum(tuple(args))),
        st.lists(inner, min_size=1, max_size=2).map(lambda args: Product(tuple(args))),
    ),
    max_leaves=4,
)
atoms = st.builds(Compare, st.sampled_from(["<=", "<", "==", "!="]), terms, terms)
formulas = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda args: And(tuple(args))),
        st.lists(inner, min_size=1, max_size=3).map(lambda args: Or(tuple(args))),
    ),
    max_leaves=6,
)


def exact(term: object, values: dict[str, np.ndarray]) -> Fraction:
    if isinstance(term, Const):
        return term.value
    if isinstance(term, Var):
        return Fraction(float(values[term.tensor][term.index]))
    assert isinstance(term, Sum | Product)
    total = Fraction(int(isinstance(term, Product)))
    for part in term.args:
        value = exact(part, values)
        total = total + value if isinstance(term, Sum) else total * value
    return total


def truth(formula: object, values: dict[str, np.ndarray]) -> bool:
    if isinstance(formula, Compare):
        left, right = exact(formula.left, values), exact(formula.right, values)
        return {"<=": left <= right, "<": left < right, "==": left == right, "!=": left != right}[formula.op]
    assert isinstance(formula, And | Or)
    parts = [truth(part, values) for part in formula.args]
    return all(parts) if isinstance(formula, And) else any(parts)


@settings(max_examples=300, deadline=None)
@given(st.lists(formulas, min_size=1, max_size=4), st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6))
def test_the_prepared_check_is_the_plain_one_and_never_laxer_than_the_exact_one(
    parts: list[And | Or | Compare], data: list[float]
) -> None:
    network = NetworkDecl("N", (TensorDecl("X", "real", (3,)),), (TensorDecl("Y", "real", (3,)),))
    query = Query((1, 0), (network,), And(tuple(parts)))
    values = {"X": np.array(data[:3], dtype=np.float32), "Y": np.array(data[3:], dtype=np.float32)}
    holds = Checker(query).holds(values)
    assert holds == formula_holds(query.assertion, values)
    assert not holds or truth(query.assertion, values)
