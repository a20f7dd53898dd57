"""A Graph with its weights as tensors of one dtype on one device: the thing that is run and
bounded.

Legend: ``B`` points, ``n`` flat inputs over all network inputs, ``m`` flat outputs over all network
outputs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import Op, Params, op_row

_DENSE = 32
"""Products of a dense matrix that take as long as one of a sparse one, or as reading an entry."""


def elements(values: Tensor, axes: int) -> Tensor:
    """``values`` with everything behind the first ``axes`` axes on one: a scalar, which has none,
    is one element."""
    return values.flatten(axes) if values.dim() > axes else values.unsqueeze(axes)


class Network:
    """Weights of ``graph`` in ``dtype`` on ``device``; immutable after construction.

    float32 weights are exact in float64, so a float64 Network computes the same real function.
    """

    def __init__(
        self, graph: Graph, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.graph = graph
        self.dtype = dtype
        self.device = torch.device(device)
        self.params: dict[str, Params] = {}
        self.rows: dict[str, Op] = {}
        self._offsets: dict[str, tuple[Tensor, bool]] = {}
        self._smallest: dict[str, float] = {}
        self._sparse: dict[str, Tensor | None] = {}
        self._is_trained = False
        self._longest = 0
        self._origin: Network | None = None
        for node in graph.nodes.values():
            self.rows[node.name] = op_row(node.op)
            self.params[node.name] = {key: self.tensor(value) for key, value in node.params.items()}

    def with_params(self, params: Mapping[str, Params]) -> Network:
        """The same graph with other weights (all of one dtype and device) for some nodes; they may
        carry gradients.

        Values and bounds of the result are differentiable in such weights: this is how networks are
        trained.
        """
        other = copy.copy(self)
        other.params = {**self.params, **params}
        given = [value for values in params.values() for value in values.values()]
        if given:
            other.dtype, other.device = given[0].dtype, given[0].device
        other._offsets, other._smallest, other._sparse, other._origin = {}, {}, {}, self
        other._longest = 0
        other._is_trained = any(value.requires_grad for value in given)
        return other

    def on(self, graph: Graph, params: Mapping[str, Params]) -> Network:
        """Another graph with weights ``params`` for all its nodes, of this network's dtype and
        device."""
        other = copy.copy(self)
        other.graph, other.params, other._origin = graph, dict(params), None
        other._offsets, other._smallest, other._sparse = {}, {}, {}
        other.rows = {node.name: op_row(node.op) for node in graph.nodes.values()}
        other._longest = 0
        return other

    def tensor(self, values: object) -> Tensor:
        """``values`` as a tensor of this network's dtype and device."""
        return torch.as_tensor(values).to(device=self.device, dtype=self.dtype)

    def split_inputs(self, x: Tensor) -> dict[str, Tensor]:
        """``[B, n]`` to one ``[B, *shape]`` per network input."""
        result, start = {}, 0
        for name in self.graph.inputs:
            node = self.graph.nodes[name]
            result[name] = x[:, start : start + node.size].reshape(x.shape[0], *node.shape)
            start += node.size
        return result

    def forward_node(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return self.rows[node.name].forward(node, self.params[node.name], inputs)

    def activations(
        self, x: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Value of every node at ``x [B, n]``, each ``[B, *shape]``; those ``given`` are not
        computed."""
        values = self.split_inputs(x) | dict(given or {})
        for node in self.graph.nodes.values():
            if node.name in values:
                continue
            value = self.forward_node(node, [values[name] for name in node.inputs])
            values[node.name] = value.expand(x.shape[0], *node.shape)
        return values

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, n]`` to ``[B, m]``; differentiable in ``x``."""
        values = self.activations(x)
        return torch.cat(
            [values[name].reshape(x.shape[0], -1) for name in self.graph.outputs], dim=1
        )

    def adjoint(self, node: Node, coefficient: Tensor) -> list[Tensor]:
        """``W_i^T a`` for each input of an affine node: ``[R, *shape]`` to ``[R, *input_shape]``
        each."""
        row = self.rows[node.name]
        shapes = [self.graph.nodes[name].shape for name in node.inputs]
        sparse = self._sparse_weight(node)
        if sparse is not None and not (torch.is_grad_enabled() and coefficient.requires_grad):
            rows = torch.matmul(coefficient.reshape(-1, sparse.shape[0]), sparse)
            return [rows.reshape(coefficient.shape[0], *shapes[0])]
        if row.adjoint is not None:
            return list(row.adjoint(node, self.params[node.name], coefficient, shapes))
        points = [
            torch.zeros(
                coefficient.shape[0],
                *shape,
                dtype=self.dtype,
                device=self.device,
                requires_grad=True,
            )
            for shape in shapes
        ]
        with torch.enable_grad():
            value = self.forward_node(node, points).expand(coefficient.shape[0], *node.shape)
        grads = torch.autograd.grad(
            value,
            points,
            coefficient,
            create_graph=coefficient.requires_grad or self._is_trained,
            materialize_grads=True,  # an operand may be there for its range alone
        )
        return list(grads)

    def _sparse_weight(self, node: Node) -> Tensor | None:
        """The weight of a ``Linear`` as compressed rows where products with it are faster
        (measured: at least 2.5 times); None elsewhere, and where it is trained."""
        if node.op != "Linear" or self.device.type != "cpu" or self._is_trained:
            return None
        if node.name not in self._sparse:
            weight = self.params[node.name]["weight"]
            is_worth = (
                weight.dtype == self.dtype
                and weight.numel() > _DENSE * sum(weight.shape)
                and weight.numel() > _DENSE * (sum(weight.shape) + int(weight.count_nonzero()))
                and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
            )
            with warnings.catch_warnings():  # torch calls the format new each time
                warnings.simplefilter("ignore", UserWarning)
                self._sparse[node.name] = weight.to_sparse_csr() if is_worth else None
        return self._sparse[node.name]

    def offset(self, node: Node) -> Tensor:
        """``b = f(0)`` of an affine node, ``[1, *shape]`` (computed once)."""
        if node.name not in self._offsets:
            zeros = [
                torch.zeros(1, *self.graph.nodes[name].shape, dtype=self.dtype, device=self.device)
                for name in node.inputs
            ]
            with torch.set_grad_enabled(self._is_trained):
                value = self.forward_node(node, zeros).expand(1, *node.shape)
            # A bias that is zero but trained still needs its derivative.
            self._offsets[node.name] = (value, not value.requires_grad and not bool(value.any()))
        return self._offsets[node.name][0]

    def offset_size(self, node: Node) -> Tensor:
        """At least the absolute values of what was added up to ``b`` when nodes were merged: what
        the rounding of ``b`` is a share of."""
        return self.offset(node).abs() + float(node.attrs.get("carried", 0.0))

    def longest_sum(self) -> int:
        """A bound on the terms of every sum that a pass in either direction forms: the largest
        tensor, and the parameters of a node (computed once)."""
        if not self._longest:
            for node in self.graph.nodes.values():
                weights = sum(value.numel() for value in self.params[node.name].values())
                self._longest = max(self._longest, node.size, weights)
        return self._longest

    def smallest_weight(self, node: Node) -> float:
        """The least absolute value of a parameter of ``node`` that is not zero; at most 1 (computed
        once)."""
        if node.name not in self._smallest:
            sizes = [
                value.detach().abs() for value in self.params[node.name].values() if value.numel()
            ]
            least = [float(torch.where(size > 0, size, 1.0).amin()) for size in sizes]
            self._smallest[node.name] = min([1.0, *least])
        return self._smallest[node.name]

    def has_zero_offset(self, node: Node) -> bool:
        """Whether an affine node is linear (``f(0) = 0``).

        A node whose weights are those of the network that this one was derived from has its answer:
        in training the device would otherwise be asked once a step.
        """
        origin = self._origin
        if origin is not None and origin.params[node.name] is self.params[node.name]:
            return origin.has_zero_offset(node)
        self.offset(node)
        return self._offsets[node.name][1]
