"""Affine networks and properties, written where a test asks for them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.reader import parse_query

TYPES = {
    np.float32: TensorProto.FLOAT,
    np.float64: TensorProto.DOUBLE,
    np.float16: TensorProto.FLOAT16,
}


def affine(
    path: Path,
    weight: Any,
    bias: Any = 0.0,
    shape: Sequence[int | str] | None = None,
    dtype: Any = np.float32,
    activation: str = "",
) -> Path:
    """``y = activation(W x + b)`` for ``weight [m, n]``; input ``shape`` is ``["batch", n]`` unless
    given."""
    matrix = np.asarray(weight, dtype=dtype)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("Add", ["z", "b"], ["y" if not activation else "s"]),
    ]
    if activation:
        nodes.append(helper.make_node(activation, ["s"], ["y"]))
    shape = ["batch", matrix.shape[1]] if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "affine",
        [helper.make_tensor_value_info("x", TYPES[dtype], shape)],
        [helper.make_tensor_value_info("y", TYPES[dtype], [shape[0], len(matrix)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(matrix.T), "w"),
            numpy_helper.from_array(
                np.broadcast_to(np.asarray(bias, dtype=dtype), len(matrix)).copy(), "b"
            ),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data = model.SerializeToString()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def property_1(inputs: int, outputs: int, *asserts: str) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    return "\n".join(lines + [f"(assert {text})" for text in asserts])


def unit_box(inputs: int, low: str = "0", high: str = "1") -> list[str]:
    return [f"({op} X_{i} {end})" for i in range(inputs) for op, end in ((">=", low), ("<=", high))]


def opened(text: str, *paths: Path) -> tuple[Problem, RuntimeReplay, Confirmer]:
    query = parse_query(text)
    files = dict(zip([network.name for network in query.networks], paths, strict=False))
    problem = problem_from_query(query, files)
    replay = RuntimeReplay(query, problem.networks)
    return problem, replay, Confirmer(problem, replay)
