"""Is what was read the network in the file? The graph against onnxruntime on random inputs, at
every load.

onnxruntime computes in float32, the graph here in float64, so outputs differ by float32 rounding.
The allowance is ``2e-3`` of the largest output, or ``2e-6`` (some forty float32 roundings) of the
largest value inside the network where outputs are small differences of large numbers: far above the
rounding of any sensible network and below what a misread attribute causes. Inputs come from several
ranges, since an error can hide behind saturated activations, and one of them is positive, for
networks with logarithms or roots.

A network with jumps (``Sign``, ``Floor``, ...) may rightly differ where float32 rounding crosses
one, and a difference grows from jump to jump. So behind each jump the graph goes on with the
runtime's value, and hardly any element may have crossed, unless its argument lies next to an edge:
where scales are multiples of each other, that many do; then it is enough that most of the samples
agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from bitcrown.errors import ModelError
from bitcrown.model.execute import Network
from bitcrown.model.file import NetworkFile, first_line, runtime_session, with_outputs
from bitcrown.model.graph import Graph, Node
from bitcrown.model.lowering.quantization import QUANTIZERS
from bitcrown.model.registry import op_row

_Array = np.ndarray[Any, Any]
_TOLERANCE = 2e-3
_INSIDE = 1e-3
_MOST_MOVED = 0.01
"""Share of the elements behind jumps that may differ."""
_AT_EDGE = 2e-5
"""Share of the largest argument of a ``Round`` by which one may lie beyond an edge."""
_STEPPED = {name.rpartition(".")[2] for name in QUANTIZERS} - {"DequantizeLinear"}
_STEPS = 64
"""Half steps of a sixteen-bit type that its networks may differ by instead."""
_RANGES = ((-0.1, 0.1), (-1.0, 1.0), (-3.0, 3.0), (0.5, 1.5))


class _Runtime:
    """onnxruntime on the file. ``jumps``: the tensors of the file that hold the value of a node of
    the graph."""

    def __init__(self, graph: Graph, file: NetworkFile) -> None:
        self.path = file.path
        self.has_jumps = any(op_row(node.op).has_jumps for node in graph.nodes.values())
        self.jumps = _jumps(graph, file.proto) if self.has_jumps else {}
        hidden = [name for names in self.jumps.values() for name in names]
        self.session = (
            runtime_session(with_outputs(file.content, hidden), file.path)
            if hidden
            else file.session
        )
        self.outputs = [info.name for info in self.session.get_outputs()]
        self.n_outputs = len(file.outputs)

    def run(self, feed: dict[str, _Array]) -> tuple[list[_Array], dict[str, _Array]]:
        """Outputs of the file, and the value of every node in ``jumps``, in float64."""
        try:
            with np.errstate(all="ignore"):
                found = [np.asarray(value, np.float64) for value in self.session.run(None, feed)]
        except (
            Exception
        ) as error:  # onnxruntime raises classes that only exist inside its extension
            raise ModelError(f"onnxruntime cannot run {self.path}: {first_line(error)}") from error
        named = dict(zip(self.outputs, found, strict=True))
        behind = {}
        for node, (name, *quantization) in self.jumps.items():
            scale, zero = (named[other] for other in quantization) if quantization else (1.0, 0.0)
            behind[node] = np.asarray((named[name] - zero) * scale)
        return found[: self.n_outputs], behind


def _jumps(graph: Graph, model: Any) -> dict[str, list[str]]:
    """Nodes of the graph that have jumps to their tensors in the file: a value, or integers, scale
    and zero point."""
    producers = {name: node for node in model.graph.node for name in node.output}
    narrow, found = _four_bits(model), {}
    for node in graph.nodes.values():
        producer = producers.get(node.name)
        if node.name in narrow:
            continue
        if producer is not None and producer.op_type in _STEPPED and node.op == "Scale":
            found[node.name] = [node.name]  # the integers, zero point included
        elif producer is not None and op_row(node.op).has_jumps:
            if producer.op_type == node.op:
                found[node.name] = [node.name]
            elif (producer.op_type, node.op) == ("DynamicQuantizeLinear", "DynamicQuantize"):
                found[node.name] = list(producer.output)
    return found


def _four_bits(model: Any) -> set[str]:
    """Integers of four bits, which cannot be fetched from onnxruntime."""
    four = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    zeros = {tensor.name for tensor in model.graph.initializer if tensor.data_type in four}
    return {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        and (
            not zeros.isdisjoint(node.input)
            or any(a.name == "output_dtype" and a.i in four for a in node.attribute)
        )
    }


def crosscheck(graph: Graph, file: NetworkFile, seed: int) -> float:
    """Largest difference, relative to the largest output (see above); ``ModelError`` where it
    exceeds the tolerance."""
    file = file.standard
    runtime = _Runtime(graph, file)
    network = Network(graph, torch.float64)
    generator = np.random.default_rng(seed)
    declared = [info.name for info in runtime.session.get_inputs()]
    if declared != list(graph.inputs):
        raise ModelError(
            f"{file.path}: onnxruntime sees the inputs {declared}, the graph read from it "
            f"{list(graph.inputs)}"
        )
    units = [node.rounding.unit for node in graph.nodes.values() if node.rounding is not None]
    tolerance = max([_TOLERANCE, *(_STEPS * unit for unit in units)])
    differences = []
    for low, high in _RANGES:
        feed = {}
        for name, dtype in zip(graph.inputs, graph.input_dtypes, strict=True):
            feed[name] = (
                generator.uniform(low, high, graph.nodes[name].shape)
                .astype(np.float32)
                .astype(dtype)
            )
        differences.append(_difference(network, runtime, feed))
    agreeing = sum(difference <= tolerance for difference in differences)
    if agreeing < (len(_RANGES) // 2 + 1 if runtime.has_jumps else len(_RANGES)):
        worst = max(differences)
        raise ModelError(
            f"{file.path}: the network as read differs from onnxruntime by {worst:.2e} of its "
            "largest output"
        )
    return max(difference for difference in differences if difference <= tolerance)


def _difference(network: Network, runtime: _Runtime, feed: dict[str, _Array]) -> float:
    """Infinite where only the graph gives no number, or too many elements cross a jump; entries
    that overflow in float32 are skipped."""
    parts, behind = runtime.run(feed)
    expected = np.concatenate([part.reshape(-1) for part in parts])
    flat = np.concatenate(
        [feed[name].astype(np.float64).reshape(-1) for name in network.graph.inputs]
    )
    nodes = network.graph.nodes
    if any(value.size != nodes[name].size for name, value in behind.items()):
        return float("inf")
    given = {
        name: torch.from_numpy(value).reshape(1, *nodes[name].shape)
        for name, value in behind.items()
    }
    with torch.no_grad():
        values = network.activations(torch.from_numpy(flat)[None], given)
        moved = sum(_moved(network, nodes[name], values) for name in given)
    if moved > _MOST_MOVED * sum(value.numel() for value in given.values()):
        return float("inf")
    found = torch.cat([values[name].reshape(-1) for name in network.graph.outputs]).numpy()
    if expected.shape != found.shape:
        raise ModelError(
            f"{runtime.path}: onnxruntime gives {expected.size} outputs, the graph read from it "
            f"{found.size}"
        )
    inside = max(
        float(torch.nan_to_num(value, 0.0, 0.0, 0.0).abs().max())
        for value in values.values()
        if value.numel()
    )
    finite = np.isfinite(expected)
    gap = float(np.abs(expected - found)[finite].max(initial=0.0))
    scale = max(float(np.abs(expected[finite]).max(initial=0.0)), _INSIDE * inside, 1e-30)
    return gap / scale if np.isfinite(gap) else float("inf")


def _moved(network: Network, node: Node, values: Mapping[str, Tensor]) -> int:
    """How many elements of a node with jumps are, in the graph, a jump away from the runtime's
    ``values``."""
    finite = torch.isfinite(values[node.name])
    low, high = (end[finite] for end in _next_to_edges(network, node, values))
    given = values[node.name][finite]
    room = min(0.5, _TOLERANCE * float(given.abs().max())) if given.numel() else 0.0
    return int((~((low - room <= given) & (given <= high + room))).sum())


def _next_to_edges(
    network: Network, node: Node, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Least and greatest value of ``node`` if the argument of its ``Round`` is moved a little."""
    found = [values[name] for name in node.inputs]
    if node.op == "Round":
        move = _AT_EDGE * torch.nan_to_num(found[0], 0.0, 0.0, 0.0).abs().max()
        ends = [network.forward_node(node, [found[0] + part]) for part in (-move, move)]
    elif node.op in ("Clip", "Scale"):
        before = network.graph.nodes[node.inputs[0]]
        inner = (
            _next_to_edges(network, before, values)
            if before.op in ("Round", "Clip", "Scale")
            else (found[0],)
        )
        ends = [network.forward_node(node, [end]) for end in inner]
    else:
        ends = [network.forward_node(node, found)]
    return torch.minimum(ends[0], ends[-1]), torch.maximum(ends[0], ends[-1])
