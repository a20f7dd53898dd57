"""Small models with one absurd number in them are refused in our own words, or load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_model_folding
from onnx import numpy_helper
from tiny_models import model_of, saved

from bitcrown.errors import BitcrownError
from bitcrown.model.onnx_reader import read_graph

INTEGERS = [-(2**63), -(2**31), -100, -3, -1, 0, 1, 2, 7, 2**40, 2**62, 2**63 - 1]
FLOATS = [float("nan"), float("inf"), -float("inf"), 0.0, 1e38, -1e38, 1e-45]


def mutants(model: onnx.ModelProto, generator: np.random.Generator) -> Iterator[onnx.ModelProto]:
    """One per attribute and per constant."""
    for place, node in enumerate(model.graph.node):
        for index in range(len(node.attribute)):
            copy = onnx.ModelProto.FromString(model.SerializeToString())
            attribute = copy.graph.node[place].attribute[index]
            attribute.i, attribute.f = (
                int(generator.choice(INTEGERS)),
                float(generator.choice(FLOATS)),
            )
            if attribute.ints:
                attribute.ints[int(generator.integers(len(attribute.ints)))] = attribute.i
            yield copy
        for index in range(len(node.input)):
            copy = onnx.ModelProto.FromString(model.SerializeToString())
            del copy.graph.node[place].input[index]
            yield copy
    for index, tensor in enumerate(model.graph.initializer):
        value = numpy_helper.to_array(tensor).copy()
        if value.size and value.dtype in (np.dtype(np.int64), np.dtype(np.float32)):
            kind = INTEGERS if value.dtype.kind == "i" else FLOATS
            value.reshape(-1)[int(generator.integers(value.size))] = kind[
                int(generator.integers(len(kind)))
            ]
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        copy.graph.initializer[index].CopyFrom(numpy_helper.from_array(value, tensor.name))
        yield copy


@pytest.mark.parametrize("name", test_model_folding.CASES)
def test_absurd_numbers_are_refused_or_load(name: str, tmp_path: Path) -> None:
    case = test_model_folding.CASES[name]
    model = model_of(case.nodes, {"x": (2, 3)}, ["y"], case.constants, case.opset)
    generator = np.random.default_rng(0)
    for _ in range(3):
        for mutant in mutants(model, generator):
            try:
                graph = read_graph(saved(mutant, tmp_path))
            except BitcrownError as error:
                assert str(error)
            else:
                assert graph.outputs
