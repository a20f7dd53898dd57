"""Rows that must hold together decide formulas: inputs forced to 0 or 1, clauses as ReLUs (as
sat_relu does it)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.search.neurons import race
from bitcrown.search.neurons.rules import TACTICS
from bitcrown.spec.problem import Problem
from bitcrown.verdict import Status


def formula_network(path: Path, clauses: list[list[int]], n: int) -> Path:
    """``y0 = 1 - sum of unsatisfied clauses``, ``y1 = sum min(x, 1 - x)``: formula true iff y0 >= 1
    and y1 <= 0."""
    rows, biases, out = [], [], []
    for clause in clauses:  # relu(1 - sum of literals)
        row, bias = np.zeros(n), 1.0
        for literal in clause:
            row[abs(literal) - 1] -= np.sign(literal)
            bias -= 1.0 if literal < 0 else 0.0
        rows.append(row)
        biases.append(bias)
        out.append((-1.0, 0.0))
    for i in range(n):
        for slope, bias, weight in ((1.0, 0.0, 1.0), (2.0, -1.0, -1.0)):
            rows.append(slope * np.eye(n)[i])
            biases.append(bias)
            out.append((0.0, weight))
    arrays = {
        "W": np.array(rows),
        "b": np.array(biases),
        "V": np.array(out).T,
        "c": np.array([1.0, 0.0]),
    }
    initialisers = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["z"]),
        helper.make_node("Gemm", ["z", "V", "c"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", n), ("y", 2))
    ]
    graph = helper.make_graph(nodes, "formula", ends[:1], ends[1:], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def random_clauses(seed: int, n: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [
        [int(v) * int(rng.choice([-1, 1])) for v in rng.choice(n, 3, replace=False) + 1]
        for _ in range(count)
    ]


def formula_problem(folder: Path, clauses: list[list[int]], n: int) -> Problem:
    network = formula_network(folder / "formula.onnx", clauses, n)
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + [
        f"(declare-const Y_{j} Real)" for j in range(2)
    ]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} 1.0))" for i in range(n)]
    prop = folder / "formula.vnnlib"
    prop.write_text("\n".join([*lines, "(assert (>= Y_0 1.0))", "(assert (<= Y_1 0.0))"]))
    return bitcrown.load(network, prop)


@pytest.mark.parametrize("seed", range(6))
def test_verdict_equals_truth_table(seed: int, tmp_path: Path) -> None:
    n = 9
    clauses = random_clauses(seed, n, 38 if seed % 2 else 55)
    is_true = any(
        all(any((x[abs(v) - 1] > 0) == (v > 0) for v in clause) for clause in clauses)
        for x in itertools.product([0, 1], repeat=n)
    )
    verdict = bitcrown.verify(formula_problem(tmp_path, clauses, n), cpu_seconds=60.0)
    assert verdict.status is (Status.SAT if is_true else Status.UNSAT)


def leaves_of_a_tree(seed: int, n: int, count: int) -> list[list[int]]:
    """``count`` clauses, one against each leaf of a random tree of decisions: no point is left."""
    rng = np.random.default_rng(seed)
    leaves: list[list[int]] = [[]]
    while len(leaves) < count:
        leaf = leaves.pop(int(rng.integers(min(len(leaves), 4))))
        variable = int(rng.choice(np.setdiff1d(np.arange(n) + 1, np.abs(leaf))))
        leaves += [[*leaf, variable], [*leaf, -variable]]
    return leaves


@pytest.mark.parametrize("seed", range(2))
def test_a_tree_of_clauses_is_found_again(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, clauses = 30, leaves_of_a_tree(seed, 30, 150)
    tactic = next(tactic for tactic in TACTICS if tactic.name == "tightest lines")
    monkeypatch.setattr(race, "suitable_tactics", lambda bounder: [tactic])
    verdict = bitcrown.verify(formula_problem(tmp_path, clauses, n), cpu_seconds=120.0)
    assert verdict.status is Status.UNSAT
    # Where one child is a leaf the other follows without a split.
    nodes = {tuple(leaf[:depth]) for leaf in clauses for depth in range(len(leaf))}
    splits = sum(
        all((*node, sign * variable) in nodes for sign in (-1, 1))
        for node, variable in {(leaf[:-1], abs(leaf[-1])) for leaf in map(tuple, nodes) if leaf}
    )
    assert verdict.counters["domains"] <= 2 * splits
