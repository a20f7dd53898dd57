"""Inputs that are read in steps: all cells are run, and the verdict is that of brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.check.replay import open_session
from bitcrown.cli.main import main
from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.search.input_quantizers import InputQuantizer, input_quantizer
from bitcrown.verdict import Status, Verdict
from tests.quant_models import Writer, run

TABLE = np.float32([3.0, -1.0, 4.0, 1.5, -2.0])


def lookup(path: Path, step: str, extra: bool = False) -> Path:
    """``y = table[step(x_0)] + table[step(x_1)]``, plus ``x_2`` if ``extra``."""
    weights = [
        numpy_helper.from_array(TABLE, "table"),
        numpy_helper.from_array(np.array([0, 1], np.int64), "first"),
        numpy_helper.from_array(np.array([2], np.int64), "third"),
    ]
    nodes = [helper.make_node("Gather", ["x", "first"], ["a"])]
    if step == "Cast":
        nodes.append(helper.make_node("Cast", ["a"], ["i"], to=TensorProto.INT64))
    else:
        nodes.append(helper.make_node(step, ["a"], ["s"]))
        nodes.append(helper.make_node("Cast", ["s"], ["i"], to=TensorProto.INT64))
    nodes.append(helper.make_node("Gather", ["table", "i"], ["g"]))
    nodes.append(helper.make_node("ReduceSum", ["g"], ["t"], keepdims=1))
    nodes.append(helper.make_node("Gather", ["x", "third"], ["c"]))
    nodes.append(
        helper.make_node("Add", ["t", "c"], ["y"])
        if extra
        else helper.make_node("Identity", ["t"], ["y"])
    )
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [entry], [end], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def verdict(folder: Path, network: Path, box: list[tuple[float, float]], least: float) -> Verdict:
    lines = [f"(declare-const X_{i} Real)" for i in range(3)] + ["(declare-const Y_0 Real)"]
    for i, (low, high) in enumerate(box):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    lines.append(f"(assert (>= Y_0 {least}))")
    (folder / "p.vnnlib").write_text("\n".join(lines))
    return bitcrown.verify(bitcrown.load(network, folder / "p.vnnlib"), seconds=20)


def largest(step: str, low: float, high: float) -> float:
    """By brute force on a fine grid with all multiples of one quarter."""
    x = np.arange(np.ceil(4 * low), np.floor(4 * high) + 1) / 4
    whole = {"Cast": np.trunc, "Floor": np.floor, "Ceil": np.ceil, "Round": np.rint}[step](x)
    values = TABLE[whole.astype(int)]
    return float(values.max() + values.max())


@pytest.mark.parametrize("step", ["Cast", "Floor", "Ceil", "Round"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (0.25, 1.5), (0.75, 2.25), (2.5, 3.5)])
def test_verdicts_are_those_of_brute_force(
    tmp_path: Path, step: str, low: float, high: float
) -> None:
    network = lookup(tmp_path / "net.onnx", step)
    box = [(low, high), (low, high), (0.0, 1.0)]
    best = largest(step, low, high)
    assert verdict(tmp_path, network, box, best).status is Status.SAT
    above = verdict(tmp_path, network, box, best + 0.001)
    assert (above.status, above.decided_by) == (Status.UNSAT, "cells")


def test_an_input_that_is_read_as_it_is_leaves_cells_to_others(tmp_path: Path) -> None:
    network = lookup(tmp_path / "net.onnx", "Cast", extra=True)
    found = verdict(tmp_path, network, [(0.0, 4.0), (0.0, 4.0), (0.0, 1.0)], 9.5)
    assert found.decided_by != "cells"
    assert found.status is not Status.SAT
    fixed = verdict(tmp_path, network, [(0.0, 4.0), (0.0, 4.0), (1.0, 1.0)], 9.5)
    assert (fixed.status, fixed.decided_by) == (Status.UNSAT, "cells")


def test_where_bounds_are_refused_it_is_said_that_verify_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = [
        numpy_helper.from_array(np.zeros(5, np.float32), "zeros"),
        numpy_helper.from_array(np.ones(1, np.float32), "one"),
        numpy_helper.from_array(np.array([1, 1], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["i", "shape"], ["place"]),
        helper.make_node("ScatterND", ["zeros", "place", "one"], ["y"]),
    ]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])
    graph = helper.make_graph(nodes, "g", [entry], [end], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "n.onnx")
    lines = [f"(declare-const {name} Real)" for name in ("X_0", *(f"Y_{k}" for k in range(5)))]
    lines += ["(assert (>= X_0 0.0))", "(assert (<= X_0 4.0))", "(assert (>= Y_3 2.0))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    files = [str(tmp_path / "n.onnx"), str(tmp_path / "p.vnnlib")]
    assert main(["inspect", *files]) == 0
    assert "cells of them are run through onnxruntime" in capsys.readouterr().out
    assert main(["bounds", *files]) == 2
    said = capsys.readouterr().err
    assert "does without these bounds" in said and "cells of them are run" in said
    assert "depends on the network input" in said


def quantizer_output(
    folder: Path, scale: float, zero: int, kind: type, points: np.ndarray
) -> np.ndarray:
    w = Writer([1])
    domain = "com.microsoft" if kind is np.uint16 else ""
    last = w.add("QuantizeLinear", "x", w.constant(scale), w.constant(zero, kind), domain=domain)
    unit = w.constant(1.0), w.constant(zero, kind)
    model = w.model(w.add("DequantizeLinear", last, *unit, domain=domain))
    session = open_session(model.SerializeToString(), "a quantizer")
    return np.array([session.run(None, {"x": p[None]})[0].item() for p in points])


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16])
def test_edges_of_a_quantizer_are_those_of_the_runtime(kind: type, tmp_path: Path) -> None:
    """At each edge the runtime's integer begins, one number before it does not."""
    rng = np.random.default_rng(kind(1).itemsize)
    for scale in np.float32([0.1, 1 / 255, 3.0, *10 ** rng.uniform(-4, 2, 2)]):
        info = np.iinfo(kind)
        zero = int(rng.integers(info.min, info.max + 1))
        quantizer = InputQuantizer(float(scale), int(info.min) - zero, int(info.max) - zero)
        ends = np.float32([quantizer.least * scale - 1, quantizer.most * scale + 1])
        edges = quantizer.steps(float(ends[0]), float(ends[1]))
        assert edges is not None and len(edges) == info.max - info.min
        some = rng.choice(edges, min(200, len(edges)), replace=False).astype(np.float32)
        before = np.nextafter(some, np.float32(-np.inf))
        reached = quantizer_output(tmp_path, scale, zero, kind, some)
        missed = quantizer_output(tmp_path, scale, zero, kind, before)
        assert (reached == missed + 1).all()
        assert (reached == quantizer(some)).all() and (missed == quantizer(before)).all()


def test_integers_that_no_number_becomes_have_no_cell() -> None:
    """Where numbers of float32 are further apart than the scale."""
    quantizer = InputQuantizer(2.0**-20, -32768, 32767)
    assert quantizer.steps(0.0, 1e-6) is not None
    coarse = InputQuantizer(1e-4, -(2**15), 2**15)
    found = coarse.steps(2.0, 3.0)
    assert found is not None and (np.diff(coarse(found)) >= 1).all()


def quantized_network(folder: Path, scales: list[float]) -> Path:
    """Both inputs through quantizers, a layer with Tanh behind each, summed."""
    w = Writer([1, 2])
    parts = []
    for k, scale in enumerate(scales):
        x = w.quantized("x", scale, 100 + 9 * k, np.uint8)
        h = w.add("MatMul", x, w.constant([[1.5, -2.0, 0.5], [-1.0, 1.0, 3.0 + k]]))
        parts.append(w.add("MatMul", w.add("Tanh", h), w.constant([[1.0], [-2.0], [1.5]])))
    return w.save(folder, parts[0] if len(parts) == 1 else w.add("Add", *parts))


@pytest.mark.parametrize("scales", [[0.07], [0.07, 0.05]])
def test_inputs_of_quantizers_are_decided_in_cells(scales: list[float], tmp_path: Path) -> None:
    path = quantized_network(tmp_path, scales)
    low, high = np.float32([-0.31, 0.2]), np.float32([0.33, 0.9])
    at = [np.unique(np.concatenate([
        np.float32([low[i], high[i]]),
        *(np.asarray(InputQuantizer(float(np.float32(s)), -100 - 9 * k, 155 - 9 * k)
                     .steps(float(low[i]), float(high[i])), np.float32)
          for k, s in enumerate(scales))])) for i in range(2)]  # fmt: skip
    points = np.array([[a, b] for a in at[0] for b in at[1]], np.float32)
    inside = np.random.default_rng(0).uniform(low, high, (300, 2)).astype(np.float32)
    values, others = run(path, points), run(path, np.clip(inside, low, high))
    assert set(others.ravel().tolist()) <= set(values.ravel().tolist()), "cells are missing"
    most = float(values.max())
    for limit, status in ((most, Status.SAT), (float(np.nextafter(most, np.inf)), Status.UNSAT)):
        lines = ["(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"]
        lines += [f"(assert (>= X_{i} {low[i]:.20f}))(assert (<= X_{i} {high[i]:.20f}))"
                  for i in range(2)]  # fmt: skip
        (tmp_path / "p.vnnlib").write_text("".join(lines) + f"(assert (>= Y_0 {limit:.20f}))")
        found = bitcrown.verify(bitcrown.load(path, tmp_path / "p.vnnlib"), cpu_seconds=20)
        assert found.status == status, found
        assert status == Status.SAT or found.decided_by == "cells"


def test_a_quantizer_of_channels_or_of_another_scale_type_is_no_step() -> None:
    node = OnnxNode("QuantizeLinear", "q", ("x", "s", "z"), ("y",), {}, 17)
    zero, one = np.zeros((), np.uint8), np.float32(0.1)
    assert input_quantizer(node, {"s": one, "z": zero}) == InputQuantizer(float(one), 0, 255)
    for scale in (np.float32([0.1, 0.2]), np.float32(0), np.float32(np.nan), np.float16(0.1)):
        assert input_quantizer(node, {"s": np.asarray(scale), "z": zero}) is None
    assert input_quantizer(node, {"z": zero}) is None
    assert input_quantizer(node, {"s": one, "z": np.zeros((), np.float32)}) is None
