"""From a candidate to a witness nobody can reject: rounding into the box, replay, exact check, and
the two formats.

A candidate is rounded to the network's input type; entries that then lie outside the box are moved
to the nearest number inside. If no number of that type lies between the exact bounds of some input
(0.1 <= X_0 <= 0.1 in float32), the nearest one is taken, and the bounds of that one input are read
as the competition's scorer reads them: rounded to the input's type. Everything else is checked
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.result_file import CheckOutcome, check_result
from bitcrown.check.truth import AssertionCheck, names
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.query import Query, TensorDecl
from bitcrown.verdict import Witness

_LARGEST: dict[type[np.generic], float] = {
    np.float32: float(np.finfo(np.float32).max),
    np.float64: float(np.finfo(np.float64).max),
}


def _inward(values: Sequence[Fraction], dtype: type[np.generic], is_lower: bool) -> np.ndarray:
    """The numbers of ``dtype`` next to ``values``: not below them if ``is_lower``, not above them
    otherwise."""
    if isinstance(values, ExactVector) and dtype in (np.float32, np.float64):
        # The least float32 not below a number is the one not below its least float64.
        wide = values.rounded(is_lower)
        near = np.clip(wide, -_LARGEST[dtype], _LARGEST[dtype]).astype(dtype)
        outside = near < wide if is_lower else near > wide
        next_one = np.nextafter(near, np.array(np.inf if is_lower else -np.inf, dtype=dtype))
        found: np.ndarray = np.where(outside, next_one, near).astype(np.float64)
        return found
    if issubclass(dtype, np.integer | np.bool_):
        least, most = 0, 1
        if issubclass(dtype, np.integer):
            least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        whole = [math.ceil(value) if is_lower else math.floor(value) for value in values]
        return np.array([float(min(max(value, least), most)) for value in whole])
    largest = float(np.finfo(np.dtype(dtype)).max)
    with np.errstate(over="ignore"):
        near = np.clip(
            np.array([_nearest(value) for value in values]).astype(dtype), -largest, largest
        ).astype(dtype)
    wrong = np.zeros(len(near), dtype=bool)
    for i, (number, value) in enumerate(zip(near.tolist(), values, strict=True)):
        # In integers: comparing Fractions is several times slower, and there are two for every
        # pixel.
        p, q = number.as_integer_ratio()
        r, s = value.as_integer_ratio()
        wrong[i] = p * s < r * q if is_lower else p * s > r * q
    with np.errstate(over="ignore"):
        away = np.nextafter(near, np.array(np.inf if is_lower else -np.inf, dtype=near.dtype))
    result: np.ndarray = np.where(wrong, away, near).astype(np.float64)
    return result


def _entries(values: Sequence[Fraction], places: list[int]) -> Sequence[Fraction]:
    if isinstance(values, ExactVector):
        return values.taken(np.array(places, dtype=np.int64))
    return [values[i] for i in places]


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def inward_box(
    lower: Sequence[Fraction],
    upper: Sequence[Fraction],
    dtypes: Sequence[type[np.generic]] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact bounds rounded inward to each input's type: ``low``, ``high`` (float64, ``[n]``) and
    ``is_off`` (bool).

    ``is_off`` marks inputs for which no number of their type lies between the bounds; ``low`` and
    ``high`` are then both the nearest number, which lies outside by less than one step of the type.
    """
    low, high = np.empty(len(lower)), np.empty(len(lower))
    kinds = np.array([np.dtype(dtype).num for dtype in dtypes])
    for number in np.unique(kinds):
        places = np.nonzero(kinds == number)[0].tolist()
        kind = dtypes[places[0]]
        low[places] = _inward(_entries(lower, places), kind, True)
        high[places] = _inward(_entries(upper, places), kind, False)
    is_off = ~(low <= high) | ~np.isfinite(low) | ~np.isfinite(high)
    for i in np.nonzero(is_off)[0].tolist():
        middle = _nearest((lower[i] + upper[i]) / 2)
        is_whole = issubclass(dtypes[i], np.integer | np.bool_)
        with np.errstate(over="ignore"):
            low[i] = high[i] = (
                round(middle) if is_whole else float(np.array(middle).astype(dtypes[i]))
            )
    return low, high, is_off


class InwardBox:
    """The box of a case in the networks' own number types, and the equalities between its inputs.

    ``lower``/``upper`` are float64 ``[n]``; ``is_off [n]`` marks inputs that no number of their
    type can satisfy.
    """

    def __init__(self, case: Case, dtypes: np.ndarray) -> None:
        self.dtypes = dtypes
        self.places = _places_of_types(dtypes)
        self.lower, self.upper, self.is_off = inward_box(case.lower, case.upper, dtypes)
        self.ties = tied_inputs(case.constraints, len(case.lower))
        for group in self.ties:
            low, high = self.lower[group].max(), self.upper[group].min()
            if low <= high:
                self.lower[group], self.upper[group] = low, high

    def project(self, points: np.ndarray) -> np.ndarray:
        """``points [..., n]`` rounded to the input types, moved into the box, tied inputs made
        equal; float64."""
        rounded = np.empty(points.shape)
        for kind, places in self.places.items():
            part = points[..., places]
            if issubclass(kind, np.integer | np.bool_):
                rounded[..., places] = np.rint(part)
            else:
                with np.errstate(over="ignore"):
                    rounded[..., places] = part.astype(kind).astype(np.float64)
        for group in self.ties:
            rounded[..., group] = rounded[..., group[:1]]
        result: np.ndarray = np.clip(rounded, self.lower, self.upper)
        return result


def _places_of_types(dtypes: np.ndarray) -> dict[type, Any]:
    """An index of the inputs of each type. An array of classes is compared one by one: compared
    with a class as a whole, numpy takes that for a number of its own, and fails."""
    kinds = dtypes.tolist()
    found = set(kinds)
    if len(found) == 1:
        return {kinds[0]: slice(None)}
    return {kind: np.array([other is kind for other in kinds]) for kind in found}


def tied_inputs(constraints: Sequence[Constraint], n: int) -> list[np.ndarray]:
    """Groups of inputs that the constraints make equal (``x_i <= x_j`` and ``x_j <= x_i``), each
    sorted ``[g]``.

    A floating-point search never meets an equality by chance, so candidates are moved onto it.
    """
    pairs = set()
    for constraint in constraints:
        if constraint.bound or len(constraint.terms) != 2:
            continue
        (one, a), (other, b) = constraint.terms
        if len(one) == len(other) == 1 and max(one[0], other[0]) < n and a == -b:
            pairs.add((one[0], other[0]) if a > 0 else (other[0], one[0]))
    parent: dict[int, int] = {}
    for i, j in pairs:
        if (j, i) in pairs:
            parent.setdefault(i, i)
            parent.setdefault(j, j)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        if (j, i) in pairs and root(i) != root(j):
            parent[max(root(i), root(j))] = min(root(i), root(j))
    groups: dict[int, list[int]] = {}
    for i in sorted(parent):
        groups.setdefault(root(i), []).append(i)
    return [np.array(group) for group in groups.values()]


class Confirmer:
    """Confirms candidates for one problem; boxes are rounded and the property is prepared once."""

    def __init__(self, problem: Problem, replay: RuntimeReplay) -> None:
        self.problem, self.replay = problem, replay
        self.dtypes = replay.dtypes()
        self.checker = AssertionCheck(problem.query)
        self._boxes: dict[tuple[int, ...], InwardBox] = {}
        self._keys: dict[int, tuple[int, ...]] = {}
        self._distinct: list[Case] | None = None

    def box(self, case: Case) -> InwardBox:
        """The inward box of a case; cases that share a box and have no input ties share the
        result."""
        key = self._keys.get(id(case))
        if key is None:
            own = (id(case),) if tied_inputs(case.constraints, self.problem.n_inputs) else ()
            key = self._keys[id(case)] = (id(case.lower), id(case.upper), *own)
        if key not in self._boxes:
            self._boxes[key] = InwardBox(case, self.dtypes)
        return self._boxes[key]

    def confirm(self, x: np.ndarray, case: Case | None = None) -> Witness | None:
        """A witness at (the projection of) ``x [n]``, or None. ``case`` says whose box ``x``
        belongs to.

        Raises ``ModelError`` if onnxruntime fails at that point.
        """
        if not np.isfinite(x).all() or not self.problem.cases:
            return None
        if case is None:
            case = self._nearest_case(x)
        box = self.box(case)
        return confirm_at(self.replay, self.checker, box.project(x), self._pinned(box))

    def _pinned(self, box: InwardBox) -> frozenset[tuple[str, int]]:
        """(tensor, element) of the inputs for which the box holds no number of their type."""
        if not box.is_off.any():
            return frozenset()
        tensors = [tensor for network in self.problem.query.networks for tensor in network.given]
        elements = [
            (tensor.name, index) for tensor in tensors for index in range(math.prod(tensor.shape))
        ]
        return frozenset(elements[i] for i in np.nonzero(box.is_off)[0].tolist())

    def _nearest_case(self, x: np.ndarray) -> Case:
        if self._distinct is None:
            self._distinct = list(
                {(id(c.lower), id(c.upper)): c for c in self.problem.cases}.values()
            )
        if len(self._distinct) == 1:
            return self._distinct[0]

        def distance(case: Case) -> float:
            box = self.box(case)
            return float(np.maximum(np.maximum(box.lower - x, x - box.upper), 0).max())

        return min(self._distinct, key=distance)


def confirm_at(
    replay: RuntimeReplay,
    checker: AssertionCheck,
    x: np.ndarray,
    pinned: Collection[tuple[str, int]] = (),
) -> Witness | None:
    """Replay exactly ``x [n]`` and check the whole assertion with zero tolerance.

    Bounds on the inputs ``pinned`` are rounded to the input's type first.
    """
    inputs, outputs = replay.run(x)
    input_names, output_names = names(checker.query)
    values = dict(zip(input_names + output_names, inputs + outputs, strict=True))
    if not checker.holds(values, pinned):
        return None
    return Witness(
        dict(zip(input_names, inputs, strict=True)), dict(zip(output_names, outputs, strict=True))
    )


def confirm(replay: RuntimeReplay, query: Query, x: np.ndarray) -> Witness | None:
    """A witness at ``x [n]`` rounded to the input types, or None; ``Confirmer`` also moves ``x``
    into its box."""
    return confirm_at(replay, AssertionCheck(query), x) if np.isfinite(x).all() else None


def number_text(value: np.generic) -> str:
    """Shortest text that reads back as the same value, through float64 and through the value's own
    type."""
    return str(int(value)) if isinstance(value, np.integer | np.bool_) else repr(float(value))


def format_witness(query: Query, witness: Witness) -> str:
    """The result file of a ``sat`` answer: the word and the witness in the format of the query's
    version."""
    return _format_1(query, witness) if query.version[0] < 2 else _format_2(query, witness)


def _format_1(query: Query, witness: Witness) -> str:
    parts = []
    input_names, output_names = names(query)
    for prefix, tensors, order in (
        ("X", witness.inputs, input_names),
        ("Y", witness.outputs, output_names),
    ):
        flat = [number_text(value) for name in order for value in tensors[name]]
        parts += [f"({prefix}_{i} {text})" for i, text in enumerate(flat)]
    return "sat\n(" + "\n".join(parts) + ")\n"


def _format_2(query: Query, witness: Witness) -> str:
    lines = ["sat"]
    values = {**witness.inputs, **witness.outputs}
    for network in query.networks:
        for tensor in network.inputs + network.hidden + network.outputs:
            lines.append(_header(tensor))
            lines += [number_text(value) for value in values[tensor.name]]
    return "\n".join(lines) + "\n"


def _header(tensor: TensorDecl) -> str:
    # The declared word, not the type of the file: a query that says real accepts only real.
    return f"{tensor.name} {tensor.dtype} [{','.join(map(str, tensor.shape))}]"


__all__ = [
    "CheckOutcome",
    "Confirmer",
    "InwardBox",
    "check_result",
    "confirm",
    "confirm_at",
    "format_witness",
    "inward_box",
    "number_text",
    "tied_inputs",
]
