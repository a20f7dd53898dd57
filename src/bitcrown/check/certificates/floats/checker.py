"""Checks a proof about a float network: no input of the property violates it, the network taken as
a real function.

The certificate holds *choices* only: where boxes are split, which neurons are decided, slopes in
``[0, 1]`` and multipliers that are not negative. Every number that the claim rests on is computed
here: the bounds of all layers, the value of every leaf, its rounding error (``bounds``). A
wrong choice therefore makes a bound worse and never wrong, and a certificate that was tampered with
is accepted only if it is still a proof. Nothing is shared with the prover but the parser of
properties (``spec``).

**Parts.** Every case of the property must be refuted by a part.

``inputs``   A tree over the input box, level by level. At every node the layers and the rows of all
             open cases are bounded; a case closes when one of its rows is above its limit on the
             whole box; the box shrinks to what open cases leave (``layers.clipped_boxes``); an
             inner node splits it at ``x_axis <= point``, ``>= point``. At a leaf no case may be
             open.
``root``     Some cases over one box, each refuted on the whole box by one of its rows with default
             slopes. Layers are bounded as for ``neurons``.
``neurons``  A tree of decisions ``z <= 0``, ``z >= 0`` about operands of ReLUs, for one case over
             its whole box. Layers are bounded once, at the root, with slopes of the file for single
             neurons. A leaf has slopes, a multiplier for each decision on its path, and weights for
             the rows of the case; it is closed when the weighted sum of the rows, bounded below on
             the box with these, is above that of the limits.

Legend: ``B`` boxes or leaves, ``Q`` cases over one box, ``S`` rows of a case, ``N`` neurons of a
ReLU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.certificates.documents import (
    CertificateJudgement,
    Reject,
    field,
    integer_in,
    integers_in,
    need,
)
from bitcrown.check.certificates.floats.bounds import Bounder, OperandBounds, proves
from bitcrown.check.certificates.floats.format import Arrays, decoded
from bitcrown.check.certificates.floats.layers import Index, RowSlopes, layer_bounds, spread_slopes
from bitcrown.check.certificates.floats.nodes import FloatArray, FloatNetwork
from bitcrown.check.certificates.floats.property import Group, cases_by_box
from bitcrown.check.certificates.floats.reader import read_networks
from bitcrown.check.certificates.floats.steps import (
    Leaves,
    closed_at_root,
    halves,
    leaf_values,
    refine,
)
from bitcrown.check.model_files import unpacked_model
from bitcrown.check.replay import RuntimeReplay
from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.spec.problem import Problem

_MAX_MULTIPLIER = 1e100
MAX_LEVELS = 10_000
_LEAVES_AT_ONCE = 1024
_POINTS = 6
_TOLERANCE = 2e-3


@dataclass(frozen=True)
class ProofSubject:
    """What a certificate is about: the network, its cases by box, and the digests that bind the
    file to both."""

    network: FloatNetwork
    groups: tuple[Group, ...]
    digests: dict[str, Any]


def subject_of(problem: Problem) -> ProofSubject:
    """Reads network and property and compares the network with onnxruntime.

    Raises ``UnsupportedError`` for networks that are not piecewise linear, ``ModelError`` and
    ``PropertyError``.
    """
    if not problem.covers_all:
        raise UnsupportedError("certificates: the property leaves inputs without bounds")
    network, dtypes = read_networks(problem.query, problem.networks)
    if network.n_inputs != problem.n_inputs or network.n_outputs != problem.n_outputs:
        raise ModelError(
            "certificates: the property declares other sizes of inputs and outputs than the "
            "network has"
        )
    groups = tuple(cases_by_box(problem, dtypes))
    _compare(network, problem, groups)
    files = [
        hashlib.sha256(unpacked_model(problem.networks[declared.name])).hexdigest()
        for declared in problem.query.networks
    ]
    return ProofSubject(network, groups, {"networks": files, "property": _property_digest(problem)})


def _property_digest(problem: Problem) -> str:
    """SHA-256 of the cases as exact numbers."""
    boxes = {id(end): str(end) for case in problem.cases for end in (case.lower, case.upper)}
    lines = [
        f"{boxes[id(case.lower)]} {boxes[id(case.upper)]} {case.constraints}"
        for case in problem.cases
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _compare(network: FloatNetwork, problem: Problem, groups: tuple[Group, ...]) -> None:
    """Raises ``ModelError`` if the network as read here differs from onnxruntime by more than
    float32 rounding."""
    replay, generator = RuntimeReplay(problem.query, problem.networks), np.random.default_rng(0)
    is_half = any(dtype is np.float16 for dtype in replay.dtypes())
    for k in range(_POINTS):
        box = groups[k % len(groups)].box if groups and k < _POINTS // 2 else None
        low, up = (box.lower[0], box.upper[0]) if box is not None else (-1.0, 1.0)
        x = generator.uniform(low, up, network.n_inputs)
        fed, outputs = replay.run(x)
        exact = np.concatenate([part.astype(np.float64).reshape(-1) for part in fed])
        values = network.values(exact[None])
        found, wanted = (
            values[network.output][0],
            np.concatenate([part.astype(np.float64) for part in outputs]),
        )
        inside = max(float(np.abs(value).max(initial=0.0)) for value in values)
        room = max(_TOLERANCE * float(np.abs(wanted).max(initial=0.0)), 1e-3 * _TOLERANCE * inside)
        gap = float(np.abs(found - wanted).max(initial=0.0))
        if not gap <= room * (100 if is_half else 1):
            raise ModelError(
                f"certificates: the network as read differs from onnxruntime by {gap:.3g}"
            )


class SignDecision(NamedTuple):
    """A decision on the way to a leaf: ``sign * z >= 0`` for the operand of one neuron. The root
    decides nothing."""

    above: SignDecision | None
    relu: int
    neuron: int
    sign: int
    depth: int


def check_float_proof(
    data: bytes, subject: ProofSubject, poll: Callable[[], None] = lambda: None
) -> CertificateJudgement:
    """Does the certificate ``data`` prove that no case of the property can be violated?

    ``poll`` is called again and again, so that a caller may raise an error when time is up.
    """
    try:
        content = decoded(data)
        for name, value in subject.digests.items():
            need(field(content, name) == value, f"the certificate is about other files ({name})")
        with np.errstate(all="ignore"):  # what overflows ends as a bound that proves nothing
            FloatProof(subject, content, poll).run()
        return CertificateJudgement(True, "")
    except Reject as problem:
        return CertificateJudgement(False, str(problem))


class FloatProof:
    """One certificate; ``run`` raises ``Reject`` unless every case is refuted."""

    def __init__(
        self, subject: ProofSubject, content: dict[str, Any], poll: Callable[[], None]
    ) -> None:
        self.subject, self.network, self.poll = subject, subject.network, poll
        self.arrays = Arrays(field(content, "arrays"))
        self.parts, self.roots = field(content, "parts"), field(content, "roots")
        need(
            type(self.parts) is list and type(self.roots) is list,
            "'parts' and 'roots' must be lists",
        )
        self.bounders: dict[int, Bounder] = {}
        self.known: dict[int, tuple[int, OperandBounds]] = {}

    def run(self) -> None:
        steps = {"inputs": self._inputs, "root": self._at_root, "neurons": self._neurons}
        refuted: set[int] = set()
        for part in self.parts:
            kind = field(part, "kind")
            need(type(kind) is str and kind in steps, "a part has an unknown kind")
            refuted |= steps[kind](part)
        missing = {case for group in self.subject.groups for case in group.cases} - refuted
        need(not missing, f"case {min(missing, default=0)} is not refuted by any part")

    def bounder(self, group: int) -> Bounder:
        if group not in self.bounders:
            self.bounders[group] = Bounder(self.network, self.subject.groups[group].box, self.poll)
        return self.bounders[group]

    # -- trees over the input box ------------------------------------------------------------------

    def _inputs(self, part: Any) -> set[int]:
        number = integer_in(field(part, "group"), 0, len(self.subject.groups), "'group'")
        group = self.subject.groups[number]
        levels = field(part, "axes")
        need(type(levels) is list and len(levels) <= MAX_LEVELS, "'axes' must be a list of levels")
        axes = [
            np.array(integers_in(level, -1, self.network.n_inputs, "an axis"), dtype=np.int64)
            for level in levels
        ]
        inner = sum(int((level >= 0).sum()) for level in axes)
        points = self.arrays.get(field(part, "points"), (inner,), -np.inf, np.inf, "'points'")
        box, open_ = group.box, np.ones((1, len(group.cases)), dtype=bool)
        used = 0
        for level in axes:
            need(0 < len(level) == len(box.lower), "a level of a tree does not fit the one before")
            box, open_ = refine(self.bounder(number), group, box, open_)
            leaves = level < 0
            need(not open_[leaves].any(), "a leaf of a tree over the input box is not refuted")
            where = points[used : used + int((~leaves).sum())]
            used += len(where)
            box, open_ = halves(box, open_, np.nonzero(~leaves)[0], level[~leaves], where)
        need(not len(box.lower), "a tree over the input box ends without leaves")
        return set(group.cases)

    # -- trees of decisions about neurons ----------------------------------------------------------

    def _root(self, place: Any) -> tuple[int, OperandBounds]:
        number = integer_in(place, 0, len(self.roots), "'root'")
        if number not in self.known:
            root = self.roots[number]
            group = integer_in(field(root, "group"), 0, len(self.subject.groups), "'group'")
            given: dict[int, RowSlopes] = {}
            layers = field(root, "layers")
            need(type(layers) is list, "'layers' must be a list")
            for item in layers:
                relu = self._relu(field(item, "relu"))
                size = self.network.nodes[relu].size
                index = integers_in(field(item, "index"), 0, size, "an index")
                need(len(set(index)) == len(index), "a neuron of a layer occurs twice")
                slopes = self._slopes(field(item, "slopes"), 2 * len(index))
                given[relu] = RowSlopes(np.array(index, dtype=np.int64), slopes)

            def slopes_of(relu: int, index: Index, bounds: OperandBounds) -> RowSlopes | None:
                return given.get(relu)

            bounds = layer_bounds(self.bounder(group), self.subject.groups[group].box, slopes_of)
            self.known[number] = group, bounds
        return self.known[number]

    def _at_root(self, part: Any) -> set[int]:
        number, bounds = self._root(field(part, "root"))
        group = self.subject.groups[number]
        cases = integers_in(field(part, "cases"), 0, len(group.cases), "a case")
        closed = closed_at_root(self.bounder(number), group, bounds)
        need(closed[np.array(cases, dtype=np.int64)].all(), "a case is not refuted at the root")
        return {group.cases[case] for case in cases}

    def _relu(self, value: Any) -> int:
        number = integer_in(value, 0, len(self.network.nodes), "a ReLU")
        need(number in self.network.relus, f"node {number} is no ReLU")
        return number

    def _slopes(self, items: Any, count: int) -> dict[int, tuple[Index, FloatArray]]:
        """By ReLU the neurons that slopes are given for (the others have 0), and the slopes
        ``[count, K]``."""
        need(type(items) is list, "'slopes' must be a list")
        result = {}
        for item in items:
            relu = self._relu(field(item, "relu"))
            columns = integers_in(
                field(item, "columns"), 0, self.network.nodes[relu].size, "a column"
            )
            need(len(set(columns)) == len(columns), "a column occurs twice")
            values = self.arrays.get(
                field(item, "values"), (count, len(columns)), 0.0, 1.0, "slopes"
            )
            result[relu] = (np.array(columns, dtype=np.int64), values)
        return result

    def _neurons(self, part: Any) -> set[int]:
        number, bounds = self._root(field(part, "root"))
        group = self.subject.groups[number]
        place = integer_in(field(part, "case"), 0, len(group.cases), "'case'")
        ends = self._ends(field(part, "relus"), field(part, "neurons"))
        total = sum(end.depth for end in ends)
        multipliers = self.arrays.get(
            field(part, "multipliers"), (total,), 0.0, _MAX_MULTIPLIER, "multipliers"
        )
        shape = (len(ends), group.limit.shape[1])
        weights = self.arrays.get(field(part, "weights"), shape, 0.0, _MAX_MULTIPLIER, "weights")
        slopes = self._slopes(field(part, "slopes"), len(ends))
        nodes, used = self.network.nodes, 0
        for start in range(0, len(ends), _LEAVES_AT_ONCE):
            rows = slice(start, start + _LEAVES_AT_ONCE)
            some = sum(end.depth for end in ends[rows])
            signs, betas = self._signs(ends[rows], multipliers[used : used + some])
            used += some
            own = {r: spread_slopes(part, rows, nodes[r].size) for r, part in slopes.items()}
            leaves = Leaves(own, signs, betas, weights[rows])
            value = leaf_values(self.bounder(number), group.of_case(place), bounds, leaves)
            need(proves(value).all(), "a leaf of a tree over neurons is not refuted")
        return {group.cases[place]}

    def _ends(self, relus: Any, neurons: Any) -> list[SignDecision]:
        """The leaves, in the order of the levels."""
        need(
            type(relus) is list and type(neurons) is list and len(relus) == len(neurons),
            "a tree has bad levels",
        )
        need(len(relus) <= MAX_LEVELS, "a tree is too deep")
        level, leaves = [SignDecision(None, -1, 0, 0, 0)], []
        for numbers, places in zip(relus, neurons, strict=True):
            need(type(numbers) is list and type(places) is list, "a level of a tree must be a list")
            need(
                0 < len(numbers) == len(places) == len(level),
                "a level of a tree does not fit the one before",
            )
            below = []
            for above, relu, neuron in zip(level, numbers, places, strict=True):
                if type(relu) is int and relu == -1:
                    leaves.append(above)
                    continue
                relu = self._relu(relu)
                neuron = integer_in(neuron, 0, self.network.nodes[relu].size, "a neuron")
                below += [
                    SignDecision(above, relu, neuron, sign, above.depth + 1) for sign in (-1, 1)
                ]
            level = below
        need(not level, "a tree over neurons ends without leaves")
        return leaves

    def _signs(
        self, ends: list[SignDecision], multipliers: FloatArray
    ) -> tuple[dict[int, FloatArray], dict[int, FloatArray]]:
        """Signs and ``multiplier * sign``, ``[B, N]`` by ReLU, of leaves whose decisions are
        counted from the root."""
        shapes = {relu: (len(ends), self.network.nodes[relu].size) for relu in self.network.relus}
        signs = {relu: np.zeros(shape) for relu, shape in shapes.items()}
        betas = {relu: np.zeros(shape) for relu, shape in shapes.items()}
        used = 0
        for leaf, end in enumerate(ends):
            step, used = end, used + end.depth
            while step.above is not None:
                need(
                    signs[step.relu][leaf, step.neuron] == 0,
                    "a neuron is decided twice on one path",
                )
                signs[step.relu][leaf, step.neuron] = step.sign
                betas[step.relu][leaf, step.neuron] = (
                    step.sign * multipliers[used - end.depth + step.depth - 1]
                )
                step = step.above
        return signs, betas
