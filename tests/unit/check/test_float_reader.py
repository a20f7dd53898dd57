"""The float checker's own reader against onnxruntime, operator by operator, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.api import load
from bitcrown.check.certificates.floats.checker import subject_of
from bitcrown.check.certificates.floats.nodes import ReluNode
from bitcrown.check.certificates.floats.reader import read_networks
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import BitcrownError, ModelError, UnsupportedError
from bitcrown.spec.problem import Problem

IMAGE, MATRIX = [1, 4, 6, 5], [1, 12]


def values(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def saved(
    path: Path, nodes: list[Any], shape: list[int], constants: dict[str, Any], opset: int = 13
) -> Problem:
    """A network from ``x`` to ``y`` and a property that says nothing about its outputs."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path / "net.onnx"))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(path / "net.onnx"), options, providers=["CPUExecutionProvider"]
    )
    n = int(np.prod(shape))
    m = session.run(None, {"x": np.zeros(shape, np.float32)})[0].size
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + [
        f"(declare-const Y_{j} Real)" for j in range(m)
    ]
    lines += [f"(assert (>= X_{i} -1.0))\n(assert (<= X_{i} 1.0))" for i in range(n)]
    (path / "prop.vnnlib").write_text("\n".join([*lines, "(assert (<= Y_0 0.0))"]))
    return load(path / "net.onnx", path / "prop.vnnlib")


def node(op: str, *constants: str, **attributes: Any) -> Any:
    return helper.make_node(op, ["x", *constants], ["y"], **attributes)


ints = lambda *numbers: np.array(numbers, dtype=np.int64)  # noqa: E731
OPERATORS: dict[str, tuple[list[int], Callable[[], Any], dict[str, Any]]] = {
    "gemm": (
        MATRIX,
        lambda: node("Gemm", "w", "b", transB=1, alpha=0.3, beta=2.0),
        {"w": values(3, 12), "b": values(3)},
    ),
    "gemm plain": (MATRIX, lambda: node("Gemm", "w"), {"w": values(12, 5)}),
    "matmul stacked": ([1, 3, 4], lambda: node("MatMul", "w"), {"w": values(4, 2)}),
    "matmul left": (
        [4, 3],
        lambda: helper.make_node("MatMul", ["w", "x"], ["y"]),
        {"w": values(5, 4)},
    ),
    "add": (MATRIX, lambda: node("Add", "w"), {"w": values(1, 12)}),
    "sub from": (MATRIX, lambda: helper.make_node("Sub", ["w", "x"], ["y"]), {"w": values(1)}),
    "add twice": (MATRIX, lambda: helper.make_node("Add", ["x", "x"], ["y"]), {}),
    "broadcast": ([1, 4, 1], lambda: node("Add", "w"), {"w": values(1, 4, 3)}),
    "mul": (IMAGE, lambda: node("Mul", "w"), {"w": values(1, 4, 1, 1)}),
    "div": (IMAGE, lambda: node("Div", "w"), {"w": values(5) + 3}),
    "neg": (MATRIX, lambda: node("Neg"), {}),
    "relu": (MATRIX, lambda: node("Relu"), {}),
    "leaky": (MATRIX, lambda: node("LeakyRelu", alpha=0.07), {}),
    "leaky steep": (MATRIX, lambda: node("LeakyRelu", alpha=1.7), {}),
    "prelu": (IMAGE, lambda: node("PRelu", "s"), {"s": values(4, 1, 1)}),
    "abs": (MATRIX, lambda: node("Abs"), {}),
    "clip": (MATRIX, lambda: node("Clip", "l", "h"), {"l": np.float32(-0.4), "h": np.float32(0.3)}),
    "clip below": (MATRIX, lambda: node("Clip", "l"), {"l": np.float32(0.2)}),
    "clip above": (MATRIX, lambda: node("Clip", "", "h"), {"h": np.float32(0.2)}),
    "max": (MATRIX, lambda: node("Max", "w"), {"w": values(1, 12)}),
    "max pool": (IMAGE, lambda: node("MaxPool", kernel_shape=[2, 2], strides=[2, 1]), {}),
    "max pool padded": (
        IMAGE,
        lambda: node("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        {},
    ),
    "average pool": (IMAGE, lambda: node("AveragePool", kernel_shape=[2, 3], strides=[2, 2]), {}),
    "average padded": (
        IMAGE,
        lambda: node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        {},
    ),
    "average included": (
        IMAGE,
        lambda: node("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 0], count_include_pad=1),
        {},
    ),
    "global average": (IMAGE, lambda: node("GlobalAveragePool"), {}),
    "mean": (IMAGE, lambda: node("ReduceMean", axes=[2, 3], keepdims=0), {}),
    "sum": (IMAGE, lambda: node("ReduceSum", "a", keepdims=1), {"a": ints(1, -1)}),
    "conv": (
        IMAGE,
        lambda: node("Conv", "w", "b", pads=[1, 0, 2, 1], strides=[2, 1]),
        {"w": values(3, 4, 3, 2), "b": values(3)},
    ),
    "conv groups": (
        IMAGE,
        lambda: node("Conv", "w", group=2, dilations=[2, 1]),
        {"w": values(6, 2, 2, 2)},
    ),
    "conv depth": (
        IMAGE,
        lambda: node("Conv", "w", group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
        {"w": values(4, 1, 3, 3)},
    ),
    "conv 1d": (
        [1, 2, 9],
        lambda: node("Conv", "w", "b", pads=[1, 1]),
        {"w": values(3, 2, 3), "b": values(3)},
    ),
    "batch norm": (
        IMAGE,
        lambda: node("BatchNormalization", "s", "b", "m", "v"),
        {
            "s": values(4),
            "b": values(4, seed=1),
            "m": values(4, seed=2),
            "v": np.abs(values(4, seed=3)),
        },
    ),
    "transpose": (IMAGE, lambda: node("Transpose", perm=[0, 3, 1, 2]), {}),
    "flatten": (IMAGE, lambda: node("Flatten", axis=2), {}),
    "reshape": (IMAGE, lambda: node("Reshape", "s"), {"s": ints(0, 2, -1)}),
    "squeeze": (IMAGE, lambda: node("Squeeze", "a"), {"a": ints(0)}),
    "unsqueeze": (MATRIX, lambda: node("Unsqueeze", "a"), {"a": ints(0, 2)}),
    "gather": (IMAGE, lambda: node("Gather", "i", axis=1), {"i": ints(2, 0, 2, -1)}),
    "slice": (
        IMAGE,
        lambda: node("Slice", "s", "e", "a", "t"),
        {"s": ints(1, -1), "e": ints(9, -9), "a": ints(2, 3), "t": ints(2, -1)},
    ),
    "pad": (
        IMAGE,
        lambda: node("Pad", "p", "v"),
        {"p": ints(0, 0, 1, 0, 0, 0, 2, 1), "v": np.float32(0.7)},
    ),
    "concat": (MATRIX, lambda: helper.make_node("Concat", ["x", "x"], ["y"], axis=1), {}),
    "identity": (MATRIX, lambda: node("Identity"), {}),
    "dropout": (MATRIX, lambda: node("Dropout"), {}),
    "cast": (MATRIX, lambda: node("Cast", to=TensorProto.FLOAT), {}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_computes_what_onnxruntime_does(tmp_path: Path, name: str) -> None:
    shape, make, constants = OPERATORS[name]
    problem = saved(tmp_path, [make()], shape, constants)
    network, dtypes = read_networks(problem.query, problem.networks)
    assert set(dtypes) == {np.dtype(np.float32)}
    points = (
        np.random.default_rng(1)
        .uniform(-1, 1, (8, problem.n_inputs))
        .astype(np.float32)
        .astype(np.float64)
    )
    wanted = np.stack([RuntimeReplay(problem.query, problem.networks).run(x)[1][0] for x in points])
    found = network.values(points)[network.output]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    for number, item in enumerate(
        network.nodes[1:], 1
    ):  # transposes and magnitudes agree with the map itself
        if isinstance(item, ReluNode):
            continue
        sources = [network.values(points)[s] for s in item.sources]
        linear = item.forward(sources)
        a = np.random.default_rng(2).normal(size=(8, item.size))
        pulled = item.adjoint(a)
        both = sum(
            (part * source).sum(axis=1) for part, source in zip(pulled, sources, strict=True)
        )
        np.testing.assert_allclose(
            both, (a * linear).sum(axis=1), rtol=1e-9, atol=1e-9, err_msg=str(number)
        )
        assert (
            item.forward([np.abs(s) for s in sources], is_absolute=True) >= np.abs(linear) - 1e-12
        ).all()
        assert item.terms >= 1


def test_a_bias_is_not_added_to_what_others_read(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["s"]),
        helper.make_node("Mul", ["s", "two"], ["t"]),
        helper.make_node("Add", ["t", "z"], ["y"]),
    ]
    constants = {"w": values(12, 3), "b": values(3), "two": np.float32(2.0)}
    problem = saved(tmp_path, nodes, MATRIX, constants)
    network, _ = read_networks(problem.query, problem.networks)
    x = np.linspace(-1, 1, 12)[None]
    z = x @ constants["w"].astype(np.float64)
    np.testing.assert_allclose(
        network.values(x)[network.output], 3 * z + 2 * constants["b"], rtol=1e-12
    )


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp", "Sign", "Softmax"])
def test_smooth_operators_are_refused_by_name(tmp_path: Path, op: str) -> None:
    problem = saved(tmp_path, [node(op)], MATRIX, {})
    with pytest.raises(UnsupportedError, match=f"piecewise-linear networks; node 'y' is a {op}"):
        read_networks(problem.query, problem.networks)


def test_products_of_inputs_are_refused(tmp_path: Path) -> None:
    problem = saved(tmp_path, [helper.make_node("Mul", ["x", "x"], ["y"])], MATRIX, {})
    with pytest.raises(UnsupportedError, match="only factors and divisors that are constant"):
        read_networks(problem.query, problem.networks)


def test_a_reader_that_errs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitcrown.check.certificates.floats import reader as float_reader

    problem = saved(tmp_path, [node("LeakyRelu", alpha=0.5)], MATRIX, {})
    subject_of(problem)
    monkeypatch.setitem(float_reader.FLOAT_RULES, "LeakyRelu", float_reader.FLOAT_RULES["Relu"])
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        subject_of(problem)


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    problem = saved(tmp_path, [node("Relu")], MATRIX, {})
    path = next(iter(problem.networks.values()))
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for cut in (0, 5, len(good) // 2):
        path.write_bytes(good[:cut])
        with pytest.raises(BitcrownError):
            read_networks(problem.query, problem.networks)
    for _ in range(60):
        data = bytearray(good)
        for place in random.integers(len(data), size=3):
            data[place] = random.integers(256)
        path.write_bytes(bytes(data))
        try:
            network, _ = read_networks(problem.query, problem.networks)
        except BitcrownError:
            continue
        assert network.n_inputs >= 1
