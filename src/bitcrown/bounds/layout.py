"""Flat axes for what a network has many of: slopes of its nonlinear nodes, and neurons.

A *neuron* here is one element of the operand of a ReLU, the quantity whose sign a split decides.
Searches hold one tensor for all neurons of all layers and cut it up only where a pass needs a
layer's part. Two ReLUs that read the same operand share its neurons; each has its own slopes.

Legend: ``B`` domains, ``S`` rows per domain, ``N`` neurons or slopes on their flat axis, ``*`` a
node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node


class Layout:
    """Where each nonlinear node's slopes, and each ReLU operand's neurons, stand on the axes."""

    def __init__(self, network: Network) -> None:
        self.nodes: list[Node] = []
        self.capped = [
            node for node in network.graph.nodes.values() if network.rows[node.name].is_capped
        ]
        self.alpha_at: dict[str, slice] = {}
        self.neuron_at: dict[str, slice] = {}
        alpha_end = neuron_end = 0
        for node in network.graph.nodes.values():
            if node.name in network.graph.inputs or network.rows[node.name].is_affine:
                continue
            self.nodes.append(node)
            width = nonlinear_row(node.op).alphas * node.size
            self.alpha_at[node.name] = slice(alpha_end, alpha_end + width)
            alpha_end += width
            if node.op == "Relu" and node.inputs[0] not in self.neuron_at:
                self.neuron_at[node.inputs[0]] = slice(neuron_end, neuron_end + node.size)
                neuron_end += node.size
        self.n_alphas, self.n_neurons = alpha_end, neuron_end
        self.operands = {name for node in self.nodes + self.capped for name in node.inputs}
        self.shapes = {name: network.graph.nodes[name].shape for name in self.neuron_at}

    def alpha_of(self, node: Node, alpha: Tensor) -> Tensor | None:
        """Part of ``alpha [B, S, N]`` for one node as ``[alphas, B, S, *]``."""
        count = nonlinear_row(node.op).alphas
        if count == 0:
            return None
        part = alpha[:, :, self.alpha_at[node.name]]
        return part.reshape(*alpha.shape[:2], count, *node.shape).movedim(2, 0)

    def default_alpha(self, bounds: Bounds) -> Tensor:
        """``[B, N_alpha]``: the parameters that reproduce the default relaxations."""
        parts = []
        for node in self.nodes:
            row = nonlinear_row(node.op)
            if row.alphas == 0 or row.default_alpha is None:
                continue
            start = row.default_alpha(
                node, [bounds[i][0] for i in node.inputs], [bounds[i][1] for i in node.inputs]
            )
            parts.append(start.movedim(0, 1).flatten(1))
        if not parts:
            any_bound = next(iter(bounds.values()))[0]
            return any_bound.new_zeros(any_bound.shape[0], 0)
        return torch.cat(parts, dim=1)

    def split_bounds(self, bounds: Bounds, split: Tensor | None) -> Bounds:
        """``bounds`` (``[1, *]`` or ``[B, *]``) with the signs of ``split [B, N]`` imposed on ReLU
        operands."""
        if split is None:
            return bounds
        result = dict(bounds)
        for name, where in self.neuron_at.items():
            low, up = bounds[name]
            sign = split[:, where].reshape(-1, *low.shape[1:])
            result[name] = (
                torch.where(sign > 0, low.clamp(min=0), low),
                torch.where(sign < 0, up.clamp(max=0), up),
            )
        return result

    def gathered(self, bounds: Bounds, index: Tensor) -> Bounds:
        """Bounds of the domains ``index [B]``; those that all domains share stay as they are.

        Of the operands alone; of all nodes where none has an operand, so that there is a dtype.
        """
        return {
            name: pair if pair[0].shape[0] == 1 else (pair[0][index], pair[1][index])
            for name, pair in bounds.items()
            if name in self.operands or not self.operands
        }

    def flat_bounds(self, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Bounds of all ReLU operands on the flat axis: two ``[B, N]``."""
        rows = max([bounds[name][0].shape[0] for name in self.neuron_at], default=1)
        none = next(iter(bounds.values()))[0].new_zeros(rows, 0)  # there may be no neuron at all
        low = [elements(bounds[name][0], 1).expand(rows, -1) for name in self.neuron_at]
        up = [elements(bounds[name][1], 1).expand(rows, -1) for name in self.neuron_at]
        return torch.cat([none, *low], dim=1), torch.cat([none, *up], dim=1)

    def with_flat_bounds(self, bounds: Bounds, low: Tensor, up: Tensor) -> Bounds:
        """``bounds`` with those of the ReLU operands replaced by ``low``/``up [B, N]``."""
        result = dict(bounds)
        for name, where in self.neuron_at.items():
            shape = bounds[name][0].shape[1:]
            result[name] = (low[:, where].reshape(-1, *shape), up[:, where].reshape(-1, *shape))
        return result

    def by_operand(self, values: Tensor) -> dict[str, Tensor]:
        """``values [B, N]`` of all neurons as ``[B, 1, *]`` for each operand."""
        return {
            name: values[:, where].reshape(-1, 1, *self.shapes[name])
            for name, where in self.neuron_at.items()
        }

    def magnitudes(self, scales: Mapping[str, Tensor]) -> Tensor:
        """``[N]`` of ``scales [1, *]`` (see ``rounding``): no neuron exceeds its own."""
        none = next(iter(scales.values())).new_zeros(0)  # there may be no neuron at all
        return torch.cat([none, *(scales[name].flatten() for name in self.neuron_at)])
