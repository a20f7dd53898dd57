"""How the outputs of a network change along a direction: derivatives as a network of their own.

The network that is made reads a point ``p`` and a direction ``d`` (an input beside each input) and
computes ``J(p) d`` forward: beside each node ``z`` stands ``dz``,

    affine      d(W z + b) = W dz
    product     d(z w)     = z dw + dz w
    activation  d f(z)     = f'(z) dz, an operator that knows ``z`` (``bounds.relaxations.slope``).

*Why differences follow.* Let ``x(s) = x' + s (x - x')``. Every node is a Lipschitz function of
``s`` on [0, 1], so it has a derivative almost everywhere and is the integral of that. Where an
activation has a kink ``c``, ``z(s) = c`` with ``z'(s) != 0`` holds for countably many ``s`` only,
and where ``z'(s) = 0`` any slope will do. So almost everywhere all identities above hold with
``d = x - x'``, and

    f(x) - f(x')  =  integral of  J(x(s)) (x - x')  over s in [0, 1]:

what bounds of ``J(p) d`` over a convex set of ``p`` that holds ``x`` and ``x'`` say of the one side
is true of the other. The differences themselves are 0 where ``x`` meets ``x'``; these are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitcrown.model.graph import Graph, Node
from bitcrown.model.passes import without_dead_nodes
from bitcrown.model.registry import DIFFERENT, SLOPE, op_row

_WEIGHTS = ("weight", "matrix", "scale")
_WITHOUT_WEIGHTS = {
    *("Reshape", "Transpose", "Slice", "Gather", "Pad", "Concat", "Expand", "ReduceSum"),
    *("AveragePool", "Add", "Sub"),
}
_PRODUCTS = ("Mul", "MatMul")


def directional_derivatives(graph: Graph) -> Graph | None:
    """The network ``(p, d) -> J(p) d``: inputs of ``graph``, then a direction for each of them;
    None where an operator has no derivative that is known to be bounded, or rounds."""
    maker = _Directions(dict(graph.nodes))
    for node in graph.nodes.values():
        is_known = node.rounding is None and maker.add(node)
        if not is_known:
            return None
    outputs = tuple(maker.present(name) for name in graph.outputs)
    directions = [maker.along[name] for name in graph.inputs]
    inputs = (*graph.inputs, *(name for name in directions if name is not None))
    ordered = {name: maker.nodes[name] for name in inputs} | maker.nodes
    made = Graph(ordered, inputs, outputs, graph.input_dtypes + graph.input_dtypes)
    return without_dead_nodes(made)


@dataclass
class _Directions:
    """``along``: the node that is the derivative of a node, None where that is 0."""

    nodes: dict[str, Node]
    along: dict[str, str | None] = field(default_factory=dict)

    def add(self, node: Node) -> bool:
        """Enter the derivative of ``node``; False where it is not known."""
        parts = [self.along[name] for name in node.inputs]
        if node.op == "Input":
            self.along[node.name] = self._beside(node, "Input", ())
        elif not any(parts):
            self.along[node.name] = None
        elif op_row(node.op).is_affine:
            return self._add_affine(node)
        elif node.op in _PRODUCTS:
            self.along[node.name] = self._product(node)
        elif node.op in DIFFERENT and not node.params:
            inputs = (node.inputs[0], self.present(node.inputs[0]))
            op, attrs = f"{node.op}{SLOPE}", node.attrs
            self.along[node.name] = self._beside(node, op, inputs, attrs=attrs)
        else:
            return False
        return True

    def _add_affine(self, node: Node) -> bool:
        sources = tuple(self.present(name) for name in node.inputs)
        weights = {key: node.params[key] for key in _WEIGHTS if key in node.params}
        attrs = {key: value for key, value in node.attrs.items() if key != "carried"}
        if node.op == "Larger":  # b + r of (r, b, a, d)
            made = self._beside(node, "Add", sources[:2])
        elif weights:
            made = self._beside(node, node.op, sources, attrs=attrs, params=weights)
        elif node.op in _WITHOUT_WEIGHTS:
            attrs |= {"value": 0.0} if node.op == "Pad" else {}
            made = self._beside(node, node.op, sources, attrs=attrs)
        elif node.op == "Scale":  # a shift alone
            made = sources[0]
        else:
            return False
        self.along[node.name] = made
        return True

    def _product(self, node: Node) -> str:
        first, second = node.inputs
        terms = [(first, self.along[second]), (self.along[first], second)]
        made = [
            self._beside(node, node.op, (one, other), f"/along{k}", attrs=node.attrs)
            for k, (one, other) in enumerate(terms)
            if one is not None and other is not None
        ]
        return made[0] if len(made) == 1 else self._beside(node, "Add", (made[0], made[1]))

    def present(self, name: str) -> str:
        """The derivative of the node ``name`` as a node, also where it is 0."""
        found = self.along[name]
        if found is None:
            zeros = np.zeros(self.nodes[name].shape)
            found = self._beside(self.nodes[name], "Constant", (), params={"value": zeros})
        return found

    def _beside(
        self, node: Node, op: str, inputs: tuple[str, ...], suffix: str = "/along", **more: Any
    ) -> str:
        name = f"{node.name}{suffix}"
        self.nodes[name] = Node(name, op, inputs, node.shape, source=node.source, **more)
        return name
