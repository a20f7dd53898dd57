"""Two networks of one structure as one network and the differences of its layers.

A property that couples two networks asks for ``f(x) - g(x)``, of which bounds of the two know
nothing: both relax on their own. Where node ``q`` of the second has a partner ``p`` in the first,
``gap = p - q`` is a node here, made of earlier gaps alone (Paulsen, Wang and Wang, *ReluDiff*,
2020):

    affine      W_p p' + b_p - (W_q q' + b_q)  =  W_q gap' + (W_p - W_q) p' + (b_p - b_q)
    product     p' p'' - q' q''                =  p' gap'' + gap' q''
    activation  f(p') - f(q')                  is an operator that knows ``gap'``, with lines of
                                               its own (``bounds.relaxations.difference``)
    otherwise   p - q.

Outputs of the second network become ``p - gap``, so that the gap is what is left of a row that
subtracts them. All identities are exact in the reals: ``W_p - W_q`` is stored as two arrays where
one of float64 does not hold it. Which nodes are partners decides how much cancels, never whether a
bound holds; equal nodes of equal operands have no gap at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bitcrown.model.alignment import in_order_of_partners
from bitcrown.model.graph import Graph, Node
from bitcrown.model.passes import merge_equal, without_dead_nodes
from bitcrown.model.registry import DIFFERENCE, DIFFERENT, op_row

_Array = np.ndarray[Any, Any]

_WEIGHTS = {"weight", "matrix", "scale"}
_OFFSETS = {"bias", "shift"}
_LINEAR = {
    *("Reshape", "Transpose", "Slice", "Gather", "Pad", "Concat", "Expand", "ReduceSum"),
    *("AveragePool", "Add", "Sub"),
}
"""Operators without weights whose gap is themselves of the gaps (``Pad`` with zeros)."""


@dataclass(frozen=True)
class PairedInput:
    """What every violation satisfies of an input of the second network and its partner ``first``:
    elements that are ``same [k]``, and the ``sign [k]`` of first minus second (0: unknown)."""

    first: str
    same: _Array
    sign: _Array


def with_equal_inputs(graph: Graph, inputs: Mapping[str, PairedInput]) -> Graph:
    """The same function wherever the elements said to be the same are: what reads such an input of
    the second network reads the first one's."""
    renamed: dict[str, str] = {}
    nodes = dict[str, Node]()
    for node in graph.nodes.values():
        sources = tuple(renamed.get(name, name) for name in node.inputs)
        nodes[node.name] = replace(node, inputs=sources)
        pair = inputs.get(node.name)
        if pair is None or not pair.same.any():
            continue
        if pair.same.all():
            renamed[node.name] = pair.first
            continue
        mask = pair.same.reshape(node.shape).astype(np.float64)
        parts = [
            _scaled(f"{node.name}/tied", pair.first, mask, node.shape),
            _scaled(f"{node.name}/free", node.name, 1 - mask, node.shape),
        ]
        total = Node(_tied(node.name), "Add", (parts[0].name, parts[1].name), node.shape)
        nodes |= {part.name: part for part in (*parts, total)}
        renamed[node.name] = total.name
    nodes = _ordered(nodes)
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=nodes, outputs=outputs)


def _tied(name: str) -> str:
    return f"{name}/both"


def _scaled(name: str, source: str, factor: _Array, shape: tuple[int, ...]) -> Node:
    return Node(name, "Scale", (source,), shape, {}, {"scale": factor})


def _ordered(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Inputs first: those of the second network stand behind nodes of the first."""
    inputs = {name: node for name, node in nodes.items() if node.op == "Input"}
    return inputs | {name: node for name, node in nodes.items() if name not in inputs}


def with_differences(
    graph: Graph, first: str, second: str, inputs: Mapping[str, PairedInput]
) -> Graph | None:
    """``graph`` (joined networks, after ``with_equal_inputs``) with the outputs of the network
    ``second`` said through differences to ``first``; None where too little of the two is alike, or
    where nodes stand for more than one value."""
    members = {
        network: [n for n in graph.nodes.values() if n.name.startswith(f"{network}:")]
        for network in (first, second)
    }
    if any(
        node.rounding is not None or node.op == "Perturb"
        for part in members.values()
        for node in part
    ):
        return None
    pairs = _Pairs(graph, {node.name for node in members[first]}, inputs)
    matcher = _Matcher(members[first], pairs.partner)
    for node in members[second]:
        if node.name not in pairs.partner:
            matcher.match(node)
    matched = pairs.partner.keys() - pairs.first
    if all(op_row(graph.nodes[name].op).is_affine for name in matched):
        return None
    pairs.align(node.name for node in members[second])
    outputs = [pairs.output(name) for name in graph.outputs]
    if outputs == list(graph.outputs):
        return None
    made = replace(graph, nodes=pairs.nodes, outputs=tuple(outputs))
    return without_dead_nodes(merge_equal(_sorted(without_dead_nodes(made))))


def _sorted(graph: Graph) -> Graph:
    """Nodes in topological order."""
    nodes: dict[str, Node] = {}
    waiting = list(reversed(list(graph.nodes.values())))
    while waiting:
        node = waiting[-1]
        missing = [graph.nodes[name] for name in node.inputs if name not in nodes]
        if missing:
            waiting += missing
        else:
            nodes[waiting.pop().name] = node
    return replace(graph, nodes=nodes)


class _Matcher:
    """Partners by structure: the same operator and shape, on partners as operands."""

    def __init__(self, candidates: Iterable[Node], partner: dict[str, str]) -> None:
        self.partner = partner
        self.places: dict[object, list[Node]] = {}
        for node in candidates:
            self.places.setdefault(_place(node, node.inputs), []).append(node)

    def match(self, node: Node) -> None:
        """Give ``node`` its partner, if there is one: of several the one with its weights, else the
        first that is left."""
        if any(name not in self.partner for name in node.inputs):
            return
        key = _place(node, tuple(self.partner[name] for name in node.inputs))
        left = [other for other in self.places.get(key, []) if _has_same_attrs(node, other)]
        if not left:
            return
        equal = [other for other in left if _has_same_weights(node, other)]
        chosen = (equal or left)[0]
        self.partner[node.name] = chosen.name
        if len(left) > 1:
            self.places[key].remove(chosen)


def _place(node: Node, operands: tuple[str, ...]) -> object:
    shapes = tuple((key, value.shape) for key, value in sorted(node.params.items()))
    return node.op, node.shape, operands, shapes


def _has_same_attrs(one: Node, other: Node) -> bool:
    ours, theirs = _attrs_of_operator(one), _attrs_of_operator(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(np.asarray(value), np.asarray(theirs[key]))
        if isinstance(value, np.ndarray)
        else repr(value) == repr(theirs[key])
        for key, value in ours.items()
    )


def _attrs_of_operator(node: Node) -> dict[str, Any]:
    """Without how large merged offsets were (``fusion``)."""
    return {key: value for key, value in node.attrs.items() if key != "carried"}


def _has_same_weights(one: Node, other: Node) -> bool:
    return one.params.keys() == other.params.keys() and all(
        np.array_equal(value, other.params[key]) for key, value in one.params.items()
    )


def _split_difference(a: _Array, b: _Array) -> list[_Array]:
    """``a - b`` as a sum of float64 arrays, exactly (Knuth's two-sum): one or two of them, or none
    where it is 0. Raises ``OverflowError`` where it is no number."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        high = a - b
        moved = high - a
        low = (a - (high - moved)) - (b + moved)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise OverflowError
    return [part for part in (high, low) if part.any()]


@dataclass
class _Pairs:
    """``partner``: nodes of the second network to those of the first. ``gaps``: the name of the
    node ``partner - node``, None where that is 0."""

    graph: Graph
    first: set[str]
    inputs: Mapping[str, PairedInput]
    nodes: dict[str, Node] = field(init=False)
    partner: dict[str, str] = field(init=False)
    gaps: dict[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = dict(self.graph.nodes)
        self.partner = {name: name for name in self.first}
        self.gaps = dict.fromkeys(self.first, None)
        for name, pair in self.inputs.items():
            self.partner[name] = pair.first
            self.gaps[name] = self._input_gap(name, pair)
            if _tied(name) in self.nodes:
                self.partner[_tied(name)], self.gaps[_tied(name)] = pair.first, self.gaps[name]

    def align(self, second: Iterable[str]) -> None:
        """Put neurons of ``second`` in the order of their partners'."""
        self.graph = in_order_of_partners(self.graph, second, self.partner)
        self.nodes = dict(self.graph.nodes) | {
            name: node for name, node in self.nodes.items() if name not in self.graph.nodes
        }

    def output(self, name: str) -> str:
        """What says an output of the second network through its gap."""
        if name in self.first or name not in self.partner:
            return name
        gap = self._gap(name)
        partner = self.partner[name]
        if gap is None:
            return partner
        if self.nodes[gap].op == "Sub" and self.nodes[gap].inputs == (partner, name):
            return name
        return self._node("/of", name, "Sub", (partner, gap))

    def _node(self, suffix: str, like: str, op: str, inputs: tuple[str, ...], **more: Any) -> str:
        """A new node beside ``like``, with its shape."""
        name = f"{like}{suffix}"
        shape = self.graph.nodes[like].shape
        self.nodes[name] = Node(name, op, inputs, shape, **more)
        return name

    def _sum(self, name: str, parts: list[str | None]) -> str | None:
        """The sum of what is there."""
        total: str | None = None
        for k, part in enumerate(parts):
            if part is not None:
                total = (
                    part if total is None else self._node(f"/sum{k}", name, "Add", (total, part))
                )
        return total

    def _input_gap(self, name: str, pair: PairedInput) -> str | None:
        """First minus second, with elements that are the same as zeros; where the sign is known,
        through a node that says it."""
        shape = self.graph.nodes[name].shape
        if pair.same.all():
            return None
        free = (~pair.same).reshape(shape)
        sign = pair.sign.reshape(shape) * free
        whole = self._node("/gap", name, "Sub", (pair.first, name))
        parts: list[str | None] = []
        if (free & (sign == 0)).any():
            factor = (free & (sign == 0)).astype(np.float64)
            parts.append(self._scale(name, "/unordered", whole, factor))
        if sign.any():
            turned = self._scale(name, "/turned", whole, sign.astype(np.float64))
            positive = self._node("/positive", name, "Positive", (turned,))
            parts.append(self._scale(name, "/signed", positive, sign.astype(np.float64)))
        return self._sum(name, parts)

    def _scale(self, name: str, suffix: str, source: str, factor: _Array) -> str:
        return self._node(suffix, name, "Scale", (source,), params={"scale": factor})

    def _gap(self, name: str) -> str | None:
        """The gap of ``name`` and of all that it needs, in the order of the graph."""
        if name not in self.gaps:
            needed = {name}
            for node in reversed(list(self.graph.nodes.values())):
                if node.name in needed and node.name not in self.gaps:
                    needed.update(node.inputs)
            for node in self.graph.nodes.values():
                if node.name in needed and node.name in self.partner and node.name not in self.gaps:
                    self.gaps[node.name] = self._gap_of(node)
        return self.gaps[name]

    def _gap_of(self, node: Node) -> str | None:
        other = self.graph.nodes[self.partner[node.name]]
        gaps = [self.gaps[name] for name in node.inputs]
        row = op_row(node.op)
        if not any(gaps) and _has_same_weights(node, other):
            return None
        if row.is_affine and node.params.keys() & (_WEIGHTS | _OFFSETS) and len(gaps) == 1:
            try:
                return self._weighted(node, other, gaps[0])
            except OverflowError:
                pass
        elif node.op in _LINEAR and not node.params:
            return self._linear(node, gaps)
        elif node.op == "Larger":  # b + r of (r, b, a, d)
            return self._sum(node.name, gaps[:2])
        elif node.op == "Mul":
            (p, _), (_, q) = other.inputs, node.inputs
            left = None if gaps[1] is None else self._node("/left", node.name, "Mul", (p, gaps[1]))
            right = (
                None if gaps[0] is None else self._node("/right", node.name, "Mul", (gaps[0], q))
            )
            return self._sum(node.name, [left, right])
        elif node.op in DIFFERENT and gaps[0] is not None:
            operands = (other.inputs[0], node.inputs[0], gaps[0], other.name, node.name)
            op = f"{node.op}{DIFFERENCE}"
            return self._node("/difference", node.name, op, operands, attrs=node.attrs)
        return self._node("/apart", node.name, "Sub", (other.name, node.name))

    def _linear(self, node: Node, gaps: list[str | None]) -> str | None:
        """An operator without weights, of the gaps."""
        sources = []
        for name, gap in zip(node.inputs, gaps, strict=True):
            if gap is None:
                zeros = np.zeros(self.graph.nodes[name].shape)
                gap = self._node("/zero", name, "Constant", (), params={"value": zeros})
            sources.append(gap)
        attrs = {**node.attrs, "value": 0.0} if node.op == "Pad" else node.attrs
        return self._node("/gap", node.name, node.op, tuple(sources), attrs=attrs)

    def _weighted(self, node: Node, other: Node, gap: str | None) -> str | None:
        """``W_q gap' + (W_p - W_q) p' + (b_p - b_q)``."""
        weight = next((key for key in node.params if key in _WEIGHTS), "scale")
        offset = next((key for key in node.params if key in _OFFSETS), "bias")
        parts: list[str | None] = []
        attrs = _attrs_of_operator(node)
        carried = sum(float(one.attrs.get("carried", 0.0)) for one in (node, other))
        if gap is not None:
            kept = {weight: node.params[weight]} if weight in node.params else {}
            parts.append(
                self._node("/gap", node.name, node.op, (gap,), attrs=attrs, params=kept)
                if kept
                else gap
            )
        none = np.zeros(())
        moved = _split_difference(other.params.get(weight, none), node.params.get(weight, none))
        shifted = _split_difference(other.params.get(offset, none), node.params.get(offset, none))
        attrs |= {"carried": carried} if carried else {}
        for k in range(max(len(moved), len(shifted))):
            zeros = np.zeros_like(node.params.get(weight, none), dtype=np.float64)
            given = {weight: moved[k] if k < len(moved) else zeros}
            if k < len(shifted):
                given[offset] = shifted[k]
            suffix, source = f"/moved{k}", (other.inputs[0],)
            parts.append(self._node(suffix, node.name, node.op, source, attrs=attrs, params=given))
        return self._sum(node.name, parts)
