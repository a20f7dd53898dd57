"""A network as a single differentiable step in its input: what an attack asks for ten thousand
times.

Its weights are constants and its only nonlinear operators are ReLUs, so the derivative is a product
of adjoints and of masks: ``grad = W_1^T (m_1 * W_2^T (m_2 * ...))``, with ``m_i`` where the output
of ReLU ``i`` is positive. Only these outputs are kept; the rest is overwritten or let go as soon as
it has been used. Convolutions run channels-last, as their kernels want it, and the adjoints of
strided ones as dense ones (``phases``).

The derivative at zero is zero and NaN passes as in torch. Second derivatives are not offered:
asking for one raises.

Legend: ``B`` points, ``n`` flat inputs, ``m`` flat outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitcrown.model.execute import Network
from bitcrown.model.strided_adjoint import PhasedAdjoint

_FRESH = ("Conv", "Linear", "Add", "Sub")
"""Operators whose value is a tensor of its own, neither their operand nor a view of it."""


class Pullback:
    """``network``, with one input and one output, at ``x [B, n]``: ``[B, m]``, differentiable once
    in ``x``."""

    def __init__(self, network: Network) -> None:
        graph = network.graph
        params = {
            name: {key: _channels_last(value) for key, value in of.items()}
            for name, of in network.params.items()
        }
        self.network = network.on(graph, params)
        self.phased: dict[str, PhasedAdjoint] = {}
        for node in graph.nodes.values():
            if node.op == "Conv" and network.device.type == "cpu":
                extents = graph.nodes[node.inputs[0]].shape[2:]
                adjoint = PhasedAdjoint.of(params[node.name]["weight"], node.attrs, extents)
                if adjoint is not None:
                    self.phased[node.name] = adjoint
        self.nodes = [node for node in graph.nodes.values() if node.name not in graph.inputs]
        self.uses: dict[str, int] = dict.fromkeys(graph.outputs, 1)
        for node in self.nodes:
            for name in node.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1
        self.overwritten = {
            node.name
            for node in self.nodes
            if node.op == "Relu"
            and self.uses[node.inputs[0]] == 1
            and graph.nodes[node.inputs[0]].op in _FRESH
        }

    @classmethod
    def of(cls, network: Network) -> Pullback | None:
        """None where an operator is neither affine nor a ReLU, or inputs or outputs are several."""
        graph = network.graph
        known = all(
            network.rows[node.name].is_affine or node.op == "Relu" for node in graph.nodes.values()
        )
        return cls(network) if known and len(graph.inputs) == len(graph.outputs) == 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Step.apply(x, self)  # type: ignore[no-untyped-call]
            return result
        return self.forward(x, {})

    def forward(self, x: Tensor, kept: dict[str, Tensor]) -> Tensor:
        """``[B, m]``; the outputs of the ReLUs are left in ``kept``."""
        values = self.network.split_inputs(x)
        left = dict(self.uses)
        for node in self.nodes:
            operands = [values[name] for name in node.inputs]
            if node.name in self.overwritten:
                value = torch.relu_(operands[0])
            else:
                value = self.network.forward_node(node, operands)
            # (A constant has one row; it may be overwritten, so every point gets its own.)
            values[node.name] = (
                value if len(value) == len(x) else value.expand(len(x), *node.shape).clone()
            )
            if node.op == "Relu":
                kept[node.name] = values[node.name]
            for name in node.inputs:
                left[name] -= 1
                if not left[name]:
                    values.pop(name, None)
        return values[self.network.graph.outputs[0]].reshape(len(x), -1)

    def backward(self, slope: Tensor, kept: dict[str, Tensor]) -> Tensor:
        """``[B, n]``: the adjoint at the point that left ``kept``, applied to ``slope [B, m]``."""
        graph = self.network.graph
        output, source = graph.outputs[0], graph.inputs[0]
        slopes = {output: slope.reshape(len(slope), *graph.nodes[output].shape)}
        for node in reversed(self.nodes):
            own = slopes.pop(node.name, None)
            if own is None:
                continue
            if node.op == "Relu":
                parts = [_masked(own, kept[node.name])]
            elif node.name in self.phased:
                found = self.phased[node.name](own.flatten(0, 1))
                parts = [found.reshape(len(own), *graph.nodes[node.inputs[0]].shape)]
            else:
                parts = self.network.adjoint(node, own)
            for name, part in zip(node.inputs, parts, strict=True):
                slopes[name] = slopes[name] + part if name in slopes else part
        if source not in slopes:
            return slope.new_zeros(len(slope), graph.nodes[source].size)
        return slopes[source].reshape(len(slope), -1)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pullback: Pullback) -> Tensor:
        ctx.pullback, ctx.kept = pullback, {}
        return pullback.forward(x, ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return ctx.pullback.backward(slopes[0], ctx.kept), None


def _masked(slope: Tensor, output: Tensor) -> Tensor:
    if slope.stride() != output.stride():
        slope = torch.empty_like(output).copy_(slope)
    masked: Tensor = torch.ops.aten.threshold_backward(slope, output, 0)
    return masked


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
