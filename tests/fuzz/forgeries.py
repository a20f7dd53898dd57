"""Certificates that nobody proved: steps of the right shape with numbers that a careless checker
takes for others.

For a claim that is false every one of them must be rejected. ``forged`` invents whole integer
certificates for any network form; ``wide_claim`` makes little networks, as JSON, whose values
outgrow 62 bits.
"""

from __future__ import annotations

import math
import random
from typing import Any

from tests.fuzz.mutations import Raw

ONES = (1, 1, -1, 1, -1, Raw("1.0"), Raw("-1.0"), Raw("1e0"), True, Raw("true"), "1")
BIG = (
    1,
    2,
    3,
    2**53 + 1,
    2**53 + 3,
    2**54 + 2,
    2**54 + 6,
    2**60 + 1,
    2**62,
    2**63,
    2**64 + 1,
    Raw("9007199254740995.0"),
)
SMALL = (
    0,
    0,
    0,
    1,
    2,
    -1,
    Raw("1.0"),
    Raw("0.5"),
    True,
    None,
    "0",
    Raw("1e308"),
    Raw("NaN"),
    Raw("Infinity"),
    2**62 + 1,
)


def forged(network: dict[str, Any], prop: dict[str, Any], rng: random.Random) -> list[list[Any]]:
    """Parts of a certificate, one per case: some bound or tighten steps, repeated, and a step that
    closes."""
    nodes = network["nodes"]
    sizes = [math.prod(node["shape"]) for node in nodes]
    widths = [b - a for a, b in zip(prop["low"], prop["high"], strict=True)]
    parts = []
    for case in prop["cases"]:
        node = 0 if rng.random() < 0.6 else rng.randrange(len(nodes))
        element = rng.randrange(sizes[node])
        tau = [0] * len(case) if rng.random() < 0.7 else [rng.choice(SMALL) for _ in case]
        slopes: list[Any] = (
            [] if rng.random() < 0.8 else [[node, [[element, rng.choice(BIG + SMALL)]]]]
        )
        if rng.random() < 0.8:
            step = ["bound", [[node, element, rng.choice(ONES), rng.choice(BIG), tau, slopes]]]
        else:
            entry = [node, element, rng.choice(SMALL + BIG), rng.choice(SMALL + BIG)]
            step = ["tighten", tau, slopes, [entry]]
        times = rng.choice([1, 3, max(widths) + 2, max(widths) + 2])
        closing = rng.choice(
            [["empty"], ["empty"], ["empty"], ["prove", tau, slopes], ["enumerate"]]
        )
        propagating = [["propagate"]] if rng.random() < 0.3 else []
        parts.append([*([step] * min(times, 300)), *propagating, closing])
    return parts


def wide_claim(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """A network of one dense layer as JSON, a property of it, and whether that can be satisfied."""
    reach = rng.choice([1, 3, 2**31, 2**61])
    size = 1 if reach > 3 else rng.choice([1, 2])
    factor = rng.choice([1, -1]) * (
        2 ** rng.choice([1, 30, 61, 62, 63, 70]) + rng.choice([0, 1, -1])
    )
    weight = [factor] + [rng.choice([1, -3])] * (size - 1)
    bias = rng.choice([0, 5, 2**62, -(2**63), 2**70])
    low, high = [0] * size, [reach] * size
    nodes = [
        {"shape": [size], "op": "input", "low": low, "high": high},
        {"shape": [1], "op": "dense", "source": 0, "weight": [weight], "bias": [bias]},
    ]
    least = bias + sum(min(0, w * reach) for w in weight)
    most = bias + sum(max(0, w * reach) for w in weight)
    sign = rng.choice([1, -1])
    edge = least if sign > 0 else -most
    bound = edge + rng.choice([0, 0, 1, -1, 2**62])
    prop = {"low": low, "high": high, "cases": [[{"terms": [[0, sign]], "bound": bound}]]}
    return (
        {"format": "bitcrown-integer-network-1", "nodes": nodes, "output": 1},
        prop,
        edge <= bound,
    )
