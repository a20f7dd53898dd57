"""Ensembles of trees, as scikit-learn, LightGBM and XGBoost are exported, against onnxruntime; also
where an input equals a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_models import run_graph

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.onnx_reader import read_graph

NODES: dict[str, Any] = {
    # A tree of three leaves, and one of two.
    "nodes_treeids": [0, 0, 0, 0, 0, 7, 7, 7],
    "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
    "nodes_featureids": [0, 1, 0, 0, 0, 1, 0, 0],
    "nodes_truenodeids": [1, 3, 0, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 4, 0, 0, 0, 2, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"]
    + ["BRANCH_LEQ"]
    + ["LEAF"] * 2,
    "nodes_values": [0.25, -0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0],
}
LEAVES = {"treeids": [0, 0, 0, 7, 7], "nodeids": [2, 3, 4, 1, 2]}
MIXED, POSITIVE = [0.5, -1.0, 0.25, -0.75, 2.0], [0.5, 0.25, 0.125, 0.375, 0.25]


def said(kind: str, weights: list[float], ids: list[int], **more: Any) -> dict[str, Any]:
    leaves = {f"{kind}_{key}": value for key, value in LEAVES.items()}
    return {**NODES, **leaves, f"{kind}_ids": ids, f"{kind}_weights": weights, **more}


def regression(**more: Any) -> dict[str, Any]:
    return said("target", MIXED, [0] * 5, n_targets=1, **more)


def with_question(mode: str) -> dict[str, Any]:
    modes = [mode if word != "LEAF" else word for word in NODES["nodes_modes"]]
    return {**regression(), "nodes_modes": modes}


def classes(
    weights: list[float], ids: list[int], count: int, post: str = "NONE", **more: Any
) -> dict[str, Any]:
    labels = [5, 2, 9][:count]
    return said("class", weights, ids, classlabels_int64s=labels, post_transform=post, **more)


REGRESSORS = {
    "sum": regression(),
    "base": regression(base_values=[0.75]),
    "average": regression(base_values=[0.75], aggregate_function="AVERAGE"),
    "two targets": said("target", MIXED, [0, 1, 0, 1, 1], n_targets=2),
    **{mode: with_question(mode) for mode in ("BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")},
}
CLASSIFIERS = {
    **{
        f"one sum, {name}, {post}, {base}": classes(weights, [0] * 5, 2, post, **base)
        for name, weights in (("mixed", MIXED), ("positive", POSITIVE))
        for post in ("NONE", "LOGISTIC")
        for base in ({}, {"base_values": [-0.3]})
    },
    **{
        f"three, {post}": classes(MIXED, [0, 1, 2, 1, 0], 3, post, base_values=[0.1, 0.2, 0.3])
        for post in ("NONE", "LOGISTIC", "SOFTMAX")
    },
    **{
        f"two sums, {name}": {
            **NODES,
            "class_treeids": [0, 0, 0, 7, 7] * 2,
            "class_nodeids": [2, 3, 4, 1, 2] * 2,
            "class_ids": [0] * 5 + [1] * 5,
            "class_weights": weights + [1.0, 0.25, -0.5, 0.125, -0.25],
            "classlabels_int64s": [5, 2],
        }
        for name, weights in (("mixed", MIXED), ("positive", POSITIVE))
    },
}


def saved(path: Path, op: str, attrs: dict[str, Any]) -> Path:
    is_label = op.endswith("Classifier")
    outputs = ["label", "y"] if is_label else ["y"]
    node = helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml", **attrs)
    kinds = [TensorProto.INT64, TensorProto.FLOAT][-len(outputs) :]
    graph = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [
            helper.make_tensor_value_info(n, kind, None)
            for n, kind in zip(outputs, kinds, strict=True)
        ],
    )
    # As XGBoost's converter: no version of ONNX's own operators.
    opsets = [helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("op", "attrs"),
    [("TreeEnsembleRegressor", attrs) for attrs in REGRESSORS.values()]
    + [("TreeEnsembleClassifier", attrs) for attrs in CLASSIFIERS.values()],
    ids=[*REGRESSORS, *CLASSIFIERS],
)
def test_as_onnxruntime_has_it(op: str, attrs: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "t.onnx", op, attrs)
    graph, session = read_graph(path), onnxruntime.InferenceSession(path)
    points = [-1.0, -0.5, -0.25, 0.0, 0.25, 0.3, 0.5, 0.75]
    found = set()
    for x in (np.float32([[a, b]]) for a in points for b in points):
        expected = [np.asarray(value, np.float64) for value in session.run(None, {"x": x})]
        for mine, theirs in zip(run_graph(graph, {"x": x}), expected, strict=True):
            np.testing.assert_allclose(np.asarray(mine).reshape(-1), theirs.reshape(-1), atol=1e-6)
        found.add(tuple(expected[-1].reshape(-1)))
    assert len(found) >= 4


REFUSED = {
    "a label": classes(MIXED, [1] * 5, 2),
    "two": classes(MIXED, [0, 1, 0, 1, 0], 2, base_values=[0.1, 0.2]),
    "a leaf": classes(MIXED, [0, 1, 0, 1, 0], 2),
    "say too little": classes(MIXED, [0, 1, 2, 1, 0], 3),
    "PROBIT": classes(MIXED, [0, 1, 2, 1, 0], 3, "PROBIT"),
    "one sum": classes(MIXED, [0] * 5, 2, "SOFTMAX"),
}


@pytest.mark.parametrize("attrs", REFUSED.values(), ids=REFUSED)
def test_refused_classifiers(attrs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="trees with"):
        read_graph(saved(tmp_path / "t.onnx", "TreeEnsembleClassifier", attrs))


@pytest.mark.parametrize(
    ("attrs", "sentence"),
    [
        (regression(aggregate_function="MAX"), "MAX"),
        (regression(post_transform="LOGISTIC"), "transform"),
        (said("target", MIXED, [0, 1, 0, 1, 1], n_targets=2, base_values=[0.5, 1.5]), "too little"),
        ({**regression(), "target_nodeids": [2, 3, 3, 1, 2]}, "too little"),
        (with_question("BRANCH_EQ"), "asks BRANCH_EQ"),
        ({**regression(), "nodes_truenodeids": [1, 0, 0, 0, 0, 1, 0, 0]}, "no tree"),
        ({**regression(), "nodes_nodeids": [0, 1, 2, 3, 3, 0, 1, 2]}, "twice"),
        ({**regression(), "target_ids": [0, 0, 3, 0, 0]}, "number 3 of 1"),
    ],
)
def test_refused_regressors(attrs: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedError, ModelError), match=sentence):
        read_graph(saved(tmp_path / "t.onnx", "TreeEnsembleRegressor", attrs))
