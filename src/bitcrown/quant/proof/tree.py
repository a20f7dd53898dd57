"""A proof that grows with the search.

A proof is a list of parts; a part is a list of steps, worked off in order on a state (the intervals
of all nodes):

* ``["tighten", tau, slopes, [[node, element, low, high], ...]]``: reduced costs shrink intervals;
* ``["clip", tau, slopes, [[node, element, sign, q, t], ...]]``: first-layer values where the bound
  is not positive;
* ``["bound", [[node, element, sign, q, tau, slopes], ...]]``: dual bounds shrink intervals of
  single values;
* ``["propagate"]``: the interval rules, once;
* and one closing step: ``["prove", tau, slopes]`` (the bound is positive), ``["empty"]`` (an
  interval is empty), ``["enumerate"]`` (the inputs left are few: try all),
  ``["split", node, element, k, low part, high part]``.

Multipliers are integers, stored by node as ``[element, value]`` pairs without the zeros (pools:
``[element, place, value]``; their blocks: ``[element, what it reads, value]``). The rules are those
of ``bounds.staircase_dual`` and ``bounds.intervals``, and each is recomputed by the checker.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitcrown.quant.bounds.staircase_dual import Slopes
from bitcrown.quant.bounds.subprogram import AnyProgram
from bitcrown.quant.network.graph import Ints

ProofStep = list[Any]
ProofPart = list[ProofStep]


class ProofTree:
    """Parts by number; recording can be switched off, then nothing is kept."""

    def __init__(self, is_recorded: bool) -> None:
        self.is_recorded = is_recorded
        self.parts: list[ProofPart] = []
        self.trunk: ProofPart = []
        self.twins: dict[int, tuple[int, int, int]] = {}

    def new_part(self) -> int:
        self.parts.append([])
        return len(self.parts) - 1

    def trunk_add(self, step: ProofStep) -> None:
        """A step that holds for every case, taken before the parts."""
        if self.is_recorded:
            self.trunk.append(step)

    def multipliers(self, program: AnyProgram, slopes: Slopes, row: int) -> list[list[Any]]:
        """``sparse``, where anybody will read it."""
        return sparse(program, slopes, row) if self.is_recorded else []

    def changes(
        self, node: int, low: Ints, high: Ints, old_low: Ints, old_high: Ints
    ) -> list[list[int]]:
        """``[node, element, low, high]`` for every element [N] whose interval shrank (one, if
        nobody reads them)."""
        where = np.nonzero((low > old_low) | (high < old_high))[0]
        if not self.is_recorded:
            where = where[:1]
        return [[node, int(e), int(low[e]), int(high[e])] for e in where]

    def place(self, part: int) -> int:
        """How many steps the part has: a name for the state it is in."""
        return len(self.parts[part])

    def add_twin(self, part: int, twin: int, start: int, constraints: int) -> None:
        """``part`` goes on as ``twin`` does from step ``start``, but for a case of ``constraints``
        constraints."""
        if self.is_recorded:
            self.twins[part] = (twin, start, constraints)

    def finish(self) -> None:
        """Write out the parts that were left to their twins; call once, when every part is closed.

        States that imply their case are refuted without its constraints (all tau are 0), so that
        only the number of multipliers differs between the cases. A part is written once all that it
        copies is written.
        """
        while self.twins:
            ready = [
                part
                for part, (twin, start, _) in self.twins.items()
                if not self._is_waiting(twin, start)
            ]
            if not ready:
                raise RuntimeError(
                    "parts of a proof were left to each other; this is a fault of the prover"
                )
            for part in ready:
                twin, start, constraints = self.twins.pop(part)
                self._copy(part, self.parts[twin][start:], constraints)

    def _is_waiting(self, part: int, start: int) -> bool:
        """Whether something below the part's steps from ``start`` on has yet to be written."""
        todo = [(part, start)]
        while todo:
            number, first = todo.pop()
            if number in self.twins:
                return True
            todo += [
                (child, 0)
                for step in self.parts[number][first:]
                if step[0] == "split"
                for child in step[4:]
            ]
        return False

    def _copy(self, part: int, steps: ProofPart, constraints: int) -> None:
        todo = [(part, steps)]
        while todo:
            target, steps = todo.pop()
            for step in steps:
                kind, rest = step[0], list(step[1:])
                if kind in ("prove", "tighten", "clip") and not any(rest[0]):
                    rest[0] = [0] * constraints
                elif kind == "split":
                    old, rest[3:] = rest[3:], [self.new_part(), self.new_part()]
                    todo += [(new, self.parts[o]) for new, o in zip(rest[3:], old, strict=True)]
                self.parts[target].append([kind, *rest])

    def add(self, part: int, step: ProofStep) -> None:
        if self.is_recorded:
            self.parts[part].append(step)


def sparse(program: AnyProgram, slopes: Slopes, row: int) -> list[list[Any]]:
    """One row of integer multipliers as ``[node, [[element, (place,) value], ...]]``, zeros left
    out; under ``-n`` (``joint_windows``) the place is the element that the windows of n read."""
    out: list[list[Any]] = []
    for node in sorted(slopes):
        values = slopes[node][row]
        places = np.argwhere(values != 0)
        found = values[tuple(places.T)]
        if node < 0:
            places[:, 1] = program.joint[-node].patch[tuple(places.T)]
        if len(places):
            out.append([node, np.column_stack([places, found]).tolist()])
    return out
