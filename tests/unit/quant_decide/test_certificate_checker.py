"""The checker on proofs written by hand: it accepts what follows, and names what does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bitcrown.check.certificate_checker import check, digest

NETWORK: dict[str, Any] = {
    "format": "bitcrown-integer-network-1",
    "output": 2,
    "nodes": [
        {"op": "input", "shape": [2], "low": [0, 0], "high": [9, 9]},
        {"op": "dense", "shape": [1], "source": 0, "weight": [[2, -1]], "bias": [3]},
        {"op": "staircase", "shape": [1], "source": 1, "base": [0], "early": [[0, 4, 8]], "late": [[0, 4, 8]]},
    ],
}
"""S(2 x - y + 3), S(a) = #{k : a >= 0, 4, 8}; on x, y in [0, 2] the argument is in [1, 7], the output in [1, 2]."""


def prop(bound: int, sign: int = 1) -> dict[str, Any]:
    case = [{"terms": [[0, sign]], "bound": bound}]
    return {"low": [0, 0], "high": [2, 2], "cases": [case]}


def signed(claim: dict[str, Any], parts: list[Any], roots: tuple[int, ...] = (0,), **extra: Any) -> dict[str, Any]:
    content = {
        "format": "bitcrown-integer-certificate-1",
        "network": digest(NETWORK),
        "property": digest(claim),
        "trunk": [],
        "roots": list(roots),
        "parts": parts,
        **extra,
    }
    return {**content, "digest": digest(content)}


BELOW_ONE, ABOVE_TWO = prop(0), prop(-3, -1)
GOOD = [
    (BELOW_ONE, [[["prove", [1], []]]]),
    (BELOW_ONE, [[["propagate"], ["empty"]]]),
    (ABOVE_TWO, [[["enumerate"]]]),
    (BELOW_ONE, [[["split", 0, 0, 0, 1, 2]], [["prove", [5], [[2, [[0, 1]]]]]], [["propagate"], ["empty"]]]),
    (BELOW_ONE, [[["tighten", [1], [], [[1, 0, 4, 3]]], ["empty"]]]),
    (BELOW_ONE, [[["clip", [4], [[2, [[0, 1]]]], [[1, 0, -1, 1, 1]]], ["empty"]]]),
]


@pytest.mark.parametrize("claim, parts", GOOD)
def test_true_proofs_are_accepted(claim: dict[str, Any], parts: list[Any]) -> None:
    finding = check(NETWORK, claim, signed(claim, parts))
    assert finding.accepted, finding.message


BAD = [
    ([[["prove", [0], []]]], "proves nothing"),
    ([[["prove", [-1], []]]], "multipliers do not fit"),
    ([[["prove", [1, 1], []]]], "multipliers do not fit"),
    ([[["prove", [1.5], []]]], "not an integer"),
    ([[["prove", [True], []]]], "not an integer"),
    ([[["prove", [1], [[2, [[0, 1]]], [2, [[0, 1]]]]]]], "twice"),
    ([[["empty"]]], "no interval is empty"),
    ([[]], "part 0 is empty"),
    ([[["propagate"]]], "closing step"),
    ([[["split", 0, 0, 0, 1, 1]], [["prove", [1], []]]], "used twice"),
    ([[["split", 0, 0, 0, 1, 2]], [["prove", [1], []]]], "missing"),
    ([[["split", 0, -1, 0, 1, 2]], [["prove", [1], []]], [["prove", [1], []]]], "no element"),
    ([[["split", 7, 0, 0, 1, 2]], [["prove", [1], []]], [["prove", [1], []]]], "no node"),
    ([[["tighten", [0], [], [[1, 0, 4, 3]]], ["empty"]]], "may lie in"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[1, 0, -1, 1, 0]]], ["empty"]]], "no interval is empty"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[1, 0, -1, 1, -1]]], ["empty"]]], "bad sign or weight"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[1, 0, -1, 0, 1]]], ["empty"]]], "bad sign or weight"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[1, 0, 2, 1, 1]]], ["empty"]]], "bad sign or weight"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[2, 0, -1, 1, 1]]], ["empty"]]], "does not read the input"),
    ([[["clip", [4], [[2, [[0, 1]]]], [[1, 1, -1, 1, 1]]], ["empty"]]], "no element"),
    ([[["clip", [-4], [[2, [[0, 1]]]], [[1, 0, -1, 1, 1]]], ["empty"]]], "multipliers do not fit"),
    ([[["prove", [1], []]], [["prove", [1], []]]], "nothing refers to"),
    ([[["guess"]]], "unknown step"),
    ("nonsense", ""),
]


@pytest.mark.parametrize("parts, words", BAD)
def test_what_does_not_follow_is_named(parts: Any, words: str) -> None:
    finding = check(NETWORK, BELOW_ONE, signed(BELOW_ONE, parts))
    assert not finding.accepted and words in finding.message


def test_false_claim_is_rejected_by_enumeration_and_names_the_input() -> None:
    claim = prop(1)
    finding = check(NETWORK, claim, signed(claim, [[["enumerate"]]]))
    assert not finding.accepted and "input [0, 0]" in finding.message


def test_every_case_needs_its_part() -> None:
    claim = {**BELOW_ONE, "cases": BELOW_ONE["cases"] * 2}
    assert not check(NETWORK, claim, signed(claim, [[["prove", [1], []]]])).accepted
    assert check(NETWORK, claim, signed(claim, [[["prove", [1], []]], [["prove", [2], []]]], (0, 1))).accepted


def test_another_network_property_or_number_is_rejected() -> None:
    certificate = signed(BELOW_ONE, [[["prove", [1], []]]])
    other = copy.deepcopy(NETWORK)
    other["nodes"][1]["bias"] = [4]
    assert "another network" in check(other, BELOW_ONE, certificate).message
    assert "another property" in check(NETWORK, prop(-1), certificate).message
    changed = {**certificate, "parts": [[["prove", [2], []]]]}
    assert "digest" in check(NETWORK, BELOW_ONE, changed).message


@pytest.mark.parametrize("bad", [[[["bound", [[1, 0, 0, 1, [], []]]]]], [[["bound", [[1, 0, 1, 0, [], []]]]]]])
def test_bounds_need_a_sign_and_a_weight(bad: list[Any]) -> None:
    certificate = signed(BELOW_ONE, [[["prove", [1], []]]], trunk=bad[0])
    assert "bad sign or weight" in check(NETWORK, BELOW_ONE, certificate).message


def test_networks_with_other_things_than_integers_are_rejected() -> None:
    for place, value in (("weight", [[2, -1.0]]), ("weight", [[2]]), ("bias", [3, 4]), ("source", 1)):
        broken = copy.deepcopy(NETWORK)
        broken["nodes"][1][place] = value
        certificate = signed(BELOW_ONE, [[["prove", [1], []]]], network=digest(broken))
        assert check(broken, BELOW_ONE, certificate).accepted == (value == [[2]])


def test_deep_nesting_and_missing_fields_are_findings() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for certificate in ({}, {"format": "bitcrown-integer-certificate-1"}, [], None):
        assert not check(NETWORK, BELOW_ONE, certificate).accepted
    assert not check(
        NETWORK, BELOW_ONE, {"format": "bitcrown-integer-certificate-1", "digest": "", "parts": nested}
    ).accepted
