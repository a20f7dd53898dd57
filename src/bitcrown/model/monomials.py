"""A network that also computes monomials of its inputs and outputs, for properties about them.

A constraint ``200 x <= v^2 + v y`` is linear in ``x``, ``v^2`` and ``v y``. With these as one more
output the search knows nothing of polynomials: the products have the rows that products inside
networks have, and what a constraint adds up of them is bounded together (``bounds.quadratic``).

All monomials of one degree are one product of two vectors, ``prefix * last factor``; those of the
degree before, and prefixes that nobody asks for, are elements of the vector that prefixes are
gathered from. Nothing is rounded: a graph is a function of the reals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitcrown.model.graph import Graph, Node

MONOMIALS = "monomials"
"""The name of the output, if the network does not have it."""


def with_monomials(graph: Graph, monomials: Sequence[tuple[int, ...]]) -> Graph:
    """``graph`` with the output ``[K]`` of ``monomials``, the last one: products of at least two of
    the flat inputs (``0 .. n - 1``) and outputs (from ``n``), each given in any order."""
    if not monomials:
        return graph
    name = MONOMIALS
    while name in graph.nodes:
        name += "_"
    maker = _Maker(dict(graph.nodes), name)
    parts = [maker.flat(source) for source in (*graph.inputs, *graph.outputs)]
    values = maker.joined("/values", parts)
    count = maker.nodes[values].size
    place: dict[tuple[int, ...], int] = {(k,): k for k in range(count)}
    asked = [tuple(sorted(monomial)) for monomial in monomials]
    known = values
    for degree in range(2, max(map(len, asked)) + 1):
        wanted = {monomial[:degree]: None for monomial in asked if len(monomial) >= degree}
        prefixes = maker.gathered(f"/prefix{degree}", known, [place[m[:-1]] for m in wanted])
        factors = maker.gathered(f"/factor{degree}", values, [m[-1] for m in wanted])
        product = maker.node(f"/degree{degree}", "Mul", (prefixes, factors), len(wanted))
        for k, monomial in enumerate(wanted):
            place[monomial] = maker.nodes[known].size + k
        known = maker.joined(f"/known{degree}", [known, product])
    chosen = maker.gathered("", known, [place[monomial] for monomial in asked])
    return replace(graph, nodes=maker.nodes, outputs=(*graph.outputs, chosen))


class _Maker:
    """New nodes beside those of a graph, all of them vectors."""

    def __init__(self, nodes: dict[str, Node], name: str) -> None:
        self.nodes, self.name = nodes, name

    def node(
        self, suffix: str, op: str, inputs: tuple[str, ...], size: int, **attrs: object
    ) -> str:
        name = f"{self.name}{suffix}"
        self.nodes[name] = Node(name, op, inputs, (size,), attrs)
        return name

    def flat(self, source: str) -> str:
        size = self.nodes[source].size
        return self.node(f"/{source}", "Reshape", (source,), size, shape=(size,))

    def joined(self, suffix: str, parts: Sequence[str]) -> str:
        size = sum(self.nodes[part].size for part in parts)
        return self.node(suffix, "Concat", tuple(parts), size, axis=0)

    def gathered(self, suffix: str, source: str, places: Sequence[int]) -> str:
        return self.node(
            suffix, "Gather", (source,), len(places), axis=0, indices=np.array(places, dtype=int)
        )
