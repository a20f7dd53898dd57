"""A thousand forged certificates: re-signed for a network or a property of which the claim is false, none accepted.

Each forgery starts from a proof that the checker accepts. The network (a weight, a bias, a level) or the property (a
bound, an end of the box) is changed until enumeration finds a counterexample; then every digest is made to fit, so that
nothing but the proof itself can be at fault, and in most forgeries numbers of the proof are changed, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitcrown.check.certificate_checker import check, digest
from bitcrown.quant.certificate import network_form, property_form
from bitcrown.quant.integer_graph import Conv, Dense, Input, IntegerNetwork, Node, Staircase
from bitcrown.quant.query import IntegerQuery, LinearConstraint
from tests.laws.test_quant_decide import mutated, mutations, proved_queries
from tests.tiny_integer_networks import box_points

FORGERIES = 40


def changed_node(random: np.random.Generator, node: Node) -> Node:
    """The node with one of its integers changed."""

    def bumped(values: np.ndarray) -> np.ndarray:
        out = values.copy()
        out.reshape(-1)[random.integers(out.size)] += random.choice([-20, -5, -2, -1, 1, 2, 5, 20])
        return out

    if isinstance(node, Dense | Conv):
        name = str(random.choice(["weight", "bias"]))
        return replace(node, **{name: bumped(getattr(node, name))})
    if isinstance(node, Staircase):
        return replace(node, base=bumped(node.base))
    return node


def changed_network(random: np.random.Generator, network: IntegerNetwork) -> IntegerNetwork:
    nodes = list(network.nodes)
    place = int(random.integers(1, len(nodes)))
    nodes[place] = changed_node(random, nodes[place])
    return replace(network, nodes=tuple(nodes))


def changed_property(random: np.random.Generator, query: IntegerQuery) -> IntegerQuery:
    """A bound raised, or the box made larger at one side of one input."""
    node = query.network.nodes[0]
    assert isinstance(node, Input)
    if random.integers(2):
        cases = [list(case) for case in query.cases]
        case = cases[int(random.integers(len(cases)))]
        place = int(random.integers(len(case)))
        case[place] = LinearConstraint(case[place].terms, case[place].bound + int(random.integers(1, 12)))
        return replace(query, cases=tuple(tuple(case) for case in cases))
    low, high, place = query.low.copy(), query.high.copy(), int(random.integers(len(query.low)))
    if random.integers(2):
        low[place] = node.low[place]
    else:
        high[place] = node.high[place]
    return replace(query, low=low, high=high)


def false_claims(random: np.random.Generator, query: IntegerQuery, count: int) -> Iterator[IntegerQuery]:
    """Up to ``count`` neighbours of a true claim that enumeration refutes."""
    for _ in range(8 * count):
        if not count:
            return
        if random.integers(2):
            other = changed_property(random, query)
        else:
            other = replace(query, network=changed_network(random, query.network))
        if other.violated(other.network.evaluate(box_points(other.low, other.high))).any():
            count -= 1
            yield other


def resigned(certificate: dict[str, Any], network: Any, prop: Any) -> dict[str, Any]:
    out = {**certificate, "network": digest(network), "property": digest(prop)}
    return {**out, "digest": digest({key: value for key, value in out.items() if key != "digest"})}


@pytest.mark.parametrize(("queries", "wanted"), [(4, 120), pytest.param(30, 1000, marks=[pytest.mark.slow])])
def test_no_forgery_is_accepted(queries: int, wanted: int) -> None:
    random = np.random.default_rng(9)
    tried = 0
    for query, certificate in proved_queries(queries):
        assert check(network_form(query.network), property_form(query), certificate).accepted
        places = list(mutations(certificate["parts"], ("parts",)))
        for number, claim in enumerate(false_claims(random, query, FORGERIES)):
            forged = certificate
            for _ in range(number % 3):
                kind, path = places[int(random.integers(len(places)))]
                try:
                    forged = mutated(forged, kind, path, random)
                except (IndexError, TypeError):  # an earlier change has removed the place
                    continue
            network, prop = network_form(claim.network), property_form(claim)
            assert not check(network, prop, resigned(forged, network, prop)).accepted
            tried += 1
    assert tried >= wanted
