"""Domains or boxes a second, and what one costs against the arithmetic that it needs.

    python benchmarks/search_speed.py NETWORK PROPERTY [--cpu-seconds 20]

Two runs of the same search. The first is timed, in seconds of computing, from the start of the
search's phase to its end. The second counts: every product of matrices and every convolution, with
the number type it is done in, by a dispatch mode (which slows it down, so it is not timed). Needed
are, for each number type,

    FLOP / rate,

with ``rate`` that of a product of two matrices of ``SIDE x SIDE``, measured here, on one thread.
The rest of a domain's time goes into element-wise work, indices, and the interpreter. One row of
Markdown is printed: instance, answer, domains or boxes, of these a second, milliseconds of each,
millions of operations of each, milliseconds needed for them, and the ratio.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import bitcrown
from bitcrown.search.neurons.tightening import CASE_BOUNDS, REFINEMENT
from bitcrown.settings import Settings

SIDE = 1024
PHASES = ("neuron split", "input split")


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while ``is_on``; ``[number type]`` to FLOP."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_on, self.counts = False, dict[torch.dtype, float]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if self.is_on and packet in flop_registry:
            parts = found if isinstance(found, tuple) else (found,)
            first = next(part for part in parts if part is not None)
            flop = flop_registry[packet](*args, **(kwargs or {}), out_val=found)
            self.counts[first.dtype] = self.counts.get(first.dtype, 0.0) + flop
        return found


class Clock:
    """Seconds of computing inside the search's phases; ``flops`` count there, too."""

    def __init__(self, flops: Flops | None) -> None:
        self.flops, self.seconds = flops, 0.0
        self.began: float | None = None

    def __call__(self, phase: str, facts: dict[str, Any]) -> None:
        is_inside = phase in PHASES
        now = time.process_time()
        if self.began is not None:
            self.seconds += now - self.began
        self.began = now if is_inside else None
        if self.flops is not None:
            self.flops.is_on = is_inside


def rate(dtype: torch.dtype) -> float:
    """FLOP a second of a product of matrices, the best of five."""
    a, best = torch.ones(SIDE, SIDE, dtype=dtype), 0.0
    for _ in range(5):
        started = time.process_time()
        a @ a
        best = max(best, 2 * SIDE**3 / (time.process_time() - started))
    return best


def searched(
    network: str, formula: str, cpu_seconds: float, flops: Flops | None
) -> tuple[bitcrown.Verdict, int, float]:
    """The verdict, domains or boxes, and seconds of the search."""
    clock = Clock(flops)
    settings = Settings(without=(REFINEMENT, CASE_BOUNDS))  # splits alone
    problem = bitcrown.load(network, formula)
    verdict = bitcrown.verify(problem, settings, cpu_seconds=cpu_seconds, report=clock)
    counters = verdict.counters
    return verdict, counters.get("domains") or counters.get("boxes_bounded", 0), clock.seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("network")
    options.add_argument("property")
    options.add_argument("--cpu-seconds", type=float, default=20.0)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    pair = chosen.network, chosen.property
    verdict, count, seconds = searched(*pair, chosen.cpu_seconds, None)
    flops = Flops()
    with flops:
        _, counted, _ = searched(*pair, chosen.cpu_seconds, flops)
    if not count or not counted:
        print(f"| {Path(chosen.property).name} | {verdict.status.value} before any search |")
        return
    needed = sum(flop / rate(dtype) for dtype, flop in flops.counts.items()) / counted
    total = sum(flops.counts.values()) / counted
    print(
        f"| {Path(chosen.network).stem} {Path(chosen.property).stem} | {verdict.status.value} "
        f"| {count} | {count / seconds:.0f} | {1e3 * seconds / count:.2f} | {total / 1e6:.2f} "
        f"| {1e3 * needed:.2f} | {seconds / count / needed:.1f} |"
    )


if __name__ == "__main__":
    main()
