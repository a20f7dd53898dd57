"""What onnxruntime computes lies inside the bounds, to the last bit, where these are about the
runtime.

On boxes that are one point the bounds are the real value and the allowance for rounding, nothing
else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.errors import UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.rounding_rows import EACH, EXACT, INTEGRAL, NORMALISED, RECURRENT

ELEMENTS = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
POINTS = 10
SIZE = 6


class Maker:
    """A random network, operator by operator; every tensor is ``[1, 2, 3]`` unless it says
    otherwise."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.random, self.dtype = np.random.default_rng(seed), dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def add(self, op: str, inputs: list[str], **attrs: object) -> str:
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{self.count}", **attrs))
        return name

    def constant(self, value: object, dtype: str | None = None) -> str:
        name = self.name()
        self.weights.append(
            numpy_helper.from_array(np.asarray(value, dtype=dtype or self.dtype), name)
        )
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape))

    def save(self, path: Path, outputs: list[str], shape: tuple[int, ...] = (1, 2, 3)) -> Path:
        kind = ELEMENTS[self.dtype]
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        shown = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, shown, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, path)
        return path


def dynamic(m: Maker, op: str, x: str) -> str:
    """As a dynamic quantizer writes it: integers of ``x``, a product, both scales."""
    q, scale, zero = (m.name() for _ in range(3))
    m.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [q, scale, zero]))
    shape, attrs = ((3, 3), {}) if op == "MatMulInteger" else ((2, 2, 3), {"pads": [1, 1]})
    weight = m.constant(m.random.integers(-128, 128, shape), "int8")
    sums = m.add("Cast", [m.add(op, [q, weight, zero], **attrs)], to=TensorProto.FLOAT)
    return m.add("Mul", [sums, m.add("Mul", [scale, m.constant([0.013])])])


def apply(m: Maker, op: str, x: str) -> str:
    """One operator of each row, made so that its result is ``[1, 2, 3]`` again."""
    positive = m.add("Add", [m.add("Abs", [x]), m.constant([0.5])])
    if op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        other = m.constant([1.25, 0.375, 3.0]) if m.random.integers(2) else positive
        return m.add(op, [x, other])
    if op in COMPARISONS:
        chosen = m.add(op, [x, m.constant([-0.5, 0.25, 0.0])])
        return m.add("Where", [chosen, x, positive])
    if op in ("MatMulInteger", "ConvInteger"):
        return dynamic(m, op, x)
    if op in ("Sum", "Mean"):
        return m.add(op, [x, positive, x])
    if op == "MatMul":
        return m.add(op, [x, m.weight(3, 3)])
    if op == "Gemm":
        flat = m.add(
            "Gemm", [m.add("Flatten", [x]), m.weight(6, 6), m.weight(6)], alpha=0.7, beta=1.3
        )
        return m.add("Reshape", [flat, m.constant([1, 2, 3], "int64")])
    if op == "Conv":
        return m.add(op, [x, m.weight(2, 2, 3), m.weight(2)], pads=[1, 1])
    if op == "ConvTranspose":
        return m.add(op, [x, m.weight(2, 2, 3)], pads=[1, 1])
    if op == "BatchNormalization":
        names = [m.weight(2), m.weight(2), m.constant(10 * m.random.normal(size=2))]
        return m.add(op, [x, *names, m.constant(m.random.uniform(0.5, 2, 2))])
    if op in ("AveragePool", "MaxPool"):
        return m.add(op, [x], kernel_shape=[3], pads=[1, 1])
    if op in ("ReduceSum",):
        return m.add("Add", [x, m.add(op, [x, m.constant([2], "int64")], keepdims=1)])
    if op in ("ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin"):
        return m.add("Add", [x, m.add(op, [x], axes=[2], keepdims=1)])
    if op == "ReduceLogSum":
        return m.add("Add", [x, m.add(op, [positive], axes=[2], keepdims=1)])
    if op in ("Log", "Sqrt", "Reciprocal"):
        return m.add(op, [positive])
    if op == "Pow":
        return m.add(op, [x, m.constant(float(m.random.integers(2, 5)))])
    if op == "PRelu":
        return m.add(op, [x, m.weight(2, 1)])
    if op == "Concat":
        parts = [
            m.add("Slice", [x, *(m.constant([v], "int64") for v in at)])
            for at in ((0, 1, 1), (1, 2, 1))
        ]
        return m.add(op, parts[::-1], axis=1)
    if op == "CumSum":
        return m.add(op, [x, m.constant(2, "int64")])
    if op == "Clip":
        return m.add(op, [x, m.constant(-0.7), m.constant(0.9)])
    if op in ("LayerNormalization", "SimplifiedLayerNormalization"):
        far = m.add("Add", [x, m.constant([HARD if m.dtype == "float32" else 0.0])])
        return m.add(op, [far, m.weight(3)], axis=-1)
    if op == "InstanceNormalization":
        return m.add(op, [m.add("Add", [x, m.constant([1.5])]), m.weight(2), m.weight(2)])
    if op == "MeanVarianceNormalization":
        return m.add(op, [m.add("Add", [x, m.constant([HARD])])], axes=[2])
    if op in ("LSTM", "GRU", "RNN"):
        gates = {"LSTM": 12, "GRU": 9, "RNN": 3}[op]
        turned = m.add("Transpose", [x], perm=[1, 0, 2])
        parts = [m.weight(1, gates, 3), m.weight(1, gates, 3), m.weight(1, 2 * gates)]
        rows = m.add(op, [turned, *parts], hidden_size=3)
        return m.add("Reshape", [rows, m.constant([1, 2, 3], "int64")])
    if op == "GlobalAveragePool":
        return m.add("Sub", [x, m.add(op, [x])])
    return m.add(op, [x])


OPERATORS = [
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Min",
        "Sum",
        "Mean",
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
    ),
    *(
        "BatchNormalization",
        "AveragePool",
        "MaxPool",
        "ReduceSum",
        "ReduceMean",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
    ),
    *(
        "ReduceSumSquare",
        "ReduceMin",
        "ReduceLogSum",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Pow",
        "PRelu",
        "LeakyRelu",
    ),
    *(
        "Relu",
        "Abs",
        "Neg",
        "Sigmoid",
        "Tanh",
        "Exp",
        "Erf",
        "Sin",
        "Cos",
        "Atan",
        "Softplus",
        "Elu",
        "Selu",
        "Celu",
    ),
    *(
        "HardSigmoid",
        "HardSwish",
        "Softsign",
        "Softmax",
        "Concat",
        "CumSum",
        "Clip",
        "GlobalAveragePool",
        "Identity",
    ),
    *("Floor", "Ceil", "Round", "LpNormalization", "LogSoftmax"),
    *("LayerNormalization", "InstanceNormalization", "MeanVarianceNormalization"),
    *("LSTM", "GRU", "RNN", "SimplifiedLayerNormalization"),
    *COMPARISONS,
    *("MatMulInteger", "ConvInteger"),
]
FLOAT32_ONLY = (
    *("MatMulInteger", "ConvInteger"),
    "Celu",
    "LSTM",
    "GRU",
    "RNN",
    "MeanVarianceNormalization",
)
HARD = 30.0
"""Mean of what is normalised: so far from 0 that the variance is lost in the mean square."""


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def output_bounds(
    graph: Graph, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """CROWN and interval bounds ``[m]`` of all outputs, each of which must hold."""
    network = Network(graph, torch.float64)
    box = torch.from_numpy(lower)[None].double(), torch.from_numpy(upper)[None].double()
    bounder = LayerBounder(network, 1 << 24)
    with torch.no_grad():
        enclosure = bounder.run(*box)
        unit = torch.eye(graph.n_outputs, dtype=torch.float64)
        lines = Backward(network, enclosure.relaxations, scales=enclosure.scales).run(
            output_seeds(network, torch.cat([unit, -unit])[None])
        )
        low, negated = minimum(lines, *box, bounder.gamma)[0].chunk(2)
        ends = [
            torch.cat([enclosure.bounds[name][side].flatten() for name in graph.outputs])
            for side in (0, 1)
        ]
    return torch.maximum(low, ends[0]).numpy(), torch.minimum(-negated, ends[1]).numpy()


def check(
    path: Path, graph: Graph, dtype: str, random: np.random.Generator, width: float
) -> tuple[int, int]:
    """How many outputs had finite bounds, and how many of those the allowance for rounding was
    needed."""
    run, known, needed = session(path), 0, 0
    shape = graph.nodes["x"].shape
    for _ in range(POINTS):
        x = (random.normal(size=shape) * 10 ** random.uniform(-2, 1)).astype(dtype)
        flat = x.astype(np.float64).reshape(-1)
        found = np.concatenate(
            [value.astype(np.float64).reshape(-1) for value in run.run(None, {"x": x})]
        )
        room = width * random.uniform(0, 1, flat.shape)
        low, up = output_bounds(graph, flat - room, flat + room)
        finite = np.isfinite(found) & np.isfinite(low) & np.isfinite(up)
        assert (~np.isfinite(low) | (low <= found) | np.isnan(found)).all(), (low, found)
        assert (~np.isfinite(up) | (found <= up) | np.isnan(found)).all(), (found, up)
        with torch.no_grad():
            real = Network(graph, torch.float64)(torch.from_numpy(flat)[None])[0].numpy()
        known += int(finite.sum())
        needed += int((finite & (np.abs(found - real) > 1e-12 * (1 + np.abs(real)))).sum())
    return known, needed


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("op", OPERATORS)
def test_one_operator(op: str, dtype: str, tmp_path: Path) -> None:
    dtype = "float32" if op in FLOAT32_ONLY else dtype
    m = Maker(1, dtype)
    path = m.save(tmp_path / "n.onnx", [apply(m, op, m.add("Mul", ["x", m.constant([0.3])]))])
    graph = read_graph(path, "runtime")
    crosscheck(graph, NetworkFile(path), 0)
    known, needed = check(path, graph, dtype, np.random.default_rng(2), 0.0)
    assert known > 10 and (needed > 0 or op in INTEGRAL)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("seed", range(16))
def test_networks_of_several(seed: int, dtype: str, tmp_path: Path) -> None:
    """With branches, so that tensors have several readers, and outputs in the middle."""
    m = Maker(seed, dtype)
    tensors = [m.add("MatMul", ["x", m.weight(3, 3)])]
    for _ in range(4):
        op = str(
            m.random.choice(
                [op for op in OPERATORS if dtype == "float32" or op not in FLOAT32_ONLY]
            )
        )
        tensors.append(apply(m, op, str(m.random.choice(tensors[-3:]))))
    outputs = [tensors[-1], m.add("Sub", tensors[-2:]), tensors[1]]
    path = m.save(tmp_path / "n.onnx", list(dict.fromkeys(outputs)))
    graph = read_graph(path, "runtime")
    for width in (0.0, 1e-3):
        check(path, graph, dtype, np.random.default_rng(seed), width)


def test_every_row_has_a_case() -> None:
    rows = EACH | INTEGRAL | {"LeakyRelu", "PRelu", "Softmax", "LogSoftmax", "BatchNormalization"}
    own = ("com.microsoft.", "ai.onnx.ml.")
    rows = {op for op in rows | NORMALISED | RECURRENT if not op.startswith(own)}
    late = {"Gelu", "Swish", "Mish", "GroupNormalization", "RMSNormalization"}
    assert rows <= set(OPERATORS) | late, "these five need a later opset"
    assert set(OPERATORS) - rows <= EXACT


def test_sums_in_any_order_and_in_the_type_itself_are_enclosed(tmp_path: Path) -> None:
    """A kernel that adds up in float16 stays inside as well."""
    m = Maker(5, "float16")
    path = m.save(tmp_path / "n.onnx", [m.add("MatMul", ["x", m.weight(40, 1)])], (1, 40))
    graph = read_graph(path)
    weight = numpy_helper.to_array(m.weights[0])[:, 0]
    random = np.random.default_rng(3)
    for _ in range(50):
        x = random.normal(size=40).astype(np.float16)
        low, up = output_bounds(graph, x.astype(np.float64), x.astype(np.float64))
        total = np.float16(0)
        for k in random.permutation(40):
            total = np.float16(total + np.float16(x[k] * weight[k]))
        assert low[0] <= float(total) <= up[0]


def test_readers_of_one_half_tensor_may_see_it_rounded_or_not(tmp_path: Path) -> None:
    """The difference of a tensor and its copy along another way is not proved to be zero."""
    m = Maker(6, "float16")
    h = m.add("Mul", ["x", m.constant([0.3])])
    path = m.save(
        tmp_path / "n.onnx", [h, m.add("Sub", [h, m.add("Mul", ["x", m.constant([0.3])])])]
    )
    graph = read_graph(path)
    low, up = output_bounds(graph, np.ones(SIZE), np.ones(SIZE))
    assert (low[SIZE:] < -1e-4).all() and (up[SIZE:] > 1e-4).all()
    check(path, graph, "float16", np.random.default_rng(0), 0.0)


def test_overflow_of_the_type_is_no_bound(tmp_path: Path) -> None:
    m = Maker(7, "float16")
    path = m.save(
        tmp_path / "n.onnx",
        [m.add("Mul", [m.add("Mul", ["x", m.constant([200.0])]), m.constant([0.01])])],
    )
    graph = read_graph(path)
    low, up = output_bounds(graph, np.full(SIZE, -1.0), np.ones(SIZE))
    assert np.isfinite(low).all() and np.isfinite(up).all()
    low, up = output_bounds(graph, np.full(SIZE, -400.0), np.full(SIZE, 400.0))
    assert np.isinf(low).all() and np.isinf(up).all()


def test_real_semantics_of_wide_types_know_no_rounding(tmp_path: Path) -> None:
    m = Maker(8, "float32")
    path = m.save(tmp_path / "n.onnx", [m.add("Tanh", [m.add("MatMul", ["x", m.weight(3, 3)])])])
    assert not [node for node in read_graph(path).nodes.values() if node.rounding]
    assert [node for node in read_graph(path, "runtime").nodes.values() if node.rounding]


def test_an_operator_whose_rounding_is_unknown_is_named(tmp_path: Path) -> None:
    m = Maker(9, "float16")
    path = m.save(tmp_path / "n.onnx", [m.add("ReduceLogSumExp", ["x"])])
    with pytest.raises(
        UnsupportedError, match=r"how onnxruntime rounds is not known.*ReduceLogSumExp: n1"
    ):
        read_graph(path)
    m = Maker(9, "float32")
    path = m.save(tmp_path / "n.onnx", [m.add("ReduceLogSumExp", ["x"])])
    assert read_graph(path).n_outputs == 1
    with pytest.raises(UnsupportedError, match="ReduceLogSumExp"):
        read_graph(path, "runtime")
