"""Operators that compare, choose, sort, move or repeat: against onnxruntime, ties included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import interval_bounds
from bitcrown.errors import UnsupportedError
from bitcrown.model.execute import Network
from bitcrown.model.onnx_reader import read_graph

Array = np.ndarray


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.array(values, dtype=np.int64)


def model(
    op: str, inputs: list[Any], attrs: dict[str, Any], outputs: int, opset: int, domain: str = ""
) -> bytes:
    """``op`` on one network input of each shape, its outputs cast to float32; arrays are
    weights."""
    names, entries, weights = [], [], []
    for k, given in enumerate(inputs):
        names.append(f"x{k}" if given is not None else "")
        if isinstance(given, tuple):
            entries.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, given))
        elif given is not None:
            weights.append(numpy_helper.from_array(given, names[-1]))
    nodes = [helper.make_node(op, names, [f"z{k}" for k in range(outputs)], domain=domain, **attrs)]
    read = 1 if op == "TopK" else outputs
    nodes += [helper.make_node("Cast", [f"z{k}"], [f"y{k}"], to=1) for k in range(read)]
    ends = [onnx.ValueInfoProto(name=f"y{k}") for k in range(read)]
    graph = helper.make_graph(nodes, "g", entries, ends, weights)
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()
    return made


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., None]:
    def run(
        op: str, *inputs: Any, outputs: int = 1, opset: int = 18, domain: str = "", **attrs: Any
    ) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(model(op, list(inputs), attrs, outputs, opset, domain))
        graph = read_graph(path)
        network = Network(graph, torch.float64)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        shapes = [given for given in inputs if isinstance(given, tuple)]
        random = np.random.default_rng(3)
        low, high = np.full(graph.n_inputs, -2.0), np.full(graph.n_inputs, 2.0)
        with torch.no_grad():
            bounds = interval_bounds(network, network.tensor(low[None]), network.tensor(high[None]))
        for trial in range(8):
            parts = [random.uniform(-2, 2, shape).astype(np.float32) for shape in shapes]
            if trial % 2:  # whole numbers tie
                parts = [np.rint(part) for part in parts]
            feed = {info.name: p for info, p in zip(session.get_inputs(), parts, strict=True)}
            expected = session.run(None, feed)
            flat = np.concatenate([part.reshape(-1) for part in parts]).astype(np.float64)
            found = network.activations(network.tensor(flat[None]))
            for name, value in zip(graph.outputs, expected, strict=True):
                mine = found[name][0].numpy()
                assert mine.shape == value.shape
                np.testing.assert_allclose(mine, value, rtol=2e-5, atol=2e-5)
                assert (bounds[name][0][0].numpy() <= mine + 1e-9).all()
                assert (bounds[name][1][0].numpy() >= mine - 1e-9).all()

    return run


Compared = Callable[..., None]
COMPARISONS = ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"]


@pytest.mark.parametrize("op", COMPARISONS)
def test_comparisons(compared: Compared, op: str) -> None:
    compared(op, (2, 3), (2, 3))
    compared(op, (2, 3), np.float32([0.0, 1.0, -1.0]))
    compared(op, np.float32(1.0), (2, 3))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_position_of_the_best(
    compared: Compared, op: str, axis: int, keepdims: int, last: int
) -> None:
    compared(op, (3, 5), axis=axis, keepdims=keepdims, select_last_index=last)


def test_hardmax_and_shrink(compared: Compared) -> None:
    compared("Hardmax", (2, 4), axis=-1)
    compared("Hardmax", (2, 2, 3), axis=1, opset=11)
    compared("Shrink", (3, 4), lambd=0.5, bias=0.5)
    compared("Shrink", (3, 4), lambd=1.0, bias=0.25)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("is_known", [True, False])
def test_rows_of_a_table_at_positions_of_the_input(
    axis: int, is_known: bool, tmp_path: Path
) -> None:
    """Positions are cast from real numbers; -1 is the last row."""
    table = weight(5, 4) if axis == 0 else weight(4, 5)
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Add", ["t", "z"], ["table"]),
        helper.make_node("Gather", ["table", "i"], ["y"], axis=axis),
    ]
    entries = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))]
    weights = [numpy_helper.from_array(table, "t")]
    zero = np.zeros(table.shape, np.float32)
    if is_known:
        weights.append(numpy_helper.from_array(zero, "z"))
    else:
        entries.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, table.shape))
    graph = helper.make_graph(nodes, "g", entries, [onnx.ValueInfoProto(name="y")], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    read = read_graph(path)
    network = Network(read, torch.float64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in range(5):
        x = np.random.default_rng(seed).uniform(-5.9, 4.9, (2, 3)).astype(np.float32)
        feed = {"x": x} if is_known else {"x": x, "z": weight(*table.shape, seed=seed)}
        flat = np.concatenate([feed[name].reshape(-1) for name in read.inputs])
        found = network(network.tensor(flat[None]))[0].numpy()
        np.testing.assert_allclose(found, session.run(None, feed)[0].reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 2), (7, 7), (8, 3)])
def test_largest_entries_in_order(compared: Compared, n: int, k: int, largest: int) -> None:
    compared("TopK", (2, n), ints(k), axis=-1, largest=largest, outputs=2)
    compared("TopK", (n, 2), ints(k), axis=0, largest=largest, outputs=2)


EQUATIONS = [
    *("ij,jk->ik", "bij,bjk->bik", "bij,bkj->bik", "ij,jk", "bhid,bhjd->bhij", "i,i->"),
    *("...ij,...jk->...ik", "ij,ij->ij", "ij,kl->ijkl", "bij,jk->bik", "ij->ji", "ij->i", "ij->"),
]
KNOWN = [
    (equation, known)
    for equation in EQUATIONS
    for known in ((), (0,), (1,))
    if not known or "," in equation
]


@pytest.mark.parametrize(("equation", "known"), KNOWN)
def test_einsum(compared: Compared, equation: str, known: tuple[int, ...]) -> None:
    """Operands in ``known`` are weights."""
    extents = dict(zip("bhijkld", (2, 3, 4, 5, 3, 2, 5), strict=True))
    terms = equation.split("->")[0].replace("...", "bh").split(",")
    given: list[Any] = [tuple(extents[letter] for letter in term) for term in terms]
    for place in known:
        given[place] = weight(*given[place])
    compared("Einsum", *given, equation=equation)


def test_reads_and_writes_at_constant_places(compared: Compared) -> None:
    compared("GatherND", (3, 4, 2), ints([0, 1], [-1, 3]))
    compared("GatherND", (2, 3, 4), ints([[1], [0]], [[2], [-1]]), batch_dims=1)
    compared("GatherElements", (3, 4), ints([0, 1, -1, 2], [2, 2, 0, 0]), axis=0)
    compared("ScatterND", (4, 3), ints([1], [3]), (2, 3))
    compared("ScatterND", (4, 3), ints([1, 2], [-1, 0]), (2,))
    compared("ScatterND", (4, 3), ints([1], [1]), (2, 3), reduction="add")
    compared("ScatterElements", (3, 4), ints([2, 0, 1, 0]), (1, 4), axis=0)
    compared("ScatterElements", weight(3, 4), ints([2, 0]), (1, 2), axis=1)


def test_a_place_written_twice_is_refused(compared: Compared) -> None:
    with pytest.raises(UnsupportedError, match="one place twice"):
        compared("ScatterND", (4, 3), ints([1], [1]), (2, 3))


def test_normalisations(compared: Compared) -> None:
    compared("GroupNormalization", (2, 6, 3), weight(3), weight(3, seed=1), num_groups=3)
    compared(
        "GroupNormalization", (1, 4, 2, 2), weight(4), weight(4, seed=1), num_groups=2, opset=21
    )
    compared("SimplifiedLayerNormalization", (2, 6), weight(6), axis=-1, epsilon=1e-3)
    compared("MeanVarianceNormalization", (2, 3, 2, 2))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(compared: Compared, op: str, direction: str) -> None:
    gates, two = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (direction == "bidirectional")
    size, entries, steps, batch = 3, 2, 4, 2
    weights = weight(two, gates * size, entries), weight(two, gates * size, size, seed=1)
    bias = weight(two, 2 * gates * size, seed=2)
    common = {"hidden_size": size, "direction": direction}
    outputs = 3 if op == "LSTM" else 2
    compared(op, (steps, batch, entries), *weights, bias, outputs=outputs, **common)
    start = [None, (two, batch, size), weight(two, batch, size)][: 3 if op == "LSTM" else 2]
    compared(op, (steps, batch, entries), *weights, bias, *start, outputs=outputs, **common)
    compared(op, (steps, batch, entries), *weights, outputs=outputs, clip=0.5, **common)


def test_variants_of_recurrent_layers(compared: Compared) -> None:
    gru = (3, 1, 2), weight(1, 9, 2), weight(1, 9, 3, seed=1), weight(1, 18, seed=2)
    compared("GRU", *gru, hidden_size=3, linear_before_reset=1, outputs=2)
    lstm = (3, 1, 2), weight(1, 12, 2), weight(1, 12, 3, seed=1), weight(1, 24, seed=2)
    compared("LSTM", *lstm, None, None, None, weight(1, 9, seed=3), hidden_size=3, outputs=3)
    rnn = (3, 1, 2), weight(1, 3, 2), weight(1, 3, 3, seed=1)
    compared("RNN", *rnn, hidden_size=3, activations=["Relu"], outputs=2)


def test_choices_by_conditions_of_the_input(tmp_path: Path) -> None:
    """``where(x > 0.5 and not (x > 1), x, -x)`` and one-hot of a position, in one graph."""
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["p"]),
        helper.make_node("Greater", ["x", "one"], ["q"]),
        helper.make_node("Not", ["q"], ["r"]),
        helper.make_node("And", ["p", "r"], ["s"]),
        helper.make_node("Or", ["p", "q"], ["o"]),
        helper.make_node("Xor", ["p", "q"], ["e"]),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Where", ["s", "x", "n"], ["w"]),
        helper.make_node("ArgMax", ["x"], ["a"], axis=1, keepdims=0),
        helper.make_node("OneHot", ["a", "depth", "values"], ["h"], axis=-1),
        *(helper.make_node("Cast", [name], [f"{name}f"], to=1) for name in ("o", "e")),
        helper.make_node("Sum", ["w", "of", "ef", "h"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(np.float32(1.0), "one"),
        numpy_helper.from_array(np.array(5, np.int64), "depth"),
        numpy_helper.from_array(np.float32([-1.0, 3.0]), "values"),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 5))
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], weights)
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    network = Network(read_graph(path), torch.float64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for _ in range(10):
        x = (random.integers(-4, 5, (2, 5)) / 2).astype(np.float32)
        found = network(network.tensor(x.reshape(1, -1))).numpy().reshape(2, 5)
        np.testing.assert_allclose(found, session.run(None, {"x": x})[0], atol=1e-6)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 5), bool),
        np.ones((1, 5), bool),
        np.eye(2, 5, dtype=bool),
        np.eye(5, dtype=bool)[3],
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_masks_meet_truth_values_exactly(
    op: str, mask: Array, is_first: bool, tmp_path: Path
) -> None:
    """Where a mask decides, bounds know the value, and ``where`` with the largest float loses
    nothing to it."""
    operands = ["m", "p"] if is_first else ["p", "m"]
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["p"]),
        helper.make_node(op, operands, ["c"]),
        helper.make_node("Where", ["c", "big" if op == "And" else "x", "x"], ["w"]),
        helper.make_node("Cast", ["c"], ["f"], to=1),
        helper.make_node("Concat", ["w", "f"], ["y"], axis=0),
    ]
    weights = [
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(np.float32(3e38), "big"),
        numpy_helper.from_array(mask, "m"),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 5))
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "model.onnx")
    network = Network(read_graph(tmp_path / "model.onnx"), torch.float64)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for _ in range(10):
        x = (random.integers(-4, 5, (2, 5)) / 4).astype(np.float32)
        found = network(network.tensor(x.reshape(1, -1))).numpy().reshape(4, 5)
        np.testing.assert_allclose(found, session.run(None, {"x": x})[0], rtol=1e-6)
    low = -torch.ones(1, 10, dtype=torch.float64)
    bounds = interval_bounds(network, low, -low)[network.graph.outputs[0]]
    lower, upper = (ends[0].numpy() for ends in bounds)
    decides = np.broadcast_to(mask == (op == "Or"), (2, 5)) & (op != "Xor")
    assert (upper[2:] - lower[2:] <= 1e-12)[decides].all()
    if op == "And":
        assert (lower[:2][decides] >= -1 - 1e-9).all() and (upper[:2][decides] <= 1 + 1e-9).all()


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 64, 100])
def test_whole_numbers_are_divided_as_such(divisor: int, kind: int, tmp_path: Path) -> None:
    """Fractions are cut off, on either side of 0, also right at whole quotients."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=kind),
        helper.make_node("Div", ["i", "d"], ["q"]),
        helper.make_node("Cast", ["q"], ["y"], to=1),
    ]
    dtype = np.int32 if kind == TensorProto.INT32 else np.int64
    values = np.concatenate([np.arange(-40, 41), divisor * np.arange(-40000, 40001, 97)])
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (len(values),))
    weights = [numpy_helper.from_array(np.array(divisor, dtype), "d")]
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], weights)
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    network = Network(read_graph(path, "runtime"), torch.float64)
    expected = np.sign(values) * (np.abs(values) // divisor)
    exact = values.astype(np.float64)[None]
    found = network(network.tensor(exact)).numpy()[0]
    assert (found == expected).all()
    with torch.no_grad():
        bounds = interval_bounds(network, network.tensor(exact), network.tensor(exact))
    low, high = bounds[network.graph.outputs[0]]
    low, high = low.numpy(), high.numpy()
    assert ((low <= expected) & (expected <= high) & (high - low <= 2)).all()
    assert np.allclose(low, high) or divisor in (1, 2, 64), "half a step from every edge"


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT16])
def test_a_type_holds_what_lies_within_one_of_its_ends(kind: int, tmp_path: Path) -> None:
    """``-0.9`` and ``255.9`` are cut to 0 and 255; what 256 becomes in eight bits nobody says."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=kind),
        helper.make_node("Cast", ["i"], ["y"], to=1),
    ]
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    least, most = float(limits.min), float(limits.max)
    x = np.array([least - 0.9, least, -0.5, 1.5, most, most + 0.9, most + 1, least - 1])
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (len(x),))
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")])
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    network = Network(read_graph(path, "runtime"), torch.float64)
    with torch.no_grad():
        bounds = interval_bounds(network, network.tensor(x[None]), network.tensor(x[None]))
    low, high = (end.numpy()[0] for end in bounds[network.graph.outputs[0]])
    expected = np.trunc(x)
    assert (low[:6] == expected[:6]).all() and (high[:6] == expected[:6]).all()
    assert np.isinf(low[6:]).all() and np.isinf(high[6:]).all()


@pytest.mark.parametrize("divisor", [0, -2])
def test_whole_numbers_over_what_is_not_positive(divisor: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ArgMax", ["x"], ["a"], axis=1),
        helper.make_node("Div", ["a", "d"], ["c"], name="halved"),
        helper.make_node("Cast", ["c"], ["y"], to=1),
    ]
    weights = [numpy_helper.from_array(ints(divisor), "d")]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], weights)
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    with pytest.raises(UnsupportedError, match="halved"):
        read_graph(path)


@pytest.mark.parametrize("largest", [0, 1])
def test_place_of_the_largest_entry(largest: int, tmp_path: Path) -> None:
    """``TopK`` of one entry finds the first of equal ones."""
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["v", "i"], axis=1, largest=largest),
        helper.make_node("Cast", ["i"], ["y"], to=1),
    ]
    weights = [numpy_helper.from_array(ints([1]).reshape(1), "k")]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (6, 5))
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], weights)
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    network = Network(read_graph(path), torch.float64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in range(5):
        x = np.random.default_rng(seed).integers(-2, 3, (6, 5)).astype(np.float32)
        found = network(network.tensor(x.reshape(1, -1))).numpy()[0]
        assert (found == session.run(None, {"x": x})[0].reshape(-1)).all()


@pytest.mark.parametrize("op", ["Gelu", "BiasGelu", "FastGelu", "QuickGelu"])
def test_fused_gelu(op: str, compared: Callable[..., None]) -> None:
    bias = [weight(4)] if op in ("BiasGelu", "FastGelu") else []
    compared(op, (2, 4), *bias, domain="com.microsoft")


def test_fused_products(compared: Callable[..., None]) -> None:
    turned = {"transA": 1, "transB": 1, "alpha": 0.5}
    compared("FusedMatMul", (2, 3, 4), weight(5, 3), domain="com.microsoft", **turned)
    compared("FusedMatMul", (2, 3, 4), (2, 4, 5), domain="com.microsoft")


def test_skipped_normalisations(compared: Callable[..., None]) -> None:
    parts = weight(4), weight(4, seed=1), weight(4, seed=2)
    ms = {"domain": "com.microsoft", "epsilon": 1e-3}
    compared("SkipLayerNormalization", (2, 3, 4), (2, 3, 4), *parts, **ms)
    compared("SkipSimplifiedLayerNormalization", (2, 3, 4), (2, 3, 4), parts[0], parts[1], **ms)


def test_networks_that_round_are_read_as_the_runtime_rounds(tmp_path: Path) -> None:
    """A quantizer of Div, Round and Mul: in real arithmetic a value next to a tie falls elsewhere
    than in float32, by a whole step."""
    nodes = [
        helper.make_node("Div", ["x", "scale"], ["d"]),
        helper.make_node("Round", ["d"], ["r"]),
        helper.make_node("Mul", ["r", "scale"], ["y"]),
    ]
    scale = np.float32(0.1)
    graph = helper.make_graph(
        nodes,
        "quantizer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(scale.reshape(1), "scale")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "quantizer.onnx"
    onnx.save(made, path)
    read = read_graph(path)
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    network, missed = Network(read, torch.float64), 0
    for k in range(200):
        x = np.float32((k + 0.5) / 10)
        y = float(session.run(None, {"x": x.reshape(1, 1)})[0][0, 0])
        point = torch.tensor([[float(x)]], dtype=torch.float64)
        bounds = LayerBounder(network, 1 << 20).run(point, point).bounds[read.outputs[0]]
        assert float(bounds[0]) <= y <= float(bounds[1])
        missed += abs(float(network(point)) - y) > 0.05
    assert missed  # the real function is another one
