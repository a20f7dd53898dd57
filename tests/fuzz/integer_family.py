"""Quantized networks against full enumeration: every input of a small box goes through onnxruntime.

Wrong in either direction is found: ``unsat`` where a point satisfies a case, ``sat`` where none
does or whose witness does not hold. In half of the instances attacks are silenced, so that the
search itself has to decide; an ``unsat`` over one box must come with a certificate that the checker
accepts.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.fuzz.float_family import place_of
from tests.fuzz.graphs import Array, Unfit
from tests.fuzz.integer_networks import random_quantized
from tests.fuzz.properties import Box, Property, Row, number
from tests.fuzz.shrink import shrunk
from tests.fuzz.truth import Instance, Runtime, satisfied_case

SECONDS = 3.0
SHRINKING = 1.0
MOST_POINTS = 400


@contextlib.contextmanager
def only_search() -> Iterator[None]:
    """Nothing but single points left over by splitting is tried; larger boxes are never
    enumerated."""
    from bitcrown.quant.search import decide
    from bitcrown.quant.search.settings import SearchSettings

    judge, settings = decide.WitnessJudge.try_points, decide.SearchSettings
    decide.WitnessJudge.try_points = lambda self, points: (
        judge(self, points) if len(points) == 1 else None
    )
    decide.SearchSettings = lambda: SearchSettings(enumerate_points=1)
    try:
        yield
    finally:
        decide.WitnessJudge.try_points, decide.SearchSettings = judge, settings


def drawn(rng: np.random.Generator) -> Instance:
    kind = np.dtype(str(rng.choice(["uint8", "int8", "float32"])))
    n = int(rng.integers(1, 4))
    lower, upper = _box(rng, n, kind)
    box = Box.of(Property(lower, upper, 0, ()), kind)
    samples = [box.point(rng, kind, k % 3).reshape(1, n) for k in range(4)]
    model, ops = random_quantized(rng, samples)
    instance = Instance(
        model, Property(lower, upper, 0, ()), None, {"dtype": kind.name, "inputs": n, "ops": ops}
    )
    outputs = values(instance)[1]
    instance.prop = Property(
        lower, upper, outputs.shape[1], _cases(rng, n, outputs.astype(np.float64))
    )
    return instance


def _box(rng: np.random.Generator, n: int, kind: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if kind.kind == "f":
        ends = np.sort(rng.normal(size=(2, n)).round(int(rng.integers(1, 4))), axis=0)
        return tuple(number(v) for v in ends[0]), tuple(number(v) for v in ends[1])
    limits = np.iinfo(kind)
    width = min(int(MOST_POINTS ** (1 / n)), 250)
    low = rng.integers(limits.min, limits.max - width, n)
    high = low + rng.integers(0, width, n)
    return tuple(str(v) for v in low), tuple(str(v) for v in high)


def _cases(rng: np.random.Generator, n: int, outputs: Array) -> tuple[tuple[Row, ...], ...]:
    """Thresholds at and next to the least value of a row over all inputs, or at any of its
    values."""
    cases = []
    for _ in range(int(rng.choice([1, 1, 2]))):
        rows = []
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            used = rng.permutation(outputs.shape[1])[: int(rng.integers(1, 4))]
            factors = rng.choice(["1", "-1", "2", "-0.5", "0.3"], len(used))
            attained = np.unique(outputs[:, used] @ factors.astype(np.float64))
            op = str(rng.choice(["<=", ">="]))
            ordered = attained if op == "<=" else attained[::-1]
            place = 0 if rng.random() < 0.7 else int(rng.integers(len(ordered)))
            step = float(abs(ordered[min(1, len(ordered) - 1)] - ordered[0])) or 1.0
            shift = float(rng.choice([-1.0, -0.5, -1e-3, 0.0, 0.0, 1e-3, 0.5])) * step
            threshold = float(ordered[place]) + (shift if op == "<=" else -shift)
            rows.append(
                Row(
                    tuple((n + int(j), str(c)) for j, c in zip(used, factors, strict=True)),
                    op,
                    number(threshold),
                )
            )
        cases.append(tuple(rows))
    return tuple(cases)


def inputs_of(instance: Instance) -> Array:
    """Every input [P, n] of the box that the network can tell apart from the others.

    A float input is rounded by the first node: the numbers that its levels stand for, and the ends
    of the box, are one input for each level that the box reaches.
    """
    box = Box.of(instance.prop, instance.dtype)
    choices: list[Any] = [np.arange(a, b + 1) for a, b in zip(box.low, box.high, strict=True)]
    if instance.dtype.kind == "f":
        first = instance.model.graph.node[0]
        if first.op_type != "QuantizeLinear" or first.input[0] != "x":
            raise Unfit("the input is not rounded by the first node")
        known = {t.name: numpy_helper.to_array(t) for t in instance.model.graph.initializer}
        scale, zero = known[first.input[1]], known[first.input[2]]
        limits = np.iinfo(zero.dtype)
        levels = (
            (np.arange(limits.min, limits.max + 1) - int(zero)).astype(np.float32) * scale
        ).astype(np.float32)
        choices = [
            np.unique([a, b, *levels[(levels >= a) & (levels <= b)]]).astype(np.float32)
            for a, b in zip(box.low.astype(np.float32), box.high.astype(np.float32), strict=True)
        ]
    if np.prod([len(c) for c in choices]) > 4 * MOST_POINTS:
        raise Unfit("too many inputs to enumerate")
    return np.array(list(product(*choices)))


def values(instance: Instance) -> tuple[Array, Array]:
    """All inputs [P, n] and what onnxruntime makes of them [P, m]."""
    runtime, points = Runtime(instance), inputs_of(instance)
    return points, np.stack([runtime.outputs(point) for point in points])


def asked(instance: Instance, folder: Path, seconds: float, silent: bool) -> dict[str, Any]:
    """``word``: a status, ``refused`` or ``traceback``; ``witness`` [n] and ``certificate``
    (accepted or why not)."""
    import bitcrown
    from bitcrown.certificates.files import check_certificate
    from bitcrown.errors import BitcrownError

    network, prop, proof = folder / "net.onnx", folder / "prop.vnnlib", folder / "proof.json"
    onnx.save(instance.model, str(network))
    prop.write_text(instance.prop.text(), encoding="ascii")
    try:
        with only_search() if silent else contextlib.nullcontext():
            settings = bitcrown.Settings(device="cpu", threads=1, memory_gib=2.0)
            problem = bitcrown.load(str(network), str(prop))
            verdict = bitcrown.verify(problem, settings, seconds, want_certificate=True)
        answer: dict[str, Any] = {
            "word": str(verdict.status),
            "how": verdict.decided_by or str(verdict.reason),
        }
        if verdict.witness is not None:
            parts = [np.asarray(v).reshape(-1) for v in verdict.witness.inputs.values()]
            answer["witness"] = np.concatenate(parts).tolist()
        if verdict.certificate is not None:
            proof.write_text(json.dumps(verdict.certificate), encoding="ascii")
            finding = check_certificate(network, prop, proof)
            answer["certificate"] = "accepted" if finding.accepted else finding.message
    except BitcrownError as error:
        return {"word": "refused", "how": type(error).__name__, "says": str(error)[:300]}
    except Exception as error:  # noqa: BLE001 (any other class is a finding)
        return {
            "word": "traceback",
            "how": place_of(error),
            "says": f"{type(error).__name__}: {error}"[:300],
        }
    return answer


def judged(instance: Instance, answer: dict[str, Any]) -> tuple[str, str]:
    """What the report counts the answer as, and a signature where that is a failure."""
    word = answer["word"]
    if word == "traceback":
        return word, answer["how"]
    if word not in ("sat", "unsat"):
        return word, ""
    points, outputs = values(instance)
    found = next(
        (
            p
            for p, y in zip(points, outputs, strict=True)
            if satisfied_case(instance.prop, p, y) is not None
        ),
        None,
    )
    if word == "unsat":
        if found is not None:
            instance.facts["witness"] = [number(v) for v in found.tolist()]
            return "false unsat", f"false unsat by {answer['how']}"
        if answer.get("certificate", "accepted") != "accepted":
            return "true proof rejected", _general(answer["certificate"])
        return ("unsat" if "certificate" in answer else "unsat without certificate"), ""
    point = np.asarray(answer["witness"], dtype=instance.dtype)
    box = Box.of(instance.prop, instance.dtype)
    is_inside = bool(((point >= box.low) & (point <= box.high)).all())
    if (
        not is_inside
        or satisfied_case(instance.prop, point, Runtime(instance).outputs(point)) is None
    ):
        return "witness fails", f"witness fails by {answer['how']}"
    return ("sat", "") if found is not None else ("false sat", f"false sat by {answer['how']}")


def _general(message: str) -> str:
    """The message without its numbers."""
    return "rejected: " + re.sub(r"\(?-?[0-9][-0-9, ]*\)?", "# ", message)[:80]


def trial(seed: int, index: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, index])
    try:
        instance = drawn(rng)
        silent = bool(rng.random() < 0.5)
        with tempfile.TemporaryDirectory() as folder:
            answer = asked(instance, Path(folder), SECONDS, silent)
        kind, signature = judged(instance, answer)
    except Unfit:
        return {"kind": "no instance"}
    result = {
        **answer,
        **instance.facts,
        "kind": kind,
        "silent": silent,
        "ops": sorted(set(instance.facts["ops"])),
    }
    return {**result, "signature": signature} if signature else result


def explained(seed: int, index: int, result: dict[str, Any], folder: Path) -> str:
    """Shrink the instance and write it; a line that says what it is."""
    instance = drawn(np.random.default_rng([seed, index]))

    def failing(candidate: Instance) -> bool:
        return judged(candidate, asked(candidate, folder, SHRINKING, result["silent"])) == wanted

    wanted = result["kind"], result["signature"]
    small = shrunk(instance, failing) if failing(instance) else instance
    answer = asked(small, folder, SECONDS, result["silent"])
    kind, _ = judged(small, answer)
    nodes = " ".join(node.op_type for node in small.model.graph.node)
    witness = small.facts.get("witness") or answer.get("witness")
    return (
        f"{kind}: {answer['how']} {answer.get('certificate', '')}; {witness}; "
        f"{small.dtype.name}, {nodes}"
    )
