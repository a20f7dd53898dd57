"""One operator with its operands and attributes, and its comparison with onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tiny_models import Array, model_of, random_feed, run_graph, run_onnxruntime, saved

from bitcrown.model.onnx_reader import read_graph

RNG = np.random.default_rng(7)


def weight(*shape: int) -> Array:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """``operands``: a tuple is a network input of that shape, an array a constant, None an omitted
    operand."""

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 13
    outputs: int = 1
    low: float = -2.0
    high: float = 2.0

    def __str__(self) -> str:
        shapes = [
            list(x) if isinstance(x, tuple) else "-" if x is None else f"c{list(x.shape)}"
            for x in self.operands
        ]
        attrs = [f"{key}={value}" for key, value in self.attrs.items()]
        return f"{self.op}{self.opset}({','.join(map(str, [*shapes, *attrs]))})".replace(" ", "")


def check(case: Case, folder: Path) -> None:
    names = ["" if operand is None else f"x{i}" for i, operand in enumerate(case.operands)]
    given = dict(zip(names, case.operands, strict=True))
    inputs = {name: operand for name, operand in given.items() if isinstance(operand, tuple)}
    constants = {
        name: operand
        for name, operand in given.items()
        if isinstance(operand, np.ndarray | np.generic)
    }
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="node", **case.attrs)
    path = saved(model_of([node], inputs, outputs, constants, case.opset), folder)
    graph = read_graph(path)
    for seed in range(2):
        feed = random_feed(graph, case.low, case.high, seed)
        for found, expected in zip(
            run_graph(graph, feed), run_onnxruntime(path, feed), strict=True
        ):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def cases(*given: Case) -> Any:
    return pytest.mark.parametrize("case", given, ids=str)
