"""What is kept of one decided instance: what ran, on what, and how it went, as a JSON object."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitcrown.provenance import commit, machine, version

if TYPE_CHECKING:
    from bitcrown.harness.request import Request
    from bitcrown.harness.watchdog import Watched

_FORMAT = 1
_LONGEST_RUN = 1e9
"""Seconds; what is longer was not measured."""


@functools.cache
def machine_facts() -> dict[str, Any]:
    """What a record says of the program and the machine; read once a process."""
    return {"version": version(), "commit": commit(), "machine": machine()}


def record_of(request: Request, seen: Watched, wall: float) -> dict[str, Any]:
    """Everything that is known about one decision, ready for JSON."""
    answer = seen.answer
    record: dict[str, Any] = {
        "format": _FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **machine_facts(),
        "settings": request.settings.as_dict(),
        "seed": request.settings.seed,
        "category": request.category,
        "network": request.network,
        "vnnlib": request.vnnlib,
        "timeout": request.timeout,
        **({} if request.cpu_seconds is None else {"cpu_seconds": request.cpu_seconds}),
        "result": answer.status.value,
        "reason": answer.reason,
        "detail": answer.detail,
        "decided_by": answer.decided_by,
        "phases": dict(answer.phases) or seen.phases,
        "counters": dict(answer.counters) or seen.counters,
        "progress": seen.progress,
        "wall_s": round(wall, 4),
        "peak_mib": seen.peak_bytes >> 20,
    }
    if curve := seen.curve.points():
        record["curve"] = curve
    if seen.facts:
        record["watch"] = seen.facts
    if seen.lost:
        record["lost"] = seen.lost
    if answer.status.value not in ("sat", "unsat") and seen.output:
        record["output"] = seen.output
    return record


def is_result(record: Mapping[str, Any]) -> bool:
    """Whether a record says how an instance ended, with numbers where a table adds them up."""
    seconds, peak = record.get("wall_s"), record.get("peak_mib", 0)
    words = ("category", "network", "vnnlib", "result")
    return (
        all(isinstance(record.get(name), str) for name in words)
        and isinstance(seconds, int | float)
        and 0 <= seconds < _LONGEST_RUN
        and isinstance(peak, int | float)
        and 0 <= peak < math.inf
    )
