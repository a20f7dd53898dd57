"""Inputs that a network reads in steps only: finitely many cells, each run through onnxruntime.

A position in an image, a token, a count: such inputs enter through ``Cast`` to integers, ``Floor``,
``Ceil``, ``Round``, or are integers by type. All of these are constant on every cell of the line
that the multiples of one half cut out, the cut points being cells of their own. So where every
input that varies is of this kind, the network is constant on the product of cells, and one point of
each decides the property, in the runtime's own arithmetic: no violation in any cell is a proof, a
violation is a candidate like every other.

A quantizer of float32 with one scale is such a step as well, with edges of its own
(``input_quantizers``).

The property must speak of outputs alone: a condition on the inputs could hold in a part of a cell.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.file import NetworkFile
from bitcrown.model.folding import fold
from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.model.onnx_reader import nodes_and_constants
from bitcrown.search.input_quantizers import InputQuantizer, input_quantizer
from bitcrown.spec.case_table import arrays_of
from bitcrown.spec.problem import Case
from bitcrown.spec.rounding import box_of
from bitcrown.verdict import Status, Verdict

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_MOST_CELLS = 1 << 17
_COUNTED = float(1 << 51)
"""Below this, float64 holds every multiple of one half."""
_SHARE = 0.8
"""Share of the time left that running all cells may be expected to take."""
_STEPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Cast": np.trunc,
    "is not zero": lambda x: x != 0,
}
_Step = str | InputQuantizer
_WHOLE = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
_RANDOM = {
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Bernoulli", "Multinomial"),
}
_MOVES = {
    *("Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
}


def decide_in_cells(run: Run) -> Verdict | None:
    """The verdict where few cells make up all boxes; None where another engine should try."""
    if len(run.problem.networks) != 1:
        return None
    with run.phase("cells"):
        ends = _ends_of_boxes(run)
        if ends is None:
            return None
        return _run_all(run, ends)


def count_of_cells(run: Run) -> int | None:
    """How many cells make up all boxes; None where they are no cells, or too many."""
    if len(run.problem.networks) != 1 or _ends_of_boxes(run) is None:
        return None
    return int(run.counters["cells"])


def _ends_of_boxes(run: Run) -> list[tuple[list[Case], list[np.ndarray]]] | None:
    """For every box its cases and, input by input, one value of each cell; None where some input
    that varies is not read in steps, or cells are too many."""
    problem, kinds = run.problem, run.replay.dtypes()
    file = next(iter(run.files.values()))
    if not _may_have_cells(file):
        return None
    forms = arrays_of(problem.cases, problem.n_inputs).used_forms().values()
    if any(v < problem.n_inputs for terms in forms for monomial, _ in terms for v in monomial):
        return None
    read, unread = input_steps(file)
    boxes: dict[tuple[int, int], list[Case]] = {}
    for case in problem.cases:
        boxes.setdefault((id(case.lower), id(case.upper)), []).append(case)
    result, cells = [], 0
    for cases in boxes.values():
        values = []
        for i, kind in enumerate(kinds):
            first, last = _numbers(cases[0].lower[i], cases[0].upper[i], kind)
            if first == last or i in unread:
                values.append(np.array([first]))
                continue
            found = _one_of_each(first, last, kind, read.get(i, {}))
            if found is None:
                return None
            values.append(found)
        cells += math.prod(len(value) for value in values)
        if cells > _MOST_CELLS:
            return None
        result.append((cases, values))
    run.counters["cells"] = cells
    return result


def _may_have_cells(file: NetworkFile) -> bool:
    """A look at the names of operators, which most networks do not pass. A graph inside a node
    reads tensors that its inputs do not name, and what is drawn at random has no value."""
    nodes = file.proto.graph.node
    if any(
        node.op_type in _RANDOM or any(a.HasField("g") for a in node.attribute) for node in nodes
    ):
        return False
    has_steps = any(node.op_type in (*_STEPS, "QuantizeLinear") for node in nodes)
    return has_steps or any(t.dtype is not None and t.dtype.kind in "iub" for t in file.inputs)


def _numbers(lower: Fraction, upper: Fraction, kind: type[np.generic]) -> tuple[float, float]:
    """Least and greatest number of type ``kind`` that some reading of the box contains."""
    start, end = box_of(lower, upper, kind)
    if issubclass(kind, np.integer | np.bool_):
        return float(math.ceil(start)), float(math.floor(end))
    first, last = np.array(start).astype(kind), np.array(end).astype(kind)
    if float(first) < start:
        first = np.nextafter(first, kind(np.inf))
    if float(last) > end:
        last = np.nextafter(last, kind(-np.inf))
    return float(first), float(last)


def _one_of_each(
    first: float, last: float, kind: type[np.generic], steps: Mapping[_Step, float]
) -> np.ndarray | None:
    """One number of the type in each cell of ``steps`` between ``first`` and ``last``; None where
    it is not read in these steps there, or cells are too many.

    A cut point that is no number of the type stands for none: it would be read as one of another
    cell. And zeros of both signs are two values, of which ``1 / x`` makes very different ones.
    """
    is_whole = issubclass(kind, np.integer | np.bool_)
    named = [step for step in steps if isinstance(step, str)]
    limit = _COUNTED if is_whole else min(steps.values(), default=0.0)
    if named:
        limit = min(limit, _COUNTED)
    if not -limit < first <= last < limit:
        return None
    if (is_whole or named) and last - first > _MOST_CELLS:
        return None
    if is_whole:
        return np.arange(first, last + 1)
    parts = [np.array([first, last])]
    if named:
        parts.append(np.arange(math.ceil(2 * first), math.floor(2 * last) + 1) / 2)
    for step in steps:
        if not isinstance(step, str):
            edges = step.steps(first, last) if kind is np.float32 else None
            if edges is None:
                return None
            parts.append(edges)
    cuts = np.unique(np.concatenate(parts))
    # (The number of the type nearest to a middle lies between the cuts, if any does.)
    with np.errstate(over="ignore"):
        between = ((cuts[:-1] + cuts[1:]) / 2).astype(kind).astype(np.float64)
        of_type = cuts[cuts == cuts.astype(kind).astype(np.float64)]
    inside = between[(cuts[:-1] < between) & (between < cuts[1:])]
    zero = [-0.0] if np.sign(first) != np.sign(last) else []
    found = np.concatenate([of_type, inside, zero])
    rules = [_STEPS[step] if isinstance(step, str) else step for step in sorted(steps, key=str)]
    values = np.stack([np.asarray(rule(found), np.float64) for rule in rules])
    _, places = np.unique(np.concatenate([values, np.signbit(values)]), axis=1, return_index=True)
    return np.sort(found[places])


def input_steps(file: NetworkFile) -> tuple[Mapping[int, Mapping[_Step, float]], set[int]]:
    """Numbers of the inputs that are read in steps only, each with its steps and the magnitude
    below which they are some; and numbers of the inputs that nothing reads."""
    nodes, constants, shapes, outputs = nodes_and_constants(file)
    number = 0
    places: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        places[name] = np.arange(number, number + size, dtype=np.int64).reshape(shape)
        number += size
    found: dict[int, dict[_Step, float]] = {}
    others: set[int] = set()
    for node in nodes:
        for name in set(node.inputs):
            if name not in places or node.op in ("Shape", "Size"):
                continue
            where = [int(i) for i in np.unique(places[name])]
            step = _step(node, constants) if node.inputs[0] == name else None
            if step is not None:
                for i in where:
                    steps = found.setdefault(i, {})
                    steps[step[0]] = min(step[1], steps.get(step[0], math.inf))
            elif not _moved(node, name, constants, places):
                others.update(where)
    # (Only now is it known what of the inputs comes out as it was.)
    others.update(int(i) for name in outputs if name in places for i in places[name].flat)
    unread = set(range(number)) - others - set(found)
    return {i: steps for i, steps in found.items() if i not in others}, unread


def _step(node: OnnxNode, constants: Mapping[str, np.ndarray]) -> tuple[_Step, float] | None:
    """Which step the operator is, and below which magnitude; None for one that is not."""
    quantizer = input_quantizer(node, constants)
    if quantizer is not None:
        return quantizer, math.inf
    if node.op == "Cast" and node.attrs.get("to") == 9:
        return "is not zero", math.inf
    if node.op == "Cast" and node.attrs.get("to") in _WHOLE:  # beyond the type anything may come
        info = np.iinfo(_WHOLE[int(node.attrs["to"])])
        return "Cast", float(min(info.max, -info.min if info.min else 1))
    return (node.op, math.inf) if node.op in _STEPS and node.op != "Cast" else None


def _moved(
    node: OnnxNode, name: str, constants: Mapping[str, np.ndarray], places: dict[str, np.ndarray]
) -> bool:
    """Follow an operator that only moves entries; False where it does anything else."""
    known = {other: constants[other] for other in node.inputs if other in constants}
    if (
        node.op not in _MOVES
        or node.inputs[0] != name
        or name in node.inputs[1:]
        or any(other and other != name and other not in known for other in node.inputs)
    ):
        return False
    try:
        values = fold(node, {**known, name: places[name]})
    except (UnsupportedError, ModelError, ValueError, IndexError, KeyError, TypeError):
        return False
    places.update(zip((output for output in node.outputs if output), values, strict=False))
    return True


def _run_all(run: Run, boxes: Sequence[tuple[list[Case], list[np.ndarray]]]) -> Verdict | None:
    """Every cell once. None where that takes too long, or a cell cannot be judged."""
    started, done, total = time.monotonic(), 0, run.counters["cells"]
    zeros = [Fraction(0)] * run.problem.n_inputs  # no constraint reads an input
    for cases, values in boxes:
        for x in _points(values):
            run.budget.check()
            outputs = np.concatenate([part.ravel() for part in run.replay.run(x)[1]])
            if not np.isfinite(outputs.astype(np.float64)).all():
                return None
            numbers = [*zeros, *(Fraction(value.item()) for value in outputs)]
            for case in cases:
                if not all(constraint.is_met(numbers) for constraint in case.constraints):
                    continue
                witness = run.confirm(x, run.problem.cases.index(case))
                # no witness: the cell's point lies where only one reading of the box reaches
                return None if witness is None else run.sat(witness, "cells")
            done += 1
            if done == 16:
                expected = (time.monotonic() - started) / done * (total - done)
                if expected > _SHARE * run.budget.remaining():
                    return None
    return run.verdict(Status.UNSAT, "cells")


def _points(values: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """One point ``[n]`` of every cell of the product."""
    x = np.array([value[0] for value in values])
    varied = [i for i, value in enumerate(values) if len(value) > 1]
    for chosen in itertools.product(*(values[i] for i in varied)):
        x[varied] = chosen
        yield x.copy()
