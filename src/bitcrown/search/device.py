"""The device: which one, how much memory it has, and whether boxes are bounded faster on the CPU.

A round of the input split over a small network is a chain of a thousand short kernels, and a GPU
waits for their launches, however fast it is: on an H100 a round over the 300 neurons of an ACAS Xu
network takes ten times what 16 CPU cores need. Over a large one it is the other way round, and
where the border lies depends on both machines. So nothing is assumed: the same pass over as many
boxes as a round may have is measured on both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from bitcrown.bounds.crown import Backward, minimum, output_seeds, relaxations_of
from bitcrown.bounds.interval import interval_bounds
from bitcrown.budget import Budget
from bitcrown.errors import SettingsError
from bitcrown.model.execute import Network

_REPETITIONS = 3
"""The first one pays for workspaces and kernels that later ones find ready."""
_ROWS = 8
"""Outputs bounded in a pass, at most: what a case has, not what a network has."""
_GROWTH = 16
"""Fewer boxes are measured first: where the CPU is far slower, all of them would take too long."""
_Box = tuple[np.ndarray, np.ndarray]


def device_of(name: str) -> torch.device:
    """``name``: auto (CUDA if there is one), cpu or cuda. Raises ``SettingsError`` where CUDA is
    asked for and not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "this machine has no CUDA device that torch can use; leave --device cuda out"
        )
    return torch.device(name)


def budget_on(budget: Budget, device: torch.device) -> Budget:
    """``budget`` with no more memory than the device has free, less an eighth.

    The eighth is for what tensors do not show: workspaces of libraries, and fragments of blocks.
    """
    if device.type != "cuda":
        return budget
    free, _ = torch.cuda.mem_get_info(device)
    return replace(budget, memory=min(budget.memory, free - free // 8))


def network_where_faster(
    network: Network,
    box: _Box,
    count: int,
    seconds: Callable[[Network, _Box, int], float] | None = None,
) -> Network:
    """``network``, or a copy of it on the CPU where a pass over ``count`` boxes takes less time.

    ``box``: two ends ``[n]``. ``seconds`` measures one pass (default: ``pass_seconds``).
    """
    if network.device.type == "cpu":
        return network
    measured = seconds or pass_seconds
    there, here = measured(network, box, count), 0.0
    on_cpu, size = Network(network.graph, network.dtype), 1
    while here < there:
        here = measured(on_cpu, box, size)
        if size == count:
            break
        size = min(count, _GROWTH * size)
    return on_cpu if here < there else network


def pass_seconds(network: Network, box: _Box, count: int) -> float:
    """What interval and CROWN bounds of the outputs over ``count`` boxes take, warmed up."""
    low, up = (network.tensor(end).expand(count, -1).contiguous() for end in box)
    rows = torch.eye(network.graph.n_outputs, dtype=network.dtype, device=network.device)[:_ROWS]
    seeds = output_seeds(network, rows.expand(count, -1, -1))
    times = []
    with torch.no_grad():
        for _ in range(_REPETITIONS):
            started = time.perf_counter()
            bounds = interval_bounds(network, low, up)
            backward = Backward(network, relaxations_of(network, bounds))
            minimum(backward.run(seeds), low, up).sum().item()  # a number: the device has finished
            times.append(time.perf_counter() - started)
    return min(times)
