"""Operators that move, reduce, pool and resize, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from operator_cases import Case, cases, check, ints, weight
from tiny_models import model_of, run_graph, run_onnxruntime, saved

from bitcrown.errors import ModelError
from bitcrown.model.onnx_reader import read_graph


@cases(
    Case("Reshape", ((2, 3, 4), ints(6, 4))),
    Case("Reshape", ((2, 3, 4), ints(-1))),
    Case("Reshape", ((2, 3, 4), ints(0, -1))),
    Case("Reshape", ((2, 3, 4), ints(0, 2, 6))),
    Case("Reshape", ((1,), ints())),
    Case("Flatten", ((2, 3, 4),)),
    *(Case("Flatten", ((2, 3, 4),), {"axis": axis}) for axis in (-3, -1, 0, 2, 3)),
    Case("Squeeze", ((1, 3, 1),), opset=11),
    Case("Squeeze", ((1, 3, 1),), {"axes": [0]}, opset=11),
    Case("Squeeze", ((1, 3, 1), ints(-1))),
    Case("Squeeze", ((1, 3, 1),)),
    Case("Unsqueeze", ((2, 3),), {"axes": [0, 3]}, opset=11),
    Case("Unsqueeze", ((2, 3), ints(-1, 1))),
    Case("Unsqueeze", ((2, 3), ints(0))),
    Case("Transpose", ((2, 3, 4),)),
    Case("Transpose", ((2, 3, 4),), {"perm": [1, 2, 0]}),
    Case("Slice", ((4, 5), ints(1), ints(3))),
    Case("Slice", ((4, 5), ints(-3, 0), ints(1000, -1))),
    Case("Slice", ((4, 5), ints(0), ints(5), ints(1), ints(2))),
    Case("Slice", ((4, 5), ints(-1), ints(-(2**62)), ints(-1), ints(-1))),
    Case("Slice", ((4, 5), ints(-1, 3), ints(0, 0), ints(-1, 0), ints(-2, -1))),
    Case("Slice", ((4, 5), ints(100), ints(-100), ints(1), ints(-3))),
    Case("Slice", ((4, 5), ints(-100, -100), ints(2, 2))),
    Case("Slice", ((4, 5), ints(-100), ints(-100), ints(1), ints(-3))),
    Case("Slice", ((4, 5), ints(3), ints(-5), ints(1), ints(-1))),
    Case("Slice", ((4, 5),), {"starts": [1, -4], "ends": [3, 9]}, opset=9),
    Case("Slice", ((4, 5),), {"starts": [-2], "ends": [2**62], "axes": [1]}, opset=9),
    Case("Split", ((4, 6),), {"axis": 1}, outputs=2),
    Case("Split", ((4, 6), ints(1, 2, 3)), {"axis": -1}, outputs=3),
    Case("Split", ((4, 6),), {"split": [3, 1]}, opset=11, outputs=2),
    Case("Split", ((4, 7),), {"axis": 1, "num_outputs": 3}, opset=18, outputs=3),
    Case("Gather", ((4, 5), ints(0, -1, 2, 2))),
    Case("Gather", ((4, 5), np.int64(-2)), {"axis": 1}),
    Case("Gather", ((4, 5), ints(0, 1, 2, 3).reshape(2, 2)), {"axis": 1}),
    Case("Gather", ((4, 5), ints(1, 3).astype(np.int32)), {"axis": -1}),
    Case("Gather", ((4, 5), ints(2, 2))),
    Case("Pad", ((2, 3), ints(1, 0, 2, 1))),
    Case("Pad", ((2, 3), ints(1, 0, 2, 1), np.float32(0.5))),
    Case("Pad", ((2, 3), ints(0, -1, 1, 0), np.float32(0.5))),
    Case("Pad", ((2, 3),), {"pads": [1, 1, 0, 2], "value": 0.25}, opset=10),
    Case("Pad", ((2, 3), ints(0, 2, 0, 1)), {"mode": "reflect"}),
    Case("Pad", ((2, 3), ints(1, 2, 2, 4)), {"mode": "edge"}),
    Case("Pad", ((2, 3), ints(1, 2), np.float32(0.5), ints(-1)), opset=18),
    Case("Pad", ((2, 3), ints(0, 2, 0, 1)), {"mode": "wrap"}, opset=19),
    Case("Expand", ((3, 1), ints(2, 3, 4))),
    Case("Expand", ((3, 4), ints(1, 1))),
    Case("Expand", ((3,), ints(2, 1))),
    Case("Tile", ((2, 3), ints(2, 2))),
    Case("Where", (np.array([True, False, True]), (2, 3), (2, 3))),
    Case("Where", (np.array([[True], [False]]), (2, 3), weight(3))),
    Case("Where", (np.array([True, False, True]), weight(2, 3), (2, 3))),
    Case("Where", (np.array(True), (2, 3), (3,))),
    Case("Concat", ((2, 3), (2, 1), weight(2, 2)), {"axis": 1}),
    Case("Concat", (weight(1, 3), (2, 3)), {"axis": -2}),
    Case("Concat", ((2, 3),), {"axis": 0}),
    Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2}),
    Case("DepthToSpace", ((1, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((1, 2, 4, 6),), {"blocksize": 2}),
)
def test_moves(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
)


@cases(
    *(Case(op, ((2, 3, 4),), opset=11) for op in REDUCTIONS),
    *(Case(op, ((2, 3, 5),), {"axes": [1, -1], "keepdims": 0}, opset=11) for op in REDUCTIONS),
    *(Case(op, ((2, 3, 5),), {"axes": [-2]}, opset=11) for op in REDUCTIONS),
    *(Case(op, ((2, 3, 5), ints(0, 2)), {"keepdims": 0}, opset=18) for op in REDUCTIONS),
    Case("ReduceSum", ((2, 3), ints(1)), {"keepdims": 0}),
    Case("ReduceSum", ((2, 3), ints())),
    Case("ReduceSum", ((2, 3), ints()), {"noop_with_empty_axes": 1}),
    Case("ReduceMean", ((2, 3),), {"noop_with_empty_axes": 1}, opset=18),
    Case("ReduceLogSumExp", ((2, 3),), {"axes": [1]}),
    Case("ReduceLogSum", ((2, 3),), {"axes": [1]}, low=0.5),
    Case("GlobalAveragePool", ((2, 3, 2, 4),)),
    Case("GlobalAveragePool", ((2, 3, 5),)),
    Case("GlobalMaxPool", ((1, 3, 2, 3),)),
    Case("CumSum", ((2, 4), np.int64(1))),
    Case("CumSum", ((2, 4), np.int64(-2)), {"exclusive": 1, "reverse": 1}),
    Case("LayerNormalization", ((2, 3, 4), weight(4), weight(4)), opset=17),
    Case("LayerNormalization", ((2, 3, 4), weight(3, 4)), {"axis": 1, "epsilon": 0.1}, opset=17),
    Case("InstanceNormalization", ((1, 2, 3, 3), weight(2), weight(2)), {"epsilon": 0.1}),
    Case("LpNormalization", ((2, 4),)),
    Case("LpNormalization", ((2, 4),), {"axis": 0, "p": 1}),
)
def test_reductions(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


WINDOWS = (
    {"kernel_shape": [2, 2]},
    {"kernel_shape": [2, 3], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 2, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 4], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 2], "auto_pad": "VALID"},
)


@cases(
    *(Case("MaxPool", ((1, 2, 5, 6),), attrs) for attrs in WINDOWS),
    *(Case("AveragePool", ((1, 2, 5, 6),), attrs) for attrs in WINDOWS),
    *(Case("AveragePool", ((1, 2, 5, 6),), {**attrs, "count_include_pad": 1}) for attrs in WINDOWS),
    Case("AveragePool", ((2, 2, 7),), {"kernel_shape": [3], "pads": [0, 2], "strides": [2]}),
    Case(
        "AveragePool",
        ((1, 2, 7, 7),),
        {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1]},
        opset=19,
    ),
    Case("AveragePool", ((1, 1, 3, 4, 4),), {"kernel_shape": [2, 2, 2], "strides": [1, 2, 2]}),
    Case("MaxPool", ((2, 2, 7),), {"kernel_shape": [3], "pads": [2, 1], "strides": [2]}),
    Case(
        "MaxPool",
        ((1, 1, 7, 7),),
        {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 2, 1, 0]},
    ),
    Case(
        "MaxPool",
        ((1, 1, 7, 8),),
        {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2, 2, 2, 2], "strides": [2, 3]},
    ),
    Case("MaxPool", ((1, 1, 3, 4, 4),), {"kernel_shape": [2, 2, 2]}),
)
def test_pooling(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_max_pool_is_exact_for_tiny_and_huge_values(tmp_path: Path) -> None:
    """No stand-in for minus infinity: padding must neither win nor cost a digit."""
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    path = saved(model_of([node], {"x": (1, 1, 4, 4)}, ["y"]), tmp_path)
    graph = read_graph(path)
    for scale in (1e-12, 1e12, -1e-12, -1e12):
        feed = {
            "x": (np.random.default_rng(0).uniform(0.5, 1, (1, 1, 4, 4)) * scale).astype(np.float32)
        }
        found, expected = run_graph(graph, feed)[0], run_onnxruntime(path, feed)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


HALF = "half_pixel"


@cases(
    Case("Upsample", ((1, 2, 3, 2), np.array([1, 1, 2, 3], np.float32)), opset=9),
    Case("Upsample", ((1, 2, 3, 2),), {"scales": [1.0, 1.0, 2.0, 2.0]}, opset=7),
    Case(
        "Resize", ((1, 2, 3, 2), np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}, opset=10
    ),
    Case("Resize", ((1, 2, 3, 4), None, np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}),
    *(
        Case(
            "Resize",
            ((1, 1, 5, 4), None, None, ints(1, 1, *size)),
            {"mode": "nearest", "coordinate_transformation_mode": rule, "nearest_mode": rounding},
        )
        for rule in (HALF, "asymmetric", "align_corners", "pytorch_half_pixel")
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        for size in ((10, 8), (3, 7), (1, 2))
    ),
    *(
        Case(
            "Resize",
            ((1, 1, 5, 4), None, np.array([1, 1, *scale], np.float32)),
            {"mode": mode, "coordinate_transformation_mode": rule},
        )
        for mode in ("nearest", "linear")
        for rule in (HALF, "asymmetric", "align_corners")
        for scale in ((2.0, 1.5), (0.6, 1.3), (1.0, 0.7))
    ),
)
def test_resizing(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("axis", [-3, 2])
def test_axes_out_of_range_are_refused(axis: int, tmp_path: Path) -> None:
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=axis)
    with pytest.raises(ModelError, match="axis"):
        read_graph(saved(model_of([node], {"x": (2, 3)}, ["y"]), tmp_path))
