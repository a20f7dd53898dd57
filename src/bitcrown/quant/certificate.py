"""Writes proofs: the canonical JSON form of an integer network, of a query, and of a finished proof.

The canonical form holds the integers that define the function and nothing else: no names, no file, no scale. Two files
that compute the same function by the same steps have the same form, and its SHA-256 binds a certificate to it. The
checker (``bitcrown.check.certificate_checker``) reads these forms with code of its own.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from bitcrown.quant.integer_graph import (
    Conv,
    Dense,
    Gather,
    Input,
    IntegerNetwork,
    MaxPool,
    Node,
    Staircase,
    Sum,
)
from bitcrown.quant.proof_tree import Proof
from bitcrown.quant.query import IntegerQuery

NETWORK_FORMAT = "bitcrown-integer-network-1"
CERTIFICATE_FORMAT = "bitcrown-integer-certificate-1"
Json = dict[str, Any]


def network_form(network: IntegerNetwork) -> Json:
    """The canonical JSON form of a network."""
    nodes = [{"shape": list(map(int, node.shape)), **_node_form(node)} for node in network.nodes]
    return {"format": NETWORK_FORMAT, "nodes": nodes, "output": int(network.output)}


def _node_form(node: Node) -> Json:
    if isinstance(node, Input):
        return {"op": "input", "low": node.low.tolist(), "high": node.high.tolist()}
    if isinstance(node, Dense):
        return {"op": "dense", "source": node.source, "weight": node.weight.tolist(), "bias": node.bias.tolist()}
    if isinstance(node, Conv):
        return {
            "op": "conv",
            "source": node.source,
            "plane": list(node.plane),
            "weight": node.weight.tolist(),
            "bias": node.bias.tolist(),
            "strides": list(node.strides),
            "padding": list(node.padding),
            "dilations": list(node.dilations),
            "groups": node.groups,
            "pad_value": node.pad_value,
        }
    if isinstance(node, Sum):
        return {
            "op": "sum",
            "sources": list(node.sources),
            "factors": list(node.factors),
            "bias": node.bias.tolist(),
        }
    if isinstance(node, Staircase):
        return {
            "op": "staircase",
            "source": node.source,
            "base": node.base.tolist(),
            "early": node.early.tolist(),
            "late": node.late.tolist(),
        }
    if isinstance(node, MaxPool):
        return {
            "op": "maxpool",
            "source": node.source,
            "plane": list(node.plane),
            "kernel": list(node.kernel),
            "strides": list(node.strides),
            "padding": list(node.padding),
        }
    assert isinstance(node, Gather)
    return {"op": "gather", "sources": list(node.sources), "index": node.index.tolist()}


def property_form(query: IntegerQuery) -> Json:
    """The canonical JSON form of what is asked: the box and the cases that must not occur."""
    cases = [
        [
            {"terms": [[int(i), int(c)] for i, c in constraint.terms], "bound": int(constraint.bound)}
            for constraint in case
        ]
        for case in query.cases
    ]
    return {"low": query.low.tolist(), "high": query.high.tolist(), "cases": cases}


def digest(content: Json) -> str:
    """SHA-256 of the canonical text: sorted keys, no blanks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def certificate_form(query: IntegerQuery, proof: Proof, roots: tuple[int, ...], network_digest: str = "") -> Json:
    """A finished, recorded proof as JSON. ``network_digest`` saves hashing a network that was hashed before."""
    content: Json = {
        "format": CERTIFICATE_FORMAT,
        "network": network_digest or digest(network_form(query.network)),
        "property": digest(property_form(query)),
        "trunk": proof.trunk,
        "roots": list(roots),
        "parts": proof.parts,
    }
    return {**content, "digest": digest(content)}
