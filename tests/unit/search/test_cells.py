"""Inputs that are read in steps: all cells are run, and the verdict is that of brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bitcrown
from bitcrown.verdict import Status, Verdict

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
