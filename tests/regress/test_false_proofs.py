"""Proofs of what is not true, each found once in the wild: the search runs here without attack and
replay, so that only proofs speak, and on every property there is a point that violates it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.api import load, verify
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.onnx_reader import read_graph
from bitcrown.search.inputs.search import InputSplit
from bitcrown.search.neurons.bounder import DomainBounder, bounder_of
from bitcrown.search.neurons.clip import Region
from bitcrown.search.neurons.guide import whole_guide
from bitcrown.search.neurons.race import Race
from bitcrown.search.neurons.root import root_of, rows_of_cases
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.objective import Objective, objective_of
from bitcrown.settings import Settings
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.reader import parse_query
from bitcrown.spec.rounding import box_of

MEMORY = 1 << 28


def graph_of(nodes: list[Node], outputs: tuple[str, ...]) -> Graph:
    return Graph({node.name: node for node in nodes}, (nodes[0].name,), outputs, ("float64",))


def problem(inputs: int, outputs: int, assertions: str) -> Problem:
    text = "".join(f"(declare-const X_{i} Real)" for i in range(inputs))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(outputs))
    query = parse_query(text + assertions)
    return problem_from_query(query, {query.networks[0].name: Path("net.onnx")})


def bounder_for(graph: Graph, objective: Objective) -> DomainBounder:
    network = Network(graph, torch.float64)
    rows = rows_of_cases(network, objective)
    enclosure = LayerBounder(network, MEMORY // 4).run(rows.x_lower, rows.x_upper)
    root = root_of(network, network, rows, enclosure, MEMORY)
    budget = Budget.of_seconds(60, MEMORY)
    return bounder_of(root, whole_guide(root, network), Trials(lambda x: None), budget)


def proves(graph: Graph, objective: Objective) -> bool:
    """Whether splitting the input proves the property within some rounds."""
    network, cases = Network(graph, torch.float64), np.arange(objective.n_cases)
    search = InputSplit(network, objective, cases, lambda x: None, Budget.of_seconds(60, MEMORY))
    search.batch = 64
    for _ in range(12):
        outcome = search.run(0.0)
        if outcome.proved:
            return True
    return False


def dense(name: str, source: str, weight: np.ndarray, bias: np.ndarray | None = None) -> Node:
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return Node(name, "Linear", (source,), (1, len(weight)), {}, params)


def test_an_output_without_bound_does_not_cut_a_box_to_nothing() -> None:
    """0 times infinity, the error of forming a mixture of rows, was NaN and read as "least value
    0"."""
    n = 18
    random = np.random.default_rng(1)
    nodes = [
        Node("x", "Input", (), (1, n)),
        dense("z", "x", np.vstack([np.full(n, 100.0), random.normal(size=(3, n))])),
        Node("e", "Exp", ("z",), (1, 4)),
        Node("r", "Relu", ("z",), (1, 4)),
        dense("y", "r", random.normal(size=(1, 4))),
    ]
    graph = graph_of(nodes, ("e", "y"))
    point = random.uniform(-1, 1, n)
    reached = float(Network(graph, torch.float64)(torch.from_numpy(point)[None])[0, 4])
    box = "".join(f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(n))
    row = " ".join(f"(* {'-' if i % 2 else ''}{i + 1}.5 X_{i})" for i in range(n)).replace(
        "(* -", "(* -"
    )
    side = float(sum((-1) ** i * (i + 1.5) * value for i, value in enumerate(point)))
    text = f"{box}(assert (<= Y_4 {reached + 1e-6!r}))(assert (<= (+ {row}) {side + 1e-6!r}))"
    text += f"(assert (>= (+ {row}) {side - 1e-6!r}))"
    bounder = bounder_for(graph, objective_of(problem(n, 5, text), ["float64"] * n))
    left = bounder.root.open_cases()
    assert len(left) == 1 and len(bounder.root_domains(left, 20)) == 1


def test_a_network_without_relu_is_searched_like_any_other() -> None:
    """Its list of neurons is empty, and ``torch.cat`` takes no empty list."""
    n = 18
    random = np.random.default_rng(2)
    nodes = [Node("x", "Input", (), (1, n)), dense("z", "x", random.normal(size=(4, n)))]
    nodes += [Node("t", "Tanh", ("z",), (1, 4)), dense("y", "t", random.normal(size=(2, 4)))]
    graph = graph_of(nodes, ("y",))
    middle = Network(graph, torch.float64)(torch.zeros(1, n).double())[0].tolist()
    box = "".join(f"(assert (>= X_{i} -0.5))(assert (<= X_{i} 0.5))" for i in range(n))
    text = f"{box}(assert (<= Y_0 {middle[0] + 1e-6!r}))(assert (<= Y_1 {middle[1] + 1e-6!r}))"
    bounder = bounder_for(graph, objective_of(problem(n, 2, text), ["float64"] * n))
    domains = bounder.root_domains(bounder.root.open_cases(), 5)
    assert len(domains) == 1
    brief = replace(bounder, budget=Budget.of_cpu_seconds(1.0))
    outcome = Race(brief, domains).run()
    assert outcome is not None and not outcome.proved
    assert outcome.rounds > 1 and outcome.tactic == "ranges"


@pytest.mark.parametrize("size", ["1e-220", "1e-250", "1e-300", "1e-312", "1e-320"])
def test_slopes_of_every_size_cut_no_deeper_than_they_reach(size: str) -> None:
    """A slope below 1e-200 was taken for 1e-200, which made a cut too deep; sums of denormals were
    taken for exact."""
    nodes = [Node("x", "Input", (), (1, 1)), dense("y", "x", np.array([[float(size)]]))]
    graph = graph_of(nodes, ("y",))
    exponent = size[2:]
    text = (
        f"(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 0.9e{exponent}))(assert (<= "
        f"Y_0 0.95e{exponent}))"
    )
    assert not proves(graph, objective_of(problem(1, 1, text), ["float64"]))


def test_a_row_met_on_a_face_leaves_the_face_whole() -> None:
    """Where a row had no room left, coordinates that it does not see were kept within 1 of their
    lower ends."""
    n = 18
    nodes = [
        Node("x", "Input", (), (1, n)),
        dense("z", "x", np.eye(n)),
        Node("r", "Relu", ("z",), (1, n)),
    ]
    box = "".join(f"(assert (>= X_{i} -100))(assert (<= X_{i} 100))" for i in range(n))
    objective = objective_of(problem(n, n, f"{box}(assert (<= Y_0 0))"), ["float64"] * n)
    root = bounder_for(graph_of(nodes, ("r",)), objective).root
    assert len(root.open_cases()) == 1 and root.clipper is not None
    neurons = root.layout.flat_bounds(root.enclosure.bounds)
    region = Region(root.rows.x_lower, root.rows.x_upper, *neurons, torch.tensor([True]))
    row = torch.zeros(1, 1, n).double()
    row[0, 0, 0] = 1.0
    cut = root.clipper.cut_rows(region, row, torch.zeros(1, 1).double())
    assert cut.feasible.all() and float(cut.x_upper[0, 0]) < -99.9
    assert torch.equal(cut.x_upper[0, 1:], root.rows.x_upper[0, 1:])
    assert torch.equal(cut.x_lower[0, 1:], root.rows.x_lower[0, 1:])


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ("float16", "0.1", float(np.float16(0.1))),
        ("float16", "0.3", float(np.float16(0.3))),
        ("bfloat16", "0.1", 0.10009765625),
        ("float32", "0.1", float(np.float32(0.1))),
        ("int64", "0.6", 1.0),
        ("uint8", "0.4", 0.0),
        ("int32", "-2.5", -2.0),
        ("bool", "0.6", 1.0),
        ("bool", "0.4", 0.0),
    ],
)
def test_a_pinned_input_is_read_in_its_own_type_as_well(kind: str, value: str, read: float) -> None:
    """An input pinned to a number that its type does not hold has the nearest one of the type as a
    witness."""
    nodes = [Node("x", "Input", (), (1, 2)), dense("y", "x", np.eye(2))]
    text = (
        f"(assert (>= X_0 {value}))(assert (<= X_0 {value}))(assert (>= X_1 -1))(assert (<= X_1 1))"
    )
    text += (
        f"(assert (<= Y_0 {read!r}))(assert (>= Y_0 {read!r}))(assert (>= Y_1 0.3))(assert "
        "(<= Y_1 0.4))"
    )
    asked = problem(2, 2, text)
    objective = objective_of(asked, [kind, kind])
    assert objective.lower[0, 0] <= min(float(value), read) and objective.upper[0, 0] >= max(
        float(value), read
    )
    assert not proves(graph_of(nodes, ("y",)), objective)


def test_whole_numbers_inside_a_box_need_no_other_reading() -> None:
    """What the type can hold is not widened: ``[0.4, 2.6]`` holds the integers 1 and 2."""
    asked = problem(1, 1, "(assert (>= X_0 0.4))(assert (<= X_0 2.6))(assert (<= Y_0 0))")
    case = asked.cases[0]
    low, high = box_of(case.lower[0], case.upper[0], "int64")
    assert 0.39 < low <= 0.4 and 2.6 <= high < 2.61


@pytest.mark.parametrize("number", ["1e309", "1e400"])
def test_numbers_beyond_float64_are_numbers(number: str) -> None:
    """``float`` of them raised; what they say of a bounded output is plain."""
    nodes = [Node("x", "Input", (), (1, 1)), dense("y", "x", np.array([[2.0]]))]
    graph = graph_of(nodes, ("y",))
    box = "(assert (>= X_0 0))(assert (<= X_0 1))"
    assert proves(
        graph, objective_of(problem(1, 1, f"{box}(assert (<= Y_0 -{number}))"), ["float64"])
    )
    assert not proves(
        graph, objective_of(problem(1, 1, f"{box}(assert (<= Y_0 {number}))"), ["float64"])
    )
    wide = objective_of(
        problem(1, 1, f"(assert (>= X_0 0))(assert (<= X_0 {number}))(assert (>= Y_0 1))"),
        ["float64"],
    )
    assert not proves(graph, wide)


def tent(path: Path, rise: float, dtype: str) -> Path:
    """``20 + rise - sum |x_i - 1/2|`` of eight inputs, two layers with ReLU; ``rise`` comes from a
    hidden neuron."""
    n = 8
    values = {
        "w1": np.hstack([np.eye(n), -np.eye(n), np.zeros((n, 1))]),
        "b1": np.array([-0.5] * n + [0.5] * n + [rise]),
        "w2": np.array([-1.0] * 2 * n + [1.0]).reshape(-1, 1),
        "b2": np.array([20.0]),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.FLOAT
    weights = [numpy_helper.from_array(value.astype(dtype), name) for name, value in values.items()]
    ends = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, shape in (("x", (1, n)), ("y", (1, 1)))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    model.ir_version, model.opset_import[0].version = 8, 17
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("limit", "is_proved"), [(20.015, False), (20.3, True)])
def test_proofs_about_float16_enclose_its_rounding(
    limit: float, is_proved: bool, tmp_path: Path
) -> None:
    """The real function reaches 20.0117, onnxruntime 20.015625: no proof of less, and a proof where
    there is room."""
    path = tent(tmp_path / "n.onnx", 0.01171875, "float16")
    box = "".join(f"(assert (>= X_{i} 0.4375))(assert (<= X_{i} 0.5625))" for i in range(8))
    asked = problem(8, 1, f"{box}(assert (>= Y_0 {limit}))")
    assert proves(read_graph(path), objective_of(asked, ["float16"] * 8)) == is_proved
    real = replace(
        read_graph(path),
        nodes={n: replace(v, rounding=None) for n, v in read_graph(path).nodes.items()},
    )
    assert proves(real, objective_of(asked, ["float16"] * 8))


@pytest.mark.parametrize("semantics", ["real", "runtime"])
def test_semantics_say_what_a_proof_of_float32_is_about(semantics: str, tmp_path: Path) -> None:
    """The real function reaches 20 + 2**-20.5; in some order of summation float32 may round to 20 +
    2**-19."""
    path, asked = tent(tmp_path / "n.onnx", 2.0**-20.5, "float32"), tmp_path / "p.vnnlib"
    text = "".join(f"(declare-const X_{i} Real)" for i in range(8)) + "(declare-const Y_0 Real)"
    text += "".join(f"(assert (>= X_{i} 0.4375))(assert (<= X_{i} 0.5625))" for i in range(8))
    asked.write_text(f"{text}(assert (>= Y_0 {20 + 2.0**-19!r}))")
    settings = Settings(semantics=semantics, device="cpu", threads=1)
    verdict = verify(load(str(path), str(asked)), settings, seconds=3)
    assert (verdict.status == "unsat") == (semantics == "real")


def one_node(
    folder: Path, op: str, dtype: type, attrs: dict[str, float], constants: dict[str, float]
) -> Path:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, kind, [1]) for name in "xy")
    node = helper.make_node(op, ["x", *constants], ["y"], **attrs)
    weights = [
        numpy_helper.from_array(np.array(value, dtype), name) for name, value in constants.items()
    ]
    graph = helper.make_graph([node], "g", [x], [y], weights)
    path = folder / "net.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("op", "limits"), [("Clip", {"low": -1e31, "high": 1e31}), ("Min", {"high": 1e31})]
)
def test_huge_limits_bind(op: str, limits: dict[str, float], dtype: type, tmp_path: Path) -> None:
    """Limits from 1e30 on were read as none, and outputs proved to lie above them."""
    graph = read_graph(one_node(tmp_path, op, dtype, {}, limits))
    asked = problem(1, 1, "(assert (>= X_0 1e32)) (assert (<= X_0 2e32)) (assert (<= Y_0 1.5e31))")
    assert not proves(graph, objective_of(asked))
    assert proves(
        graph,
        objective_of(
            problem(1, 1, "(assert (>= X_0 1e32)) (assert (<= X_0 2e32)) (assert (<= Y_0 9e30))")
        ),
    )


@pytest.mark.parametrize(
    ("op", "x", "expected"),
    [
        ("Selu", 1.0, float(np.float32(1.0507009873554805))),
        ("LeakyRelu", -1.0, -float(np.float32(0.01))),
        ("HardSigmoid", 1.0, float(np.float32(0.2)) + 0.5),
    ],
)
def test_attributes_left_out_are_float32(
    op: str, x: float, expected: float, tmp_path: Path
) -> None:
    """In float64 networks the defaults of the standard were read as decimals, off by 1e-8; files
    hold float32."""
    network = Network(read_graph(one_node(tmp_path, op, np.float64, {}, {})), torch.float64)
    assert float(network(torch.tensor([[x]], dtype=torch.float64))) == pytest.approx(
        expected, rel=1e-15
    )


def test_no_certificate_where_roundings_are_proved(tmp_path: Path) -> None:
    """The certificate of a float16 network would be about another function than the verdict."""
    path = one_node(tmp_path, "LeakyRelu", np.float16, {}, {})
    (tmp_path / "p.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 1))(assert (<= X_0 "
        "2))(assert (>= Y_0 9))"
    )
    asked = load(path, tmp_path / "p.vnnlib")
    verdict = verify(asked, Settings(device="cpu"), cpu_seconds=20.0, want_certificate=True)
    assert (verdict.status.value, verdict.certificate) == ("unsat", None)
    assert "float16" in verdict.counters["no_certificate"]
    asked = load(one_node(tmp_path, "LeakyRelu", np.float32, {}, {}), tmp_path / "p.vnnlib")
    for semantics, has_one in (("runtime", False), ("real", True)):
        settings = Settings(device="cpu", semantics=semantics)
        verdict = verify(asked, settings, cpu_seconds=20.0, want_certificate=True)
        assert verdict.status.value == "unsat" and (verdict.certificate is not None) == has_one
