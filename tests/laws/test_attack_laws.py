"""Laws of attacks: violations planted in random networks are found, by probes and by descent in
both precisions.

Judged by code of its own: rationals over the printed witness.
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

from bitcrown.attacks.property.pgd import pgd
from bitcrown.attacks.property.probes import probe
from bitcrown.attacks.property.target import Target
from bitcrown.budget import Budget
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer, format_witness
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.reader import parse_query

PAIR = re.compile(r"\(([XY])_(\d+) (\S+?)\)")


class Planted(NamedTuple):
    """A random ReLU network with a property that is violated around ``point``."""

    path: Path
    vnnlib: Path
    text: str
    point: np.ndarray


def relu_net(path: Path, seed: int, n: int, m: int) -> Path:
    random = np.random.default_rng(seed)
    sizes = [n, 6, 5, m]
    nodes, weights, current = [], [], "x"
    for k in range(3):
        weight = random.normal(size=(sizes[k], sizes[k + 1])) / np.sqrt(sizes[k])
        weights += [
            numpy_helper.from_array(weight.astype(np.float32), f"w{k}"),
            numpy_helper.from_array(
                (0.3 * random.normal(size=sizes[k + 1])).astype(np.float32), f"b{k}"
            ),
        ]
        nodes += [
            helper.make_node("MatMul", [current, f"w{k}"], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"a{k}"]),
        ]
        current = f"a{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [current], [f"r{k}"]))
            current = f"r{k}"
    proto = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", proto, [1, n])],
        [helper.make_tensor_value_info(current, proto, [1, m])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def plant(folder: Path, seed: int, n: int, m: int) -> Planted:
    """The violation: output 0 at least as large as at ``point``, less a tenth of its spread over
    the box."""
    path = relu_net(folder / "net.onnx", seed, n, m)
    random = np.random.default_rng(seed + 1)
    low = np.round(random.uniform(-1, 0.5, n), 3)
    high = np.round(low + random.uniform(0, 1, n), 3)
    head = [f"(declare-const X_{i} Real)" for i in range(n)] + [
        f"(declare-const Y_{i} Real)" for i in range(m)
    ]
    box = [f"(assert (>= X_{i} {low[i]}))(assert (<= X_{i} {high[i]}))" for i in range(n)]
    replay = RuntimeReplay(parse_query("\n".join([*head, *box])), {"N": path})
    points = random.uniform(low, high, (300, n))
    y = replay.run_batch(points)[:, 0]
    best = int(y.argmax())
    level = float(y[best] - 0.1 * np.ptp(y) - 1e-3)
    text = "\n".join([*head, *box, f"(assert (>= Y_0 {level:.17f}))"])
    (folder / "prop.vnnlib").write_text(text)
    return Planted(path, folder / "prop.vnnlib", text, points[best])


def holds_exactly(text: str, written: str) -> bool:
    """The assertions of ``plant`` at the numbers of a result file, in rationals."""
    found = {
        f"{name}_{index}": Fraction(float(number)) for name, index, number in PAIR.findall(written)
    }
    for op, name, number in re.findall(r"\(assert \(([<>]=) (\S+) (\S+?)\)\)", text):
        value, bound = found[name], Fraction(number)
        if (value < bound) if op == ">=" else (value > bound):
            return False
    return True


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_probes_find_planted_violations(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int
) -> None:
    planted = plant(tmp_path_factory.mktemp("net"), seed, n, 2)
    problem = problem_from_query(parse_query(planted.text), {"N": planted.path})
    replay = RuntimeReplay(problem.query, problem.networks)
    witness = probe(problem, replay, Confirmer(problem, replay), Budget.of_cpu_seconds(60), 0, 10.0)
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
    points, cases, _ = pgd(
        network, lower, upper, target, generator, 60, 32, Budget.of_cpu_seconds(60)
    )
    assert points.shape[1] == n and not cases.any()
    assert bool((points >= lower).all()) and bool((points <= upper).all())
    confirmer = Confirmer(problem, RuntimeReplay(problem.query, problem.networks))
    assert any(confirmer.confirm(point.double().numpy(), case) is not None for point in points[:4])
