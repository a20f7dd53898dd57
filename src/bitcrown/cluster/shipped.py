"""Files of a task on another machine: the one at the same path if it is the same, or a copy.

A shared folder is the ordinary case, and needs nothing. But a file of the same name may be another
one, or an older one, and a verdict about it would be a verdict about something else: so it is the
bytes (SHA-256) that are compared. Where they differ, or there is nothing, the host asks, and the
content comes with the next try. A host keeps the last few files that it was sent, in a folder that
goes with it.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitcrown.cluster.tasks import FilePlaces, SentFile
from bitcrown.files import find_file, write_whole

_KEPT = 4
"""Files beyond those of the last task."""


def sent_file(path: str) -> SentFile | None:
    """``path`` (or ``path.gz`` in its place) as something to send; None where it cannot be read,
    which whoever opens it will say better."""
    found = find_file(Path(path))
    try:
        return None if found is None else SentFile(path, _digest(found))
    except OSError:
        return None


def _digest(path: Path) -> str:
    facts = path.stat()
    return _digest_of(path, facts.st_mtime_ns, facts.st_size, facts.st_ino)


@functools.lru_cache(maxsize=64)
def _digest_of(path: Path, _changed: int, _size: int, _inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shelf:
    """What a host was sent, by digest, the one used last at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bitcrown-files-")
        self._files: dict[str, str] = {}

    def missing(self, files: Sequence[SentFile], contents: Mapping[str, bytes]) -> list[SentFile]:
        """Put ``contents`` (by digest) on the shelf; which of ``files`` are nowhere here."""
        for file in files:
            if file.sha256 in contents and file.sha256 not in self._files:
                place = Path(self._folder.name) / file.sha256 / Path(file.path).name
                write_whole(place, contents[file.sha256])
                self._files[file.sha256] = str(place)
        return [file for file in files if self._place_of(file) is None]

    def places(self, files: Sequence[SentFile]) -> FilePlaces:
        """Where each file is; those that were used longest ago go."""
        found = {file.path: self._place_of(file) or file.path for file in files}
        for file in files:
            if file.sha256 in self._files:
                self._files[file.sha256] = self._files.pop(file.sha256)
        for digest in list(self._files)[: -_KEPT - len(files)]:
            place = Path(self._files.pop(digest))
            place.unlink()
            place.parent.rmdir()
        return found

    def close(self) -> None:
        self._folder.cleanup()

    def _place_of(self, file: SentFile) -> str | None:
        if file.sha256 in self._files:
            return self._files[file.sha256]
        here = sent_file(file.path)
        return file.path if here is not None and here.sha256 == file.sha256 else None
