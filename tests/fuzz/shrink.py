"""A failing instance made small: fewer cases, rows, terms, nodes and inputs, a smaller box, rounder
numbers.

Each candidate is asked again, and kept if it still fails in the same way; what is true of it is
found anew each time. A change of the network moves the outputs, so thresholds move with the values
of their rows at the instance's point.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.fuzz.properties import Property, Row, number
from tests.fuzz.truth import Instance, Reference, Runtime

Failing = Callable[[Instance], bool]
CPU_SECONDS = 25.0


def shrunk(instance: Instance, failing: Failing, seconds: float = CPU_SECONDS) -> Instance:
    """The smallest instance found within ``seconds`` of processor time."""
    end = time.process_time() + seconds
    gained = True
    while gained and time.process_time() < end:
        gained = False
        for makers in (
            _fewer_cases,
            _fewer_rows,
            _fewer_nodes,
            _pinned,
            _fewer_inputs,
            _fewer_terms,
            _rounder,
        ):
            place = 0
            while time.process_time() < end:
                candidate = _nth(makers(instance), place)
                if candidate is None:
                    break
                if _still(candidate, failing):
                    instance, gained = candidate, True
                else:
                    place += 1
    return instance


def _nth(candidates: Iterator[Instance], place: int) -> Instance | None:
    for k, candidate in enumerate(candidates):
        if k == place:
            return candidate
    return None


def _still(candidate: Instance, failing: Failing) -> bool:
    try:
        return failing(candidate)
    except Exception:  # noqa: BLE001 (a candidate may be no network at all)
        return False


def _with(instance: Instance, **changes: Any) -> Instance:
    return replace(instance, facts=dict(instance.facts), **changes)


def _fewer_cases(instance: Instance) -> Iterator[Instance]:
    prop = instance.prop
    for k in range(len(prop.cases) if len(prop.cases) > 1 else 0):
        yield _with(instance, prop=replace(prop, cases=prop.cases[:k] + prop.cases[k + 1 :]))


def _rows_changed(prop: Property, c: int, rows: tuple[Row, ...]) -> Property:
    return replace(prop, cases=prop.cases[:c] + (rows,) + prop.cases[c + 1 :])


def _fewer_rows(instance: Instance) -> Iterator[Instance]:
    for c, case in enumerate(instance.prop.cases):
        for r in range(len(case) if len(case) > 1 else 0):
            yield _with(instance, prop=_rows_changed(instance.prop, c, case[:r] + case[r + 1 :]))


def _fewer_terms(instance: Instance) -> Iterator[Instance]:
    values = _values(instance)
    if values is None:
        return
    for c, case in enumerate(instance.prop.cases):
        for r, row in enumerate(case):
            for t, (variable, factor) in enumerate(row.terms if len(row.terms) > 1 else ()):
                rhs = _moved(row.rhs, -Fraction(factor) * Fraction(values[variable]))
                changed = Row(row.terms[:t] + row.terms[t + 1 :], row.op, rhs)
                yield _with(
                    instance,
                    prop=_rows_changed(instance.prop, c, case[:r] + (changed,) + case[r + 1 :]),
                )


def _moved(text: str, change: Fraction) -> str:
    """A threshold plus a change; one beyond all floats stays where it is."""
    try:
        return number(float(Fraction(text) + change)) if change else text
    except OverflowError:
        return text


def _values(instance: Instance) -> list[float] | None:
    """Inputs and outputs at the instance's point."""
    if instance.point is None:
        return None
    found = Reference(instance).outputs(instance.point)
    y = (
        found[0]
        if found is not None
        else Runtime(instance).outputs(instance.point).astype(np.float64)
    )
    if not np.isfinite(y).all():
        return None
    return [*instance.point.astype(np.float64).tolist(), *y.tolist()]


def _replanted(before: Instance, after: Instance) -> Instance:
    """``after`` with every threshold moved by what its row moved at the point."""
    old, new = _values(before), _values(after)
    if old is None or new is None or len(old) - before.prop.inputs != len(new) - after.prop.inputs:
        return after
    cases = []
    for case, moved in zip(before.prop.cases, after.prop.cases, strict=True):
        rows = []
        for row, other in zip(case, moved, strict=True):
            now = sum((Fraction(c) * Fraction(new[i]) for i, c in other.terms), Fraction(0))
            change = now - sum((Fraction(c) * Fraction(old[i]) for i, c in row.terms), Fraction(0))
            rows.append(replace(other, rhs=_moved(other.rhs, change)))
        cases.append(tuple(rows))
    return _with(after, prop=replace(after.prop, cases=tuple(cases)))


def cleaned(model: Any) -> Any:
    """Without nodes and constants that the output does not need."""
    needed, kept = {"y"}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(reversed(kept))
    result.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    return result


def _copy(model: Any) -> Any:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def _fewer_nodes(instance: Instance) -> Iterator[Instance]:
    """One node passed over: its readers read one of its inputs instead."""
    known = {t.name for t in instance.model.graph.initializer}
    for k, node in enumerate(instance.model.graph.node):
        for name in node.input:
            if name and name not in known and node.output[0] != "y":
                model = _copy(instance.model)
                del model.graph.node[k]
                for other in model.graph.node:
                    other.input[:] = [
                        name if read == node.output[0] else read for read in other.input
                    ]
                yield _guarded(instance, _with(instance, model=cleaned(model)))


def _guarded(before: Instance, after: Instance) -> Instance:
    try:
        return _replanted(before, after)
    except Exception:  # noqa: BLE001 (no network any more: the question will say so)
        return after


def _pinned(instance: Instance) -> Iterator[Instance]:
    prop, point = instance.prop, instance.point
    if point is None:
        return
    moving = [i for i in range(prop.inputs) if Fraction(prop.lower[i]) < Fraction(prop.upper[i])]
    for chosen in [
        moving,
        moving[: len(moving) // 2],
        moving[len(moving) // 2 :],
        *([i] for i in moving),
    ]:
        if chosen:
            ends = {i: number(float(point[i])) for i in chosen}
            lower = tuple(ends.get(i, text) for i, text in enumerate(prop.lower))
            upper = tuple(ends.get(i, text) for i, text in enumerate(prop.upper))
            yield _with(instance, prop=replace(prop, lower=lower, upper=upper))


def _fewer_inputs(instance: Instance) -> Iterator[Instance]:
    """An input left out, with its weights in the layers that read it."""
    n = instance.prop.inputs
    parts = [range(0, n // 2), range(n // 2, n), *((i,) for i in range(n))]
    for gone in parts if n > 1 and instance.shape[-1] == n else ():
        model = _copy(instance.model)
        model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = n - len(gone)
        readers = {"x"} | {
            node.output[0]
            for node in model.graph.node
            if node.op_type == "Cast" and node.input[0] == "x"
        }
        sides = {}
        for node in model.graph.node:
            if node.op_type in ("Gemm", "MatMul") and node.input[0] in readers:
                sides[node.input[1]] = int(any(a.name == "transB" and a.i for a in node.attribute))
        for tensor in model.graph.initializer:
            if tensor.name in sides:
                value = np.delete(
                    numpy_helper.to_array(tensor), list(gone), axis=sides[tensor.name]
                )
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        prop = instance.prop
        cases = tuple(tuple(_without(row, gone) for row in case) for case in prop.cases)
        if not all(row.terms for case in cases for row in case):
            continue
        lower, upper = (
            tuple(t for i, t in enumerate(texts) if i not in gone)
            for texts in (prop.lower, prop.upper)
        )
        point = None if instance.point is None else np.delete(instance.point, list(gone))
        smaller = Property(lower, upper, prop.outputs, cases)
        yield _guarded(instance, _with(instance, model=model, prop=smaller, point=point))


def _without(row: Row, gone: Sequence[int]) -> Row:
    return replace(
        row, terms=tuple((v - sum(i < v for i in gone), c) for v, c in row.terms if v not in gone)
    )


def _rounder(instance: Instance) -> Iterator[Instance]:
    """Weights, box and thresholds with fewer digits."""
    for digits in (0, 1):
        for tensor in instance.model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            near = np.round(value * 4**digits) / 4**digits if value.dtype.kind == "f" else value
            if value.dtype.kind == "f" and not np.array_equal(near, value):
                model = _copy(instance.model)
                for other in model.graph.initializer:
                    if other.name == tensor.name:
                        other.CopyFrom(
                            numpy_helper.from_array(near.astype(value.dtype), tensor.name)
                        )
                yield _guarded(instance, _with(instance, model=model))
    prop = instance.prop
    for digits in (1, 3):
        short = [tuple(_short(t, digits) for t in texts) for texts in (prop.lower, prop.upper)]
        if short != [prop.lower, prop.upper]:
            yield _with(instance, prop=replace(prop, lower=short[0], upper=short[1]))
        for c, case in enumerate(prop.cases):
            rows = tuple(replace(row, rhs=_short(row.rhs, digits)) for row in case)
            if rows != case:
                yield _with(instance, prop=_rows_changed(prop, c, rows))


def _short(text: str, digits: int) -> str:
    near = f"{float(text):.{digits}g}"
    return near if len(near) < len(text) else text
