"""From a Problem to a Verdict: what is tried, in which order, for how long. Nothing here knows a
benchmark's name.

1. *Probes* through onnxruntime, before torch is even imported: midpoint, corners, random points.
2. *Integers*: a quantized network is decided in integer arithmetic, nothing below applies to it.
3. *Read* the networks, check the reading against onnxruntime, turn the cases into rows.
4. *Root*: interval and CROWN bounds of every layer; cases that these exclude are dropped at once.
5. *Attack*: a short projected gradient descent on the cases left.
6. *Search*: splitting the input where few inputs vary, splitting ReLUs otherwise, with attack steps
   inside.

Every candidate is replayed on the original file (``check``); only a finished search says ``unsat``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitcrown.attacks.property.probes import probe
from bitcrown.budget import Budget
from bitcrown.check.asked_tensors import with_asked_outputs
from bitcrown.check.replay import RuntimeReplay
from bitcrown.check.witness import Confirmer
from bitcrown.errors import BudgetExpired, UnsupportedError
from bitcrown.model.file import NetworkFile
from bitcrown.model.input_shape import settled_content
from bitcrown.model.known_inputs import with_known_inputs
from bitcrown.search.fixed_inputs import fixed_inputs
from bitcrown.search.neurons.recorder import Recorder
from bitcrown.settings import Settings
from bitcrown.spec.problem import Problem
from bitcrown.verdict import Reason, Status, Verdict, Witness

if TYPE_CHECKING:
    import numpy as np

    from bitcrown.quant.network.graph import IntegerNetwork


Report = Callable[[str, dict[str, Any]], None]


class Run:
    """State of one decision: budget, phases (seconds), counters, and how to confirm a witness.

    ``files``: the networks' files by declared name, each opened when it is first read; emptied when
    all reading is done, because bytes and parsed model are as large as the weights. ``replay``: an
    open one of the same networks and tensors, for a caller who decides many problems about them.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        budget: Budget,
        report: Report | None,
        want_certificate: bool = False,
        replay: RuntimeReplay | None = None,
    ) -> None:
        self.problem, self.settings, self.budget = problem, settings, budget
        self._report = report or (lambda phase, facts: None)
        self.want_certificate = want_certificate
        self.recorder = Recorder() if want_certificate else None
        self.phases: dict[str, float] = {}
        self._inside = 0.0
        self.counters: dict[str, Any] = {}
        self.replay = replay or RuntimeReplay(problem.query, problem.networks)
        self.files = opened_files(problem, self.replay)
        self.confirmer = Confirmer(problem, self.replay)
        self.integers: IntegerNetwork | None = None
        """The network as read in integers, by a caller who decides many problems about it."""

    def report(self, phase: str, facts: dict[str, Any]) -> None:
        """Tell how far the run is; with the counters, because a run that is killed cannot tell them
        any more."""
        self._report(phase, {**facts, "counters": dict(self.counters)})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside; phases inside a phase have their time for themselves."""
        started, before, self._inside = time.monotonic(), self._inside, 0.0
        self.report(name, {})
        try:
            yield
        finally:
            took = time.monotonic() - started
            self.phases[name] = self.phases.get(name, 0.0) + took - self._inside
            self._inside = before + took
            self.report(name, {})

    def confirm(self, x: np.ndarray, case: int | None = None) -> Witness | None:
        """Replay a candidate ``x [n]`` on the original networks."""
        self.counters["replayed"] = self.counters.get("replayed", 0) + 1
        return self.confirmer.confirm(x, None if case is None else self.problem.cases[case])

    def verdict(
        self, status: Status, decided_by: str = "", witness: Witness | None = None, **more: Any
    ) -> Verdict:
        return Verdict(
            status,
            witness=witness,
            decided_by=decided_by,
            phases=self.phases,
            counters=self.counters,
            **more,
        )

    def sat(self, witness: Witness, decided_by: str) -> Verdict:
        return self.verdict(Status.SAT, decided_by, witness)

    def unknown(self, reason: Reason, detail: str = "") -> Verdict:
        return self.verdict(Status.UNKNOWN, reason=reason, detail=detail)

    def timeout(self) -> Verdict:
        return self.verdict(Status.TIMEOUT, reason=Reason.DEADLINE)


def opened_files(problem: Problem, replay: RuntimeReplay | None = None) -> dict[str, NetworkFile]:
    """The networks' files by declared name: one object for each file, and one for each network
    that asks for more than its file's outputs, settles extents of its inputs or fixes one of them.

    ``replay``: an open one of the same networks. Raises ``PropertyError`` for a property about
    other networks.
    """
    replay = replay or RuntimeReplay(problem.query, problem.networks)
    settled, fixed = replay.settled(), fixed_inputs(problem, replay)
    plain = {path: NetworkFile(path) for path in problem.networks.values()}
    files: dict[str, NetworkFile] = {}
    for declared in problem.query.networks:
        path = problem.networks[declared.name]
        files[declared.name] = plain[path]
        if declared.asks_more:
            content = with_asked_outputs(path, declared, plain[path].content)
            files[declared.name] = NetworkFile(path, content)
        if declared.name in settled:
            content = settled_content(files[declared.name], settled[declared.name])
            files[declared.name] = NetworkFile(path, content)
        if declared.name in fixed:
            content = with_known_inputs(files[declared.name], fixed[declared.name])
            files[declared.name] = NetworkFile(path, content)
    return files


def decide(run: Run) -> Verdict:
    """Decide the problem of ``run``.

    Raises ``ModelError`` or ``PropertyError`` for bad input; everything else is in the Verdict.
    """
    verdict = _decide_cases(run)
    if verdict.status is Status.UNSAT and run.problem.cases and not run.problem.covers_all:
        return run.unknown(Reason.UNSUPPORTED, "; ".join(run.problem.notes))
    return verdict


def _decide_cases(run: Run) -> Verdict:
    problem, budget = run.problem, run.budget
    if not problem.cases:
        return run.verdict(Status.UNSAT, "vacuous: " + "; ".join(problem.notes))
    try:
        with run.phase("probe"):
            witness = probe(problem, run.replay, run.confirmer, budget, run.settings.seed)
        if witness is not None:
            return run.sat(witness, "probe")
        return _decide_with_bounds(run)
    except BudgetExpired:
        return run.timeout()
    except UnsupportedError as error:
        reason = run.counters.get("not_read_as_integers")
        return run.unknown(
            Reason.UNSUPPORTED, f"{error}; as integers: {reason}" if reason else str(error)
        )


def _decide_with_bounds(run: Run) -> Verdict:
    with run.phase("import"):
        from bitcrown.search import cells, decision, quantized
    return (
        quantized.decide_in_integers(run)
        or cells.decide_in_cells(run)
        or decision.decide_in_floats(run)
    )
