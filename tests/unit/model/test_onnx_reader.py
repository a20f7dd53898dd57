"""What a file may look like around its operators, and what happens when it is not what it claims to
be."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.crosscheck import crosscheck
from bitcrown.model.describe import describe
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile
from bitcrown.model.joining import join
from bitcrown.model.onnx_reader import read_graph

Save = Callable[..., Path]


def relu(source: str = "x", target: str = "y", name: str = "r") -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [target], name=name)


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.ModelProto.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_reads_plain_gzip_and_missing_suffix(save: Save, tmp_path: Path) -> None:
    path = save([relu()], {"x": (1, 3)})
    packed = tmp_path / "packed.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    disguised = tmp_path / "disguised.onnx"
    disguised.write_bytes(packed.read_bytes())
    for variant in (packed, tmp_path / "packed.onnx", disguised):
        assert [node.op for node in read_graph(variant).nodes.values()] == ["Input", "Relu"]
        assert crosscheck(read_graph(variant), NetworkFile(variant), seed=1) < 1e-6


def test_tensors_keep_their_onnx_names(save: Save) -> None:
    weights = {"w": np.ones((3, 3), np.float32), "v": np.float32([1, 2, 3])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "v"], ["sum"]),
        relu("sum", "hidden"),
        helper.make_node("Softmax", ["hidden"], ["y"]),
    ]
    graph = read_graph(save(nodes, {"x": (1, 3)}, weights))
    assert graph.outputs == ("y",)
    assert list(graph.nodes)[:3] == ["x", "sum", "hidden"]
    assert all(name == node.name for name, node in graph.nodes.items())


def test_an_input_keeps_its_name_whatever_reads_it(save: Save) -> None:
    path = save([helper.make_node("Identity", ["x"], ["z"], name="x"), relu("z")], {"x": (2,)})
    assert read_graph(path).inputs == ("x",)
    assert crosscheck(read_graph(path), NetworkFile(path), seed=0) < 1e-6


def test_symbolic_extents_become_one(save: Save) -> None:
    graph = read_graph(save([relu()], {"x": ("batch", 3)}))
    assert graph.nodes["x"].shape == (1, 3)
    assert graph.input_dtypes == ("float32",)


def test_several_inputs_and_outputs_keep_their_order(save: Save) -> None:
    nodes = [helper.make_node("Sub", ["b", "a"], ["s"]), relu("a", "r")]
    path = save(nodes, {"b": (2,), "a": (2,)}, outputs=["r", "s"])
    graph = read_graph(path)
    assert graph.inputs == ("b", "a")
    found = Network(graph, torch.float64)(
        torch.tensor([[5.0, 6.0, -1.0, 2.0]], dtype=torch.float64)
    )
    assert found.tolist() == [[0.0, 2.0, 6.0, 4.0]]


def test_weights_listed_among_the_inputs_are_weights(save: Save) -> None:
    path = save(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        {"x": (3,), "w": (3,)},
        {"w": np.float32([1, 2, 3])},
    )
    assert read_graph(path).inputs == ("x",)
    assert crosscheck(read_graph(path), NetworkFile(path), seed=0) < 1e-6


def test_output_may_be_an_input_or_a_constant(save: Save) -> None:
    path = save([relu("x", "r")], {"x": (2,)}, {"w": np.float32([1, 2])}, outputs=["x", "w", "r"])
    found = Network(read_graph(path), torch.float64)(
        torch.tensor([[-1.0, 3.0]], dtype=torch.float64)
    )
    assert found.tolist() == [[-1.0, 3.0, 1.0, 2.0, 0.0, 3.0]]


def test_shape_arithmetic_is_folded(save: Save) -> None:
    """What exporters write for ``x.view(x.shape[0], -1)`` and for ``torch.where`` over constant
    masks."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["rows"]),
        helper.make_node("Mul", ["rows", "one"], ["rows1"]),
        helper.make_node("Concat", ["rows1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node(
            "ConstantOfShape", ["axis1"], ["filled"], value=helper.make_tensor("v", 7, [1], [6])
        ),
        helper.make_node("Range", ["zero", "limit", "step"], ["range"]),
        helper.make_node("Equal", ["range", "two"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Expand", ["float", "filled"], ["wide"]),
        helper.make_node("Mul", ["flat", "wide"], ["y"]),
    ]
    weights = {
        "zero": np.int64(0), "one": np.int64([1]), "axis": np.int64([0]), "rest": np.int64([-1]),
        "axis1": np.int64([1]), "limit": np.int64(6), "step": np.int64(1), "two": np.int64(2),
    }  # fmt: skip
    path = save(nodes, {"x": (1, 2, 3)}, weights)
    graph = read_graph(path)
    assert {node.op for node in graph.nodes.values()} == {"Input", "Reshape", "Scale"}
    assert crosscheck(graph, NetworkFile(path), seed=0) < 1e-6


def test_float_operators_on_constants_are_folded_by_the_engine(save: Save) -> None:
    weights = {"w": np.float32([[1, -2], [3, 4]]), "v": np.float32([[0.5, 1], [1, 0]])}
    nodes = [
        helper.make_node("MatMul", ["w", "v"], ["m"]),
        helper.make_node("Sigmoid", ["m"], ["s"]),
        helper.make_node("MatMul", ["x", "s"], ["y"]),
    ]
    path = save(nodes, {"x": (1, 2)}, weights)
    graph = read_graph(path)
    assert [node.op for node in graph.nodes.values()] == ["Input", "Linear"]
    assert crosscheck(graph, NetworkFile(path), seed=0) < 1e-6


def test_max_pool_is_exact_below_every_padding_value(save: Save) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], pads=[1, 1])
    network = Network(read_graph(save([node], {"x": (1, 1, 3)})), torch.float64)
    x = torch.tensor([[-1e12, -3e12, -2e12]], dtype=torch.float64)
    assert network(x).tolist() == [[-1e12, -1e12, -2e12]]


def test_missing_rules_are_reported_together(save: Save) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Tan", ["a"], ["b"], name="second"),
        helper.make_node("Tan", ["x"], ["c"], name="third"),
        helper.make_node("Pow", ["x", "e"], ["d"], name="fourth"),
    ]
    path = save(nodes, {"x": (2, 2)}, {"e": np.float32(99.5)}, outputs=["b", "c", "d"])
    with pytest.raises(
        UnsupportedError, match=r"Det: first; Tan: second, third; .*'fourth'.*99\.5"
    ):
        read_graph(path)


@pytest.mark.parametrize("op", ["RandomNormal", "Loop", "If"])
def test_operators_without_inputs_are_not_taken_for_constants(op: str, save: Save) -> None:
    with pytest.raises((UnsupportedError, ModelError), match=op):
        read_graph(save([helper.make_node(op, [], ["y"], shape=[2])], {"x": (2,)}))


def test_what_is_drawn_at_random_is_no_constant(save: Save) -> None:
    node = helper.make_node("RandomNormalLike", ["w"], ["y"])
    with pytest.raises(UnsupportedError, match="RandomNormalLike"):
        read_graph(save([node], {"x": (2,)}, {"w": np.ones(2, np.float32)}))


@pytest.mark.parametrize("kept", [0, 1, 10, 60])
def test_truncated_file(kept: int, save: Save) -> None:
    path = save([relu()], {"x": (1, 3)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_graph(path)


def test_truncated_gzip_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(b"x" * 1000)[:15])
    with pytest.raises(ModelError, match="cannot be read"):
        assert NetworkFile(path).content
    with pytest.raises(ModelError, match="cannot be read"):
        read_graph(tmp_path / "nowhere.onnx")


def test_weights_in_other_files_are_refused(save: Save, tmp_path: Path) -> None:
    """As an initializer and as the value of a Constant: the named file is never opened."""
    (tmp_path / "secret").write_bytes(b"\0" * 12)
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret")
    path = save([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (3,)})
    with pytest.raises(ModelError, match="another file"):
        read_graph(changed(path, lambda model: model.graph.initializer.append(tensor)))
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    path = save([constant, helper.make_node("Add", ["x", "w"], ["y"])], {"x": (3,)})
    with pytest.raises(ModelError, match="another file"):
        read_graph(path)


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


HUGE = {
    "constant": (helper.make_node("ConstantOfShape", ["n"], ["y"]), int64(1 << 20, 1 << 20)),
    "range": (helper.make_node("Tile", ["n", "n"], ["y"]), int64(1 << 40)),
    "expand": (helper.make_node("Expand", ["x", "n"], ["y"]), int64(1 << 20, 1 << 20, 1)),
    "pad": (helper.make_node("Pad", ["x", "n"], ["y"]), int64(0, 0, 0, 1 << 40)),
    "tile": (helper.make_node("Tile", ["x", "n"], ["y"]), int64(1 << 20, 1 << 20)),
    "resize": (helper.make_node("Resize", ["x", "", "", "n"], ["y"]), int64(1 << 20, 1 << 20)),
    "resize by": (helper.make_node("Resize", ["x", "", "f"], ["y"]), int64()),
    "pool": (
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1 << 40], pads=[0, 1 << 41]),
        int64(),
    ),
    "average": (
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2], pads=[1, 1 << 41]),
        int64(),
    ),
    "negative": (helper.make_node("ConstantOfShape", ["n"], ["y"]), int64(-1)),
}


def test_weights_that_are_not_finite_raise_no_warning(save: Save) -> None:
    weights = {"w": np.float32([[np.inf, -np.inf], [0, 1]])}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["m"], alpha=0.0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    assert read_graph(save(nodes, {"x": (1, 2)}, weights)).n_outputs == 2


@pytest.mark.parametrize("what", HUGE)
def test_shapes_that_no_memory_holds_are_refused(what: str, save: Save) -> None:
    node, value = HUGE[what]
    with pytest.raises(ModelError):
        read_graph(save([node], {"x": (1, 3)}, {"n": value, "f": np.float32([1, 1e30])}))


def test_huge_input_is_refused(save: Save) -> None:
    with pytest.raises(ModelError, match="too large"):
        read_graph(save([relu()], {"x": (1 << 20, 1 << 20)}))


BAD = {
    "reads a tensor that nothing writes": [relu("nobody")],
    "writes a tensor twice": [relu(), relu()],
    "writes an input": [relu("x", "x"), relu()],
    "has no axis 5": [helper.make_node("Concat", ["x", "x"], ["y"], axis=5)],
    "has attributes of the wrong type": [helper.make_node("Transpose", ["x"], ["y"], perm="no")],
    "lacks an input": [helper.make_node("Add", ["x"], ["y"])],
    "has shapes that do not fit": [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "gathers outside": [helper.make_node("Gather", ["x", "i"], ["y"], axis=1)],
    "has negative strides": [
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1], strides=[-1])
    ],
    "never writes its output": [relu("x", "z")],
}


@pytest.mark.parametrize("what", BAD)
def test_inconsistent_model(what: str, save: Save) -> None:
    weights = {"w": np.zeros((7, 2), np.float32), "i": np.int64([9])}
    with pytest.raises(ModelError):
        read_graph(save(BAD[what], {"x": (1, 3)}, weights))


def test_damaged_weight_and_unknown_opset(save: Save) -> None:
    path = save(
        [helper.make_node("Add", ["x", "w"], ["y"])], {"x": (3,)}, {"w": np.float32([1, 2, 3])}
    )
    with pytest.raises(ModelError, match="damaged"):
        read_graph(
            changed(path, lambda model: setattr(model.graph.initializer[0], "raw_data", b"\0"))
        )
    path = save([relu()], {"x": (3,)})
    with pytest.raises(UnsupportedError, match="opset 4"):
        read_graph(changed(path, lambda model: setattr(model.opset_import[0], "version", 4)))


def test_names_that_are_not_utf8(save: Save) -> None:
    path = save(
        [helper.make_node("Tan", ["x"], ["y"]), helper.make_node("Det", ["x"], ["z"])],
        {"x": (3, 3)},
    )
    path.write_bytes(path.read_bytes().replace(b"Tan", b"\xff\xfe\xfd"))
    with pytest.raises(ModelError, match="not UTF-8"):
        read_graph(path)


def test_bytes_flipped_at_random_never_escape_as_other_errors(save: Save) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1]),
        relu("c", "r"),
        helper.make_node("Reshape", ["r", "s"], ["y"]),
    ]
    path = save(
        nodes, {"x": (1, 2, 4)}, {"w": np.ones((2, 2, 3), np.float32), "s": np.int64([1, -1])}
    )
    original = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(original)
        for position in generator.integers(0, len(data), 2):
            data[position] = generator.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            read_graph(path)
        except ModelError:
            continue


def test_crosscheck_finds_a_misread_network(save: Save) -> None:
    right = save(
        [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.1)], {"x": (3,)}, name="right.onnx"
    )
    wrong = save(
        [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.11)], {"x": (3,)}, name="wrong.onnx"
    )
    assert crosscheck(read_graph(right), NetworkFile(right), seed=0) < 1e-6
    with pytest.raises(ModelError, match="differs from onnxruntime"):
        crosscheck(read_graph(wrong), NetworkFile(right), seed=0)


def test_crosscheck_does_not_take_nan_for_agreement(save: Save) -> None:
    right = save([helper.make_node("Abs", ["x"], ["y"])], {"x": (3,)}, name="right.onnx")
    wrong = save([helper.make_node("Log", ["x"], ["y"])], {"x": (3,)}, name="wrong.onnx")
    with pytest.raises(ModelError, match="differs from onnxruntime by inf"):
        crosscheck(read_graph(wrong), NetworkFile(right), seed=0)


def test_join_keeps_networks_apart(save: Save) -> None:
    graph = read_graph(save([relu()], {"x": (2,)}))
    both = join({"f": graph, "g": graph})
    assert both.inputs == ("f:x", "g:x")
    assert both.input_dtypes == ("float32", "float32")
    found = Network(both, torch.float64)(
        torch.tensor([[-1.0, 1.0, 2.0, -2.0]], dtype=torch.float64)
    )
    assert found.tolist() == [[0.0, 1.0, 2.0, 0.0]]


def test_describe_names_every_tensor(save: Save) -> None:
    weights = {"w": numpy_helper.to_array(helper.make_tensor("w", 1, [2, 2], [1.0, 2, 3, 4]))}
    graph = read_graph(
        save([helper.make_node("MatMul", ["x", "w"], ["m"]), relu("m")], {"x": (1, 2)}, weights)
    )
    text = describe(graph)
    assert "input x [1, 2]" in text
    assert "3 tensors, 4 weights; 1 Linear, 1 Relu" in text
    assert all(name in text for name in graph.nodes)
