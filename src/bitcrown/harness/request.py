"""One instance to decide: what is asked, until when, and how the worker process is told."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitcrown.errors import ModelError, PropertyError
from bitcrown.files import find_file
from bitcrown.harness.load import Load
from bitcrown.harness.watchdog import safety_margin
from bitcrown.settings import Settings
from bitcrown.spec.network_field import parse_network

WAIT_VARIABLE = "OMP_WAIT_POLICY"
_BUSY = 2.0
"""Slowness (see ``load``) from which cores are not taken to be free."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Request:
    """One instance to decide. ``started`` is a ``time.monotonic()`` reading from which ``timeout``
    seconds count.

    ``certificate``: the file for the proof of an unsat; empty for none. ``cpu_seconds``: what the
    worker may compute, where that is limited, too.
    """

    category: str
    network: str
    vnnlib: str
    timeout: float
    started: float
    settings: Settings
    certificate: str = ""
    cpu_seconds: float | None = None

    @property
    def end(self) -> float:
        """When the time limit is over."""
        return self.started + self.timeout

    def soft_deadline(self, load: Load) -> float:
        """What the worker is told: a little before it is ended, so that it can still say how far it
        came.

        ``end - margin(load) - room``, where ``room`` grows with the limit and with the slowness of
        the machine, up to a tenth of the limit.
        """
        room = min(0.5, 0.02 * self.timeout) * load.slow
        return self.end - safety_margin(self.timeout, load.needed()) - min(room, 0.1 * self.timeout)


def check_files(network: str, vnnlib: str) -> None:
    """Raises ``ModelError`` or ``PropertyError`` naming the first input file that is not there,
    plain or ``.gz``."""
    for _, path in parse_network(network):
        if find_file(Path(path)) is None:
            raise ModelError(f"the network file {path} {_why_missing(path)}")
    if find_file(Path(vnnlib)) is None:
        raise PropertyError(f"the property file {vnnlib} {_why_missing(vnnlib)}")


def _why_missing(path: str) -> str:
    if os.path.isdir(path):
        return "is a folder; name the file in it"
    return f"does not exist (neither does {path}.gz)"


def worker_command(request: Request, load: Load) -> list[str]:
    """The worker's command line; ``BITCROWN_WORKER`` names a Python file to run instead (tests of
    this parent)."""
    substitute = os.environ.get("BITCROWN_WORKER", "")
    program = [substitute] if substitute else ["-m", "bitcrown.harness.worker"]
    facts: dict[str, Any] = {
        "network": request.network,
        "vnnlib": request.vnnlib,
        "deadline": request.soft_deadline(load),
        "settings": request.settings.as_dict(),
        "parent": os.getpid(),
        "certificate": request.certificate,
        "cpu_seconds": request.cpu_seconds,
    }
    return [sys.executable, "-P", "-X", "utf8", *program, json.dumps(facts)]


def worker_environment(request: Request, load: Load) -> dict[str, str]:
    """The worker's environment: thread counts, which must stand before torch is imported.

    OpenMP's threads wait for each other by spinning. That is quickest while every thread has a
    core; where they have not, they burn the time that the thread they wait for needs (measured: 12
    times as long on two cores with a load of nine), and where computing is counted it would count.
    Then they sleep.
    """
    changes = dict.fromkeys(_THREAD_VARIABLES, str(request.settings.thread_count()))
    if request.cpu_seconds is not None or load.slow >= _BUSY:
        changes[WAIT_VARIABLE] = os.environ.get(WAIT_VARIABLE, "PASSIVE")
    return {**os.environ, **changes}
