"""Is the integer network the network in the file? Both evaluated on the same inputs, at every load.

Random inputs over the whole range of the input and its corners are run through onnxruntime (graph
optimisations off, one thread). Every integer tensor of the file that is a node here, and the
output, has to lie between what the early and what the late thresholds give; where those are equal
that is equality bit for bit.

The same inputs are run with all graph optimisations on, too: an optimiser that folds a scale or a
bias changes roundings, and then a verdict holds for the file as written and not for its optimised
form. That is a note, no error; and because the optimisers of onnxruntime end the process on some
damaged files, a child process writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np

from bitcrown.budget import Budget
from bitcrown.child_process import text_or_error
from bitcrown.errors import BitcrownError, UnsupportedError
from bitcrown.model.file import NetworkFile
from bitcrown.quant.formats.runtime import Runtime, session
from bitcrown.quant.network.assembly import node_range
from bitcrown.quant.network.entry import RoundedEntry
from bitcrown.quant.network.graph import Exit, Input, IntegerNetwork, Ints, Numbers, QuantError

_NOTE_SECONDS = 30.0
_NOTE_BYTES = 8 << 30


def executable(file: NetworkFile) -> tuple[bytes, str]:
    """What onnxruntime can run of a file, or a note why there is nothing."""
    try:
        return file.standard.content, ""
    except UnsupportedError as error:
        return b"", f"no runtime executes this network, so it was not compared with one: {error}"


def _sample_inputs(network: IntegerNetwork, seed: int, samples: int) -> Numbers:
    """[B, N] inputs of the file: random ones over the whole range, some close to one end, and both
    corners."""
    node, generator = network.nodes[0], np.random.default_rng(seed)
    assert isinstance(node, Input)
    share = generator.random((samples, len(node.low)))
    share[1::3] = np.rint(share[1::3])
    share[2::3] *= generator.random((len(share[2::3]), 1))
    share = np.concatenate([share, np.zeros_like(share[:1]), np.ones_like(share[:1])])
    if isinstance(network.entry, RoundedEntry):
        low, high = network.entry.span()
        return np.asarray(low + share * (high - low), dtype=np.float32)
    return node.low + np.floor(share * (node.high - node.low) + 0.5).astype(np.int64)


def node_enclosures(network: IntegerNetwork, x: Ints) -> tuple[list[Ints], list[Ints]]:
    """Least and greatest value [N_node] of every node for one input [N]; equal where the network is
    exact."""
    low, high = [x], [x]
    for node in network.nodes[1:]:
        ends = node_range(node, low, high)
        low.append(ends[0])
        high.append(ends[1])
    return low, high


def check_agreement(
    network: IntegerNetwork,
    content: bytes,
    seed: int = 0,
    samples: int = 16,
    trace: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Notes for the user; ``QuantError`` where the network and onnxruntime differ.

    ``content``: what onnxruntime runs of the file. ``trace``: nodes that are integer tensors of the
    file, by the tensor's name, to be compared as well; the network's runtime has them as outputs.
    """
    runtime, traced = network.runtime, trace or {}
    if not isinstance(runtime, Runtime):
        raise QuantError("the network has no runtime to be compared with")
    values = _sample_inputs(network, seed, samples)
    x = network.entry.integers(values)
    found = runtime.outputs(values)
    output = runtime.output
    for b in range(len(values)):
        low, high = node_enclosures(network, x[b])
        for name, node in traced.items():
            tensor = f"{runtime.name}: tensor {name!r}"
            _compare(found[name][b].astype(np.int64), low[node], high[node], tensor)
        ends = exit_ends(network.exit, low[network.output], high[network.output])
        _compare(found[output][b].astype(np.float64), *ends, f"{runtime.name}: the output")
    return _optimiser_note(content, runtime, values, found[output])


def exit_ends(exit_: Exit, low: Ints, high: Ints) -> tuple[Numbers, Numbers]:
    """[M] least and greatest output value, as float64 (exact for float32 outputs and integers of 53
    bits)."""

    def at(q: Ints) -> Numbers:
        picked: list[Fraction] = [
            row[int(k)] for row, k in zip(exit_.values, q - exit_.low, strict=True)
        ]
        return np.array([float(v) for v in picked])

    return at(low), at(high)


def _compare(found: Numbers, low: Numbers, high: Numbers, what: str) -> None:
    if found.shape != low.shape:
        raise QuantError(
            f"{what} has {found.size} elements in onnxruntime and {low.size} as read; please "
            "report it"
        )
    wrong = (found < low) | (found > high)
    if wrong.any():
        n = int(np.argmax(wrong))
        raise QuantError(
            f"{what} is {found[n]} in onnxruntime and {low[n]} to {high[n]} as read (element {n}, "
            f"{int(wrong.sum())} "
            "differ on a random input), so nothing can be proved about this file on this machine"
        )


def _optimiser_note(
    content: bytes, runtime: Runtime, values: Numbers, expected: Numbers
) -> tuple[str, ...]:
    """At most one note."""

    def differing() -> str:
        optimised = replace(runtime, session=session(content, runtime.name, optimised=True))
        return str(int((optimised(values) != expected).any(axis=1).sum()))

    budget = Budget.of_seconds(_NOTE_SECONDS, _NOTE_BYTES)
    try:
        count = int(text_or_error(differing, budget, "that loads it with them"))
    except BitcrownError as error:
        return (f"onnxruntime does not run this file with graph optimisations: {error}",)
    if not count:
        return ()
    return (
        f"with all graph optimisations onnxruntime computes something else on {count} of "
        f"{len(values)} random "
        "inputs; verdicts are about graph optimisations off",
    )
