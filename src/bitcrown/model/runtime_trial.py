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
from bitcrown.model.file import NetworkFile, first_line, runtime_session

_SECONDS = 120.0
_MEMORY = 32 << 30
_DTYPES = {
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


def require_runtime(file: NetworkFile, content: bytes = b"") -> None:
    """Raises a ``BitcrownError`` with one sentence where onnxruntime cannot load or run the file.

    ``content``: what is run in place of its ``standard`` form.
    """
    given = content or file.standard.content
    text_or_error(
        lambda: _trial(given, file.path),
        Budget.of_seconds(_SECONDS, _MEMORY),
        f"that runs {file.path} in onnxruntime",
    )


def _trial(content: bytes, path: Path) -> str:
    session = runtime_session(content, path)
    try:
        feed = {}
        for info in session.get_inputs():
            shape = [
                extent if isinstance(extent, int) and extent > 0 else 1 for extent in info.shape
            ]
            feed[info.name] = np.zeros(shape, dtype=_DTYPES.get(info.type, "float32"))
        session.run(None, feed)
    except Exception as error:  # onnxruntime raises classes that only exist inside its extension
        raise ModelError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
    return ""
