"""What no certificate of a float network may do: prove something that is false, however it was
made.

For each random network a point of the box is evaluated in rational numbers, and the property asks
whether the output gets as low as there: it does, exactly, so *no* certificate may be accepted. A
second property asks for less than the network can reach and has a certificate; a thousand damaged
copies of such certificates, re-addressed to the first property, are given to the checker.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.certificates.neurons import NeuronSearch
from bitcrown.certificates.writer import certificate_of
from bitcrown.check.certificates.documents import Reject
from bitcrown.check.certificates.floats.bounds import Bounder, BoxBatch, relu_line
from bitcrown.check.certificates.floats.checker import ProofSubject, check_float_proof
from bitcrown.check.certificates.floats.format import FLOAT_FORMAT, ArrayStore, encoded
from bitcrown.check.certificates.floats.layers import layer_bounds
from bitcrown.check.certificates.floats.steps import leaf_values
from bitcrown.spec.decimals import decimal_text
from tests.float_certificates import conv_subject, dense_subject, exact_output, mutated, written

SHAPES: list[list[int]] = [[2, 6, 5, 1], [3, 8, 8, 1], [20, 10, 8, 1], [18, 12, 2], []]
"""Sizes of dense networks; the last is convolutional."""
MUTATIONS = 250


def subject_about(
    folder: Path, seed: int, sizes: list[int], radius: float, formula: str
) -> ProofSubject:
    if sizes:
        return dense_subject(folder, seed, sizes, radius, formula)
    return conv_subject(folder, seed, radius, formula)


def lowest_seen(folder: Path, seed: int, sizes: list[int], radius: float) -> Fraction:
    """The least first output at drawn points of the box, exactly."""
    subject = subject_about(folder, seed, sizes, radius, "(<= Y_0 0.0)")
    random = np.random.default_rng(seed)
    box, n = subject.groups[0].box, subject.network.n_inputs
    points = random.uniform(box.lower, box.upper, (2000, n))
    corners = np.where(random.random((2000, n)) < 0.5, box.lower, box.upper)
    points = np.concatenate([points, corners])
    output = subject.network.values(points)[subject.network.output][:, 0]
    best = points[output.argmin()]
    return exact_output(subject.network, [Fraction(value) for value in best.tolist()])[0]


def below(value: Fraction, gap: float) -> str:
    return f"(<= Y_0 {decimal_text(Fraction(float(value) - gap))})"


@pytest.mark.parametrize("kind", range(len(SHAPES)))
def test_no_damaged_certificate_proves_a_false_claim(tmp_path: Path, kind: int) -> None:
    sizes, random = SHAPES[kind], np.random.default_rng(kind)
    radius, gap = (0.5, 0.3) if sizes else (0.1, 0.5)
    lowest = lowest_seen(tmp_path, kind, sizes, radius)
    false = subject_about(tmp_path, kind, sizes, radius, f"(<= Y_0 {decimal_text(lowest)})")
    true = subject_about(tmp_path, kind, sizes, radius, below(lowest, gap))
    data = written(true)
    assert check_float_proof(data, true).accepted
    kept = 0
    for _ in range(MUTATIONS):
        content = mutated(random, data)
        content |= {name: value for name, value in true.digests.items() if name in content}
        try:
            kept += check_float_proof(encoded(content), true).accepted
            forged = encoded({**content, **false.digests})
        except ValueError:  # NaN and the like are no JSON
            continue
        assert not check_float_proof(forged, false).accepted
    assert kept < MUTATIONS


def free_forgery(random: np.random.Generator, subject: ProofSubject) -> dict[str, Any]:
    """A well-formed certificate of nothing in particular: any roots, trees, slopes, multipliers."""
    store, network, group = ArrayStore(), subject.network, subject.groups[0]
    nodes = network.nodes
    far = [0.0, 1.0, 1e-300, 1e9, 1e100]

    def slopes(rows: int) -> list[dict[str, Any]]:
        items = []
        for relu in network.relus:
            columns = np.nonzero(random.random(nodes[relu].size) < 0.7)[0]
            values = random.choice([0.0, 1.0, 0.5, random.random()], size=(rows, len(columns)))
            items.append({"relu": relu, "columns": columns.tolist(), "values": store.put(values)})
        return items

    def root() -> dict[str, Any]:
        layers = []
        for relu in network.relus:
            index = np.nonzero(random.random(nodes[relu].size) < 0.5)[0]
            own = slopes(2 * len(index))
            layers.append({"relu": relu, "index": index.tolist(), "slopes": own})
        return {"group": 0, "layers": layers if random.random() < 0.7 else []}

    def neurons(roots: int, case: int) -> dict[str, Any]:
        levels, places, paths = [], [], [()]
        total = leaves = 0
        while paths:
            splits = [len(path) < 4 and random.random() < 0.7 for path in paths]
            picks = [
                (relu, int(random.integers(nodes[relu].size)))
                for relu in random.choice(network.relus, len(paths)).tolist()
            ]
            levels.append(
                [pick[0] if split else -1 for pick, split in zip(picks, splits, strict=True)]
            )
            places.append(
                [pick[1] if split else 0 for pick, split in zip(picks, splits, strict=True)]
            )
            leaves += len(paths) - sum(splits)
            total += sum(len(path) for path, split in zip(paths, splits, strict=True) if not split)
            pairs = zip(paths, picks, splits, strict=True)
            paths = [(*path, pick) for path, pick, split in pairs if split for _ in (0, 1)]
        weights = (leaves, group.limit.shape[1])
        return {
            "kind": "neurons",
            "root": int(random.integers(roots)),
            "case": case,
            "relus": levels,
            "neurons": places,
            "multipliers": store.put(random.choice(far, total) * random.random(total)),
            "weights": store.put(random.choice(far[1:], weights)),
            "slopes": slopes(leaves),
        }

    def inputs() -> dict[str, Any]:
        axes, points, width = [], [], 1
        for depth in range(5):
            level = random.integers(
                0 if depth < 4 else -1, network.n_inputs if depth < 4 else 0, width
            )
            axes.append(level.tolist())
            places = random.uniform(-2, 2, int((level >= 0).sum())) * group.box.upper[0, 0]
            points += np.where(
                random.random(len(places)) < 0.2, group.box.upper[0, 0], places
            ).tolist()
            width = 2 * int((level >= 0).sum())
        return {"kind": "inputs", "group": 0, "axes": axes, "points": store.put(np.array(points))}

    kind, cases = int(random.integers(3)), range(len(group.cases))
    parts = [
        [neurons(2, case) for case in cases],
        [inputs()],
        [{"kind": "root", "root": int(random.integers(2)), "cases": [*cases, 0]}],
    ]
    return {
        "format": FLOAT_FORMAT,
        **subject.digests,
        "roots": [root() for _ in range(2)],
        "parts": parts[kind],
        "arrays": store.content,
    }


@pytest.mark.parametrize("kind", range(len(SHAPES)))
def test_no_certificate_of_any_form_proves_a_false_claim(tmp_path: Path, kind: int) -> None:
    """Whatever a file chooses, a property with a false case stays unproved; and a property that any
    bounds prove is accepted, so what is refused is refused for its falsehood."""
    sizes, random = SHAPES[kind], np.random.default_rng(kind)
    lowest = decimal_text(lowest_seen(tmp_path, kind, sizes, 0.5))
    clear, false = (
        subject_about(tmp_path, kind, sizes, 0.5, f"(or (<= Y_0 -1000.0) (<= Y_0 {limit}))")
        for limit in ("-2000.0", lowest)
    )
    accepted = 0
    for _ in range(100 if sizes else 30):
        content = free_forgery(random, false)
        found = check_float_proof(encoded(content), false)
        assert not found.accepted
        assert "refuted" in found.message or "decided twice" in found.message, found.message
        accepted += check_float_proof(encoded({**content, **clear.digests}), clear).accepted
    assert accepted > 10


@pytest.mark.parametrize("seed", range(12))
def test_a_false_claim_gets_no_certificate(tmp_path: Path, seed: int) -> None:
    sizes = SHAPES[seed % len(SHAPES)]
    lowest = lowest_seen(tmp_path, seed, sizes, 0.4)
    subject = subject_about(tmp_path, seed, sizes, 0.4, f"(<= Y_0 {decimal_text(lowest)})")
    try:
        found = certificate_of(subject, Budget.of_seconds(1.5, 1 << 32))
    except Exception as error:  # noqa: BLE001  named below: only the deadline may end this
        assert type(error).__name__ == "BudgetExpired"
        return
    assert isinstance(found, str)


@pytest.mark.parametrize("seed", range(10))
def test_bounds_hold_in_rational_numbers(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    subject = dense_subject(
        tmp_path, seed, [3, 7, 6, 2], 10.0 ** float(random.integers(-3, 3)), "(<= Y_0 0.0)"
    )
    bounder = Bounder(subject.network, subject.groups[0].box)
    box = subject.groups[0].box
    points = random.uniform(box.lower[0], box.upper[0], (20, 3))
    bounds = layer_bounds(bounder, box)
    low = {relu: bounds[relu][0][:, None] for relu in bounds}
    up = {relu: bounds[relu][1][:, None] for relu in bounds}
    slopes = {relu: random.uniform(size=low[relu].shape) for relu in low}
    lines = {relu: relu_line(low[relu], up[relu], slopes[relu]) for relu in low}
    seed_rows = random.normal(size=(1, 4, 2))
    found = bounder.backward({subject.network.output: seed_rows}, lines)
    least = bounder.least(found, box)[0]
    for x in points:
        exact_x = [Fraction(value) for value in x.tolist()]
        y = exact_output(subject.network, exact_x)
        for row in range(4):
            quantity = sum(
                Fraction(float(c)) * v for c, v in zip(seed_rows[0, row], y, strict=True)
            )
            a = [Fraction(float(value)) for value in found.coefficient[0, row]]
            line = sum(c * v for c, v in zip(a, exact_x, strict=True)) + Fraction(
                float(found.constant[0, row])
            )
            assert quantity >= line - Fraction(float(found.error[0, row]))
            assert quantity >= Fraction(float(least[row]))


@pytest.mark.parametrize("seed", range(6))
def test_leaves_bound_every_point_with_their_signs(tmp_path: Path, seed: int) -> None:
    """Whatever slopes, multipliers and weights are chosen, the value of a leaf is below that of
    each of its points."""
    random = np.random.default_rng(seed)
    subject = dense_subject(tmp_path, seed, [2, 6, 5, 2], 1.0, "(and (<= Y_0 0.25) (<= Y_1 0.5))")
    group, network = subject.groups[0], subject.network
    bounder = Bounder(network, group.box)
    bounds = layer_bounds(bounder, group.box)
    search = NeuronSearch(bounder, group, bounds, Budget.of_seconds(10, 1 << 30))
    points = random.uniform(-1.0, 1.0, (400, 2))
    values = network.values(points)
    tried = 0
    for _ in range(60):
        leaf = search.start()
        inside = np.ones(len(points), dtype=bool)
        for relu in network.relus:
            leaf.slopes[relu][:] = random.uniform(size=leaf.slopes[relu].shape)
            for neuron in np.nonzero(random.random(search.sizes[relu]) < 0.25)[0]:
                sign = float(random.choice([-1, 1]))
                leaf.signs[relu][0, neuron] = sign
                leaf.betas[relu][0, neuron] = sign * random.exponential()
                inside &= sign * values[network.nodes[relu].sources[0]][:, neuron] > 1e-9
        leaf.weights[:] = random.uniform(size=leaf.weights.shape)
        least = leaf_values(bounder, group, bounds, leaf)[0]
        row = (values[network.output] @ group.C[0].T - group.limit[0]) @ leaf.weights[0]
        if inside.any() and np.isfinite(least):
            tried += 1
            assert (row[inside] >= least - 1e-9).all()
    assert tried


SPECIAL = [
    0.0,
    -0.0,
    5e-324,
    -5e-324,
    1e-310,
    1e-30,
    0.3,
    1.0,
    -1.0,
    -7.5,
    1e30,
    1e308,
    -1e308,
    np.inf,
    -np.inf,
    np.nan,
]


@pytest.mark.parametrize("low", SPECIAL)
def test_lines_of_relu_are_sound_or_say_nothing(low: float) -> None:
    for up in SPECIAL:
        for slope in [0.0, 0.5, 1.0, 5e-324, np.nan, 7.0, -3.0]:
            line = relu_line(np.array([[[low]]]), np.array([[[up]]]), np.array([[[slope]]]))
            numbers = [float(part[0, 0, 0]) for part in line]
            if not low <= up or not all(np.isfinite([low, up, *numbers])):
                continue  # NaN or infinite: the bound that uses it is no bound
            lower, upper, offset = map(Fraction, numbers)
            for z in (Fraction(low), Fraction(up), *([Fraction(0)] if low <= 0 <= up else [])):
                assert lower * z <= max(z, 0) <= upper * z + offset


def test_numbers_that_are_none_prove_nothing(tmp_path: Path) -> None:
    subject = dense_subject(tmp_path, 1, [2, 4, 1], 1.0, "(<= Y_0 -1000.0)")
    assert check_float_proof(written(subject), subject).accepted
    group = subject.groups[0]
    bounder = Bounder(subject.network, group.box)
    bounds = layer_bounds(bounder, group.box)
    search = NeuronSearch(bounder, group, bounds, Budget.of_seconds(10, 1 << 30))
    for bad in (np.nan, np.inf):
        leaf = search.start()
        leaf.weights[:] = bad
        with np.errstate(all="ignore"):
            value = leaf_values(bounder, group, bounds, leaf)
        assert not np.isfinite(value).any()
    huge = BoxBatch(np.full((1, 2), -np.inf), np.full((1, 2), np.inf))
    with pytest.raises(Exception, match="float64"):
        Bounder(subject.network, huge)


def test_json_that_is_not_strict_is_rejected(tmp_path: Path) -> None:
    import gzip

    subject = dense_subject(tmp_path, 1, [2, 4, 1], 1.0, "(<= Y_0 -1000.0)")
    data = written(subject)
    text = gzip.decompress(data).decode()
    assert check_float_proof(gzip.compress(text.encode()), subject).accepted
    for old, new in [
        ('"group":0', '"group":0.0'),
        ('"group":0', '"group":false'),
        ('"group":0', '"group":NaN'),
        ('"kind":"inputs"', '"kind":"inputs","kind":"inputs"'),
        ('"axes":[[-1]]', '"axes":[[-1],[]]'),
        ('"axes":[[-1]]', '"axes":[]'),
        ('"axes":[[-1]]', '"axes":[["-1"]]'),
    ]:
        assert old in text
        assert not check_float_proof(
            gzip.compress(text.replace(old, new).encode()), subject
        ).accepted
    for junk in (
        b"",
        b"{}",
        data[:-9],
        b"\x1f\x8b",
        json.dumps([1]).encode(),
        gzip.compress(b"[" * 100_000),
    ):
        assert not check_float_proof(junk, subject).accepted
    assert issubclass(Reject, Exception)
