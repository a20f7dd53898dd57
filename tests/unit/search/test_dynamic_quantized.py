"""Dynamically quantized networks, as onnxruntime's own tool writes them, through the public API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

import bitcrown
from bitcrown.verdict import Status
from tests.quant_models import Writer

OUTPUTS = 3


def quantized_network(folder: Path, n_inputs: int, seed: int) -> Path:
    """Two hidden layers of 12 neurons; weights in 8 bits, a scale for each column."""
    rng = np.random.default_rng(seed)
    w = Writer([1, n_inputs])
    value = "x"
    for inputs, outputs in ((n_inputs, 12), (12, 12), (12, OUTPUTS)):
        weight = w.constant(rng.normal(size=(inputs, outputs)) / np.sqrt(inputs))
        value = w.add(
            "Add", w.add("MatMul", value, weight), w.constant(rng.normal(size=outputs) * 0.2)
        )
        value = w.add("Relu", value) if outputs != OUTPUTS else value
    path = folder / "dynamic.onnx"
    onnx.save(w.model(value), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", path, weight_type=QuantType.QInt8, per_channel=True)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {
        node.op_type for node in onnx.load(path).graph.node
    }
    return path


def robustness(path: Path, low: np.ndarray, up: np.ndarray, label: int) -> Path:
    lines = [f"(declare-const X_{i} Real)" for i in range(len(low))] + [
        f"(declare-const Y_{j} Real)" for j in range(OUTPUTS)
    ]
    for i in range(len(low)):
        lines += [f"(assert (>= X_{i} {low[i]:.9f}))", f"(assert (<= X_{i} {up[i]:.9f}))"]
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(OUTPUTS) if j != label)
    path.write_text("\n".join([*lines, f"(assert (or {others}))"]))
    return path


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_inputs", (4, 24), ids=("inputs are split", "neurons are split"))
def test_no_point_contradicts_a_proof_and_witnesses_replay(
    n_inputs: int, seed: int, tmp_path: Path
) -> None:
    path = quantized_network(tmp_path, n_inputs, seed)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def margin(x: np.ndarray, label: int) -> float:
        y = session.run(None, {"x": x.astype(np.float32)[None]})[0][0]
        return float((y[label] - np.delete(y, label)).min())

    rng = np.random.default_rng(seed + 10)
    found = []
    for radius in (0.01, 0.05, 0.2, 0.8):
        centre = rng.uniform(-1, 1, n_inputs)
        label = int(session.run(None, {"x": centre.astype(np.float32)[None]})[0].argmax())
        low, up = centre - radius, centre + radius
        verdict = bitcrown.verify(
            bitcrown.load(path, robustness(tmp_path / "p.vnnlib", low, up, label)), cpu_seconds=10.0
        )
        found.append(verdict.status)
        share = rng.random((1500, n_inputs))
        share[::2] = share[::2] > 0.5
        points = low + share * (up - low)
        if verdict.status is Status.UNSAT:
            assert min(margin(x, label) for x in points) > 0
        elif verdict.status is Status.SAT:
            assert verdict.witness is not None
            x = next(iter(verdict.witness.inputs.values())).reshape(-1)
            assert margin(x, label) <= 0 and (abs(x - centre) <= radius + 1e-6).all()
    assert Status.UNSAT in found and Status.SAT in found
