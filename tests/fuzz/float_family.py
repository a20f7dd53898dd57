"""Float networks: does a proof ever exclude a point that is there?

An instance is a random network, a random box, and cases that are planted around a point of that
box: thresholds are the row's value there, moved by a share between 1e-9 and 1e-1 to either side.
Attacks and confirmation are switched off, so that only proofs speak. After ``unsat`` the planted
point, a search, or (for small piecewise linear networks) the pieces in rationals say whether that
was false.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import traceback
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from tests.fuzz.exact import OPERATORS, Pieces, TooMany
from tests.fuzz.graphs import Array, Unfit
from tests.fuzz.networks import piecewise_linear, random_network
from tests.fuzz.properties import Box, Property, Row, number, random_box
from tests.fuzz.shrink import shrunk
from tests.fuzz.truth import Instance, Judge, Reference, Runtime, searched

SECONDS = (0.15, 0.15, 0.15, 0.3, 1.0)
"""Seconds that bitcrown may have for an instance. Most have a counterexample, so that only the end
of the time, or a mistake, ends the search; mistakes of bounds and cuts are made early."""
SHRINKING = 0.3
SEARCHED = 150
"""Points tried against an ``unsat`` that nothing was planted against."""
SWITCHED_OFF = (
    ("bitcrown.search.strategy", "probe"),
    ("bitcrown.search.descent", "descend"),
    ("bitcrown.search.descent", "descend_to_the_end"),
)


@contextlib.contextmanager
def only_proofs() -> Iterator[None]:
    """No attack finds anything and no candidate is confirmed. A name that a later version lacks is
    passed over."""
    from bitcrown.search.strategy import Run

    kept = []
    for module_name, name in SWITCHED_OFF:
        module = importlib.import_module(module_name)
        if hasattr(module, name):
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, lambda *args, **more: None)
    kept.append((Run, "confirm", Run.confirm))
    Run.confirm = lambda *args, **more: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


# -- making instances ------------------------------------------------------------------------------


def random_instance(rng: np.random.Generator, is_exact: bool) -> Instance:
    """``is_exact``: a piecewise linear network on at most two inputs. Raises ``Unfit`` where no
    network comes out."""
    dtype = np.dtype(
        str(rng.choice(["float32", "float64", "float64"] if is_exact else FLOATS + INTS))
    )
    n = int(
        rng.choice(
            [rng.integers(1, 5), rng.integers(5, 17), rng.integers(17, 41), rng.integers(41, 201)],
            p=SIZES,
        )
    )
    scale = _magnitude(rng, dtype, 0.6 if is_exact else 0.25)
    if is_exact:
        n = int(rng.integers(1, 3))
    lower, upper = random_box(rng, n, dtype, scale if rng.random() < 0.5 else 1.0)
    prop = Property(lower, upper, 0, ())
    box = Box.of(prop, dtype)
    shape = (n,) if rng.random() < 0.05 and not is_exact else (1, n)
    samples = [box.point(rng, dtype, k % 3).reshape(shape) for k in range(4)]
    model, ops = (piecewise_linear if is_exact else random_network)(rng, samples, scale)
    instance = Instance(
        model, prop, None, {"dtype": dtype.name, "inputs": n, "scale": scale, "ops": ops}
    )
    instance.facts.update(exact=is_exact, read_off=bool(box.off.any()))
    try:
        outputs = [Runtime(instance).outputs(sample.reshape(-1)) for sample in samples]
    # what onnxruntime runs node by node it may not load as a whole, once it has inserted casts
    except Fail as error:
        raise Unfit(str(error)) from error
    instance.prop = Property(lower, upper, len(outputs[0]), ())
    instance.prop, instance.point = _planted(rng, instance, samples, outputs)
    instance.facts["rows"] = max(len(case) for case in instance.prop.cases)
    instance.facts["cases"] = len(instance.prop.cases)
    return instance


FLOATS = ["float32"] * 5 + ["float64"] * 3 + ["float16"] * 3
INTS = ["int8", "uint8", "int32", "int64"]
SIZES = [0.3, 0.15, 0.4, 0.15]


def _magnitude(rng: np.random.Generator, dtype: np.dtype[Any], share: float) -> float:
    if rng.random() > share or dtype.kind != "f":
        return 1.0
    span = {"float16": 2, "float32": 30, "float64": 300}[dtype.name]
    return float(10.0 ** rng.uniform(-span, span))


def _planted(
    rng: np.random.Generator, instance: Instance, samples: list[Array], outputs: list[Array]
) -> tuple[Property, Array]:
    """The property with its cases, and the point that one of them is planted around."""
    prop, dtype = instance.prop, instance.dtype
    finite = [k for k, y in enumerate(outputs) if np.isfinite(y.astype(np.float64)).all()]
    if not finite:
        raise Unfit("no sample has finite outputs")
    k = int(rng.choice(finite))
    point = samples[k].reshape(-1)
    reference = Reference(instance).outputs(point)
    y = outputs[k].astype(np.float64)
    errors = np.zeros(len(y))
    if reference is not None and dtype == np.float16 and rng.random() < 0.3:
        errors = np.abs(reference[0] - y)  # then the plant holds as onnxruntime rounds, too
    values = np.concatenate([point.astype(np.float64), y if reference is None else reference[0]])
    others = [
        np.concatenate([samples[i].reshape(-1), outputs[i]]).astype(np.float64) for i in finite
    ]
    count = int(rng.choice([1, 1, 2, 3]))
    home = int(rng.integers(count))
    cases = [
        _case(
            rng,
            prop.inputs,
            len(y),
            values,
            errors,
            others,
            is_home=c == home and rng.random() < 0.8,
        )
        for c in range(count)
    ]
    if count > 1 and rng.random() < 0.3 and not instance.facts["read_off"]:
        cases = [
            _own_box(rng, prop, case, values if c == home else others[0])
            for c, case in enumerate(cases)
        ]
    return Property(prop.lower, prop.upper, prop.outputs, tuple(cases)), point


def _own_box(
    rng: np.random.Generator, prop: Property, case: tuple[Row, ...], values: Array
) -> tuple[Row, ...]:
    """The case with bounds of its own on some inputs, around the point that ``values`` begins
    with."""
    rows = []
    for i in rng.permutation(prop.inputs)[: int(rng.integers(1, 4))].tolist():
        width = float(Fraction(prop.upper[i]) - Fraction(prop.lower[i])) * float(
            rng.choice([0.0, 0.01, 0.3])
        )
        rows.append(Row(((i, "1"),), ">=", number(values[i] - width)))
        rows.append(Row(((i, "1"),), "<=", number(values[i] + width)))
    return (*rows, *case)


def _case(
    rng: np.random.Generator,
    n: int,
    m: int,
    values: Array,
    errors: Array,
    others: list[Array],
    is_home: bool,
) -> tuple[Row, ...]:
    """Rows that hold at ``values`` by a margin if ``is_home``; else one that the samples miss by a
    margin."""
    mixed = rng.random() < 0.5
    rows: list[Row] = []
    for r in range(int(rng.choice([1, 1, 2, 3, 4]))):
        terms = {
            n + int(j): _coefficient(rng) for j in rng.permutation(m)[: int(rng.integers(1, 4))]
        }
        if mixed and (r or rng.random() < 0.3):
            if rng.random() < 0.5:
                terms = {}
            terms |= {
                int(i): _coefficient(rng) for i in rng.permutation(n)[: int(rng.integers(1, 21))]
            }
        value = sum(float(c) * values[i] for i, c in terms.items())
        size = max(sum(abs(float(c) * values[i]) for i, c in terms.items()), abs(value))
        margin = max(size, 1e-300) * 10.0 ** float(rng.uniform(-9, -1))
        margin += sum(abs(float(c)) * errors[i - n] for i, c in terms.items() if i >= n)
        op = str(rng.choice(["<=", ">="]))
        sign = 1.0 if op == "<=" else -1.0
        goal = value
        if not is_home and r == 0:
            goal = sign * min(sign * sum(float(c) * v[i] for i, c in terms.items()) for v in others)
            margin = -margin
        if not np.isfinite(goal):
            raise Unfit("a row is not finite")
        ordered = tuple(sorted(terms.items()))
        rows.append(Row(ordered, op, _threshold(rng, goal + sign * margin)))
        if is_home and rng.random() < 0.35:  # a band
            rows.append(Row(ordered, ">=" if op == "<=" else "<=", number(goal - sign * margin)))
    return tuple(rows)


def _threshold(rng: np.random.Generator, value: float) -> str:
    """Once in a while a number beyond all floats, which says nothing or everything."""
    return str(rng.choice(["1e309", "-1e309", "1e400"])) if rng.random() < 0.01 else number(value)


def _coefficient(rng: np.random.Generator) -> str:
    return str(
        rng.choice(
            [
                "1",
                "1",
                "-1",
                "2",
                "-0.5",
                "0.25",
                number(np.round(rng.normal() * 16) / 16 or 1.0),
                "0.3",
            ]
        )
    )


def at_the_optimum(rng: np.random.Generator, instance: Instance) -> Pieces | None:
    """The pieces that decide the truth; in half of the draws, first rows get their exact optimum
    moved by a share."""
    try:
        pieces = Pieces(instance.model, instance.prop)
    except TooMany:
        return None
    if rng.random() < 0.5:
        return pieces
    cases = []
    for case in instance.prop.cases:
        row = case[0]
        value, _ = pieces.least(row)
        share = Fraction(10.0 ** float(rng.uniform(-9, -1))) * int(rng.choice([-1, 1, 1]))
        moved = value + (abs(value) * share if row.op == "<=" else -abs(value) * share)
        try:
            rows = (Row(row.terms, row.op, number(float(moved))), *case[1:])
        except OverflowError:
            rows = case
        cases.append(rows[: int(rng.integers(1, len(rows) + 1))])
    prop = instance.prop
    instance.prop = Property(prop.lower, prop.upper, prop.outputs, tuple(cases))
    return pieces


def is_piecewise_linear(model: Any) -> bool:
    known = {t.name for t in model.graph.initializer}
    return all(
        node.op_type in OPERATORS
        and (node.op_type not in ("Gemm", "MatMul") or node.input[1] in known)
        for node in model.graph.node
    )


# -- judging ---------------------------------------------------------------------------------------


def asked(instance: Instance, folder: Path, seconds: float) -> dict[str, Any]:
    """What bitcrown says: ``word`` is a status, ``refused`` or ``traceback``; ``how`` says what
    decided, or where."""
    import bitcrown
    from bitcrown.errors import BitcrownError

    network, prop = folder / "net.onnx", folder / "prop.vnnlib"
    onnx.save(instance.model, str(network))
    prop.write_text(instance.prop.text(), encoding="ascii")
    try:
        with only_proofs():
            settings = bitcrown.Settings(device="cpu", threads=1, memory_gib=2.0)
            verdict = bitcrown.verify(bitcrown.load(str(network), str(prop)), settings, seconds)
    except BitcrownError as error:
        return {"word": "refused", "how": type(error).__name__, "says": str(error)[:300]}
    except Exception as error:  # noqa: BLE001 (any other class is a finding)
        return {
            "word": "traceback",
            "how": place_of(error),
            "says": f"{type(error).__name__}: {error}"[:300],
        }
    return {"word": str(verdict.status), "how": verdict.decided_by or str(verdict.reason)}


def place_of(error: BaseException) -> str:
    """Class, and the last function of bitcrown on the stack."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "bitcrown" in f.filename]
    last = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].name}" if frames else "?"
    return f"{type(error).__name__} in {last}"


def refuted(
    instance: Instance, rng: np.random.Generator, pieces: Pieces | None = None, how: str = ""
) -> str:
    """Why an ``unsat`` that ``how`` decided about this instance is false (``exact``, ``real``,
    ``runtime``); empty: nothing says so."""
    if any(
        Fraction(a) > Fraction(b)
        for a, b in zip(instance.prop.lower, instance.prop.upper, strict=True)
    ):
        return ""  # an empty box has no other reading
    off = Box.of(instance.prop, instance.dtype).off
    if any(
        len(row.terms) == 1 and off[row.terms[0][0] : row.terms[0][0] + 1].any()
        for row in _rows(instance.prop)
    ):
        # one more bound on an input that is read as the nearest number: which reading holds is open
        return ""
    if how == "cells":  # what was run in every cell is onnxruntime, and nothing else is claimed
        found = searched(instance, rng, SEARCHED)
        points = [point for point in (instance.point, found) if point is not None]
        return "runtime" if any(Judge(instance).violates(point) for point in points) else ""
    if pieces is None and instance.facts.get("exact") and is_piecewise_linear(instance.model):
        with contextlib.suppress(TooMany):
            pieces = Pieces(instance.model, instance.prop)
    if pieces is not None:
        point = pieces.witness(instance.prop)
        if point is not None:
            instance.facts["witness"] = [str(v) for v in point]
            return "exact"
        if not Box.of(instance.prop, instance.dtype).off.any():
            return ""
    judge = Judge(instance)
    candidates = [instance.point] if instance.point is not None else []
    word = judge.verdict(candidates[0]) if candidates else ""
    if not word:
        found = searched(instance, rng, SEARCHED)
        if found is not None:
            word, candidates = judge.verdict(found), [found]
    if word == "runtime" and instance.dtype != np.float16:
        word = ""  # proofs about wider types are about real arithmetic
    if word:
        instance.point = candidates[0]
        instance.facts["witness"] = [number(v) for v in candidates[0].tolist()]
    return word


def _rows(prop: Property) -> Iterator[Row]:
    return (row for case in prop.cases for row in case)


def trial(seed: int, index: int) -> dict[str, Any]:
    """One instance from draw to judgement. ``kind`` is what the report counts."""
    rng = np.random.default_rng([seed, index])
    try:
        instance, pieces = drawn(rng)
    except Unfit:
        return {"kind": "no instance"}
    with tempfile.TemporaryDirectory() as folder:
        answer = asked(instance, Path(folder), float(rng.choice(SECONDS)))
    result = {
        "kind": answer["word"],
        **answer,
        **{k: v for k, v in instance.facts.items() if k != "ops"},
    }
    if answer["word"] == "unsat":
        why = refuted(instance, rng, pieces, answer["how"])
        if why:
            result.update(
                kind="false unsat", why=why, signature=f"false unsat ({why}) by {answer['how']}"
            )
    elif answer["word"] == "traceback":
        result["signature"] = answer["how"]
    result["ops"] = sorted(set(instance.facts["ops"]))
    return result


def drawn(rng: np.random.Generator, exact: bool | None = None) -> tuple[Instance, Pieces | None]:
    """An instance, and the exact pieces of its network where they can be had (``exact``: only such,
    or none such)."""
    instance = random_instance(rng, rng.random() < 0.25 if exact is None else exact)
    pieces = (
        at_the_optimum(rng, instance)
        if instance.facts["exact"] and is_piecewise_linear(instance.model)
        else None
    )
    return instance, pieces


def explained(seed: int, index: int, result: dict[str, Any], folder: Path) -> str:
    """Shrink the instance and write it; a line that says what it is."""
    rng = np.random.default_rng([seed, index])
    instance, pieces = drawn(rng)
    if result["kind"] == "false unsat":
        refuted(instance, np.random.default_rng(index), pieces, result["how"])

    def failing(candidate: Instance) -> bool:
        answer = asked(candidate, folder, SHRINKING)
        if result["kind"] == "traceback":
            return answer["word"] == "traceback" and answer["how"] == result["how"]
        return (
            answer["word"] == "unsat"
            and refuted(candidate, np.random.default_rng(index), how=answer["how"]) == result["why"]
        )

    small = (
        shrunk(instance, failing)
        if result["kind"] in ("traceback", "false unsat") and failing(instance)
        else instance
    )
    answer = asked(small, folder, max(SECONDS))
    line = f"bitcrown says {answer['word']} ({answer['how']})"
    if result["kind"] == "false unsat":
        why = refuted(small, np.random.default_rng(index), how=result["how"])
        line += f"; false by a point ({why}): {small.facts.get('witness')}"
        (folder / "witness.txt").write_text(
            "\n".join(small.facts.get("witness", [])) + "\n", encoding="ascii"
        )
    nodes = " ".join(node.op_type for node in small.model.graph.node)
    return f"{line}; {small.dtype.name}, {small.prop.inputs} inputs, {nodes}"
