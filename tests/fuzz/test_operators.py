"""Every operator that the reader accepts has a generator whose networks the reader takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bitcrown.model.folding import FOLDING_RULES
from bitcrown.model.lowering import LOWERINGS
from bitcrown.model.onnx_reader import read_graph
from tests.fuzz.graphs import OPSETS, Net, Unfit
from tests.fuzz.moves import GENERATORS
from tests.fuzz.operators import WITHOUT

ACCEPTED = sorted({*LOWERINGS, *FOLDING_RULES, "Constant"})
TRIES = 60


def test_every_operator_has_a_generator_or_a_reason() -> None:
    without = [op for op in ACCEPTED if op not in GENERATORS and op not in WITHOUT]
    assert not without, f"write a generator for {without}, or a reason into WITHOUT"
    assert not set(WITHOUT) & set(GENERATORS)


def test_reasons_are_about_operators_of_the_reader() -> None:
    assert set(WITHOUT) <= set(ACCEPTED)


@pytest.mark.parametrize("op", sorted(GENERATORS))
def test_generator_makes_what_the_reader_reads(op: str, tmp_path: Path) -> None:
    for seed in range(TRIES):
        rng = np.random.default_rng(seed)
        samples = [rng.normal(size=(1, 5)).astype(np.float32) for _ in range(3)]
        net = Net(rng, samples, OPSETS[seed % len(OPSETS)], np.float32)
        try:
            output = GENERATORS[op](net, net.dense("x", 6))
        except Unfit:
            continue
        if op in net.used:
            onnx.save(net.model(output), tmp_path / "net.onnx")
            graph = read_graph(tmp_path / "net.onnx")
            assert graph.nodes[graph.outputs[0]].shape == net.shape(output)
            return
    pytest.fail(f"no draw of {TRIES} makes a network with {op}")
