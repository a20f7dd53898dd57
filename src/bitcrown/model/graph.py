"""Our immutable typed form of a network.

Shapes are those of the ONNX file, including its own batch axis if it has one (symbolic dimensions
become 1). Execution adds one more axis in front: every tensor at run time is ``[B, *shape]`` with
``B`` independent points. So nothing needs to know where, or whether, a model keeps its batch axis.

The reader lowers ONNX operators to the small vocabulary of ``model.ops`` (one ``Op`` row each):
everything static (target shapes, axes, slice ends, gather indices) sits in ``attrs``, every weight
in ``params``, and ``inputs`` names only tensors that depend on the network input (or a ``Constant``
node).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Rounding(NamedTuple):
    """What the runtime's value of a node may differ by from the function of the values that it
    reads.

    Its type has unit roundoff ``unit``; results below ``least`` may be lost, and above ``largest``
    there is none. The sum of absolute terms (and ``extra``) is rounded ``terms`` times, the result
    by ``ulps`` half steps, and ``absolute`` is added (see ``model.roundings`` and
    ``bounds.rounding.radius``).
    """

    unit: float
    least: float
    largest: float
    ulps: float = 0.0
    terms: int = 0
    extra: float = 0.0
    absolute: float = 0.0


@dataclass(frozen=True)
class Node:
    """One tensor of the network and how it is computed. ``name`` is unique and names the tensor."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, np.ndarray] = field(default_factory=dict)
    source: str = ""
    """Name of the ONNX node it came from, for messages."""
    rounding: Rounding | None = None
    """How the runtime rounds its value; None where it is exact, or where the network is taken as a
    real function."""

    @property
    def size(self) -> int:
        total = 1
        for extent in self.shape:
            total *= extent
        return total


@dataclass(frozen=True)
class Graph:
    """``nodes`` is in topological order and contains the inputs (op ``Input``); several inputs and
    outputs allowed."""

    nodes: Mapping[str, Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_dtypes: tuple[str, ...] = ()

    @property
    def n_inputs(self) -> int:
        return sum(self.nodes[name].size for name in self.inputs)

    @property
    def n_outputs(self) -> int:
        return sum(self.nodes[name].size for name in self.outputs)

    def consumers(self) -> dict[str, list[str]]:
        """Node name to the names of the nodes that read it."""
        result: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                result[source].append(node.name)
        return result
