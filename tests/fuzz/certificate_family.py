"""Certificates: those of right verdicts are accepted, and nothing is ever accepted for a claim that
is false.

A trial takes a network with a property that enumeration (or, for floats, the exact pieces) shows to
be unsatisfiable, has it proved with a certificate, and checks that. Then the property is moved
until it can be satisfied, the certificate is signed anew for that false claim, as it is, mutated
once or more, or replaced by an invented one; each must be rejected. For the true claim mutated
certificates may be accepted or not, but must do so in one sentence.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.fuzz import float_family, integer_family
from tests.fuzz.exact import Pieces, TooMany
from tests.fuzz.float_family import place_of
from tests.fuzz.forgeries import forged, wide_claim
from tests.fuzz.graphs import Array, Unfit
from tests.fuzz.mutations import Raw, mutations
from tests.fuzz.properties import Property, number
from tests.fuzz.truth import Instance, satisfied_case

SECONDS = 2.0
FORGERIES = 16
MUTANTS = 6
Sign = Callable[[Any], dict[str, Any]]


def trial(seed: int, index: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return attempt(seed, index, Path(folder))
        except Unfit:
            return {"kind": "no instance"}


def attempt(seed: int, index: int, folder: Path) -> dict[str, Any]:
    """One trial; in ``folder`` stay the files of the last claim, and the certificate that was
    wrongly judged."""
    rng = np.random.default_rng([seed, index])
    chance = rng.random()
    if chance < 0.15:
        return _wide(random.Random(f"{seed} {index}"), folder)
    if chance < 0.35:
        return _float(rng, random.Random(f"{seed} {index}"), folder)
    return _integer(rng, random.Random(f"{seed} {index}"), folder)


def checked(network: Path, prop: Path, certificate: bytes, folder: Path) -> dict[str, Any]:
    """What the checker says: ``accepted``, ``rejected``, ``refused`` or ``traceback``."""
    from bitcrown.certificates.files import check_certificate
    from bitcrown.errors import BitcrownError

    path = folder / "proof.json"
    path.write_bytes(certificate)
    try:
        finding = check_certificate(network, prop, path)
    except BitcrownError as error:
        return {"kind": "refused", "says": str(error)[:200]}
    except Exception as error:  # noqa: BLE001 (any other class is a finding)
        return {"kind": "traceback", "signature": place_of(error), "says": repr(error)[:300]}
    return {
        "kind": "accepted" if finding.accepted else "rejected",
        "says": str(finding.message)[:200],
    }


def _verified(instance: Instance, folder: Path) -> tuple[Any, Path, Path]:
    import bitcrown

    network, prop = folder / "net.onnx", folder / "prop.vnnlib"
    onnx.save(instance.model, str(network))
    prop.write_text(instance.prop.text(), encoding="ascii")
    settings = bitcrown.Settings(device="cpu", threads=1, memory_gib=2.0)
    verdict = bitcrown.verify(
        bitcrown.load(str(network), str(prop)), settings, SECONDS, want_certificate=True
    )
    return verdict, network, prop


def _integer(rng: np.random.Generator, other: random.Random, folder: Path) -> dict[str, Any]:
    from bitcrown.errors import BitcrownError

    instance = integer_family.drawn(rng)
    points, outputs = integer_family.values(instance)
    true = instance.prop
    if any(satisfied_case(true, p, y) is not None for p, y in zip(points, outputs, strict=True)):
        true = _moved_away(true, points, outputs)
    k = int(rng.integers(len(points)))
    false = _moved_onto(true, points[k], outputs[k])
    try:
        verdict, network, prop = _verified(replace(instance, prop=true), folder)
    except BitcrownError as error:
        return {"kind": "refused", "says": str(error)[:200]}
    certificate = verdict.certificate
    if certificate is None:
        return {"kind": f"no certificate: {verdict.status}"}
    document = json.dumps(certificate).encode()
    found = checked(network, prop, document, folder)
    if found["kind"] != "accepted":
        signature = integer_family._general(found["says"])
        return {**found, "kind": "true proof rejected", "signature": signature}
    mutants = (
        m.content
        for m, _ in zip(mutations(document, other, sign=_digest), range(MUTANTS), strict=False)
    )
    strange = _first_strange(mutants, network, prop, folder)
    if strange is not None:
        return strange
    prop.write_text(false.text(), encoding="ascii")
    bound = _binding(network, prop)
    false_start = {**certificate, **bound}
    return _all_rejected(_false_proofs(false_start, bound, other), network, prop, folder)


def _moved_away(prop: Property, points: Array, outputs: Array) -> Property:
    """The first row of every case out of reach of all points, just so."""
    cases = []
    for case in prop.cases:
        row = case[0]
        values = [
            row.excess([Fraction(v) for v in (*p.tolist(), *y.tolist())])
            for p, y in zip(points, outputs, strict=True)
        ]
        shift = min(values) - Fraction(1, 1000)
        rhs = Fraction(row.rhs) + shift if row.op == "<=" else Fraction(row.rhs) - shift
        moved = replace(row, rhs=number(float(rhs)))
        cases.append((moved, *case[1:]))
    return replace(prop, cases=tuple(cases))


def _moved_onto(prop: Property, point: Array, outputs: Array) -> Property:
    """The first case made true at a point, by a little."""
    values = [Fraction(v) for v in (*point.tolist(), *outputs.tolist())]
    rows = []
    for row in prop.cases[0]:
        excess = row.excess(values)
        room = excess + Fraction(1, 1000) if excess > 0 else Fraction(0)
        rhs = Fraction(row.rhs) + room if row.op == "<=" else Fraction(row.rhs) - room
        rows.append(replace(row, rhs=number(float(rhs))) if room else row)
    return replace(prop, cases=(tuple(rows), *prop.cases[1:]))


def _digest(tree: Any) -> dict[str, Any]:
    from bitcrown.check.certificates.documents import content_digest

    return {
        "digest": content_digest({key: value for key, value in tree.items() if key != "digest"})
    }


def _forms(network: Path, prop: Path) -> tuple[Any, Any]:
    from bitcrown.certificates.files import integer_query, read_network
    from bitcrown.quant.proof.writer import network_form, property_form

    read = read_network(network)
    return network_form(read), property_form(integer_query(network, prop, read))


def _binding(network: Path, prop: Path) -> dict[str, Any]:
    from bitcrown.check.certificates.documents import content_digest

    form, asked = _forms(network, prop)
    return {
        "network": content_digest(form),
        "property": content_digest(asked),
        "forms": (form, asked),
    }


def _false_proofs(
    start: dict[str, Any], bound: dict[str, Any], rng: random.Random
) -> Iterator[bytes]:
    """Signed certificates: the proof of the neighbour, mutations of it, and inventions."""
    form, asked = start.pop("forms")
    yield json.dumps({**start, **_digest(start)}).encode()
    for _ in range(FORGERIES // 2):
        document: Any = start
        for _ in range(rng.choice([1, 1, 2, 3])):
            content = next(mutations(document, rng, sign=_digest)).content
            document = _parsed(content)
            if not isinstance(document, dict):
                break
        yield content
    for _ in range(FORGERIES):
        yield signed(start, forged(form, asked, rng))


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def signed(start: dict[str, Any], parts: Any) -> bytes:
    """A certificate with these parts, which may hold text that no Python value has."""
    tree = {**start, "trunk": [], "roots": list(range(len(parts))), "parts": parts}
    text = _with_raw({key: value for key, value in tree.items() if key != "digest"})
    try:
        return _with_raw({**tree, **_digest(json.loads(text))}).encode()
    except (ValueError, OverflowError, RecursionError):
        return text.encode()


def _with_raw(tree: Any) -> str:
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_with_raw(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ",".join(_with_raw(v) for v in tree) + "]"
    return json.dumps(tree)


def _first_strange(
    documents: Iterator[bytes], network: Path, prop: Path, folder: Path
) -> dict[str, Any] | None:
    """The first answer that is neither yes nor no in a sentence."""
    for document in documents:
        found = checked(network, prop, document, folder)
        if found["kind"] == "traceback":
            return found
    return None


def _all_rejected(
    documents: Iterator[bytes], network: Path, prop: Path, folder: Path
) -> dict[str, Any]:
    count = 0
    for document in documents:
        found = checked(network, prop, document, folder)
        count += 1
        if found["kind"] == "traceback":
            return found
        if found["kind"] == "accepted":
            return {**found, "kind": "false proof", "signature": f"accepted: {_steps(document)}"}
    return {"kind": "all right", "rejected": count}


def _steps(document: bytes) -> str:
    """Which kinds of steps an accepted certificate of a false claim has, and whether all its
    numbers are integers."""
    try:
        parts = json.loads(document)["parts"]
        kinds = sorted({step[0] for part in parts for step in part if isinstance(step, list)})
        return f"{' '.join(map(str, kinds))}; {'floats' if '.0' in str(parts) else 'integers'}"
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "no integer certificate"


def _wide(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Networks and properties as JSON, with numbers that no machine word holds."""
    from bitcrown.check.certificates.documents import content_digest

    form, prop, is_satisfiable = wide_claim(rng)
    files = folder / "network.json", folder / "property.json"
    for path, content in zip(files, (form, prop), strict=True):
        path.write_text(json.dumps(content), encoding="ascii")
    start = {
        "format": "bitcrown-integer-certificate-1",
        "network": content_digest(form),
        "property": content_digest(prop),
    }
    honest = (
        [[["propagate"], ["empty"]]],
        [[["prove", [1], []]]],
        [[["propagate"], ["propagate"], ["enumerate"]]],
    )
    documents = (
        signed(start, parts) for parts in (*honest, *(forged(form, prop, rng) for _ in range(4)))
    )
    if is_satisfiable:
        return _all_rejected(documents, *files, folder)
    return _first_strange(documents, *files, folder) or {"kind": "all right"}


def _float(rng: np.random.Generator, other: random.Random, folder: Path) -> dict[str, Any]:
    """A piecewise linear network in rationals; only a version with float certificates has something
    to check."""
    try:
        from bitcrown.check.certificates.floats.checker import subject_of
    except ImportError:
        return {"kind": "no float certificates"}
    from bitcrown.errors import BitcrownError

    instance, pieces = _drawn_exact(rng)
    if pieces is None or pieces.witness(instance.prop) is not None:
        return {"kind": "no instance"}
    try:
        verdict, network, prop = _verified(instance, folder)
    except BitcrownError as error:
        return {"kind": "refused", "says": str(error)[:200]}
    document = verdict.certificate
    if document is None:
        return {"kind": f"no certificate: {verdict.status}"}
    found = checked(network, prop, document, folder)
    if found["kind"] != "accepted":
        return {
            **found,
            "kind": "true proof rejected",
            "signature": integer_family._general(found["says"]),
        }
    corner = pieces.least(instance.prop.cases[0][0])[1]
    values = pieces.values(corner)
    n = instance.prop.inputs
    false = _moved_onto(
        instance.prop, np.array(values[:n], dtype=object), np.array(values[n:], dtype=object)
    )
    if pieces.witness(false) is None:
        return {"kind": "no instance"}
    prop.write_text(false.text(), encoding="ascii")
    import bitcrown

    digests = dict(subject_of(bitcrown.load(str(network), str(prop))).digests)
    documents = (
        m.content
        for m, _ in zip(
            mutations(document, other, sign=lambda tree: digests), range(32), strict=False
        )
    )
    return _all_rejected(documents, network, prop, folder)


def _drawn_exact(rng: np.random.Generator) -> tuple[Instance, Pieces | None]:
    for _ in range(20):
        try:
            instance, pieces = float_family.drawn(rng, exact=True)
        except (Unfit, TooMany):
            continue
        if pieces is not None and instance.facts["scale"] == 1.0:
            return instance, pieces
    raise Unfit("no small piecewise linear network")


def explained(seed: int, index: int, result: dict[str, Any], folder: Path) -> str:
    """The files of the trial, as they were when it failed; a line that says what it is."""
    again = attempt(seed, index, folder)
    return f"{again['kind']}: {again.get('signature', '')} {again.get('says', '')}"
