"""One box and few inputs: splits of the input and of neurons, against each other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bitcrown import Reason, Settings, Status, Verdict, load, verify
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.search import input_decision
from bitcrown.search.input_decision import InputTurns
from bitcrown.search.strategy import Run
from tests.random_networks import box_property, dense_graph, save_onnx


def one_direction(inputs: int) -> Graph:
    """``relu(z) - 2 relu(z / 2) = 0`` with ``z`` a sum of all inputs: two signs decide it, and
    every box that the plane ``z = 0`` crosses stays loose."""
    graph = dense_graph(5, [inputs, 2, 1])
    first, last = graph.nodes["z1"].params, graph.nodes["z2"].params
    first["weight"][1] = first["weight"][0] / 2
    first["bias"][:] = 0.0
    last["weight"][:], last["bias"][:] = [[1.0, -2.0]], 0.0
    return graph


def asked(graph: Graph, formula: str, folder: Path, ends: tuple[float, float] = (-1.0, 1.0)) -> Run:
    save_onnx(graph, folder / "net.onnx")
    low, up = (np.full(graph.nodes["x"].size, end) for end in ends)
    text = box_property(low, up, graph.n_outputs, formula)
    (folder / "p.vnnlib").write_text(text)
    problem = load(folder / "net.onnx", folder / "p.vnnlib")
    return Run(problem, Settings(), Budget.of_cpu_seconds(60.0), None)


def decided(run: Run) -> Verdict:
    return verify(run.problem, Settings(), cpu_seconds=60.0)


def test_signs_decide_what_boxes_do_not(tmp_path: Path) -> None:
    verdict = decided(asked(one_direction(12), "(<= Y_0 -0.02)", tmp_path))
    assert (verdict.status, verdict.decided_by) == (Status.UNSAT, "neuron split")
    assert verdict.counters["boxes_left"] > 0


def test_boxes_go_on_where_signs_were_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival's ``timeout`` is not the last word."""
    monkeypatch.setattr(input_decision, "_ALONE", 0.0)
    monkeypatch.setattr(input_decision, "_FIRST_TURN", 0.0)
    monkeypatch.setattr(input_decision, "_PREPARATION", 0.0)
    asks: list[object] = []

    def in_vain(run: Run, proof: object, objective: object, rival: object) -> Verdict:
        asks.append(rival)
        return run.timeout()

    monkeypatch.setattr(input_decision, "decide_by_neurons", in_vain)
    verdict = decided(asked(one_direction(2), "(<= Y_0 -0.05)", tmp_path))
    assert (verdict.status, verdict.decided_by) == (Status.UNSAT, "input split")
    assert len(asks) == 1


def test_what_is_closed_grows_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are cut, raced and dealt out; of what they stand for nothing is lost or counted
    twice."""
    found: list[InputTurns] = []
    turn = InputTurns.turn

    def round_by_round(turns: InputTurns, seconds: float) -> Verdict | None:
        found[:] = [turns]
        return turn(turns, 0.0)

    monkeypatch.setattr(InputTurns, "turn", round_by_round)
    monkeypatch.setattr(InputTurns, "attack", lambda turns, seconds: None)
    monkeypatch.setattr(input_decision, "_ALONE", 1e9)
    monkeypatch.setattr("bitcrown.search.inputs.search.LARGEST_BATCH", 16)
    graph = dense_graph(3, [4, 24, 24, 1])
    random = np.random.default_rng(0).uniform(-1.0, 1.0, (4000, 4))
    y = Network(graph, torch.float64)(torch.from_numpy(random))
    below = float(y.min() - 0.2 * (y.max() - y.min()))
    assert decided(asked(graph, f"(<= Y_0 {below!r})", tmp_path)).status is Status.UNSAT
    closed = [point.closed for point in found[0].history]
    assert len(closed) > 20
    assert closed[-1] == pytest.approx(1.0)
    assert all(b >= a - 1e-9 for a, b in zip(closed, closed[1:], strict=False))


def test_a_box_that_floats_cannot_split_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point whose value is less above the limit than the proof's allowance for rounding: the
    search over inputs ends, the other one has its turn, and the limit of time is not used up."""
    calls: list[float] = []
    turn = InputTurns.turn

    def counted(turns: InputTurns, seconds: float) -> Verdict | None:
        calls.append(seconds)
        assert len(calls) < 50, "nothing is left to do, and it goes on"
        return turn(turns, seconds)

    monkeypatch.setattr(InputTurns, "turn", counted)
    graph = dense_graph(5, [2, 2, 1])
    for node in ("z1", "z2"):
        graph.nodes[node].params["weight"][:] = 1.0
        graph.nodes[node].params["bias"][:] = 0.25
    # 2 (0.5 + 0.5 + 0.25) + 0.25 = 2.75 in every order and number type
    verdict = decided(asked(graph, "(<= Y_0 2.7499999999999996)", tmp_path, (0.5, 0.5)))
    assert (verdict.status, verdict.reason) == (Status.UNKNOWN, Reason.INCOMPLETE)
    assert calls


def test_a_phase_inside_another_counts_once(tmp_path: Path) -> None:
    run = asked(one_direction(2), "(<= Y_0 -0.2)", tmp_path)
    started = time.monotonic()
    with run.phase("outer"), run.phase("inner"):
        time.sleep(0.05)
    assert run.phases["inner"] >= 0.05
    assert sum(run.phases.values()) <= time.monotonic() - started
