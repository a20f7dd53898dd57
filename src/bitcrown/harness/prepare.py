"""``prepare_instance.sh``: look at the files, end what a dead run of ours left behind, and read a
large property, which the run then finds read (``spec/kept``). No analysis.

    python -m bitcrown.harness.prepare v1 CATEGORY ONNX VNNLIB

Exit code 0 whatever it finds, because a harness may drop the rest of a benchmark otherwise; a wrong
protocol version is 1.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from bitcrown.errors import BitcrownError
from bitcrown.harness.leftovers import end_leftovers, runtime_folder
from bitcrown.harness.request import check_files
from bitcrown.harness.run import PROTOCOL

_USAGE = "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB"
_WARM_SECONDS = 600.0
_KEEP_SECONDS = 120.0
"""A property that takes longer is read by the run, within its own limit."""


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] != PROTOCOL:
        sys.stderr.write(
            f"bitcrown: unknown protocol version {arguments[0] if arguments else ''!r}; {_USAGE}\n"
        )
        return 1
    if len(arguments) != 4:
        sys.stderr.write(f"bitcrown: expected 4 arguments but got {len(arguments)}; {_USAGE}\n")
        return 0
    try:
        check_files(arguments[2], arguments[3])
    except BitcrownError as error:
        sys.stderr.write(f"bitcrown: {error}\n")
    killed = end_leftovers()
    if killed:
        sys.stderr.write(f"bitcrown: ended {killed} processes that an earlier run left behind\n")
    _warm_up()
    _keep(arguments[3])
    return 0


def _keep(vnnlib: str) -> None:
    folder = runtime_folder()
    if folder is not None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-P", "-X", "utf8", "-m", "bitcrown.spec.kept", folder, vnnlib],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=_KEEP_SECONDS,
                check=False,
            )


def _warm_up() -> None:
    """Read the libraries' files, so that the timed run finds them in the page cache; at most once
    in ten minutes."""
    folder = runtime_folder()
    stamp = folder / "warm" if folder is not None else None
    try:
        if (
            stamp is not None
            and stamp.exists()
            and time.time() - stamp.stat().st_mtime < _WARM_SECONDS
        ):
            return
        subprocess.run(
            [sys.executable, "-P", "-c", "import numpy, onnx, onnxruntime, torch"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        if stamp is not None:
            stamp.touch()
    except (OSError, subprocess.TimeoutExpired):
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
