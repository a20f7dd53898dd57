"""Damaged files through every reader: nothing but a ``BitcrownError`` may come out.

The damage is that of ``parsers`` (bits, spans, numbers at the ends of types, inside compressed
formats as well). Where atheris is installed, it chooses the damage: its coverage of the readers
decides which damaged file is changed further.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import parsers  # found beside this file, as it finds what it needs

CPU_SECONDS = float(parsers.CPU_SECONDS + 10)
"""The reader has its own limit, in a fork of its own."""
CPU_CLOCK = False
SHRINKING_TRIES = 150


def failure_of(seed: int, index: int) -> Any:
    return parsers.trial(random.Random(f"{seed} {index}"))


def signature_of(failure: Any) -> str:
    """The reader, and the last line of what it says without numbers and quoted parts."""
    lines = [line for line in failure.what.splitlines() if line.strip()]
    last = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "#", lines[-1] if lines else "")
    places = [
        line.strip() for line in lines if line.strip().startswith("File ") and "bitcrown" in line
    ]
    where = (
        re.sub(r'File "[^"]*/([^"/]+/[^"/]+)", line [0-9]+, in', r"\1", places[-1])
        if places
        else ""
    )
    return f"{failure.reader}: {last[:80]} {where}".strip()


def kind_of(failure: Any) -> str:
    what: str = failure.what
    if what.startswith(("still running", "ended by SIGXCPU", "ended by SIGKILL")):
        return "hang"
    return "crash" if what.startswith("ended by") else "traceback"


def trial(seed: int, index: int) -> dict[str, Any]:
    failure = failure_of(seed, index)
    if failure is None:
        return {"kind": "read or refused"}
    return {
        "kind": kind_of(failure),
        "signature": signature_of(failure),
        "says": failure.what[-600:],
    }


def explained(seed: int, index: int, result: dict[str, Any], folder: Path) -> str:
    """Cut the file down as long as it fails in the same way; write it and what the reader says."""
    failure = failure_of(seed, index)
    data, step, tries = failure.data, max(1, len(failure.data) // 2), 0
    while step and tries < SHRINKING_TRIES:
        for start in range(0, len(data), step):
            tries += 1
            shorter = data[:start] + data[start + step :]
            again = (
                parsers.read_again(failure.reader, shorter)
                if shorter and tries < SHRINKING_TRIES
                else None
            )
            if again is not None and signature_of(again) == result["signature"]:
                data, failure = shorter, again
                break
        else:
            step //= 2
    (folder / f"{failure.reader.replace('/', '_')}.bin").write_bytes(data)
    (folder / "says.txt").write_text(failure.what, encoding="utf-8")
    return f"{result['kind']}: {result['signature']} ({len(data)} bytes)"


def guided(arguments: list[str]) -> None:
    """Run atheris on the readers until it is stopped: ``python tests/fuzz/parser_family.py
    [libFuzzer options]``."""
    import atheris  # type: ignore[import-not-found]

    from bitcrown.errors import BitcrownError

    names = sorted(parsers.READERS)

    def one(data: bytes) -> None:
        reader = names[data[0] % len(names)] if data else names[0]
        folder = Path("atheris_work")
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(BitcrownError):
            parsers.READERS[reader](data[1:], folder)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    guided(sys.argv[1:])
