"""The checker on proofs written by hand: it accepts what follows, and names what does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bitcrown.check.certificates.documents import content_digest
from bitcrown.check.certificates.integers.checker import check_integer_proof

NETWORK: dict[str, Any] = {
    "format": "bitcrown-integer-network-1",
    "output": 2,
    "nodes": [
        {"op": "input", "shape": [2], "low": [0, 0], "high": [9, 9]},
        {"op": "dense", "shape": [1], "source": 0, "weight": [[2, -1]], "bias": [3]},
        {
            "op": "staircase",
            "shape": [1],
            "source": 1,
            "base": [0],
            "early": [[0, 4, 8]],
            "late": [[0, 4, 8]],
        },
    ],
}
"""S(2 x - y + 3), S(a) = #{k : a >= 0, 4, 8}; on x, y in [0, 2] the argument is in [1, 7], the
output in [1, 2]."""


def prop(bound: int, sign: int = 1) -> dict[str, Any]:
    case = [{"terms": [[0, sign]], "bound": bound}]
    return {"low": [0, 0], "high": [2, 2], "cases": [case]}


def signed(
    claim: dict[str, Any], parts: list[Any], roots: tuple[int, ...] = (0,), **extra: Any
) -> dict[str, Any]:
    content = {
        "format": "bitcrown-integer-certificate-1",
        "network": content_digest(NETWORK),
        "property": content_digest(claim),
        "trunk": [],
        "roots": list(roots),
        "parts": parts,
        **extra,
    }
    return {**content, "digest": content_digest(content)}


BELOW_ONE, ABOVE_TWO = prop(0), prop(-3, -1)
GOOD = [
    (BELOW_ONE, [[["prove", [1], []]]]),
    (BELOW_ONE, [[["propagate"], ["empty"]]]),
    (ABOVE_TWO, [[["enumerate"]]]),
    (
        BELOW_ONE,
        [[["split", 0, 0, 0, 1, 2]], [["prove", [5], [[2, [[0, 1]]]]]], [["propagate"], ["empty"]]],
    ),
    (BELOW_ONE, [[["tighten", [1], [], [[1, 0, 4, 3]]], ["empty"]]]),
    (BELOW_ONE, [[["clip", [4], [[2, [[0, 1]]]], [[1, 0, -1, 1, 1]]], ["empty"]]]),
]


@pytest.mark.parametrize("claim, parts", GOOD)
def test_true_proofs_are_accepted(claim: dict[str, Any], parts: list[Any]) -> None:
    finding = check_integer_proof(NETWORK, claim, signed(claim, parts))
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
    finding = check_integer_proof(NETWORK, BELOW_ONE, signed(BELOW_ONE, parts))
    assert not finding.accepted and words in finding.message


def test_false_claim_is_rejected_by_enumeration_and_names_the_input() -> None:
    claim = prop(1)
    finding = check_integer_proof(NETWORK, claim, signed(claim, [[["enumerate"]]]))
    assert not finding.accepted and "input [0, 0]" in finding.message


def test_every_case_needs_its_part() -> None:
    claim = {**BELOW_ONE, "cases": BELOW_ONE["cases"] * 2}
    assert not check_integer_proof(NETWORK, claim, signed(claim, [[["prove", [1], []]]])).accepted
    assert check_integer_proof(
        NETWORK, claim, signed(claim, [[["prove", [1], []]], [["prove", [2], []]]], (0, 1))
    ).accepted


def test_another_network_property_or_number_is_rejected() -> None:
    certificate = signed(BELOW_ONE, [[["prove", [1], []]]])
    other = copy.deepcopy(NETWORK)
    other["nodes"][1]["bias"] = [4]
    assert "another network" in check_integer_proof(other, BELOW_ONE, certificate).message
    assert "another property" in check_integer_proof(NETWORK, prop(-1), certificate).message
    changed = {**certificate, "parts": [[["prove", [2], []]]]}
    assert "digest" in check_integer_proof(NETWORK, BELOW_ONE, changed).message


@pytest.mark.parametrize(
    "bad", [[[["bound", [[1, 0, 0, 1, [], []]]]]], [[["bound", [[1, 0, 1, 0, [], []]]]]]]
)
def test_bounds_need_a_sign_and_a_weight(bad: list[Any]) -> None:
    certificate = signed(BELOW_ONE, [[["prove", [1], []]]], trunk=bad[0])
    assert "bad sign or weight" in check_integer_proof(NETWORK, BELOW_ONE, certificate).message


def test_networks_with_other_things_than_integers_are_rejected() -> None:
    for place, value in (
        ("weight", [[2, -1.0]]),
        ("weight", [[2]]),
        ("bias", [3, 4]),
        ("source", 1),
    ):
        broken = copy.deepcopy(NETWORK)
        broken["nodes"][1][place] = value
        certificate = signed(BELOW_ONE, [[["prove", [1], []]]], network=content_digest(broken))
        assert check_integer_proof(broken, BELOW_ONE, certificate).accepted == (value == [[2]])


def test_deep_nesting_and_missing_fields_are_findings() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for certificate in ({}, {"format": "bitcrown-integer-certificate-1"}, [], None):
        assert not check_integer_proof(NETWORK, BELOW_ONE, certificate).accepted
    assert not check_integer_proof(
        NETWORK,
        BELOW_ONE,
        {"format": "bitcrown-integer-certificate-1", "digest": "", "parts": nested},
    ).accepted


def test_thresholds_may_cross_where_no_accumulator_lies() -> None:
    """The accumulator is 10 x: a step that is late at 1 and early at 10 says one thing about 0, 10,
    20, ... only."""
    network = copy.deepcopy(NETWORK)
    network["nodes"][1] = {"op": "sum", "shape": [2], "sources": [0], "factors": [10], "bias": [0]}
    network["nodes"][2] |= {"shape": [2], "early": [[10, 20]], "late": [[1, 11]]}
    for low, bound, holds in ((1, 0, False), (1, 1, True), (2, 1, False)):
        claim = {"low": [low, 0], "high": [2, 2], "cases": [[{"terms": [[0, 1]], "bound": bound}]]}
        for closing in (["enumerate"], ["prove", [1], []]):
            certificate = signed(claim, [[closing]], network=content_digest(network))
            assert check_integer_proof(network, claim, certificate).accepted is not holds


def test_thresholds_may_not_cross_where_an_accumulator_lies() -> None:
    """At a = 10 the value would have to be at least 2 and at most 1: anything could be proved of
    it."""
    network = copy.deepcopy(NETWORK)
    network["nodes"][1] = {"op": "sum", "shape": [2], "sources": [0], "factors": [10], "bias": [0]}
    network["nodes"][2] |= {"shape": [2], "early": [[10, 20]], "late": [[1, 10]]}
    claim = {"low": [0, 0], "high": [2, 2], "cases": [[{"terms": [[0, 1]], "bound": 2}]]}
    parts = [[["split", 0, 0, 1, 1, 2]], [["propagate"], ["empty"]], [["propagate"], ["empty"]]]
    finding = check_integer_proof(
        network, claim, signed(claim, parts, network=content_digest(network))
    )
    assert "at the accumulator 10" in finding.message
    network["nodes"][1] = {
        "op": "dense",
        "shape": [2],
        "source": 0,
        "weight": [[10, 0], [0, 10]],
        "bias": [0, 0],
    }
    network["nodes"][2]["late"] = [[1, 11]]
    assert not check_integer_proof(
        network, claim, signed(claim, parts, network=content_digest(network))
    ).accepted


REAL = {
    "outputs": [{"low": 0, "denominator": 10, "numerators": [0, 10, 11, 30]}],
    "cases": [[{"terms": [[0, [1, 1]]], "bound": [-1, 100], "strict": 0}]],
}


@pytest.mark.parametrize(
    "bound, real, strict, words",
    [
        (0, [-1, 100], 0, "accepted"),  # o <= 0 is implied by y <= -1/100, which no input satisfies
        (0, [-1, 100], 1, "accepted"),
        (0, [0, 1], 1, "accepted"),  # y < 0
        (0, [0, 1], 0, "may satisfy"),  # y <= 0 holds at o = 0
        (-1, [11, 10], 0, "does not follow"),
        (1, [11, 10], 0, "does not follow"),  # y <= 11/10 holds at o = 2
        (3, [11, 10], 0, "may satisfy"),
    ],
)
def test_inputs_are_judged_by_the_real_case_which_implies_the_integer_one(
    bound: int, real: list[int], strict: int, words: str
) -> None:
    claim = {"low": [0, 0], "high": [0, 9], "cases": [[{"terms": [[0, 1]], "bound": bound}]]}
    claim["real"] = copy.deepcopy(REAL)
    claim["real"]["cases"][0][0] |= {"bound": real, "strict": strict}  # type: ignore[call-overload, index]
    finding = check_integer_proof(NETWORK, claim, signed(claim, [[["enumerate"]]]))
    assert words in finding.message


@pytest.mark.parametrize(
    "change",
    [
        {"denominator": 0},
        {"denominator": -10},
        {"numerators": [0, 10, 9, 30]},
        {"numerators": [0, 10, 11]},
        {"numerators": [0, 10, 11, 30.0]},
        {"low": 1},
    ],
)
def test_real_values_have_to_cover_the_outputs_and_rise(change: dict[str, Any]) -> None:
    claim = {
        "low": [0, 0],
        "high": [0, 9],
        "cases": [[{"terms": [[0, 1]], "bound": 0}]],
        "real": copy.deepcopy(REAL),
    }
    claim["real"]["outputs"][0] |= change  # type: ignore[call-overload]
    assert not check_integer_proof(NETWORK, claim, signed(claim, [[["enumerate"]]])).accepted
