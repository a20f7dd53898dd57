"""The results file of the competition: it never holds the answer of an earlier run.

It is replaced as a whole (``bitcrown.files``). A file that cannot be replaced is emptied and
written in place, or removed, whichever the disk still allows.
"""

from __future__ import annotations

from pathlib import Path

from bitcrown.errors import ResourceError
from bitcrown.files import write_in_place, write_whole
from bitcrown.verdict import Status


class StaleAnswer(ResourceError):
    """The results file can be neither written nor emptied nor removed: it may hold the answer of
    another run."""


def is_stream(path: Path) -> bool:
    """Whether ``path`` is a device or a pipe, to which each write adds."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_answer(path: Path, text: str) -> None:
    """Make ``text`` the content of the results file, or see to it that no other answer stands
    there.

    Where no new file can be written (a full disk), the old one is emptied and written in place;
    where that fails it says ``error``, or is removed. Raises ``ResourceError`` if the file does not
    hold ``text`` in the end, and ``StaleAnswer`` if nothing about it could be changed.
    """
    try:
        write_whole(path, text)
    except ResourceError as error:
        if not path.is_file():
            raise
        if not _written_in_place(path, text):
            _withdraw(path, error)


def _withdraw(path: Path, error: ResourceError) -> None:
    """Take an answer back that cannot be replaced; always raises."""
    if _written_in_place(path, f"{Status.ERROR}\n"):
        raise ResourceError(f"{error}; the file says error now") from error
    try:
        path.unlink()
    except OSError:
        if path.is_file() and path.stat().st_size:
            raise StaleAnswer(
                f"{error}, nor emptied, nor removed: what it says is not the answer"
            ) from error
    raise error


def _written_in_place(path: Path, text: str) -> bool:
    try:
        write_in_place(path, text.encode())
    except OSError:
        return False
    return True
