"""From a candidate to a witness nobody can reject: rounding into the box, replay, exact check, and the two formats.

A candidate is rounded to the network's input type; entries that then lie outside the box are moved to the nearest
float inside. If no float of that type lies between the exact bounds of some input, the nearest one is taken, and the
exact check of the property will reject it unless it satisfies the property as written.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from bitcrown.check.evaluate import first_failure, is_finite, names
from bitcrown.check.replay import Replay
from bitcrown.spec.problem import Case, Problem
from bitcrown.spec.query import Query, TensorDecl
from bitcrown.verdict import Witness


def _inward(value: Fraction, dtype: type[np.generic], up: bool) -> float:
    """The float of ``dtype`` next to ``value``, not below it if ``up``, not above it otherwise."""
    nearest = np.array(float(value)).astype(dtype)[()]
    while up and Fraction(float(nearest)) < value:
        nearest = np.nextafter(nearest, np.array(np.inf, dtype=dtype))
    while not up and Fraction(float(nearest)) > value:
        nearest = np.nextafter(nearest, np.array(-np.inf, dtype=dtype))
    return float(nearest)


class InwardBox:
    """The box of a case in the networks' own float types, rounded inward: ``lower``/``upper [n]`` float64 arrays."""

    def __init__(self, case: Case, dtypes: np.ndarray) -> None:
        self.dtypes = dtypes
        low = [_inward(value, dtype, True) for value, dtype in zip(case.lower, dtypes, strict=True)]
        up = [_inward(value, dtype, False) for value, dtype in zip(case.upper, dtypes, strict=True)]
        self.lower, self.upper = np.array(low), np.array(up)
        for i in np.nonzero(self.lower > self.upper)[0]:
            middle = (case.lower[i] + case.upper[i]) / 2
            nearest = float(np.array(float(middle)).astype(dtypes[i]))
            self.lower[i] = self.upper[i] = nearest

    def project(self, x: np.ndarray) -> np.ndarray:
        """``x [n]`` rounded to the input types and moved into the box."""
        kinds = set(self.dtypes)
        if len(kinds) == 1:
            rounded = x.astype(next(iter(kinds))).astype(np.float64)
        else:
            rounded = np.array([float(np.array(v).astype(d)) for v, d in zip(x, self.dtypes, strict=True)])
        return np.clip(rounded, self.lower, self.upper)


class Confirmer:
    """Confirms candidates for one problem; boxes are rounded once."""

    def __init__(self, problem: Problem, replay: Replay) -> None:
        self.problem, self.replay = problem, replay
        self.dtypes = replay.dtypes()
        self._boxes: dict[tuple[int, int], InwardBox] = {}

    def box(self, case: Case) -> InwardBox:
        key = (id(case.lower), id(case.upper))
        if key not in self._boxes:
            self._boxes[key] = InwardBox(case, self.dtypes)
        return self._boxes[key]

    def confirm(self, x: np.ndarray, case: Case | None = None) -> Witness | None:
        """A witness at (the projection of) ``x [n]``, or None. ``case`` says whose box ``x`` belongs to."""
        if not np.isfinite(x).all():
            return None
        if case is None:
            case = self._nearest_case(x)
        return confirm_at(self.replay, self.problem.query, self.box(case).project(x))

    def _nearest_case(self, x: np.ndarray) -> Case:
        cases = self.problem.cases
        keys = {(id(case.lower), id(case.upper)): case for case in cases}
        if len(keys) == 1:
            return cases[0]

        def distance(case: Case) -> float:
            low, up = np.array(case.lower, dtype=np.float64), np.array(case.upper, dtype=np.float64)
            return float(np.maximum(np.maximum(low - x, x - up), 0).max())

        return min(keys.values(), key=distance)


def confirm_at(replay: Replay, query: Query, x: np.ndarray) -> Witness | None:
    """Replay exactly ``x [n]`` and check the whole assertion with zero tolerance."""
    inputs, outputs = replay.run(x)
    input_names, output_names = names(query)
    values = dict(zip(input_names + output_names, inputs + outputs, strict=True))
    if not is_finite(values) or first_failure(query, values) is not None:
        return None
    return Witness(dict(zip(input_names, inputs, strict=True)), dict(zip(output_names, outputs, strict=True)))


def number_text(value: np.generic) -> str:
    """Shortest text that reads back as the same value of its own type (and, for float32, of float64 too)."""
    return repr(float(value))


def format_witness(query: Query, witness: Witness) -> str:
    """The result file of a ``sat`` answer: the word and the witness in the format of the query's version."""
    return _format_1(query, witness) if query.version[0] < 2 else _format_2(query, witness)


def _format_1(query: Query, witness: Witness) -> str:
    parts = []
    for prefix, tensors in (("X", witness.inputs), ("Y", witness.outputs)):
        flat = np.concatenate(list(tensors.values()))
        parts += [f"({prefix}_{i} {number_text(value)})" for i, value in enumerate(flat)]
    return "sat\n(" + "\n".join(parts) + ")\n"


def _format_2(query: Query, witness: Witness) -> str:
    lines = ["sat"]
    for network in query.networks:
        for tensors, values in ((network.inputs, witness.inputs), (network.outputs, witness.outputs)):
            for tensor in tensors:
                lines.append(f"{tensor.name} {_type_word(tensor)} [{','.join(map(str, tensor.shape))}]")
                lines += [number_text(value) for value in values[tensor.name]]
    return "\n".join(lines) + "\n"


def _type_word(tensor: TensorDecl) -> str:
    return tensor.dtype.lower()


def size(tensor: TensorDecl) -> int:
    return math.prod(tensor.shape)
