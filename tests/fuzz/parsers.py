"""Damaged files for every reader: only a ``BitcrownError`` may escape, nothing may crash, hang or
eat the memory.

A trial takes a sound little file of one kind, damages it (``mutated``: bits, spans, numbers at the
ends of types; formats with checksums or compression are damaged inside as well and packed again),
and reads it in a fork of this process, so that a crash of a library is a finding and not the end of
the fuzzer. Everything follows from the generator that is passed in: a failure holds the damaged
bytes, and ``read_again`` repeats it.

    READERS[name](data, folder)    writes ``data`` under ``folder`` as the reader wants it and reads
    it SEEDS[name]()                  sound files for it trial(rng)                     None, or the
    Failure

Run by hand: ``python tests/fuzz/parsers.py TRIALS SEED [NAME ...]``, which reads all sound files
first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import itertools
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitcrown.errors import BitcrownError

sys.path.insert(0, str(Path(__file__).resolve().parent))

import sound_files as sound

CPU_SECONDS = 60
"""After which a reader of a file of a few kilobytes counts as hanging."""
MEMORY = 6 << 30
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    b"nan", b"inf", b"-inf", b"1e309", b"-1e400", b"1e-400", b"9223372036854775808", b"-1", b"0",
    b"1" * 400,
    b"0x10", b"1_0", b"true", b"null", b"1.5", b"", b"(", b")", b"))", b"[", b"{}", b'"', b"\xff",
    b"\x00",
    b"1e99999999",
)  # fmt: skip
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))


def _span(data: bytearray, rng: random.Random) -> slice:
    start = rng.randrange(len(data))
    return slice(start, start + min(len(data) - start, 1 << rng.randrange(10)))


def _delete(data: bytearray, rng: random.Random) -> None:
    del data[_span(data, rng)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    part = data[_span(data, rng)]
    at = rng.randrange(len(data))
    data[at:at] = part * rng.choice((1, 1, 2, 50))


def _move(data: bytearray, rng: random.Random) -> None:
    part = _span(data, rng)
    held = data[part]
    del data[part]
    at = rng.randrange(len(data) + 1)
    data[at:at] = held


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((rng.choice(WORDS), rng.randbytes(1 + rng.randrange(8))))


def _number(data: bytearray, rng: random.Random) -> None:
    """A whole number of 1 to 8 bytes, in either order, or one of a protobuf's."""
    value, width = rng.choice(INTERESTING), rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(data))
    if rng.random() < 0.3:
        groups = [value >> shift & 0x7F for shift in range(0, max(1, value.bit_length()), 7)]
        written = bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
    else:
        written = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    data[at : at + len(written)] = written


def _word(data: bytearray, rng: random.Random) -> None:
    """A number in a text becomes another, or no number at all."""
    found = [match.span() for match in _NUMBER.finditer(data[: 1 << 16])]
    if found:
        start, end = rng.choice(found)
        data[start:end] = rng.choice(WORDS)


KINDS = (_flip, _byte, _delete, _repeat, _move, _cut, _insert, _number, _word, _word)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to four things damaged."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        rng.choice(KINDS)(changed, rng)
    return bytes(changed)


@dataclass(frozen=True)
class Failure:
    """``reader`` and the damaged ``data`` that it does not bear, with the traceback, signal or time
    that shows it."""

    reader: str
    data: bytes
    what: str


READERS: dict[str, Callable[[bytes, Path], None]] = sound.READERS
SEEDS: dict[str, Callable[[], Sequence[bytes]]] = sound.SEEDS


def damaged(reader: str, rng: random.Random) -> bytes:
    """A sound file of ``reader``, damaged; formats with an inner structure are damaged inside half
    of the time."""
    seed = rng.choice(SEEDS[reader]())
    inside = sound.INSIDE.get(reader)
    if inside is not None and rng.random() < 0.6:
        return inside(seed, rng, mutated)
    return mutated(seed, rng)


def trial(rng: random.Random, readers: Sequence[str] = ()) -> Failure | None:
    """One damaged file through its reader."""
    reader = rng.choice(tuple(readers) or tuple(READERS))
    return read_again(reader, damaged(reader, rng))


def read_again(reader: str, data: bytes) -> Failure | None:
    """Read ``data`` in a fork; the failure, or None where it is read or refused with a
    ``BitcrownError``."""
    READY[reader] = READY.get(reader) or _prepare(reader)
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_child(reader, data, writing)
    os.close(writing)
    try:
        text, ended = _told(reading)
    finally:
        os.close(reading)
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not ended:
        return Failure(reader, data, f"still running after {CPU_SECONDS} CPU seconds\n{text}")
    if os.WIFSIGNALED(status):
        return Failure(reader, data, f"ended by {signal.Signals(os.WTERMSIG(status)).name}\n{text}")
    return Failure(reader, data, text) if text else None


READY: dict[str, bool] = {}


def _prepare(reader: str) -> bool:
    """Import what the reader needs before the first fork, once."""
    silence = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BitcrownError), silence:
        READERS[reader](SEEDS[reader]()[0], Path(folder))
    return True


def _told(reading: int) -> tuple[str, bool]:
    """What the child wrote, and whether it came to an end."""
    parts: list[bytes] = []
    deadline = time.monotonic() + 20 * CPU_SECONDS
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            return b"".join(parts).decode(errors="replace"), True
        parts.append(part)
    return b"".join(parts).decode(errors="replace"), False


def _in_child(reader: str, data: bytes, writing: int) -> None:
    """Never returns. Writes nothing where all is well."""
    try:
        faulthandler.disable()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        with tempfile.TemporaryDirectory() as folder:
            try:
                READERS[reader](data, Path(folder))
            except BitcrownError as error:
                if not str(error).strip() or "\n" in str(error).strip():
                    os.write(writing, f"no sentence: {error!r}".encode())
            except BaseException:  # noqa: BLE001  whatever it is, it is the finding
                os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(0)


def main(arguments: Sequence[str]) -> int:
    trials, seed, names = (
        int(arguments[0]),
        int(arguments[1]),
        tuple(arguments[2:]) or tuple(READERS),
    )
    failures: dict[str, int] = {}
    kept = Path(tempfile.gettempdir()) / f"bitcrown-parsers-{os.getuid()}"
    sound_files = (read_again(name, data) for name in names for data in SEEDS[name]())
    damaged_files = (trial(random.Random(f"{seed} {number}"), names) for number in range(trials))
    for number, failure in enumerate(itertools.chain(sound_files, damaged_files)):
        if failure is None:
            continue
        lines = failure.what.strip().splitlines()
        key = f"{failure.reader}: {lines[0] if 'ended by' in lines[0] else lines[-1]}"[:200]
        if key not in failures:
            kept.mkdir(exist_ok=True)
            (kept / f"{failure.reader}-{number}").write_bytes(failure.data)
            print(
                f"{key}\n  {kept}/{failure.reader}-{number}\n  " + "\n  ".join(lines[-7:]),
                flush=True,
            )
        failures[key] = failures.get(key, 0) + 1
    print(
        f"{trials} trials, seed {seed}: {sum(failures.values())} failures of {len(failures)} kinds"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
