"""The fuzzer's own means: exact pieces against onnxruntime, readings of decimals, isolation,
shrinking, detection."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.fuzz.exact import Pieces, TooMany
from tests.fuzz.float_family import at_the_optimum, is_piecewise_linear, random_instance, refuted
from tests.fuzz.graphs import Unfit
from tests.fuzz.isolation import results
from tests.fuzz.properties import Box, Property, Row, inner_ends
from tests.fuzz.shrink import shrunk
from tests.fuzz.truth import Instance, Judge, Runtime, rationals, satisfied_case


def exact_instances(count: int) -> list[tuple[Instance, Pieces, np.random.Generator]]:
    found: list[tuple[Instance, Pieces, np.random.Generator]] = []
    for seed in range(20 * count):
        rng = np.random.default_rng(seed)
        try:
            instance = random_instance(rng, True)
            if instance.facts["scale"] == 1.0 and is_piecewise_linear(instance.model):
                found.append((instance, Pieces(instance.model, instance.prop), rng))
        except (Unfit, TooMany):
            continue
        if len(found) == count:
            break
    assert len(found) == count
    return found


def test_pieces_are_the_network_and_cover_its_box() -> None:
    for instance, pieces, _ in exact_instances(12):
        runtime = Runtime(instance)
        for polygon, outputs in pieces.pieces:
            middle = tuple(sum((c[k] for c in polygon), Fraction(0)) / len(polygon) for k in (0, 1))
            form = [f[0] + f[1] * middle[0] + f[2] * middle[1] for f in (*pieces.inputs, *outputs)]
            n = instance.prop.inputs
            expected = runtime.outputs(np.array([float(v) for v in form[:n]]))
            assert np.allclose(
                expected.astype(float), [float(v) for v in form[n:]], rtol=1e-3, atol=1e-3
            )
        area = sum((_doubled_area(polygon) for polygon, _ in pieces.pieces), Fraction(0))
        moving = [
            Fraction(b) - Fraction(a)
            for a, b in zip(instance.prop.lower, instance.prop.upper, strict=True)
            if a != b
        ]
        if len(moving) == 2:
            assert area == 2 * moving[0] * moving[1]


def _doubled_area(polygon: list[tuple[Fraction, Fraction]]) -> Fraction:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum((a[0] * b[1] - a[1] * b[0] for a, b in pairs), Fraction(0)))


def test_pieces_decide_as_points_do() -> None:
    answers = set()
    for instance, _, rng in exact_instances(20):
        pieces = at_the_optimum(rng, instance)
        assert pieces is not None
        witness = pieces.witness(instance.prop)
        answers.add(witness is None)
        box = Box.of(instance.prop, instance.dtype)
        judge = Judge(instance)
        seen = not box.off.any() and any(
            judge.verdict(box.point(rng, instance.dtype)) == "real" for _ in range(20)
        )
        assert not (seen and witness is None)
        if witness is not None:
            ends = zip(witness, instance.prop.lower, instance.prop.upper, strict=True)
            assert all(Fraction(low) <= v <= Fraction(up) for v, low, up in ends)
    assert answers == {True, False}


@pytest.mark.parametrize(
    ("low", "up", "dtype", "expected"),
    [
        ("0.1", "0.1", "float16", (float(np.float16(0.1)), float(np.float16(0.1)), True)),
        ("0.5", "0.5", "float16", (0.5, 0.5, False)),
        ("2.25", "2.25", "int8", (2.0, 2.0, True)),
        ("-1.5", "1.5", "int64", (-1.0, 1.0, False)),
        (
            "-1e39",
            "1e39",
            "float32",
            (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max), False),
        ),
    ],
)
def test_bounds_are_read_as_numbers_of_the_type(
    low: str, up: str, dtype: str, expected: Any
) -> None:
    assert inner_ends(low, up, dtype) == expected


def test_a_crash_and_a_hang_do_not_end_the_others() -> None:
    def trial(number: int) -> dict[str, Any]:
        if number == 1:
            os._exit(3)
        while number == 3:
            pass
        return {"kind": "fine", "number": number}

    found = dict(results(trial, range(6), 1.0))
    assert [found[k]["kind"] for k in range(6)] == ["fine", "crash", "fine", "hang", "fine", "fine"]
    assert found[5]["number"] == 5


def test_a_false_claim_is_refuted_and_a_true_one_is_not() -> None:
    seen = set()
    for instance, pieces, rng in exact_instances(10):
        n = instance.prop.inputs
        row = Row(((n, "1"),), "<=", "0")
        least, _ = pieces.least(row)
        for shift, word in ((Fraction(1, 10), "exact"), (Fraction(-1, 10), "")):
            prop = instance.prop
            row = Row(((n, "1"),), "<=", str(float(least + shift)))
            claim = Instance(
                instance.model,
                Property(prop.lower, prop.upper, prop.outputs, ((row,),)),
                None,
                {"exact": 1},
            )
            assert refuted(claim, rng) == word
            seen.add(word)
    assert seen == {"exact", ""}


def test_shrinking_keeps_the_failure_and_drops_the_rest() -> None:
    rng = np.random.default_rng(3)
    instance = random_instance(rng, False)
    while "Relu" not in instance.facts["ops"] or instance.prop.inputs < 4:
        try:
            instance = random_instance(rng, False)
        except Unfit:
            continue

    def failing(candidate: Instance) -> bool:
        Runtime(candidate).outputs(candidate.point)
        return any(node.op_type == "Relu" for node in candidate.model.graph.node)

    small = shrunk(instance, failing, seconds=3.0)
    assert failing(small)
    assert len(small.model.graph.node) < len(instance.model.graph.node)
    assert len(small.prop.cases) == len(small.prop.cases[0]) == 1


def test_a_row_holds_exactly_or_not() -> None:
    prop = Property(("0",), ("1",), 1, ((Row(((0, "1"), (1, "-1")), "<=", "0.1"),),))
    point, outputs = np.array([0.5]), np.array([0.4])
    assert prop.cases[0][0].excess(rationals(point, outputs)) == Fraction(0.5) - Fraction(
        0.4
    ) - Fraction(1, 10)
    assert satisfied_case(prop, point, outputs) is not None
    assert satisfied_case(prop, point, outputs, np.array([1e-3])) is None
    assert satisfied_case(prop, point, np.array([np.nan])) is None
