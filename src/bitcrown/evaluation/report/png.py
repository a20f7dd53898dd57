"""Small lossless pictures inside a page.

Legend: ``C`` channels (1 grey or 3 colours), ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray


def levels(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Pixels ``[C, H, W]`` in [0, 1] as nearest 8-bit levels ``[H, W, C]``; NaN is 0."""
    finite = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
    return np.rint(np.clip(finite, 0.0, 1.0) * 255).astype(np.uint8).transpose(1, 2, 0)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The file for ``pixels [H, W, C]``: grey, or the first three of more as red, green, blue."""
    from PIL import Image

    kept = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(kept)).save(file, "PNG", optimize=True)
    return file.getvalue()


def data_address(pixels: NDArray[np.uint8]) -> str:
    """``png`` as the address of an image inside a page."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")
