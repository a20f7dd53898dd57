"""Laws of the operator rows (adjoint, absolute, linearity), of the passes (d) and of the reader on
random networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bitcrown.model import registry
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.fusion import fused
from bitcrown.model.graph import Graph, Node
from bitcrown.model.lowering.builder import Builder
from bitcrown.model.onnx_reader import _read, read_graph
from bitcrown.model.ops import convolution
from bitcrown.model.passes import merge_equal, rewritten, simplified, without_dead_nodes
from bitcrown.model.weighted_mean import centred

torch.set_num_threads(1)
RUNS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def conv(
    out: int, into: int, *kernel: int, group: int = 1, **attrs: Sequence[int]
) -> tuple[dict, dict]:
    rank = len(kernel)
    defaults = {"strides": [1] * rank, "pads": [0] * rank, "dilations": [1] * rank, "group": group}
    return {**defaults, **attrs}, {"weight": array(out, into, *kernel), "bias": array(out, seed=1)}


def turned(
    into: int, out: int, *kernel: int, group: int = 1, **attrs: Sequence[int]
) -> tuple[dict, dict]:
    given_attrs, params = conv(into, out, *kernel, group=group, **attrs)
    return {"output_padding": [0] * len(kernel), **given_attrs}, {
        **params,
        "bias": array(out * group, seed=1),
    }


AFFINE: dict[str, tuple[str, list[tuple[int, ...]], dict, dict]] = {
    "linear": ("Linear", [(2, 3)], {}, {"weight": array(4, 3), "bias": array(4)}),
    "linear-vector": ("Linear", [(3,)], {}, {"weight": array(4, 3)}),
    "matrix": ("MatMulLeft", [(2, 3, 2)], {}, {"matrix": array(4, 3)}),
    "scale": ("Scale", [(2, 3)], {}, {"scale": array(3), "shift": array(2, 1)}),
    "shift": ("Scale", [(2, 3)], {}, {"shift": array(2, 1)}),
    "add": ("Add", [(2, 3), (2, 3)], {}, {}),
    "sub": ("Sub", [(2, 3), (2, 3)], {}, {}),
    "larger": ("Larger", [(2, 3)] * 4, {}, {}),
    "share": ("LogShare", [(2, 3), (2, 3)], {}, {}),
    "reshape": ("Reshape", [(2, 3)], {"shape": (3, 2)}, {}),
    "transpose": ("Transpose", [(2, 3, 4)], {"perm": (2, 0, 1)}, {}),
    "slice": ("Slice", [(4, 6)], {"slices": ((1, 3, 1), (0, 6, 2))}, {}),
    "gather": ("Gather", [(3, 4)], {"axis": 1, "indices": np.array([3, 0, 3])}, {}),
    "gather-matrix": ("Gather", [(3, 4)], {"axis": 0, "indices": np.array([[2, 0], [1, 1]])}, {}),
    "pad": ("Pad", [(2, 3)], {"pads": ((1, 0), (0, 2)), "value": 1.5}, {}),
    "crop": ("Pad", [(3, 4)], {"pads": ((-1, 2), (0, -1)), "value": 0.5}, {}),
    "concat": ("Concat", [(2, 3), (2, 1), (2, 2)], {"axis": 1}, {}),
    "expand": ("Expand", [(3, 1)], {"shape": (2, 3, 4)}, {}),
    "expand-one": ("Expand", [(1, 3)], {"shape": (1, 3)}, {}),
    "sum": ("ReduceSum", [(2, 3, 4)], {"axes": (0, 2), "keepdims": False, "count": 8}, {}),
    "sum-keep": ("ReduceSum", [(2, 3, 4)], {"axes": (1,), "keepdims": True, "count": 3}, {}),
    "average": ("AveragePool", [(1, 2, 5, 6)], {"kernel": [2, 3], "strides": [2, 1]}, {}),
    "conv1": ("Conv", [(2, 2, 7)], *conv(3, 2, 3, strides=[2], pads=[1])),
    "conv2": (
        "Conv",
        [(1, 2, 6, 5)],
        *conv(4, 2, 3, 2, strides=[2, 3], pads=[1, 0], dilations=[1, 2]),
    ),
    "conv2-group": ("Conv", [(1, 4, 5, 5)], *conv(6, 2, 3, 3, group=2, strides=[3, 2])),
    "conv2-far": ("Conv", [(1, 1, 8, 8)], *conv(2, 1, 2, 2, strides=[3, 3])),
    "conv2-channels": ("Conv", [(1, 64, 4, 3)], *conv(64, 64, 3, 3, pads=[1, 1])),
    "conv2-channels-stride": (
        "Conv",
        [(1, 66, 8, 7)],
        *conv(64, 66, 3, 2, strides=[3, 2], pads=[1, 0], dilations=[1, 2]),
    ),
    "conv3": ("Conv", [(1, 1, 3, 4, 4)], *conv(2, 1, 2, 2, 2, strides=[1, 2, 2])),
    "turned1": ("ConvTranspose", [(2, 2, 4)], *turned(2, 3, 3, strides=[2])),
    "turned2": (
        "ConvTranspose",
        [(1, 2, 3, 4)],
        *turned(2, 3, 3, 3, strides=[2, 2], pads=[1, 1], output_padding=[1, 1]),
    ),
    "turned2-group": (
        "ConvTranspose",
        [(1, 4, 3, 3)],
        *turned(4, 2, 3, 2, group=2, dilations=[2, 1]),
    ),
    "turned2-wide": (
        "ConvTranspose",
        [(1, 1, 3, 3)],
        *turned(1, 1, 2, 2, dilations=[3, 3], output_padding=[2, 1]),
    ),
    "constant": ("Constant", [], {}, {"value": array(2, 3)}),
}


def built(
    op: str, shapes: list[tuple[int, ...]], attrs: dict, params: dict
) -> tuple[Network, Node]:
    builder = Builder()
    for index, shape in enumerate(shapes):
        builder.nodes[f"x{index}"] = Node(f"x{index}", "Input", (), shape)
    name = builder.emit(op, list(builder.nodes), attrs, params, "y")
    graph = Graph(builder.nodes, tuple(n for n in builder.nodes if n != name), (name,))
    return Network(graph, torch.float64), builder.nodes[name]


def points(network: Network, node: Node, rows: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [network.graph.nodes[name].shape for name in node.inputs]
    return [torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def affine_cases() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", AFFINE)


def test_every_affine_row_is_under_the_laws() -> None:
    registry.op_row("Relu")
    affine = {
        name
        for name, row in registry._OPS.items()
        if row.is_affine and row.forward.__module__.startswith("bitcrown")
    }
    assert affine - {"Input"} <= {op for op, *_ in AFFINE.values()}


@affine_cases()
def test_adjoint_is_the_transpose(case: str) -> None:
    """``<a, f(x) - f(0)> = sum <W_i^T a, x_i>``, and the written adjoint equals the derived one,
    differentiably."""
    network, node = built(*AFFINE[case])
    x = points(network, node, 3, 0)
    a = torch.randn(
        3,
        *node.shape,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
        requires_grad=True,
    )
    value = network.forward_node(node, x).expand(3, *node.shape) - network.offset(node)
    pulled = network.adjoint(node, a)
    assert [part.shape[1:] for part in pulled] == [part.shape[1:] for part in x]
    right = sum(
        ((p * part).flatten(1).sum(1) for p, part in zip(pulled, x, strict=True)), torch.zeros(3)
    )
    torch.testing.assert_close((a * value).flatten(1).sum(1), right.double())
    network.rows[node.name] = replace(network.rows[node.name], adjoint=None)
    if node.inputs:
        for written, derived in zip(pulled, network.adjoint(node, a), strict=True):
            torch.testing.assert_close(written, derived.expand_as(written))
        (gradient,) = torch.autograd.grad(sum(p.square().sum() for p in pulled), a)
        assert torch.isfinite(gradient).all() and gradient.any()


def test_products_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, node = built(*AFFINE["conv2-channels-stride"])
    a = torch.randn(7, *node.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (whole,) = network.adjoint(node, a)
    monkeypatch.setattr(
        convolution, "_PRODUCT_BYTES", 3 * 8 * 6 * 66 * node.shape[2] * node.shape[3]
    )
    torch.testing.assert_close(network.adjoint(node, a)[0], whole)
    monkeypatch.setattr(convolution, "_WIDE_CHANNELS", 65)
    torch.testing.assert_close(network.adjoint(node, a)[0], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_products_with_mostly_zeros_are_the_same(dtype: torch.dtype, rows: int) -> None:
    """Compressed or dense, and differentiable either way."""
    random = np.random.default_rng(0)
    weight = np.zeros((160, 130))
    weight[random.integers(160, size=130), np.arange(130)] = random.normal(size=130)
    nodes = [
        Node("x", "Input", (), (1, 130)),
        Node("y", "Linear", ("x",), (1, 160), {}, {"weight": weight}),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))
    network = Network(graph, dtype)
    a = torch.randn(rows, 1, 160, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (found,) = network.adjoint(graph.nodes["y"], a)
    (dense,) = network.adjoint(graph.nodes["y"], a.clone().requires_grad_())
    assert dense.requires_grad and not found.requires_grad
    torch.testing.assert_close(found, dense.detach())
    torch.testing.assert_close(found[:, 0], a[:, 0] @ torch.from_numpy(weight).to(dtype))


@affine_cases()
def test_empty_batches_pass_through(case: str) -> None:
    network, node = built(*AFFINE[case])
    if node.inputs:
        assert network.forward_node(node, points(network, node, 0, 0)).shape == (0, *node.shape)
        pulled = network.adjoint(node, torch.zeros(0, *node.shape, dtype=torch.float64))
        assert [part.shape for part in pulled] == [
            part.shape for part in points(network, node, 0, 0)
        ]


@affine_cases()
def test_affine_rows_are_affine_and_absolute_dominates(case: str) -> None:
    """``|f(x) - f(y)| <= |W| |x - y|`` with equality somewhere, and ``f`` commutes with
    averages."""
    network, node = built(*AFFINE[case])
    x, y = points(network, node, 4, 0), points(network, node, 4, 1)
    fx, fy = network.forward_node(node, x), network.forward_node(node, y)
    middle = network.forward_node(node, [0.25 * u + 0.75 * v for u, v in zip(x, y, strict=True)])
    torch.testing.assert_close(middle, 0.25 * fx + 0.75 * fy)
    absolute = network.rows[node.name].absolute
    assert absolute is not None
    reach = absolute(
        node, network.params[node.name], [(u - v).abs() for u, v in zip(x, y, strict=True)]
    )
    assert ((fx - fy).abs() <= reach * (1 + 1e-12) + 1e-12).all()
    largest = network.params[node.name]
    positive = {key: value.abs() for key, value in largest.items()}
    ones = [torch.ones_like(u) for u in x]
    # W = |W| where the weights are positive: then absolute is f without its offset.
    if not network.rows[node.name].negated:
        plain = network.rows[node.name].forward(node, positive, ones)
        zero = network.rows[node.name].forward(node, positive, [torch.zeros_like(u) for u in x])
        torch.testing.assert_close(absolute(node, positive, ones).expand_as(plain), plain - zero)


# Random networks, built layer by layer from what the current shape allows.

Step = Callable[["Draft"], None]


class Draft:
    """An ONNX model that grows; every step appends nodes that read ``self.last``."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.inputs = {"x": shape}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.last, self.shape = "x", shape
        self.random = np.random.default_rng(seed)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.random.uniform(-1, 1, shape).astype(np.float32)
        return name

    def integers(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(values, dtype=np.int64)
        return name

    def add(
        self, op: str, *inputs: str, shape: tuple[int, ...] | None = None, **attrs: object
    ) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        self.last, self.shape = name, self.shape if shape is None else shape
        return name

    def save(self, path: Path, outputs: Sequence[str]) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in self.inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


def _linear(d: Draft) -> None:
    d.add("MatMul", d.last, d.weight(d.shape[-1], 4), shape=(*d.shape[:-1], 4))


def _residual(d: Draft) -> None:
    kept = d.last
    d.add("Tanh", kept)
    d.add("Sub" if d.random.integers(2) else "Mul", d.last, kept)


def _twice(d: Draft) -> None:
    first, second = d.add("Relu", d.last), d.add("Relu", d.last)
    d.add("Mul", d.nodes[-2].output[0], second)
    assert first != second


def _turn(d: Draft) -> None:
    perm = d.random.permutation(len(d.shape)).tolist()
    d.add("Transpose", d.last, shape=tuple(d.shape[axis] for axis in perm), perm=perm)


def _flatten(d: Draft) -> None:
    size = int(np.prod(d.shape))
    d.add("Reshape", d.last, d.integers(1, size), shape=(1, size))


def _window(d: Draft) -> None:
    if len(d.shape) != 4 or min(d.shape[2:]) < 2:
        _flatten(d)
        return
    n, c, h, w = d.shape
    kind = d.random.integers(3)
    if kind == 0:
        d.add(
            "Conv",
            d.last,
            d.weight(3, c, 2, 2),
            d.weight(3),
            shape=(n, 3, h + 1, w + 1),
            pads=[1, 1, 1, 1],
        )
        return
    op = "MaxPool" if kind == 1 else "AveragePool"
    d.add(op, d.last, shape=(n, c, h - 1, w - 1), kernel_shape=[2, 2])


def _normalise(d: Draft) -> None:
    d.add("Mul", d.last, d.weight(*([1] * (len(d.shape) - 1)), d.shape[-1]))
    d.add("Add", d.last, d.weight(d.shape[-1]))


def _half(d: Draft) -> None:
    if d.shape[-1] > 1:
        cut = d.shape[-1] // 2
        shape = (*d.shape[:-1], cut)
        d.add("Slice", d.last, d.integers(0), d.integers(cut), d.integers(-1), shape=shape)


STEPS: dict[str, Step] = {
    "linear": _linear,
    "normalise": _normalise,
    "relu": lambda d: d.add("Relu", d.last) and None,
    "leaky": lambda d: d.add("LeakyRelu", d.last) and None,
    "sigmoid": lambda d: d.add("Sigmoid", d.last) and None,
    "softmax": lambda d: d.add("Softmax", d.last) and None,
    "identity": lambda d: d.add("Identity", d.last) and None,
    "double": lambda d: (
        d.add("Concat", d.last, d.last, shape=(*d.shape[:-1], 2 * d.shape[-1]), axis=-1) and None
    ),
    "residual": _residual,
    "twice": _twice,
    "turn": _turn,
    "flatten": _flatten,
    "window": _window,
    "half": _half,
}
NETWORKS = {
    "steps": st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=9),
    "shape": st.sampled_from([(1, 6), (2, 3), (1, 2, 4, 3)]),
    "seed": st.integers(0, 1 << 16),
}


def drafted(steps: list[str], shape: tuple[int, ...], seed: int, path: Path) -> Path:
    draft = Draft(shape, seed)
    for step in steps:
        if np.prod(draft.shape) < 200:
            STEPS[step](draft)
    if not draft.nodes:
        draft.add("Relu", draft.last)
    middle = draft.nodes[len(draft.nodes) // 2].output[0]
    return draft.save(path, list(dict.fromkeys([draft.last, middle])))


@RUNS
@given(**NETWORKS)
def test_reader_equals_onnxruntime(
    steps: list[str], shape: tuple[int, ...], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = drafted(steps, shape, seed, tmp_path_factory.getbasetemp() / "law.onnx")
    assert crosscheck(read_graph(path), NetworkFile(path), seed) < 1e-4


PASSES: dict[str, Callable[[Graph], Graph]] = {
    "without_dead_nodes": without_dead_nodes,
    "merge_equal": merge_equal,
    "fused": lambda graph: rewritten(graph, fused),
    "centred": lambda graph: rewritten(graph, centred),
    "simplified": simplified,
}


@pytest.mark.parametrize("name", PASSES)
@RUNS
@given(**NETWORKS)
def test_passes_preserve_outputs(
    name: str,
    steps: list[str],
    shape: tuple[int, ...],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Law (d), and a pass never adds tensors that are needed."""
    path = drafted(steps, shape, seed, tmp_path_factory.getbasetemp() / "pass.onnx")
    read = _read(NetworkFile(path))
    outputs = tuple(read.builder.node_of(output) for output in read.outputs)
    before = Graph(read.builder.nodes, read.inputs, outputs, read.dtypes)
    after = PASSES[name](before)
    x = torch.randn(
        5, before.n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    torch.testing.assert_close(
        Network(after, torch.float64)(x), Network(before, torch.float64)(x), rtol=1e-9, atol=1e-9
    )
    assert (after.inputs, after.input_dtypes, len(after.outputs)) == (
        before.inputs,
        before.input_dtypes,
        len(outputs),
    )
    assert len(without_dead_nodes(after).nodes) <= len(without_dead_nodes(before).nodes)
