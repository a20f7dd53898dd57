"""Records: one JSON object a decided instance in a JSON Lines file, and the competition's
``results.csv``."""

from __future__ import annotations

import csv
import functools
import io
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitcrown.files import write_whole
from bitcrown.provenance import commit, machine, version

if TYPE_CHECKING:
    from bitcrown.harness.run import Request
    from bitcrown.harness.watchdog import Watched

FORMAT = 1
LONGEST_RUN = 1e9
"""Seconds; what is longer was not measured."""
RESULT_COLUMNS = ("category", "network", "property", "prepare_time", "result", "run_time")


@functools.cache
def machine_facts() -> dict[str, Any]:
    """What a record says of the program and the machine; read once a process."""
    return {"version": version(), "commit": commit(), "machine": machine()}


def record_of(request: Request, seen: Watched, wall: float) -> dict[str, Any]:
    """Everything that is known about one decision, ready for JSON."""
    outcome = seen.outcome
    record: dict[str, Any] = {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **machine_facts(),
        "settings": request.settings.as_dict(),
        "seed": request.settings.seed,
        "category": request.category,
        "network": request.network,
        "vnnlib": request.vnnlib,
        "timeout": request.timeout,
        **({} if request.cpu_seconds is None else {"cpu_seconds": request.cpu_seconds}),
        "result": outcome.status.value,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "decided_by": outcome.decided_by,
        "phases": dict(outcome.phases) or seen.phases,
        "counters": dict(outcome.counters) or seen.counters,
        "progress": seen.progress,
        "wall_s": round(wall, 4),
        "peak_mib": seen.peak_bytes >> 20,
    }
    if seen.facts:
        record["watch"] = seen.facts
    if seen.lost:
        record["lost"] = seen.lost
    if outcome.status.value not in ("sat", "unsat") and seen.output:
        record["output"] = seen.output
    return record


def is_result(record: Mapping[str, Any]) -> bool:
    """Whether a record says how an instance ended, with numbers where a table adds them up."""
    seconds, peak = record.get("wall_s"), record.get("peak_mib", 0)
    words = ("category", "network", "vnnlib", "result")
    return (
        all(isinstance(record.get(name), str) for name in words)
        and isinstance(seconds, int | float)
        and 0 <= seconds < LONGEST_RUN
        and isinstance(peak, int | float)
        and 0 <= peak < math.inf
    )


def write_results_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """``results.csv`` as the harness writes it: no header, ``RESULT_COLUMNS``, seconds as
    decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([row[name] for name in RESULT_COLUMNS])
    write_whole(path, text.getvalue())
