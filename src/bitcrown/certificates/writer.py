"""Writes certificates of float proofs: after an ``unsat``, in what is left of the time.

The file has to convince a checker that knows nothing of this search, so it is made with the
checker's own bounds (``inputs``, ``neurons``): bounds of whole boxes first, then whichever split
suits the number of inputs that vary. What is written was accepted by the checker; otherwise a
sentence says why there is no certificate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.certificates.inputs import input_tree, with_margin
from bitcrown.certificates.neurons import NeuronSearch, neuron_part, root_form
from bitcrown.certificates.slopes import ROWS_A_STEP, climb_layers
from bitcrown.check.certificates.floats.bounds import Bounder, OperandBounds
from bitcrown.check.certificates.floats.checker import (
    MAX_LEVELS,
    ProofSubject,
    check_float_proof,
    subject_of,
)
from bitcrown.check.certificates.floats.format import FLOAT_FORMAT, ArrayStore, encoded
from bitcrown.check.certificates.floats.layers import layer_bounds
from bitcrown.check.certificates.floats.property import Group
from bitcrown.check.certificates.floats.steps import closed_at_root
from bitcrown.errors import BitcrownError, BudgetExpired
from bitcrown.search.neurons.recorder import Hints, Recorder
from bitcrown.verdict import Verdict

if TYPE_CHECKING:
    from bitcrown.search.strategy import Run

_FEW_INPUTS = 16
"""Up to this many varying inputs boxes are split (as the search does)."""
_SHARE = 0.8
"""Of the time left, so that the answer is never lost to its certificate."""
_LAYER_STEPS = 12
_TRIED = 0.25
"""Of the cost of slopes for every neuron may go into trees without them."""


def certified(run: Run, verdict: Verdict) -> Verdict:
    """The verdict, an ``unsat``, with its certificate; or with the reason why it has none among its
    counters."""
    if run.settings.semantics == "runtime":
        run.counters["no_certificate"] = (
            "certificates are about the real function, not about what the runtime rounds"
        )
        return verdict
    try:
        with run.phase("certificate"), np.errstate(all="ignore"):
            budget = run.budget.capped(_SHARE * run.budget.remaining())
            data = certificate_of(subject_of(run.problem), budget, run.recorder)
    except BudgetExpired:
        run.counters["no_certificate"] = "the time limit was reached before the proof was written"
        return verdict
    except (BitcrownError, MemoryError) as error:
        run.counters["no_certificate"] = str(error) or "memory ran out"
        return verdict
    if isinstance(data, str):
        run.counters["no_certificate"] = data
        return verdict
    return replace(verdict, certificate=data)


def certificate_of(
    subject: ProofSubject, budget: Budget, recorder: Recorder | None = None
) -> bytes | str:
    """The file's bytes, or one sentence why there are none; ``recorder`` has hints. Raises
    ``BudgetExpired``."""
    store = ArrayStore()
    parts: list[dict[str, Any]] = []
    roots: list[dict[str, Any]] = []
    for number, group in enumerate(subject.groups):
        bounder = Bounder(subject.network, group.box, budget.check)
        varied = int((group.box.upper > group.box.lower).sum())
        if varied <= _FEW_INPUTS:
            part = input_tree(bounder, group, number, store, MAX_LEVELS - 1)
            if part is None:
                return "a box of the proof is too small for floats to split"
            parts.append(part)
            continue
        writer = _Neurons(bounder, group, number, store, budget, len(roots), recorder)
        for case in range(len(group.cases)):
            if not writer.add(case):
                return f"case {group.cases[case]} needs more than decisions about neurons"
        roots += writer.roots
        parts += writer.finished()
    data = encoded(
        {
            "format": FLOAT_FORMAT,
            **subject.digests,
            "arrays": store.content,
            "parts": parts,
            "roots": roots,
        }
    )
    budget.check()
    outcome = check_float_proof(data, subject, budget.check)
    return data if outcome.accepted else f"the proof is not accepted: {outcome.message}"


class _Neurons:
    """Parts for the cases of one group. Roots: 0 with plain bounds, 1 with ascent over the layers,
    which costs much and makes trees smaller: those on plain bounds are tried first, for a part of
    that cost."""

    def __init__(
        self,
        bounder: Bounder,
        group: Group,
        number: int,
        store: ArrayStore,
        budget: Budget,
        first: int,
        recorder: Recorder | None,
    ) -> None:
        self.bounder, self.group, self.number, self.store, self.budget = (
            bounder,
            group,
            number,
            store,
            budget,
        )
        self.strict, self.first, self.recorder = with_margin(bounder, group), first, recorder
        self.plain = layer_bounds(bounder, group.box)
        self.closed = closed_at_root(bounder, self.strict, self.plain)
        undecided = sum(int(((low < 0) & (up > 0)).sum()) for low, up in self.plain.values())
        self.allowance = _TRIED * 2 * undecided * ROWS_A_STEP * _LAYER_STEPS
        self.sharp: OperandBounds | None = None
        self.roots = [root_form(number, {}, store)]
        self.parts: list[dict[str, Any]] = []

    def add(self, case: int) -> bool:
        """Prove one case. False where nothing is left to split."""
        if self.closed[case]:
            return True
        group, root = self.strict.of_case(case), self.first
        search = NeuronSearch(self.bounder, group, self.plain, self.budget)
        tree = search.run(only_root=True)
        if tree is None and self.sharp is None and self.allowance > 0:
            search = NeuronSearch(self.bounder, group, self.plain, self.budget)
            tree = search.run(self.hints(search, group), most=self.allowance)
            self.allowance -= search.spent
        if tree is None:
            if self.sharp is None:
                given, self.sharp = climb_layers(
                    self.bounder, self.group.box, _LAYER_STEPS, self.budget
                )
                self.roots.append(root_form(self.number, given, self.store))
            root = self.first + 1
            search = NeuronSearch(self.bounder, group, self.sharp, self.budget)
            tree = search.run(self.hints(search, group))
        if tree is None:
            return False
        self.parts.append(neuron_part(search, tree, root, case, self.store))
        return True

    def hints(self, search: NeuronSearch, group: Group) -> Hints | None:
        if self.recorder is None or not self.recorder.batches:
            return None
        names = self.bounder.network.names
        return Hints(self.recorder, group.cases[0], search.columns, dict(names))

    def finished(self) -> list[dict[str, Any]]:
        """All parts, the cases that the root closes as one."""
        cases = np.nonzero(self.closed)[0].tolist()
        if not cases:
            return self.parts
        return [{"kind": "root", "root": self.first, "cases": cases}, *self.parts]
