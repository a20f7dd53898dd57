"""A quantized ONNX file and a VNN-LIB property through the public API: equal to enumeration of the
lattice."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

import bitcrown
from benchmarks.qnn_robustness.integer_onnx import export_onnx
from bitcrown.quant.network.entry import WholeEntry
from bitcrown.quant.network.graph import Dense, Exit, Input, IntegerNetwork, Stairs
from bitcrown.verdict import Status
from tests.exact_staircases import exact_rows
from tests.quant_models import run


def small_network(seed: int) -> IntegerNetwork:
    """3 inputs of 8 bits, 4 hidden neurons, 3 outputs of 4 bits."""
    random = np.random.default_rng(seed)
    low, high = np.zeros(3, np.int64), np.full(3, 255)
    hidden = exact_rows([Fraction(1, 64)], [Fraction(0)], 0, 15, "half_up")
    output = exact_rows([Fraction(1, 8)], [Fraction(0)], -8, 7, "half_up")
    nodes = (
        Input((3,), low, high),
        Dense((4,), 0, random.integers(-16, 16, (4, 3)), random.integers(-500, 500, 4)),
        Stairs((4,), 1, hidden[0], hidden[1], hidden[1], "shift"),
        Dense((3,), 2, random.integers(-16, 16, (3, 4)), random.integers(-60, 60, 3)),
        Stairs((3,), 3, output[0], output[1], output[1], "shift"),
    )
    values = (tuple(Fraction(k) for k in range(-8, 8)),) * 3
    return IntegerNetwork(
        nodes, 4, WholeEntry(np.dtype(np.uint8), low, high), Exit(np.full(3, -8), values)
    )


def robustness(path: Path, centre: np.ndarray, eps: int, label: int) -> Path:
    lines = [f"(declare-const X_{i} Real)" for i in range(3)] + [
        f"(declare-const Y_{j} Real)" for j in range(3)
    ]
    for i, value in enumerate(centre.tolist()):
        lines += [f"(assert (>= X_{i} {value - eps}))", f"(assert (<= X_{i} {value + eps}))"]
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(3) if j != label)
    path.write_text("\n".join([*lines, f"(assert (or {others}))"]))
    return path


@pytest.mark.parametrize("seed", range(6))
def test_verdict_equals_enumeration_and_the_witness_is_a_lattice_point(
    seed: int, tmp_path: Path
) -> None:
    network, path = small_network(seed), tmp_path / "net.onnx"
    onnx.save(export_onnx(network), path)
    random = np.random.default_rng(seed + 100)
    found = set()
    for trial in range(6):
        centre, eps = random.integers(8, 248, 3), int(random.integers(1, 6))
        points = centre + np.array(list(itertools.product(range(-eps, eps + 1), repeat=3)))
        outputs = network.evaluate(points)
        label = int(network.evaluate(centre[None])[0].argmax())
        rivals = np.delete(outputs, label, axis=1)
        expected = Status.SAT if (rivals >= outputs[:, [label]]).any() else Status.UNSAT
        prop = robustness(tmp_path / f"{trial}.vnnlib", centre, eps, label)
        verdict = bitcrown.verify(bitcrown.load(path, prop), cpu_seconds=60.0)
        assert verdict.status is expected
        found.add(expected)
        if verdict.witness is not None:
            x = next(iter(verdict.witness.inputs.values())).reshape(1, 3)
            assert (abs(x - centre) <= eps).all() and (x == x.round()).all()
            y = run(path, x.astype(np.uint8))[0]
            assert (np.delete(y, label) >= y[label]).any()
    assert found
