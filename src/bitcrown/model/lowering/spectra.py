"""``STFT`` of a real signal with a known window: frames, each multiplied by a known matrix.

With frames ``x_f`` of ``N`` numbers, every ``step`` numbers one, and a window ``w``,

    X_f(k) = sum_n w_n x_f(n) (cos(2 pi k n / N) - i sin(2 pi k n / N)),

for all ``k < N``, or half of them where the file asks for one side. How onnxruntime rounds this is
not known.
"""

from __future__ import annotations

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode

_OPSET = 17
"""In which the nodes are written."""


def frames_and_product(b: Builder, node: OnnxNode) -> list[OnnxNode]:
    """Inputs: a signal ``[B, L]`` or ``[B, L, 1]``, the step, a window, the length of a frame.
    The output is ``[B, frames, frequencies, 2]``."""
    signal, step, window, length = (*node.inputs, "", "")[:4]
    shape = b.shape(b.node_of(signal))
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)):
        raise UnsupportedError(f"node {node.name!r}: STFT of a signal of shape {list(shape)}")
    hop = b.integers(step, "the step")[0]
    given = b.constant(window, "the window").astype(np.float64) if window else np.ones(0)
    size = b.integers(length, "the length of a frame")[0] if length else len(given)
    weights = given if window else np.ones(max(size, 0))
    if hop < 1 or not 1 <= size <= shape[1] or weights.shape != (size,):
        raise ModelError(f"node {node.name!r}: frames of {size} numbers, {hop} apart, of {shape}")
    starts = np.arange(0, shape[1] - size + 1, hop)
    count = size // 2 + 1 if node.attrs.get("onesided", 1) else size
    angles = 2 * np.pi * (np.outer(np.arange(size), np.arange(count)) % size) / size
    matrix = np.stack([np.cos(angles), -np.sin(angles)], axis=-1).reshape(size, -1)
    out = node.outputs[0]
    known = {
        f"{out}/flat": np.array([shape[0], shape[1]]),
        f"{out}/places": starts[:, None] + np.arange(size),
        f"{out}/matrix": weights[:, None] * matrix,
        f"{out}/shape": np.array([shape[0], len(starts), count, 2]),
    }
    b.constants.update(known)
    b.unrounded.append(node.op)
    flat, frames, sums = f"{out}/signal", f"{out}/frames", f"{out}/sums"
    return [
        _written(node, "Reshape", (signal, f"{out}/flat"), flat),
        _written(node, "Gather", (flat, f"{out}/places"), frames, axis=1),
        _written(node, "MatMul", (frames, f"{out}/matrix"), sums),
        _written(node, "Reshape", (sums, f"{out}/shape"), out),
    ]


def _written(
    node: OnnxNode, op: str, inputs: tuple[str, ...], to: str, **attrs: object
) -> OnnxNode:
    return OnnxNode(op, node.name, inputs, (to,), attrs, _OPSET)
