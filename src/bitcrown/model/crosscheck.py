"""Is what was read the network in the file? The graph against onnxruntime on random inputs, at every load.

onnxruntime computes in float32, the graph here in float64, so outputs differ by float32 rounding. The allowance is
``2e-3`` of the largest output, or ``2e-6`` (some forty float32 roundings) of the largest value inside the network where
outputs are small differences of large numbers: far above the rounding of any sensible network and below what a misread
attribute causes. Inputs come from several ranges, since an error can hide behind saturated activations, and one of them
is positive, for networks with logarithms or roots.

A network with jumps (``Sign``, ``Floor``, ...) may rightly differ where float32 rounding crosses a jump; there it is
enough that most of the samples agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitcrown.errors import ModelError
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.model.onnx_reader import model_bytes
from bitcrown.model.registry import op_row

TOLERANCE = 2e-3
INSIDE = 1e-3
RANGES = ((-0.1, 0.1), (-1.0, 1.0), (-3.0, 3.0), (0.5, 1.5))


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model_bytes(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        raise ModelError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error


def crosscheck(graph: Graph, path: Path, seed: int) -> float:
    """Largest difference, relative to the largest output (see above); ``ModelError`` where it exceeds the tolerance."""
    session = _session(path)
    network = Network(graph, torch.float64)
    generator = np.random.default_rng(seed)
    declared = [info.name for info in session.get_inputs()]
    if declared != list(graph.inputs):
        raise ModelError(f"{path}: onnxruntime sees the inputs {declared}, the graph read from it {list(graph.inputs)}")
    differences = []
    for low, high in RANGES:
        feed = {}
        for name, dtype in zip(graph.inputs, graph.input_dtypes, strict=True):
            feed[name] = generator.uniform(low, high, graph.nodes[name].shape).astype(np.float32).astype(dtype)
        differences.append(_difference(network, session, feed, path))
    agreeing = sum(difference <= TOLERANCE for difference in differences)
    has_jumps = any(op_row(node.op).has_jumps for node in graph.nodes.values())
    if agreeing < (len(RANGES) // 2 + 1 if has_jumps else len(RANGES)):
        worst = max(differences)
        raise ModelError(f"{path}: the network as read differs from onnxruntime by {worst:.2e} of its largest output")
    return max(difference for difference in differences if difference <= TOLERANCE)


def _difference(network: Network, session: Any, feed: dict[str, np.ndarray[Any, Any]], path: Path) -> float:
    """Infinite where only the graph gives no number; entries that overflow in float32 are skipped."""
    try:
        with np.errstate(all="ignore"):
            parts = session.run(None, feed)
    except Exception as error:  # as above
        raise ModelError(f"onnxruntime cannot run {path}: {str(error).splitlines()[0]}") from error
    expected = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])
    flat = np.concatenate([feed[name].astype(np.float64).reshape(-1) for name in network.graph.inputs])
    with torch.no_grad():
        values = network.activations(torch.from_numpy(flat)[None])
    found = torch.cat([values[name].reshape(-1) for name in network.graph.outputs]).numpy()
    if expected.shape != found.shape:
        raise ModelError(f"{path}: onnxruntime gives {expected.size} outputs, the graph read from it {found.size}")
    inside = max(
        float(torch.nan_to_num(value, 0.0, 0.0, 0.0).abs().max()) for value in values.values() if value.numel()
    )
    finite = np.isfinite(expected)
    gap = float(np.abs(expected - found)[finite].max(initial=0.0))
    scale = max(float(np.abs(expected[finite]).max(initial=0.0)), INSIDE * inside, 1e-30)
    return gap / scale if np.isfinite(gap) else float("inf")
