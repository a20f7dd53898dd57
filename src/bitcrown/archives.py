"""NumPy's files, ``.npy`` and ``.npz``, from anywhere: arrays of plain numbers or text, or one
sentence.

An ``.npz`` is a zip archive of ``.npy`` members, and each layer (zip, deflate, a header that is a
Python literal) has exceptions of its own for damage; members that are no arrays come back as bytes.
No object is ever unpickled.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MAX_BYTES = 4 << 30
"""What an archive may unpack to."""
_KINDS = "biufU"
"""NumPy's letters for truth values, integers of both signs, floats and text."""
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""Of zipfile, zlib and numpy; the plain ones come from header literals that are no dictionaries of
the right things."""


def read_array(path: Path) -> npt.NDArray[Any]:
    """The array of an ``.npy`` file. Raises ``DataError``."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read: {_words(error)}") from error
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} is not a single array")
    return _plain(found, str(path))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an ``.npz`` file by name. Raises ``DataError`` if one of them is damaged or is
    no array."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
                raise DataError(f"{path} unpacks to more than {_MAX_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as opened:
            found = {name: opened[name] for name in opened.files}
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read: {_words(error)}") from error
    return {name: _plain(value, f"{path}: {name!r}") for name, value in found.items()}


def _plain(value: Any, what: str) -> npt.NDArray[np.generic]:
    if getattr(getattr(value, "dtype", None), "kind", "") not in tuple(_KINDS):
        raise DataError(f"{what} is no array of numbers or text")
    found: npt.NDArray[np.generic] = value
    return found


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
