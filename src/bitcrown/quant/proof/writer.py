"""Writes proofs: the canonical JSON form of an integer network, of a query, and of a finished
proof.

The canonical form holds the integers that define the function and nothing else: no names, no file,
no scale. Two files that compute the same function by the same steps have the same form, and its
SHA-256 binds a certificate to it. The checker (``bitcrown.check.certificates.integers.checker``)
reads these forms with code of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np

from bitcrown.quant.network.entry import EvenlySpaced
from bitcrown.quant.network.graph import (
    Conv,
    Dense,
    Gather,
    Input,
    IntegerNetwork,
    IntegerNode,
    MaxPool,
    Stairs,
    WeightedSum,
)
from bitcrown.quant.proof.tree import ProofTree
from bitcrown.quant.query import IntegerQuery
from bitcrown.spec.problem import Constraint

_NETWORK_FORMAT = "bitcrown-integer-network-1"
_CERTIFICATE_FORMAT = "bitcrown-integer-certificate-1"
_Json = dict[str, Any]


def network_form(network: IntegerNetwork) -> _Json:
    """The canonical JSON form of a network."""
    nodes = [_node_form(node) for node in network.nodes]
    return {"format": _NETWORK_FORMAT, "nodes": nodes, "output": int(network.output)}


_OPERATORS: dict[type[IntegerNode], str] = {
    Input: "input",
    Dense: "dense",
    Conv: "conv",
    WeightedSum: "sum",
    Stairs: "staircase",
    MaxPool: "maxpool",
    Gather: "gather",
}


def _node_form(node: IntegerNode) -> _Json:
    """The node's fields under their own names, without its note; arrays and tuples as lists.

    So a field cannot be forgotten; one that is renamed is another format, which no checker reads.
    """
    values = {f.name: getattr(node, f.name) for f in fields(node) if f.name != "note"}
    lists = {
        name: value.tolist() if isinstance(value, np.ndarray) else list(map(int, value))
        for name, value in values.items()
        if not isinstance(value, int)
    }
    return {"op": _OPERATORS[type(node)], **values, **lists}


def property_form(query: IntegerQuery) -> _Json:
    """The canonical JSON form of what is asked: the box and the cases that must not occur.

    Where the outputs' real values are no affine function of their integers, ``real`` holds both: an
    input that is evaluated is judged by the property's own cases, of which the integer ones are a
    consequence.
    """
    cases = [
        [
            {
                "terms": [[int(i), int(c)] for i, c in constraint.terms],
                "bound": int(constraint.bound),
            }
            for constraint in case
        ]
        for case in query.cases
    ]
    form: _Json = {"low": query.low.tolist(), "high": query.high.tolist(), "cases": cases}
    if query.exact_cases is None:
        return form
    exit_ = query.network.exit
    outputs = [
        _values_form(low, values)
        for low, values in zip(exit_.low.tolist(), exit_.values, strict=True)
    ]
    real = [[_real_form(constraint) for constraint in case] for case in query.exact_cases]
    return {**form, "real": {"outputs": outputs, "cases": real}}


def _values_form(low: int, values: Sequence[Fraction]) -> _Json:
    """The real values of an output's integers from ``low`` on."""
    if isinstance(values, EvenlySpaced):
        return {
            "low": low,
            "high": low + len(values) - 1,
            "step": _pair(values.step),
            "first": _pair(values.first),
        }
    unit = lcm(*{value.denominator for value in values})
    return {"low": low, "denominator": unit, "numerators": [int(value * unit) for value in values]}


def _real_form(constraint: Constraint) -> _Json:
    terms = [[int(monomial[0]), _pair(factor)] for monomial, factor in constraint.terms]
    return {"terms": terms, "bound": _pair(constraint.bound), "strict": int(constraint.strict)}


def _pair(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def form_digest(content: _Json) -> str:
    """SHA-256 of the canonical text: sorted keys, no blanks."""
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def certificate_form(
    query: IntegerQuery,
    proof: ProofTree,
    roots: tuple[int, ...],
    network_digest: str = "",
    with_forms: bool = False,
) -> _Json:
    """A finished, recorded proof as JSON. ``network_digest`` saves hashing a network that was
    hashed before.

    ``with_forms``: with the network and the property that it argues about, so that it can be
    checked without a prover.
    """
    network = network_form(query.network) if with_forms or not network_digest else {}
    asked = property_form(query)
    content: _Json = {
        "format": _CERTIFICATE_FORMAT,
        "network": network_digest or form_digest(network),
        "property": form_digest(asked),
        "trunk": proof.trunk,
        "roots": list(roots),
        "parts": proof.parts,
    }
    if with_forms:
        content["forms"] = {"network": network, "property": asked}
    return {**content, "digest": form_digest(content)}
