"""Is what was read the network in the file? The graph against onnxruntime on random inputs, at every load.

onnxruntime computes in float32, the graph here in float64, so outputs differ by float32 rounding. The allowance is
``2e-3`` of the largest output (at least of 1e-3): far above the rounding of any sensible network and below what a
misread attribute causes. Inputs are drawn at three magnitudes, since an error can hide behind saturated activations.
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

TOLERANCE = 2e-3


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model_bytes(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error


def crosscheck(graph: Graph, path: Path, seed: int) -> float:
    """Largest difference relative to the largest output; raises ``ModelError`` above the tolerance."""
    session = _session(path)
    network = Network(graph, torch.float64)
    generator = np.random.default_rng(seed)
    worst = 0.0
    for magnitude in (0.1, 1.0, 3.0):
        x = (generator.uniform(-1, 1, graph.n_inputs) * magnitude).astype(np.float32)
        feed, start = {}, 0
        for info, name, dtype in zip(session.get_inputs(), graph.inputs, graph.input_dtypes, strict=True):
            node = graph.nodes[name]
            feed[info.name] = x[start : start + node.size].reshape(node.shape).astype(dtype)
            start += node.size
        with np.errstate(all="ignore"):
            expected = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in session.run(None, feed)])
        with torch.no_grad():
            found = network(torch.from_numpy(x.astype(np.float64))[None])[0].numpy()
        if expected.shape != found.shape:
            raise ModelError(f"{path}: onnxruntime gives {expected.size} outputs, the graph read from it {found.size}")
        finite = np.isfinite(expected)
        scale = max(1e-3, float(np.abs(expected[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(expected - found)[finite].max(initial=0.0)) / scale)
    if not worst <= TOLERANCE:
        raise ModelError(f"{path}: the network as read differs from onnxruntime by {worst:.2e} of its largest output")
    return worst
