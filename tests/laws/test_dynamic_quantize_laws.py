"""Laws of ``DynamicQuantize``: what onnxruntime makes of any tensor of a box lies in its range and
between its lines.

Boxes are narrower than a step, about as wide as one, and far wider; of one sign and of both; with
tensors whose ends are at the edges of steps. Legend: ``n`` entries of a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.model.graph import Node

ROW = nonlinear_row("DynamicQuantize")
WIDTHS = (0.0, 1e-7, 1e-3, 0.01, 0.3, 2.0)


def runtime(n: int) -> Any:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n])]
    outputs = [
        helper.make_tensor_value_info("q", TensorProto.UINT8, [n]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("z", TensorProto.UINT8, []),
    ]
    graph = helper.make_graph([node], "one", ends, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def centres(draw: np.random.Generator, n: int) -> list[np.ndarray]:
    values = draw.standard_normal(n)
    steps = draw.integers(-100, 156, n) / 64.0
    steps[:2] = -100 / 64, 155 / 64  # a scale of 1/64, and values on edges and between them
    both = steps.copy()
    both[:2] = -101.5 / 64, 153.5 / 64  # both ends may be rounded up, and then one is cut
    return [
        both,
        values,
        np.abs(values),
        -np.abs(values),
        steps,
        steps + 1 / 128,
        1e-3 * values + 5,
    ]


@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_runtime_makes_lies_in_range_and_between_lines(n: int, dtype: torch.dtype) -> None:
    draw, session = np.random.default_rng(n), runtime(n)
    node = Node("y", "DynamicQuantize", ("x",), (n,))
    for centre in centres(draw, n):
        for width in WIDTHS:
            low = (centre - width * draw.random(n)).astype(np.float32)
            up = np.maximum((centre + width * draw.random(n)).astype(np.float32), low)
            ends = [torch.tensor(end)[None].to(dtype) for end in (low, up)]
            least, most = (
                end[0].double().numpy() for end in ROW.interval(node, *([e] for e in ends))
            )
            lines = []
            wide = [[end.unsqueeze(1)] for end in ends]
            for alpha in (
                None,
                torch.rand(2, 1, 1, n, dtype=dtype),
                torch.full((2, 1, 1, n), 0.5, dtype=dtype),
            ):
                found = ROW.relax(node, *wide, alpha)
                parts = found.lower_slopes[0], found.lower_intercept
                parts += found.upper_slopes[0], found.upper_intercept
                lines.append([part.expand(1, 1, n)[0, 0].double().numpy() for part in parts])
            for _ in range(12):
                share = draw.choice([draw.random(n), draw.integers(0, 2, n).astype(float)])
                x = np.clip((low + share * (up - low)).astype(np.float32), low, up)
                q, s, z = session.run(None, {"x": x})
                y = (q.astype(np.float64) - float(z)) * float(s)
                assert (least <= y).all() and (y <= most).all()
                for slope, offset, steep, above in lines:
                    assert (slope * x + offset <= y).all() and (y <= steep * x + above).all()


def test_a_tensor_that_is_known_is_known_to_the_step() -> None:
    """No half steps: the range of a point is as wide as the scale is uncertain."""
    x = torch.tensor([[-1.0, 0.1234, 0.777, 2.0]], dtype=torch.float64)
    node = Node("y", "DynamicQuantize", ("x",), (4,))
    least, most = ROW.interval(node, [x - 1e-9], [x + 1e-9])
    assert float((most - least).max()) < 1e-5 < 0.5 * 3 / 255


def test_what_is_not_bounded_has_no_bounds_and_no_numbers_that_are_none() -> None:
    low = torch.tensor([[0.0, 0.0, -np.inf, 1.0]], dtype=torch.float64)
    up = torch.tensor([[1.0, np.inf, 2.0, 1.0]], dtype=torch.float64)
    huge = torch.full_like(low, 1.7e308)
    node = Node("y", "DynamicQuantize", ("x",), (4,))
    boxes = ((low, up), (low.clamp(min=0), up), (low * 0, low * 0), (-huge, huge), (huge * 0, huge))
    for ends in boxes:
        least, most = (torch.nan_to_num(end, 0.0, np.inf, -np.inf) for end in ends)
        found = ROW.relax(node, [least.unsqueeze(1)], [most.unsqueeze(1)], None)
        parts = *ROW.interval(node, [least], [most]), found.lower_intercept, found.upper_intercept
        assert not any(bool(torch.isnan(part).any()) for part in parts)
