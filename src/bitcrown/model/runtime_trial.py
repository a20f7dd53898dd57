"""Does onnxruntime take this file at all? Opened and run once on zeros, in a child process.

A counterexample counts only if onnxruntime shows it, so a network that it cannot load (a Gemm that
mixes float and double, an attribute that it does not know) cannot be decided, however well it is
read here. Some damaged files do not make it raise anything but end the process, which is why the
first look is a child's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitcrown.budget import Budget
from bitcrown.child_process import text_or_error
from bitcrown.errors import ModelError
from bitcrown.model.onnx_reader import model_bytes

SECONDS = 120.0
MEMORY = 32 << 30
TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{
        f"tensor({kind}{bits})": f"{kind}{bits}"
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}


def require_runtime(path: Path, content: bytes = b"") -> None:
    """Raises a ``BitcrownError`` with one sentence where onnxruntime cannot load or run the file.

    ``content``: what is run in its place, for files that need another form.
    """
    given = content or model_bytes(path)
    text_or_error(
        lambda: _trial(given, path),
        Budget.of_seconds(SECONDS, MEMORY),
        f"that runs {path} in onnxruntime",
    )


def _trial(content: bytes, path: Path) -> str:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    doing = "load"
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        doing = "run"
        feed = {}
        for info in session.get_inputs():
            shape = [
                extent if isinstance(extent, int) and extent > 0 else 1 for extent in info.shape
            ]
            feed[info.name] = np.zeros(shape, dtype=TYPES.get(info.type, "float32"))
        session.run(None, feed)
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        reason = next(iter(str(error).splitlines()), repr(error))
        raise ModelError(f"onnxruntime cannot {doing} {path}: {reason}") from error
    return ""
