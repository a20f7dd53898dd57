"""``ai.onnx.ml`` as scikit-learn's exporter writes it, against onnxruntime; and one output of
several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import run_graph

from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import ModelError, PropertyError, UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.file import NetworkFile
from bitcrown.model.one_output import with_one_output
from bitcrown.model.onnx_reader import read_graph
from bitcrown.spec.loading import load_files as load

RNG = np.random.default_rng(3)
THREE = RNG.normal(size=12).round(2).tolist()
LINEAR = {"coefficients": THREE, "intercepts": [0.1, -0.2, 0.3], "classlabels_ints": [4, 0, 7]}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "scaler": ("Scaler", {"offset": [1.0, 0.5, -1.0, 0.0], "scale": [2.0, 1.0, 0.1, 3.0]}, 1),
    "scaler of all alike": ("Scaler", {"offset": [0.5], "scale": [2.0]}, 1),
    "L1": ("Normalizer", {"norm": "L1"}, 1),
    "L2": ("Normalizer", {"norm": "L2"}, 1),
    "binarizer": ("Binarizer", {"threshold": 0.25}, 1),
    "regressor": ("LinearRegressor", {"coefficients": THREE, "targets": 3}, 1),
    "regressor with intercepts": (
        "LinearRegressor",
        {"coefficients": THREE[:4], "intercepts": [0.5]},
        1,
    ),
    "scores": ("LinearClassifier", LINEAR, 2),
    "logistic": ("LinearClassifier", {**LINEAR, "post_transform": "LOGISTIC"}, 2),
    "softmax": ("LinearClassifier", {**LINEAR, "post_transform": "SOFTMAX"}, 2),
}


def model(op: str, attrs: dict[str, Any], outputs: int) -> onnx.ModelProto:
    """``op`` on ``x [1, 4]``; a label among its outputs is cast to a real number."""
    names = ["label", "y"][-outputs:]
    nodes = [helper.make_node(op, ["x"], names, domain="ai.onnx.ml", **attrs)]
    ends = ["y"]
    if outputs == 2:
        nodes.append(helper.make_node("Cast", ["label"], ["z"], to=TensorProto.FLOAT))
        ends.append("z")
    graph = helper.make_graph(
        nodes,
        "classical",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("name", CASES)
def test_operators_equal_onnxruntime(name: str, tmp_path: Path) -> None:
    path = tmp_path / "classical.onnx"
    onnx.save(model(*CASES[name]), path)
    file = NetworkFile(path)
    graph = read_graph(file)
    assert crosscheck(graph, file, seed=0) < 1e-5
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in range(10):
        feed = {"x": np.random.default_rng(seed).uniform(-2, 2, (1, 4)).astype(np.float32)}
        found, expected = run_graph(graph, feed), session.run(None, feed)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine.flatten(), theirs.flatten(), rtol=1e-5, atol=1e-5)


def test_columns_at_constant_positions(tmp_path: Path) -> None:
    node = helper.make_node("ArrayFeatureExtractor", ["x", "k"], ["y"], domain="ai.onnx.ml")
    made = model("Binarizer", {}, 1)
    made.graph.node[0].CopyFrom(node)
    made.graph.initializer.append(numpy_helper.from_array(np.array([2, 0]), "k"))
    path = tmp_path / "columns.onnx"
    onnx.save(made, path)
    assert crosscheck(read_graph(path), NetworkFile(path), seed=0) == 0


def test_the_label_of_the_winner_is_read_from_a_table(tmp_path: Path) -> None:
    """What the exporter writes behind the scores of a perceptron."""
    domain = "ai.onnx.ml"
    made = model("Scaler", {"offset": [0.1], "scale": [3.0]}, 1)
    made.graph.node[0].output[0] = "s"
    made.graph.node.extend(
        [
            helper.make_node("ArgMax", ["s"], ["k"], axis=1),
            helper.make_node("ArrayFeatureExtractor", ["labels", "k"], ["y"], domain=domain),
        ]
    )
    labels = np.array([7, 3, -2, 11], np.int32)
    made.graph.initializer.append(numpy_helper.from_array(labels, "labels"))
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    path = tmp_path / "label.onnx"
    onnx.save(made, path)
    graph = read_graph(path, "runtime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in range(20):
        feed = {"x": np.random.default_rng(seed).uniform(-2, 2, (1, 4)).astype(np.float32)}
        found, expected = run_graph(graph, feed)[0], session.run(None, feed)[0]
        assert found.tolist() == expected.tolist() == [[labels[feed["x"].argmax()]]]


REFUSED = {
    "one row": ("LinearClassifier", {"coefficients": THREE[:4], "classlabels_ints": [0, 1]}),
    "probit": ("LinearClassifier", {**LINEAR, "post_transform": "PROBIT"}),
    "words": (
        "LinearClassifier",
        {**LINEAR, "classlabels_ints": [], "classlabels_strings": ["a", "b", "c"]},
    ),
    "largest": ("Normalizer", {"norm": "MAX"}),
    "trees": ("TreeEnsembleRegressor", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    op, attrs = REFUSED[name]
    path = tmp_path / "classical.onnx"
    made = model(op, {k: v for k, v in attrs.items() if v}, 2 if op == "LinearClassifier" else 1)
    path.write_bytes(made.SerializeToString())
    with pytest.raises((UnsupportedError, ModelError), match=op if name == "trees" else "node"):
        read_graph(path)


def classifier() -> onnx.ModelProto:
    """What the exporter writes: labels, and a list of dictionaries."""
    made = model("LinearClassifier", {**LINEAR, "post_transform": "SOFTMAX"}, 2)
    del made.graph.node[1:], made.graph.output[:]
    made.graph.node.append(
        helper.make_node(
            "ZipMap", ["y"], ["zip"], domain="ai.onnx.ml", classlabels_int64s=[4, 0, 7]
        )
    )
    made.graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, [1]))
    made.graph.output.append(onnx.ValueInfoProto(name="zip"))
    return made


QUESTION = """
(declare-const X_0 Real) (declare-const X_1 Real) (declare-const X_2 Real) (declare-const X_3 Real)
(declare-const Y_0 Real) (declare-const Y_1 Real) (declare-const Y_2 Real)
(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= X_1 0)) (assert (<= X_1 1))
(assert (>= X_2 0)) (assert (<= X_2 1)) (assert (>= X_3 0)) (assert (<= X_3 1))
(assert (>= Y_0 1.5))
"""


def test_dictionaries_are_refused_and_what_they_hold_is_an_output(tmp_path: Path) -> None:
    path, question = tmp_path / "sk.onnx", tmp_path / "question.vnnlib"
    onnx.save(classifier(), path)
    question.write_text(QUESTION)
    problem = load(path, question)
    with pytest.raises(ModelError, match=r"'zip', no tensors of numbers.*--output"):
        RuntimeReplay(problem.query, problem.networks)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(with_one_output(NetworkFile(path), "zip"))
    file = NetworkFile(copy)
    assert [output.name for output in file.outputs] == ["y"]
    graph = read_graph(file)
    assert graph.nodes[graph.outputs[0]].size == 3
    assert crosscheck(graph, file, seed=0) < 1e-5
    problem = load(copy, question)
    _, values = RuntimeReplay(problem.query, problem.networks).run(np.zeros(4))
    assert sum(value.size for value in values) == 3


def test_an_output_leaves_out_what_it_does_not_need(tmp_path: Path) -> None:
    path = tmp_path / "sk.onnx"
    onnx.save(classifier(), path)
    content = with_one_output(NetworkFile(path), "label")
    assert [node.op_type for node in onnx.ModelProto.FromString(content).graph.node] == [
        "LinearClassifier"
    ]
    with pytest.raises(ModelError, match="'nothing'.*label, zip"):
        with_one_output(NetworkFile(path), "nothing")


def test_output_of_unknown_shape_is_counted_when_it_runs(tmp_path: Path) -> None:
    """onnxruntime knows no shape behind a Scaler, and reports none where the file says none."""
    made = model("Scaler", {"offset": [0.0], "scale": [2.0]}, 1)
    made.graph.node.append(helper.make_node("Softmax", [made.graph.output[0].name], ["shares"]))
    del made.graph.output[:]
    made.graph.output.append(onnx.ValueInfoProto(name="shares"))
    path, question = tmp_path / "sk.onnx", tmp_path / "question.vnnlib"
    onnx.save(made, path)
    assert ort.InferenceSession(str(path)).get_outputs()[0].shape == []
    question.write_text(QUESTION)
    problem = load(path, question)
    with pytest.raises(PropertyError, match="computes 4 numbers"):
        RuntimeReplay(problem.query, problem.networks).run(np.zeros(4))
    question.write_text("(declare-const Y_3 Real)" + QUESTION)
    problem = load(path, question)
    _, (shares,) = RuntimeReplay(problem.query, problem.networks).run(np.zeros(4))
    assert shares.tolist() == [0.25] * 4
