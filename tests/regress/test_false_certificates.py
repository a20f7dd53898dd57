"""Files and certificates that the checker's readers took for something else, each found by reading
the checker as its enemy would.

The comparison with onnxruntime on drawn inputs is a second net, which a rare difference slips
through; so the readers have to refuse these alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.floats.reader import read_networks
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.quantized.file import read_file
from bitcrown.errors import ModelError
from bitcrown.spec.reader import parse_query
from tests.quant_models import Writer, run


def integer_input(size: int, low: int = 0, high: int = 255) -> dict[str, Any]:
    return {"op": "input", "shape": [size], "low": [low] * size, "high": [high] * size}


def read(model: Any, *nodes: dict[str, Any]) -> None:
    form = {"format": "bitcrown-integer-network-1", "nodes": list(nodes), "output": len(nodes) - 1}
    read_file(model, IntegerCircuit(form))


def levels(w: Writer) -> str:
    """The input, rounded to 0 .. 255."""
    return w.add("QuantizeLinear", "x", w.constant(1.0), w.constant(0, np.uint8))


def reals(w: Writer) -> str:
    return w.add("DequantizeLinear", levels(w), w.constant(1.0), w.constant(0, np.uint8))


def test_a_rounded_input_is_read() -> None:
    w = Writer([1, 2])
    read(w.model(reals(w)), integer_input(2))


def test_a_branch_may_look_at_the_input() -> None:
    """Its body names tensors of the whole file, which a copy of the node alone has not."""
    w = Writer([1, 2])
    x = reals(w)
    w.nodes.append(helper.make_node("Identity", [x], ["x0"]))
    w.tensors.append(numpy_helper.from_array(np.array(False), "never"))
    value = [onnx.ValueInfoProto(name="seen")]
    cast = helper.make_node("Cast", ["x0"], ["seen"], to=TensorProto.FLOAT)
    body = helper.make_graph([cast], "body", [], value)
    more = w.add("If", "never", then_branch=body, else_branch=body)
    with pytest.raises(Reject, match="not a function of constants"):
        read(w.model(w.add("Add", x, more)), integer_input(2))


def test_a_random_number_is_no_constant() -> None:
    w = Writer([1, 2])
    noise = w.add("RandomUniform", shape=[1, 2])
    with pytest.raises(Reject, match="not a function of constants"):
        read(w.model(w.add("Add", reals(w), noise)), integer_input(2))


def test_windows_of_another_form_are_other_windows() -> None:
    """Two by two weights are as many as one by four, and the planes can be made to agree."""
    w = Writer([1, 1, 4, 4])
    kernel = w.constant(np.arange(1, 5).reshape(1, 1, 2, 2), np.int8)
    model = w.model(w.add("ConvInteger", levels(w), kernel, strides=[2, 2]))
    image = {**integer_input(16), "shape": [1, 4, 4]}
    conv = {"op": "conv", "shape": [1, 2, 2], "source": 0, "plane": [4, 4], "bias": [0]}
    conv |= {"strides": [2, 2], "dilations": [1, 1], "groups": 1, "pad_value": 0}
    read(model, image, {**conv, "weight": [[[[1, 2], [3, 4]]]], "padding": [0, 0, 0, 0]})
    with pytest.raises(Reject, match="no node"):
        read(model, image, {**conv, "weight": [[[[1, 2, 3, 4]]]], "padding": [0, 0, 0, 2]})


def test_a_narrow_type_wraps() -> None:
    w = Writer([1, 1])
    narrow = w.add("Cast", levels(w), to=TensorProto.INT8)
    with pytest.raises(Reject, match="can leave the range of int8"):
        read(w.model(narrow), integer_input(1))


def test_the_widest_type_wraps_too() -> None:
    """``clip(2^56 q, 0, 1)`` is 0 at either end of 0 .. 255, and 1 where nothing has wrapped."""
    w = Writer([1, 1])
    wide = w.add("Cast", levels(w), to=TensorProto.INT64)
    wide = w.add("Mul", wide, w.constant([1 << 56], np.int64))
    bits = w.add("Clip", wide, w.constant(0, np.int64), w.constant(1, np.int64))
    with pytest.raises(Reject, match="too large"):
        read(w.model(bits), integer_input(1, 0, 0))


@pytest.mark.parametrize("is_bounded", [True, False])
def test_a_real_number_that_fits_no_integer(is_bounded: bool, tmp_path: Path) -> None:
    """Beyond 2^63 either sign becomes the least integer, so both ends of float32 became 0 here, and
    0 was all that the input was taken for; ``y = 4`` was proved to be none."""
    w = Writer([1, 1])
    x = w.add("Clip", "x", w.constant(0), w.constant(255)) if is_bounded else "x"
    wide = w.add("Cast", x, to=TensorProto.INT64)
    cut = w.add("Clip", wide, w.constant(0, np.int64), w.constant(255, np.int64))
    model = w.model(w.add("Cast", cut, to=TensorProto.FLOAT))
    if is_bounded:
        read(model, integer_input(1))
        return
    onnx.save(model, tmp_path / "n.onnx")
    ends = [run(tmp_path / "n.onnx", np.full((1, 1), v, np.float32)) for v in (4, 3e38, -3e38)]
    assert [int(y.item()) for y in ends] == [4, 0, 0]
    for high in (0, 255):
        with pytest.raises(Reject, match="leave the range of int64"):
            read(model, integer_input(1, 0, high))


@pytest.mark.parametrize("addends", [(10, 10), (10, 20)])
def test_tables_with_one_name_are_told_apart(addends: tuple[int, int]) -> None:
    w = Writer([1, 1])
    x = levels(w)
    parts = []
    for place, addend in enumerate(addends):
        one, none = w.constant(1.0), w.constant(0, np.uint8)
        known = w.constant([[addend]], np.uint8)
        names = [x, one, none, known, one, none, one, none]
        w.nodes.append(
            helper.make_node("QLinearAdd", names, [f"sum{place}"], domain="com.microsoft")
        )
        parts.append(f"sum{place}")
    model = w.model(w.add("Concat", *parts, axis=1))
    twice = {"op": "gather", "shape": [2], "sources": [0], "index": [0, 0]}
    if addends[0] == addends[1]:
        read(model, integer_input(1, 10), twice)
        return
    with pytest.raises(Reject):
        read(model, integer_input(1, 10), twice)


def float_network(folder: Path, nodes: list[Any], outputs: int, **constants: Any) -> Any:
    """What the float reader makes of nodes from ``x [1, 4]`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    text = "".join(f"(declare-const X_{i} Real)" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)" for i in range(outputs)) + "(assert (<= Y_0 0))"
    query = parse_query(text)
    return read_networks(query, {query.networks[0].name: folder / "net.onnx"})[0]


def test_a_lower_limit_that_is_out_of_proportion_is_a_limit(tmp_path: Path) -> None:
    clip = helper.make_node("Clip", ["x", "low"], ["y"])
    network = float_network(tmp_path, [clip], 4, low=np.float32(1e31))
    assert (network.values(np.zeros((1, 4)))[network.output] > 9e30).all()


def test_integers_are_divided_towards_zero(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Div", ["three", "two"], ["start"]),
        helper.make_node("Slice", ["x", "start", "end", "one"], ["y"]),
    ]
    numbers = {"three": [-3], "two": [2], "end": [1 << 40], "one": [1]}
    network = float_network(tmp_path, nodes, 1, **{k: np.array(v) for k, v in numbers.items()})
    assert network.n_outputs == 1


def test_a_weight_that_a_constant_takes_the_place_of(tmp_path: Path) -> None:
    """onnxruntime adds the constant, although it comes later."""
    weights = np.float32([1.0]), np.float32([1.001])
    constant = numpy_helper.from_array(weights[1], "v")
    nodes = [
        helper.make_node("Add", ["x", "w"], ["y"]),
        helper.make_node("Constant", [], ["w"], value=constant),
    ]
    with pytest.raises(ModelError, match="'w' is written twice"):
        float_network(tmp_path, nodes, 4, w=weights[0])
    found = run(tmp_path / "net.onnx", np.ones((1, 4), np.float32))
    assert (found == np.float32(1) + weights[1]).all()


@pytest.mark.parametrize("is_constant", [True, False])
def test_a_weight_that_is_given_twice(is_constant: bool) -> None:
    """The same of a quantized file."""
    w = Writer([1, 1])
    w.tensors.append(numpy_helper.from_array(np.float32([1.0]), "w"))
    total = w.add("Add", reals(w), "w")
    if is_constant:
        value = numpy_helper.from_array(np.float32([0.0]), "v")
        w.nodes.append(helper.make_node("Constant", [], ["w"], value=value))
    else:
        w.tensors.append(numpy_helper.from_array(np.float32([0.0]), "w"))
    model = w.model(w.add("QuantizeLinear", total, w.constant(1.0), w.constant(0, np.uint8)))
    with pytest.raises(ModelError, match="'w' is written twice"):
        read(model, integer_input(1))


def test_the_least_integer_has_no_absolute_value(tmp_path: Path) -> None:
    """``-2^63 / 2^62`` was 2 in place of -2, so another of the three entries was gathered."""
    nodes = [
        helper.make_node("Div", ["least", "half"], ["i"]),
        helper.make_node("Slice", ["x", "zero", "three", "one"], ["three_of_x"]),
        helper.make_node("Gather", ["three_of_x", "i"], ["y"], axis=1),
    ]
    numbers = {"least": [-(1 << 63)], "half": [1 << 62], "zero": [0], "three": [3], "one": [1]}
    with pytest.raises(ModelError, match="least integer"):
        float_network(tmp_path, nodes, 1, **{k: np.array(v) for k, v in numbers.items()})
    assert run(tmp_path / "net.onnx", np.float32([[0, 1, 2, 3]])).item() == 1


@pytest.mark.parametrize("is_given", [True, False])
def test_the_greatest_number_of_the_widest_type_is_a_limit(is_given: bool) -> None:
    """In int64 it was -1, so everything was cut to 0; where no limit is given, it was an error."""
    w = Writer([1, 1])
    wide = w.add("Cast", levels(w), to=TensorProto.UINT64)
    limits = [w.constant(v, np.uint64) for v in (0, 2**64 - 1)] if is_given else []
    model = w.model(w.add("Cast", w.add("Clip", wide, *limits), to=TensorProto.FLOAT))
    form = {"format": "bitcrown-integer-network-1", "nodes": [integer_input(1)], "output": 0}
    (found,) = read_file(model, IntegerCircuit(form)).outputs
    assert (found.of(0), found.of(7), found.of(255)) == (0, 7, 255)
