"""Bounds of a single tensor, for the library's ``bounds`` and the command line."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from bitcrown.bounds.crown import Backward
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import intersect, interval_bounds
from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.model.execute import Network
from bitcrown.model.joining import join
from bitcrown.model.onnx_reader import read_graph
from bitcrown.model.products import bytes_of_bounds, fitted
from bitcrown.quant.network.graph import QuantError
from bitcrown.search.readings import integer_output_bounds
from bitcrown.search.strategy import opened_files
from bitcrown.spec.problem import Problem
from bitcrown.spec.rounding import round_down, round_up

if TYPE_CHECKING:
    import numpy as np

_MEMORY = 1 << 30
_LARGEST = 4 * _MEMORY
"""Bytes that bounds of all tensors may take; beyond, the one that is asked for has its interval."""


def tensor_bounds(problem: Problem, tensor: str | None, case: int) -> tuple[np.ndarray, np.ndarray]:
    """CROWN bounds (of very large networks intervals) of ``tensor`` (the first output if None) over
    the box of ``problem.cases[case]``, float64, outward.

    A network that only the integer engine reads has bounds of its output alone. Raises
    ``PropertyError`` for a name the network does not have, or a property about another network.
    """
    files = opened_files(problem)
    try:
        of_file = {file: read_graph(file) for file in dict.fromkeys(files.values())}
    except UnsupportedError:
        if tensor is None and len(problem.networks) == 1:
            with suppress(QuantError):
                return integer_output_bounds(problem, case, next(iter(files.values())))
        raise
    graph = fitted(join({name: of_file[file] for name, file in files.items()}), _LARGEST)
    name = graph.outputs[0] if tensor is None else tensor
    if name not in graph.nodes:
        raise PropertyError(
            f"the network has no tensor {name!r}; bitcrown inspect lists their names"
        )
    network = Network(graph, torch.float64)
    box = problem.cases[case]
    lower = network.tensor([[round_down(value) for value in box.lower]])
    upper = network.tensor([[round_up(value) for value in box.upper]])
    bounder = LayerBounder(network, _MEMORY)
    with torch.no_grad():
        if bytes_of_bounds(graph) > _LARGEST:
            low, up = interval_bounds(network, lower, upper, wanted={name})[name]
            return low[0].numpy(), up[0].numpy()
        enclosure = bounder.run(lower, upper)
        found = enclosure.bounds[name]
        if name not in graph.inputs:
            backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
            every = torch.arange(graph.nodes[name].size)
            low, up = bounder.bound_elements(backward, name, every, enclosure.bounds, lower, upper)
            shape = (1, *graph.nodes[name].shape)
            found = intersect(found, (low.reshape(shape), up.reshape(shape)))
    return found[0][0].numpy(), found[1][0].numpy()
