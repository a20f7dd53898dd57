"""Replay on the original files: free batch axes, gzip, several networks, misfits, damaged and
failing files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_nets import affine, opened, property_1, unit_box

from bitcrown.check.extents import settled_shape
from bitcrown.check.model_files import unpacked
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import ModelError, PropertyError
from bitcrown.spec.reader import parse_query

TEXT = property_1(2, 2, *unit_box(2), "(<= Y_0 Y_1)")
TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X_f float32 [1,2]) (declare-output Y_f float32 [1,1]))
(declare-network g {relation}(declare-input X_g float32 [1,2]) (declare-output Y_g float32 [1,1]))
(assert (and (>= X_f[0,0] 0) (<= X_f[0,0] 1) (>= X_f[0,1] 0) (<= X_f[0,1] 1)))
(assert (and (== X_g[0,0] X_f[0,0]) (>= X_g[0,1] 2) (<= X_g[0,1] 3)))
(assert (< Y_f[0,0] Y_g[0,0]))
"""


@pytest.mark.parametrize("shape", [["batch", 2], [1, 2], ["batch", 1, 2], ["a", "b", 2]])
@pytest.mark.parametrize("name", ["net.onnx", "net.onnx.gz"])
def test_run_and_batches_agree(tmp_path: Path, name: str, shape: list[int | str]) -> None:
    affine(tmp_path / name, [[1, 2], [3, -4]], [0.5, 0], shape)
    _, replay, _ = opened(TEXT, tmp_path / "net.onnx")
    points = np.random.default_rng(0).random((5, 2))
    fed, outputs = replay.run(points[0])
    assert [part.dtype for part in fed + outputs] == [np.float32, np.float32]
    assert fed[0].tolist() == points[0].astype(np.float32).tolist()
    found = replay.run_batch(points)
    assert found.shape == (5, 2) and found.dtype == np.float64
    np.testing.assert_allclose(found[0], outputs[0], rtol=1e-6)
    np.testing.assert_allclose(found, points @ [[1, 3], [2, -4]] + [0.5, 0], rtol=1e-6, atol=1e-6)
    assert replay.takes_batches() is (shape[0] != 1)


def test_a_free_axis_that_is_no_batch_axis(tmp_path: Path) -> None:
    # A mean over the first axis mixes the rows of a batch without any error.
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["d"]),
            helper.make_node("Add", ["d", "m"], ["s"]),
            helper.make_node("Mul", ["s", "m"], ["y"]),
        ],
        "mixing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    _, replay, _ = opened(TEXT, tmp_path / "net.onnx")
    points = np.random.default_rng(1).random((6, 2))
    np.testing.assert_allclose(replay.run_batch(points), points**2, rtol=1e-5)
    assert not replay.takes_batches()


def test_two_networks_and_equal_to(tmp_path: Path) -> None:
    f = affine(tmp_path / "f.onnx", [[1, 1]])
    g = affine(tmp_path / "g.onnx", [[2, -1]])
    _, replay, _ = opened(TWO.format(relation="(isomorphic-to f) "), f, g)
    x = np.array([0.5, 0.25, 0.5, 2.0])
    assert [value.tolist() for value in replay.run(x)[1]] == [[0.75], [-1.0]]
    assert replay.run_batch(np.stack([x, x])).tolist() == [[0.75, -1.0]] * 2
    _, same, _ = opened(TWO.format(relation="(equal-to f) "), f)
    assert same.members[0].session is same.members[1].session
    assert [value.tolist() for value in same.run(x)[1]] == [[0.75], [2.5]]


def test_a_misfit_names_both_sizes(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", [[1, 2, 3], [1, 0, 0]])
    with pytest.raises(
        PropertyError, match=r"inputs X \[2\] \(2 numbers\)|X \[2\].*net\.onnx.*\[1, 3\]"
    ):
        opened(TEXT, net)
    net = affine(tmp_path / "other.onnx", [[1, 2]])
    with pytest.raises(PropertyError, match=r"Y \[2\].*2 numbers.*other\.onnx.*1 numbers"):
        opened(TEXT, net)[1].run(np.zeros(2))


def test_shapes_of_version_2_must_correspond(tmp_path: Path) -> None:
    net = affine(tmp_path / "net.onnx", np.ones((1, 6)), shape=[1, 2, 3])
    text = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 {shape}) (declare-output Y float32 [1]))
(assert (and (>= {one} 0) (<= {one} 1)))"""
    for shape in ("[2,3]", "[1,2,1,3]", "[6]", "[1,6]"):
        query = parse_query(
            text.format(shape=shape, one="X[" + ",".join("0" * shape.count(",") + "0") + "]")
        )
        assert RuntimeReplay(query, {"f": net}).n_inputs == 6
    with pytest.raises(PropertyError, match=r"X \[3, 2\].*\[1, 2, 3\]"):
        RuntimeReplay(parse_query(text.format(shape="[3,2]", one="X[0,0]")), {"f": net})


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    query = parse_query(TEXT)
    with pytest.raises(ModelError, match="gone.onnx"):
        RuntimeReplay(query, {"N": tmp_path / "gone.onnx"})
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x08junk")
    with pytest.raises(ModelError, match="junk.onnx"):
        RuntimeReplay(query, {"N": tmp_path / "junk.onnx"})
    data = gzip.compress(affine(tmp_path / "net.onnx", np.eye(2)).read_bytes())
    for number, damaged in enumerate([data[:-9], data[:20] + b"\xff\xff\xff\xff" + data[24:]]):
        (tmp_path / f"{number}.onnx.gz").write_bytes(damaged)
        with pytest.raises(ModelError, match=f"{number}.onnx.gz cannot be read"):
            RuntimeReplay(query, {"N": tmp_path / f"{number}.onnx"})


def test_a_bomb_is_noticed() -> None:
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        unpacked(gzip.compress(bytes(10_000)), 1000)


def test_a_network_that_fails_when_run(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "failing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([-1, 3]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    _, replay, _ = opened(TEXT, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="cannot run net.onnx"):
        replay.run(np.zeros(2))


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """scikit-learn's exporter ends in a ZipMap, whose value is a list of dictionaries."""
    nodes = [
        helper.make_node("Identity", ["x"], ["h"]),
        helper.make_node("ZipMap", ["h"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "zip.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    query = parse_query(property_1(2, 1, *unit_box(2), "(<= Y_0 1)"))
    with pytest.raises(ModelError, match=r"zip.onnx computes 'y', no tensors of numbers; choose"):
        RuntimeReplay(query, {query.networks[0].name: path})


def free_file(path: Path, shape: list[int | str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def declared(shape: str) -> str:
    text = "(vnnlib-version <2.0>)\n(declare-network N\n"
    return text + f"(declare-input X real {shape})\n(declare-output Y real {shape}))\n"


def flat(count: int) -> str:
    names = (f"(declare-const {name}_{i} Real)" for name in "XY" for i in range(count))
    return "\n".join([*names, "(assert (<= X_0 Y_0))"])


def test_free_extents_are_those_of_the_property(tmp_path: Path) -> None:
    path = free_file(tmp_path / "free.onnx", ["N", 1, "h", "w"])
    text = declared("[1,1,2,3]") + "(assert (<= X[0,0,0,0] Y[0,0,0,0]))"
    replay = RuntimeReplay(parse_query(text), {"N": path})
    assert replay.settled() == {"N": [(1, 1, 2, 3)]}
    x = np.arange(6.0) - 2
    fed, outputs = replay.run(x)
    assert fed[0].tolist() == x.tolist() and outputs[0].tolist() == np.maximum(x, 0).tolist()


def test_numbers_settle_one_free_extent(tmp_path: Path) -> None:
    """VNN-LIB 1.0 declares how many numbers there are: one extent follows, two do not."""
    path = free_file(tmp_path / "one.onnx", ["N", 2, "w"])
    query = parse_query(flat(6))
    name = query.networks[0].name
    assert RuntimeReplay(query, {name: path}).settled() == {name: [(1, 2, 3)]}
    with pytest.raises(PropertyError, match="leaves w open: give --input-shape 1,2,w"):
        RuntimeReplay(parse_query(flat(5)), {name: path})
    path = free_file(tmp_path / "two.onnx", ["N", 1, "h", "w"])
    with pytest.raises(PropertyError, match="leaves h, w open: give --input-shape 1,1,h,w"):
        RuntimeReplay(query, {name: path})
    # A batch is no extent that numbers settle: six numbers may be of another network.
    path = free_file(tmp_path / "batch.onnx", ["N", 2])
    with pytest.raises(PropertyError, match="use the network that it is about"):
        RuntimeReplay(query, {name: path})


@pytest.mark.parametrize(
    ("extents", "declared", "has_shapes", "expected"),
    [
        ((None, 3, "h", "w"), (1, 3, 4, 5), True, (1, 3, 4, 5)),
        ((None, 3, "h", "w"), (1, 2, 4, 5), True, (1, 3, 1, 1)),  # another network's
        ((None, 3, "h", "w"), (60,), True, (1, 3, 1, 1)),
        ((None, 3, "h", 5), (60,), True, (1, 3, 4, 5)),
        (("n",), (7,), False, (7,)),
        ((2, 3), (6,), False, (2, 3)),
        ((), (1,), False, ()),
        ((0, 3), (6,), False, (1, 3)),
    ],
)
def test_settled_shape(
    extents: tuple[object, ...],
    declared: tuple[int, ...],
    has_shapes: bool,
    expected: tuple[int, ...],
) -> None:
    assert settled_shape(extents, declared, has_shapes) == expected
