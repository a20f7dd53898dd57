"""How the engines read a file, in words and as bounds of its output: for ``inspect`` and
``bounds``, of networks that may be integers.

The float engine reads most quantized files, and then shows their tensors by name. What only the
integer engine reads (integer arithmetic, shifts) is shown as its accumulators and staircases.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from bitcrown.budget import Budget
from bitcrown.errors import UnsupportedError
from bitcrown.model.describe import describe
from bitcrown.model.file import NetworkFile
from bitcrown.model.onnx_reader import read_graph
from bitcrown.quant.bounds.intervals import Program
from bitcrown.quant.formats.onnx_file import read_onnx
from bitcrown.quant.network.graph import IntegerNetwork, QuantError
from bitcrown.quant.proof.tree import ProofTree
from bitcrown.quant.search.argument_bounds import argument_bounds
from bitcrown.search.quantized import covering
from bitcrown.spec.problem import Problem
from bitcrown.spec.rounding import round_down, round_up

if TYPE_CHECKING:
    from fractions import Fraction

_SECONDS, _MEMORY = 30.0, 1 << 30


def reading_in_words(file: NetworkFile) -> str:
    """Tensors of the network, and for a quantized file whether it is integers from end to end.
    Raises ``UnsupportedError`` with the reasons of both engines where neither reads it."""
    integers: IntegerNetwork | None = None
    reason = ""
    if file.is_quantized:
        try:
            integers = read_onnx(file)
        except QuantError as error:
            reason = str(error)
    try:
        words = describe(read_graph(file))
    except UnsupportedError as error:
        if integers is None:
            both = f"{error}; as integers: {reason}" if reason else str(error)
            raise UnsupportedError(both) from error
        return "\n".join([_network_of_integers(integers), *_steps_in_words(integers)])
    if integers is not None:
        return f"{_network_of_integers(integers)}\n{words}"
    note = f"not integers from end to end: {reason}\n" if reason else ""
    return note + words


def _network_of_integers(network: IntegerNetwork) -> str:
    kinds = Counter(type(node).__name__ for node in network.nodes)
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    pinned = "to the bit" if network.is_exact() else "up to the order of float32 sums"
    return f"integers from end to end, known {pinned}: {parts}"


def _steps_in_words(network: IntegerNetwork) -> list[str]:
    return [
        f"  {number}  {type(node).__name__}  {'x'.join(map(str, node.shape))}"
        for number, node in enumerate(network.nodes)
    ]


def integer_output_bounds(
    problem: Problem, case: int, file: NetworkFile
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds ``[m]`` of the output of ``file``, a network of integers, over the box of a case,
    float64, outward. Raises ``QuantError`` where the file is none."""
    network = read_onnx(file)
    dtype = file.inputs[0].dtype
    box = covering(problem, [np.float32 if dtype is None else dtype.type] * problem.n_inputs)
    asked = box.cases[case]
    low, high = network.entry.box(tuple(asked.lower), tuple(asked.upper))
    program = Program(network)
    root = program.root(low, high)
    if not root.is_empty().any():
        argument_bounds(program, root, ProofTree(False), Budget.of_seconds(_SECONDS, _MEMORY))
    ends: list[list[Fraction]] = [[], []]
    for values, first, least, most in zip(
        network.exit.values,
        network.exit.low.tolist(),
        root.low[network.output][0].tolist(),
        root.high[network.output][0].tolist(),
        strict=True,
    ):
        ends[0].append(values[max(0, least - first)])
        ends[1].append(values[min(len(values) - 1, most - first)])
    return np.array([round_down(v) for v in ends[0]]), np.array([round_up(v) for v in ends[1]])
