"""A ``Query`` and its network files to a ``Problem``: the boolean tree multiplied out into boxes
and constraints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from bitcrown.errors import PropertyError, UnsupportedError
from bitcrown.spec.box import Box, contradiction, is_implied, is_tie, propagate, reduced
from bitcrown.spec.case_boxes import CommonPart, boxed_cases
from bitcrown.spec.case_table import CaseCollector
from bitcrown.spec.decimals import short_text
from bitcrown.spec.dnf import Alternative, Clause, clause_of, compile_formula
from bitcrown.spec.equal_networks import Twins, twin_networks, with_equal_outputs
from bitcrown.spec.polynomial import Numbering, number_variables
from bitcrown.spec.problem import Case, Constraint, Problem
from bitcrown.spec.query import ManyCases, Query
from bitcrown.spec.unbounded import closed_boxes, eliminate
from bitcrown.spec.words import constraint_text

MAX_CASES = 1_000_000
MAX_STEPS = 4 * MAX_CASES
_MAX_NOTES = 20
_MAX_INPUTS = 1 << 26


def problem_from_query(query: Query, networks: Mapping[str, Path]) -> Problem:
    """Bring a query into the normal form that the search works on.

    ``networks`` maps declared names to files. A network declared ``equal-to`` another needs no
    entry, and a VNN-LIB 1.0 query, whose file names no network, accepts its one entry under any
    name.

    Raises: PropertyError: a network without a file or a file without a network. UnsupportedError:
        more than ``MAX_CASES`` cases, or a polynomial too large.
    """
    files = files_of(query, networks)
    numbering = number_variables(query)
    if numbering.n_inputs > _MAX_INPUTS:
        raise UnsupportedError(
            f"the networks have {numbering.n_inputs} inputs in total; {_MAX_INPUTS} is the limit."
        )
    builder = _Builder(query, numbering, twin_networks(query, files, numbering))
    builder.build(compile_formula(query.assertion, numbering))
    return Problem(
        query,
        files,
        numbering.n_inputs,
        numbering.n_outputs,
        builder.cases.cases(),
        tuple(builder.final_notes()),
        builder.covers_all,
    )


def files_of(query: Query, networks: Mapping[str, Path]) -> dict[str, Path]:
    """The files by declared name, for networks that are equal to others, too. Raises
    ``PropertyError``."""
    names = [network.name for network in query.networks]
    if query.version[0] == 1 and len(networks) == 1:
        return {names[0]: next(iter(networks.values()))}
    extra = [name for name in networks if name not in names]
    if extra:
        known = ", ".join(names)
        raise PropertyError(
            f"network {extra[0]!r} is given but not declared; the property declares {known}."
        )
    files: dict[str, Path] = {}
    for network in query.networks:
        given = networks.get(network.name)
        base = files.get(network.equal_to) if network.equal_to else None
        if given is None and base is None:
            raise PropertyError(
                f"no file is given for network {network.name}; pass one as "
                f"{network.name}=model.onnx."
            )
        if given is not None and base is not None and given.resolve() != base.resolve():
            raise PropertyError(
                f"network {network.name} is equal-to {network.equal_to} but has another file "
                f"({given} and {base}); "
                "pass the same file or leave it out."
            )
        files[network.name] = networks[network.name] if base is None else base
    return files


@dataclass(slots=True)
class _State:
    """A partly multiplied-out case: what holds already and which choices are still open."""

    box: Box
    constraints: list[Constraint]
    choices: list[list[Alternative]]


@dataclass
class _Builder:
    query: Query
    numbering: Numbering
    twins: list[Twins]
    covers_all: bool = True
    cases: CaseCollector = field(init=False)
    notes: list[str] = field(default_factory=list)
    dropped: int = 0
    base: Box = field(default_factory=Box)
    base_constraints: list[Constraint] = field(default_factory=list)
    base_ties: list[Constraint] = field(default_factory=list)
    sides: dict[bool, list[Fraction | None]] = field(default_factory=dict)
    tuples: dict[tuple[object, ...], Sequence[Fraction]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cases = CaseCollector(self.numbering.n_inputs)

    def build(self, root: Clause) -> None:
        """Multiply out, depth first and in file order, dropping a branch as soon as its box is
        empty."""
        if root.is_false:
            self.notes.append("an assertion is false whatever the inputs and outputs are")
            return
        self._apply(self.base, root)
        self.base_constraints = reduced(root.constraints)
        self.base_ties = [
            tie for tie in self.base_constraints if is_tie(tie, self.numbering.n_inputs)
        ]
        empty = self.base.first_empty_in_arrays()
        if empty is None:
            empty = self.base.first_empty([*self.base.upper, *self.base.lower])
        if empty is None:
            empty = propagate(self.base, self.base_ties)
        if empty is not None:
            self.notes.append(f"the input box is empty: {self._bounds_text(self.base, empty)}")
            return
        open_clauses: list[tuple[_State, Alternative]] = []
        self._advance(_State(self.base.child(), [], root.choices), open_clauses)
        steps = 0
        while open_clauses:
            steps += 1
            if steps > MAX_STEPS or len(self.cases) > MAX_CASES:
                raise UnsupportedError(
                    f"the property multiplies out to more than {MAX_CASES} cases; split it into "
                    "several properties."
                )
            state, clause = open_clauses.pop()
            if isinstance(clause, ManyCases):
                self._many(state, clause, open_clauses)
            else:
                self._branch(state, clause, open_clauses)

    def _many(
        self, state: _State, cases: ManyCases, open_clauses: list[tuple[_State, Alternative]]
    ) -> None:
        """Branch into many cases; all at once where they are the last choice, and nothing else is
        special about them."""
        box = state.box
        is_plain = not (box.lower or box.upper or box.arrays or state.constraints)
        found = None
        if is_plain and len(state.choices) == 1 and not (self.base_ties or self.twins):
            common = CommonPart(self.base, self.base_constraints, self.numbering)
            if not contradiction(self.base_constraints, self.base, self.numbering.n_inputs):
                found = boxed_cases(cases, common)
        if found is None:
            clauses = [clause_of(cases, k, self.numbering) for k in range(len(cases))]
            open_clauses.extend((state, clause) for clause in reversed(clauses))
            return
        start, done = 0, 0
        for place in [*np.flatnonzero(found.odd).tolist(), len(cases)]:
            if place > start:
                self.cases.extend(found.arrays.part(done, done + place - start))
                done += place - start
            if place < len(cases):
                self._branch(state, clause_of(cases, place, self.numbering), open_clauses)
            start = place + 1

    def _branch(
        self, state: _State, clause: Clause, open_clauses: list[tuple[_State, Alternative]]
    ) -> None:
        box = state.box.child()
        empty = self._apply(box, clause)
        if empty is not None:
            self._drop(f"the box of {{}} is empty: {self._bounds_text(box, empty)}")
            return
        choices = state.choices[1:] + clause.choices
        self._advance(_State(box, state.constraints + clause.constraints, choices), open_clauses)

    def _apply(self, box: Box, clause: Clause) -> int | None:
        """Intersect a box with the bounds of a clause; an input that has none left, or None."""
        for block in clause.blocks:
            box.tighten_block(*block, self.numbering.n_inputs)
        touched = [
            number
            for number, is_upper, value in clause.bounds
            if box.tighten(number, is_upper, value)
        ]
        empty = box.first_empty(touched)
        return box.first_empty_in_arrays() if empty is None and clause.blocks else empty

    def _advance(self, state: _State, open_clauses: list[tuple[_State, Alternative]]) -> None:
        if state.choices:
            open_clauses.extend((state, clause) for clause in reversed(state.choices[0]))
        else:
            self._finish(state)

    def _finish(self, state: _State) -> None:
        """Turn a state without open choices into a case, unless it contradicts itself."""
        box, n_inputs = state.box, self.numbering.n_inputs
        constraints, ties = self.base_constraints, self.base_ties
        if state.constraints:
            constraints = reduced(constraints + state.constraints)
            own = [tie for tie in state.constraints if is_tie(tie, n_inputs)]
            ties = ties + own
        if ties and (box.lower or box.upper or len(ties) > len(self.base_ties)):
            empty = propagate(box, ties)
            if empty is not None:
                self._drop(f"the box of {{}} is empty: {self._bounds_text(box, empty)}")
                return
        kept = [
            constraint for constraint in constraints if not is_implied(constraint, box, n_inputs)
        ]
        if self.twins:
            said_of_one = with_equal_outputs(kept, self.twins, box, n_inputs)
            if said_of_one is None:
                self._drop("{} asks equal networks for different outputs on equal inputs")
                return
            kept = reduced(said_of_one)
        conflict = contradiction(kept, box, n_inputs)
        if conflict:
            texts = [constraint_text(constraint, self._name) for constraint in conflict]
            if len(conflict) == 1:
                texts.append(self._bounds_text(box, conflict[0].terms[0][0][0]))
            self._drop(f"{{}} contradicts itself: {' and '.join(texts)}")
            return
        for closed in self._closed(box, ties):
            self.cases.append(
                Case(self._side(closed, False), self._side(closed, True), tuple(kept))
            )

    def _closed(self, box: Box, ties: list[Constraint]) -> list[Box]:
        """The box itself, or those that take its place where inputs lack an end."""
        missing = box.open_inputs(self.numbering.n_inputs)
        if not missing:
            return [box]
        box = box.child()
        eliminate(box, ties, missing)
        empty = box.first_empty(missing)
        if empty is not None:
            self._drop(f"the box of {{}} is empty: {self._bounds_text(box, empty)}")
            return []
        missing = box.open_inputs(self.numbering.n_inputs)
        if not missing:
            return [box]
        types = [(number, self.numbering.tensor_of(number)[0].dtype) for number in missing]
        boxes, covers = closed_boxes(box, types)
        if self.covers_all and not covers:
            self.covers_all = False
            self.notes.append(
                f"input {self._name(missing[0])} has no bounds on both sides: a counterexample is "
                "looked for, but nothing can be proved of all real numbers"
            )
        return boxes

    def _side(self, box: Box, is_upper: bool) -> Sequence[Fraction]:
        """The bounds of one side, the same object for equal contents."""
        own = box.upper if is_upper else box.lower
        if is_upper in box.arrays:
            ends, _ = box.ends(is_upper, self.numbering.n_inputs)
            digest = hashlib.blake2b(ends.mantissa.tobytes(), digest_size=32)
            digest.update(ends.exponent.tobytes())
            return self.tuples.setdefault(
                (is_upper, digest.digest(), *sorted(ends.others.items())), ends
            )
        # Integers, because hashing a Fraction costs a modular inverse.
        key = (
            is_upper,
            *sorted((number, value.as_integer_ratio()) for number, value in own.items()),
        )
        found = self.tuples.get(key)
        if found is None and box.has_arrays():
            found = self.tuples[key] = box.ends(is_upper, self.numbering.n_inputs)[0]
        if found is None:
            values = list(self._base_side(is_upper))
            for number, value in own.items():
                values[number] = value
            found = self.tuples[key] = tuple(value for value in values if value is not None)
        return found

    def _base_side(self, is_upper: bool) -> list[Fraction | None]:
        side = self.sides.get(is_upper)
        if side is None:
            bounds = self.base.upper if is_upper else self.base.lower
            side = self.sides[is_upper] = [
                bounds.get(number) for number in range(self.numbering.n_inputs)
            ]
        return side

    def _name(self, number: int) -> str:
        return self.numbering.name(number, self.query.version)

    def _this_case(self) -> str:
        return f"case {len(self.cases) + self.dropped + 1}"

    def _bounds_text(self, box: Box, number: int) -> str:
        name, low, high = self._name(number), box.end(number, False), box.end(number, True)
        parts = [f"{name} >= {short_text(low)}"] if low is not None else []
        return " and ".join(parts + ([f"{name} <= {short_text(high)}"] if high is not None else []))

    def _drop(self, text: str) -> None:
        if self.dropped < _MAX_NOTES:
            self.notes.append(text.format(self._this_case()))
        self.dropped += 1

    def final_notes(self) -> list[str]:
        """The notes, with a count of those that were not written out."""
        notes = list(self.notes)
        if self.dropped > _MAX_NOTES:
            notes.append(f"{self.dropped - _MAX_NOTES} more cases were left out for such reasons")
        if not self.cases:
            notes.append(
                "no case is left, so there is no counterexample whatever the network computes"
            )
        return notes
