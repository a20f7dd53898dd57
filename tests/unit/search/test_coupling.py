"""Properties that couple two networks: what becomes of tied inputs, and of differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

import bitcrown
from bitcrown.model.alignment import in_order_of_partners
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.joining import join
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.coupling import by_differences, coupled
from bitcrown.search.objective import Objective, objective_of
from bitcrown.settings import Settings
from bitcrown.verdict import Status
from tests.unit.model.tiny_models import model_of

SIZES = (3, 8, 8, 2)
TIES = "".join(f"(assert (== X_f[{i}] X_g[{i}]))" for i in range(3))


def weights(seed: int, moved: float = 0.0, is_positive: bool = False) -> list[np.ndarray]:
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    shapes = [s for a, b in zip(SIZES, SIZES[1:], strict=False) for s in ((a, b), (b,))]
    found = [rng.normal(size=shape) for shape in shapes]
    if is_positive:
        found = [np.abs(value) if value.ndim == 2 else value for value in found]
    return [(v + moved * other.normal(size=v.shape)).astype(np.float32) for v in found]


def network(folder: Path, name: str, values: list[np.ndarray]) -> Path:
    nodes, source = [], "x"
    for k in range(3):
        nodes.append(helper.make_node("Gemm", [source, f"w{k}", f"b{k}"], [f"z{k}"]))
        source = f"z{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [source], [f"a{k}"]))
            source = f"a{k}"
    nodes.append(helper.make_node("Flatten", [source], ["y"], axis=0))
    named = {f"{'wb'[k % 2]}{k // 2}": value for k, value in enumerate(values)}
    nodes[0].input[0] = "row"
    nodes.insert(0, helper.make_node("Flatten", ["x"], ["row"], axis=0))
    path = folder / f"{name}.onnx"
    path.write_bytes(model_of(nodes, {"x": [3]}, ["y"], named).SerializeToString())
    return path


def pair_problem(folder: Path, f: list[np.ndarray], g: list[np.ndarray], assertions: str):  # type: ignore[no-untyped-def]
    text = "(vnnlib-version <2.0>)"
    for name, relation in (("f", ""), ("g", " (isomorphic-to f)")):
        text += (
            f"(declare-network {name}{relation} (declare-input X_{name} real [3])"
            f" (declare-output Y_{name} real [1,2]))"
        )
    for name in "fg":
        for i in range(3):
            text += f"(assert (and (>= X_{name}[{i}] -1.0) (<= X_{name}[{i}] 1.0)))"
    (folder / "property.vnnlib").write_text(text + assertions)
    files = {"f": network(folder, "f", f), "g": network(folder, "g", g)}
    return bitcrown.load(files, folder / "property.vnnlib")


def rows_of(problem) -> tuple[Network, Network, Objective, Objective]:  # type: ignore[no-untyped-def]
    """The joined networks and rows, as they are and coupled."""
    graphs = {name: read_graph(NetworkFile(path)) for name, path in problem.networks.items()}
    joined, objective = join(graphs), objective_of(problem)
    graph, reduced = coupled(problem, joined, objective)
    return Network(joined, torch.float64), Network(graph, torch.float64), objective, reduced


def test_tied_inputs_become_one_and_rows_keep_their_values(tmp_path: Path) -> None:
    more = "(assert (>= (+ Y_f[0,0] (* 2.0 X_g[1]) X_f[1]) (+ Y_g[0,1] (* 0.5 X_g[2]))))"
    problem = pair_problem(tmp_path, weights(1), weights(1, 0.1), TIES + more)
    whole, network, objective, reduced = rows_of(problem)
    assert int((reduced.lower != reduced.upper).any(0).sum()) == 3
    assert np.isfinite(objective.rhs).sum() == 7 and np.isfinite(reduced.rhs).sum() == 1
    rng = np.random.default_rng(2)
    x = np.tile(rng.uniform(-1, 1, size=(200, 3)), 2)
    pinned = np.clip(x, reduced.lower[0], reduced.upper[0])
    before = rows_at(whole, objective, x)
    after = rows_at(network, reduced, pinned)
    chosen = np.isfinite(objective.rhs[0]) & (objective.C[0] != 0).any(1)
    np.testing.assert_allclose(after[:, 0], before[:, chosen][:, 0], rtol=1e-9, atol=1e-9)


def rows_at(network: Network, objective: Objective, x: np.ndarray) -> np.ndarray:
    y = network(torch.tensor(x)).numpy()
    value = y @ objective.C[0].T - objective.rhs[0]
    return value if objective.D is None else value + x @ objective.D[0].T


def test_a_tie_of_one_case_alone_is_none(tmp_path: Path) -> None:
    either = (
        "(assert (or (and (<= X_f[0] X_g[0]) (>= X_f[0] X_g[0]) (<= Y_f[0,0] Y_g[0,0]))"
        " (<= Y_f[0,1] Y_g[0,1])))"
    )
    problem = pair_problem(tmp_path, weights(1), weights(1, 0.1), either)
    whole, network, objective, reduced = rows_of(problem)
    assert reduced is objective and network.graph is whole.graph
    assert by_differences(problem, whole.graph) is not None


def difference_of(f: list[np.ndarray], g: list[np.ndarray]) -> float:
    """The largest difference among samples."""
    x = np.random.default_rng(3).uniform(-1, 1, size=(20000, 3))
    values = []
    for w0, b0, w1, b1, w2, b2 in (f, g):
        hidden = np.maximum(x @ w0 + b0, 0) @ w1 + b1
        values.append(np.maximum(hidden, 0) @ w2 + b2)
    return float(np.abs(values[0] - values[1]).max())


@pytest.mark.parametrize("seed", (1,))
def test_close_networks_are_proved_close_and_not_closer(tmp_path: Path, seed: int) -> None:
    f, g = weights(seed), weights(seed, 1e-3)
    largest = difference_of(f, g)
    for factor, expected in ((6.0, Status.UNSAT), (0.5, Status.SAT)):
        limit = f"{factor * largest:.9f}"
        either = "".join(
            f"(> Y_g[0,{k}] (+ Y_f[0,{k}] {limit}))(< Y_g[0,{k}] (- Y_f[0,{k}] {limit}))"
            for k in range(2)
        )
        problem = pair_problem(tmp_path, f, g, f"{TIES}(assert (or {either}))")
        verdict = bitcrown.verify(problem, Settings(), cpu_seconds=60)
        assert verdict.status is expected
        if expected is Status.UNSAT:
            assert verdict.counters["pairs"] == "differences"


def test_the_order_of_an_input_is_used(tmp_path: Path) -> None:
    """A rising network at ``x <= x'``: its outputs fall nowhere by a thousandth."""
    f = weights(4, is_positive=True)
    order = "(assert (<= X_f[0] X_g[0]))" + TIES[len("(assert (== X_f[0] X_g[0]))") :]
    falls = "(assert (< (+ Y_g[0,0] 0.001) Y_f[0,0]))"
    problem = pair_problem(tmp_path, f, f, order + falls)
    assert bitcrown.verify(problem, Settings(), cpu_seconds=60).status is Status.UNSAT
    rises = "(assert (> Y_g[0,0] (+ Y_f[0,0] 0.001)))"
    problem = pair_problem(tmp_path, f, f, order + rises)
    assert bitcrown.verify(problem, Settings(), cpu_seconds=60).status is Status.SAT


def falling(k: int, limit: str, more: str = "") -> str:
    """Output ``k`` at ``x <= x'`` (in the first input) is at ``x'`` below that at ``x``."""
    order = "(assert (<= X_f[0] X_g[0]))" + TIES[len("(assert (== X_f[0] X_g[0]))") :]
    return f"{order}{more}(assert (< Y_g[0,{k}] (+ Y_f[0,{k}] {limit})))"


def rising_network() -> list[np.ndarray]:
    """Its outputs rise everywhere: the first neurons of both layers are never off."""
    f = weights(4, is_positive=True)
    for bias in (f[1], f[3]):
        bias[:2] = 10.0
    return f


def test_a_rising_network_does_not_fall_where_the_inputs_meet(tmp_path: Path) -> None:
    """No bound of the difference says so: it is 0 there."""
    f = rising_network()
    verdict = bitcrown.verify(pair_problem(tmp_path, f, f, falling(0, "0.0")), cpu_seconds=20)
    assert (verdict.status, verdict.decided_by) == (Status.UNSAT, "directions")
    equal = falling(0, "0.0").replace("(< Y_g", "(<= Y_g")
    assert bitcrown.verify(pair_problem(tmp_path, f, f, equal), cpu_seconds=20).status is Status.SAT
    g = [*f[:-1], f[-1] + np.float32(0.001)]
    moved = bitcrown.verify(pair_problem(tmp_path, g, f, falling(0, "0.0")), cpu_seconds=20)
    assert moved.status is Status.SAT


def rates(f: list[np.ndarray], k: int) -> tuple[float, float]:
    """The least and the largest slope in the first input at samples."""
    w0, b0, w1, b1, w2, _ = (part.astype(np.float64) for part in f)
    x = np.random.default_rng(5).uniform(-1, 1, size=(20000, 3))
    first = x @ w0 + b0
    second = np.maximum(first, 0) @ w1 + b1
    change = ((first > 0) * w0[0]) @ w1 * (second > 0) @ w2[:, k]
    return float(change.min()), float(change.max())


@pytest.mark.parametrize("seed", (1, 2))
def test_how_fast_an_output_changes_is_proved_and_not_less(tmp_path: Path, seed: int) -> None:
    """``f(x') - f(x) < K (x' - x)``, and the change over a tenth of the box."""
    f = weights(seed)
    least, most = rates(f, 1)
    width = 0.02 * (most - least)
    for rate, expected in ((least - width, Status.UNSAT), (least + width, Status.SAT)):
        limit = f"(* {rate:.9f} (- X_g[0] X_f[0]))"
        verdict = bitcrown.verify(pair_problem(tmp_path, f, f, falling(1, limit)), cpu_seconds=60)
        assert verdict.status is expected
    near = "(assert (<= X_g[0] (+ X_f[0] 0.1)))"
    most_fall = 0.1 * min(least, -0.1)
    problem = pair_problem(tmp_path, f, f, falling(1, f"{1.05 * most_fall:.9f}", near))
    assert bitcrown.verify(problem, cpu_seconds=60).status is Status.UNSAT
    problem = pair_problem(tmp_path, f, f, falling(1, f"{0.5 * most_fall:.9f}", near))
    assert bitcrown.verify(problem, cpu_seconds=60).status is Status.SAT


def test_cases_that_derivatives_decide_leave_the_others(tmp_path: Path) -> None:
    """One case of two is about more than differences."""
    f = rising_network()
    order = falling(0, "0.0").partition("(assert (< Y_g")[0]
    for limit, expected in ((1000.0, Status.UNSAT), (0.5, Status.SAT)):
        either = f"(assert (or (< Y_g[0,0] Y_f[0,0]) (> (+ Y_f[0,1] Y_g[0,1]) {limit})))"
        verdict = bitcrown.verify(pair_problem(tmp_path, f, f, order + either), cpu_seconds=20)
        assert verdict.status is expected


def permuted(values: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """The same function with its hidden neurons in another order."""
    rng, found = np.random.default_rng(seed), list(values)
    for k in (0, 2):
        order = rng.permutation(len(values[k + 1]))
        found[k], found[k + 1] = found[k][:, order], found[k + 1][order]
        found[k + 2] = found[k + 2][order]
    return found


@pytest.mark.parametrize("moved", (0.0, 1e-3))
def test_neurons_in_another_order_are_matched(tmp_path: Path, moved: float) -> None:
    f = weights(1)
    g = permuted(weights(1, moved), 5)
    problem = pair_problem(tmp_path, f, g, TIES + "(assert (>= Y_f[0,0] (+ Y_g[0,0] 0.5)))")
    _, network, _, _ = rows_of(problem)
    graph = by_differences(problem, network.graph)
    assert graph is not None
    x = torch.tensor(np.tile(np.random.default_rng(6).uniform(-1, 1, size=(200, 3)), 2))
    torch.testing.assert_close(Network(graph, torch.float64)(x), network(x), atol=1e-9, rtol=0)
    largest = [
        max((float(np.abs(v).max()) for k, v in node.params.items() if k == "weight"), default=0.0)
        for node in graph.nodes.values()
        if "/moved" in node.name
    ]
    assert len(largest) == (0 if not moved else 3)
    assert all(value < 10 * moved for value in largest)


def test_neurons_that_others_read_keep_their_order(tmp_path: Path) -> None:
    """A layer whose values are also an output, or are added to something, is not reordered."""
    f, g = weights(1), permuted(weights(1), 5)
    text = TIES + "(assert (>= Y_f[0,0] (+ Y_g[0,0] 0.5)))"
    problem = pair_problem(tmp_path, f, g, text)
    graphs = {name: read_graph(NetworkFile(path)) for name, path in problem.networks.items()}
    hidden = next(node.name for node in graphs["g"].nodes.values() if node.op == "Relu")
    joined = join(graphs)
    joined = replace(joined, outputs=(*joined.outputs, f"g:{hidden}"))
    members = [name for name in joined.nodes if name.startswith("g:")]
    partner = {name: f"f:{name[2:]}" for name in members}
    found = in_order_of_partners(joined, members, partner)
    first = next(n for n in joined.nodes.values() if n.name.startswith("g:") and n.op == "Linear")
    assert found.nodes[first.name] is first
    x = torch.tensor(np.random.default_rng(6).uniform(-1, 1, size=(50, 6)))
    before, after = (Network(graph, torch.float64)(x) for graph in (joined, found))
    torch.testing.assert_close(before, after, atol=1e-9, rtol=0)
