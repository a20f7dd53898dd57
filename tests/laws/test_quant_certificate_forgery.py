"""A thousand forged certificates: re-signed for a network or a property of which the claim is
false, none accepted.

Each forgery starts from a proof that the checker accepts. The network (a weight, a bias, a level)
or the property (a bound, an end of the box) is changed until enumeration finds a counterexample;
then every digest is made to fit, so that nothing but the proof itself can be at fault, and in most
forgeries numbers of the proof are changed, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pytest

from bitcrown.check.certificates.documents import Reject, content_digest, parsed
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.quant.network.graph import Conv, Dense, Input, IntegerNetwork, IntegerNode, Stairs
from bitcrown.quant.proof.writer import network_form, property_form
from bitcrown.quant.query import IntegerQuery, LinearConstraint
from tests.fuzz.mutations import mutations as damaged
from tests.laws.test_quant_decide import mutated, mutations, proved_queries
from tests.tiny_integer_networks import box_points

FORGERIES = 40


def changed_node(random: np.random.Generator, node: IntegerNode) -> IntegerNode:
    """The node with one of its integers changed."""

    def bumped(values: np.ndarray) -> np.ndarray:
        out = values.copy()
        out.reshape(-1)[random.integers(out.size)] += random.choice([-20, -5, -2, -1, 1, 2, 5, 20])
        return out

    if isinstance(node, Dense | Conv):
        name = str(random.choice(["weight", "bias"]))
        return replace(node, **{name: bumped(getattr(node, name))})
    if isinstance(node, Stairs):
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
        case[place] = LinearConstraint(
            case[place].terms, case[place].bound + int(random.integers(1, 12))
        )
        return replace(query, cases=tuple(tuple(case) for case in cases))
    low, high, place = query.low.copy(), query.high.copy(), int(random.integers(len(query.low)))
    if random.integers(2):
        low[place] = node.low[place]
    else:
        high[place] = node.high[place]
    return replace(query, low=low, high=high)


def false_claims(
    random: np.random.Generator, query: IntegerQuery, count: int
) -> Iterator[IntegerQuery]:
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
    out = {**certificate, "network": content_digest(network), "property": content_digest(prop)}
    return {
        **out,
        "digest": content_digest({key: value for key, value in out.items() if key != "digest"}),
    }


@pytest.mark.parametrize(
    ("queries", "wanted"), [(4, 120), pytest.param(30, 1000, marks=[pytest.mark.slow])]
)
def test_no_forgery_is_accepted(queries: int, wanted: int) -> None:
    random = np.random.default_rng(9)
    tried = 0
    for query, certificate in proved_queries(queries):
        assert check_integer_proof(
            network_form(query.network), property_form(query), certificate
        ).accepted
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
            assert not check_integer_proof(network, prop, resigned(forged, network, prop)).accepted
            tried += 1
    assert tried >= wanted


def sign(certificate: Any) -> dict[str, Any]:
    """The digest that makes a damaged certificate whole again."""
    return {
        "digest": content_digest(
            {key: value for key, value in certificate.items() if key != "digest"}
        )
    }


def verdict_of(network: Any, prop: Any, content: bytes) -> bool:
    """Whether the text is a certificate that is accepted."""
    try:
        return check_integer_proof(network, prop, parsed(content.decode())).accepted
    except (Reject, UnicodeDecodeError):
        return False


@pytest.mark.parametrize(
    ("queries", "each"), [(3, 150), pytest.param(10, 1000, marks=[pytest.mark.slow])]
)
def test_no_damaged_certificate_proves_a_false_claim(queries: int, each: int) -> None:
    """Types, huge numbers, keys twice, cut text: for a false claim nothing is accepted, whatever
    was changed."""
    random, tried = np.random.default_rng(12), 0
    for query, certificate in proved_queries(queries):
        claim = next(false_claims(random, query, 1), None)
        if claim is None:
            continue
        network, prop = network_form(claim.network), property_form(claim)
        forged = json.dumps(resigned(certificate, network, prop)).encode()
        for mutation in islice(damaged(forged, Random(tried), sign=sign), each):
            assert not verdict_of(network, prop, mutation.content), mutation.what
            tried += 1
    assert tried >= each


@pytest.mark.parametrize(
    ("queries", "each"), [(3, 150), pytest.param(10, 1000, marks=[pytest.mark.slow])]
)
def test_numbers_of_another_type_are_refused(queries: int, each: int) -> None:
    """A proof in which one integer has another type, or none, is no proof, even where the claim is
    true."""
    tried = 0
    for query, certificate in proved_queries(queries):
        network, prop = network_form(query.network), property_form(query)
        for mutation in islice(
            damaged(json.dumps(certificate).encode(), Random(tried), ("type",), sign), each
        ):
            assert not verdict_of(network, prop, mutation.content), mutation.what
            tried += 1
    assert tried >= each


@pytest.mark.parametrize("sign_of_bound", [1, 1.0, True, "1", None])
def test_a_float_in_place_of_a_sign_does_not_round_the_proof(sign_of_bound: Any) -> None:
    """``1.0 * (2^53 + 1)`` is ``2^53``: with it, the least value of an input became one more, again
    and again."""
    network = {
        "format": "bitcrown-integer-network-1",
        "output": 1,
        "nodes": [
            {"op": "input", "shape": [1], "low": [0], "high": [9]},
            {"op": "sum", "shape": [1], "sources": [0], "factors": [1], "bias": [0]},
        ],
    }
    prop = {"low": [0], "high": [3], "cases": [[{"terms": [[0, 1]], "bound": 3}]]}
    bound = ["bound", [[0, 0, sign_of_bound, 2**53 + 3, [0], []]]]
    parts = [[*[bound] * 8, ["empty"]]]
    content = {
        "format": "bitcrown-integer-certificate-1",
        "roots": [0],
        "trunk": [],
        "parts": parts,
    }
    assert not check_integer_proof(network, prop, resigned(content, network, prop)).accepted


@pytest.mark.parametrize("offset", [0, 1])
def test_networks_beyond_a_machine_word_are_exact(offset: int) -> None:
    """``2^70 x - 2^70`` on x >= 1 is at least 0: the claim that it is never below ``offset`` holds
    for 0 only."""
    network = {
        "format": "bitcrown-integer-network-1",
        "output": 2,
        "nodes": [
            {"op": "input", "shape": [1], "low": [0], "high": [9]},
            {"op": "dense", "shape": [1], "source": 0, "weight": [[2**70]], "bias": [-(2**70)]},
            {
                "op": "staircase",
                "shape": [1],
                "source": 1,
                "base": [0],
                "early": [[2**63]],
                "late": [[2**63]],
            },
        ],
    }
    prop = {"low": [1], "high": [9], "cases": [[{"terms": [[0, 1]], "bound": offset - 1}]]}
    for closing in (["enumerate"], ["prove", [1], []], ["prove", [1], [[2, [[0, 1]]]]]):
        content = {
            "format": "bitcrown-integer-certificate-1",
            "roots": [0],
            "trunk": [],
            "parts": [[closing]],
        }
        accepted = check_integer_proof(network, prop, resigned(content, network, prop)).accepted
        assert not (accepted and offset) and (accepted or offset or closing[0] == "prove")
