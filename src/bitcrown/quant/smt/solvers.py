"""Bit-vector solvers on our formulas: Boolector, and bitwuzla where it is installed.

The second, independent method. It shares with the prover the network's integers and nothing else:
no bound, no relaxation, no branching; a SAT solver decides. Its ``unsat`` is the solver's word, so
it serves as a cross-check and as a way out to other solvers; its ``sat`` is checked here: the model
is read back as a network input, which must lie in the box and violate the property when the network
is evaluated in integers. A model that does not is a fault of the encoding or of the solver, and is
raised, never swallowed.

**Time and memory.** Both solvers ask a callback while they search whether to stop; it looks at the
clock every time and at the growth of the process now and then, so a search stops from inside.
Simplification and bit-blasting do not ask, and can take longer than the search; so the solver works
in a fork of this process (``child_process``), which is killed when it has not answered shortly
after the deadline. Boolector remembers for ever that it was once stopped: a solver is made for one
question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.child_process import text_of_child
from bitcrown.errors import BudgetExpired, ResourceError
from bitcrown.quant.network.graph import IntegerNetwork, Ints, QuantError
from bitcrown.quant.smt.formula import Style, encode
from bitcrown.quant.smt.property_rows import DenseCase
from bitcrown.quant.smt.smtlib import smtlib_script
from bitcrown.quant.smt.terms import BitvectorFormula, BitvectorTerm
from bitcrown.verdict import Reason, Status

_CALLS_PER_LOOK = 256
_TERMS_PER_LOOK = 512
_GRACE = 0.5
"""Seconds after the deadline in which a solver may still say that it stopped."""


@dataclass(frozen=True)
class BitvectorAnswer:
    """``status`` is sat, unsat, unknown or timeout.

    ``witness``: [N] input integers, exactly when sat. ``candidate``: [N], a model for some
    admissible rounding of a network whose rounding is not pinned down; the status is then unknown
    until the file's runtime has judged it.
    """

    status: Status
    reason: Reason = Reason.NONE
    witness: Ints | None = None
    candidate: Ints | None = None
    decided_by: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)


def installed_solvers() -> tuple[str, ...]:
    """The solvers that can be named here, best first."""
    return tuple(name for name, module in _MODULES.items() if find_spec(module) is not None)


def decide_by_bitvectors(
    network: IntegerNetwork,
    low: Ints,
    high: Ints,
    cases: tuple[DenseCase, ...],
    budget: Budget,
    style: Style | str = Style.IMPROVED,
    solver: str = "boolector",
) -> BitvectorAnswer:
    """Whether some integer input in ``low .. high`` ([N] each) satisfies a case; see ``encode``."""
    started = time.monotonic()
    try:
        formula = encode(network, low, high, cases, style, budget)
    except BudgetExpired:
        return BitvectorAnswer(
            Status.TIMEOUT, Reason.DEADLINE, phases={"encode": time.monotonic() - started}
        )
    encoded = time.monotonic()
    status, reason, assignment = solve(formula, budget, solver)
    phases = {"encode": encoded - started, "solve": time.monotonic() - encoded}
    counters = {"terms": len(formula.terms), "variables": len(formula.coordinates)}
    decided_by = f"{solver}, {formula.style} encoding"
    answer = BitvectorAnswer(
        status, reason, decided_by=decided_by, phases=phases, counters=counters
    )
    if status is not Status.SAT:
        return answer
    point = np.array(formula.point(assignment), dtype=np.int64)
    if (point < low).any() or (point > high).any():
        raise RuntimeError(
            f"a model of {solver} leaves the box: the {formula.style} encoding or the solver is "
            "wrong"
        )
    if not formula.is_exact:
        return replace(answer, status=Status.UNKNOWN, reason=Reason.INCOMPLETE, candidate=point)
    if not violates(network.evaluate(point[None])[0], cases):
        raise RuntimeError(
            f"a model of {solver} does not violate the property in integers: the {formula.style} "
            "encoding or the solver is wrong"
        )
    return replace(answer, witness=point)


def violates(outputs: Ints, cases: tuple[DenseCase, ...]) -> bool:
    """Whether output integers [M] satisfy all rows of some case, in Python integers."""
    values = outputs.tolist()
    return any(
        all(sum(c * o for c, o in zip(row, values, strict=True)) <= bound for row, bound in case)
        for case in cases
    )


def solve(
    formula: BitvectorFormula, budget: Budget, solver: str = "boolector"
) -> tuple[Status, Reason, dict[str, int]]:
    """Status, reason, and for sat the unsigned value of every variable by name.

    A name that is not among ``installed_solvers()`` raises QuantError or ResourceError.
    """
    if solver not in _MODULES:
        raise QuantError(
            f"there is no bit-vector solver {solver!r}; choose one of {', '.join(_MODULES)}"
        )
    if find_spec(_MODULES[solver]) is None:
        raise ResourceError(
            f"the solver {solver} is not installed; install the Python package {_MODULES[solver]}"
        )
    if budget.is_expired():
        return Status.TIMEOUT, Reason.DEADLINE, {}
    # here, so that a second question finds it loaded; every child would load it anew
    import_module(_MODULES[solver])
    inherited = budget.for_child()
    text, reason = text_of_child(lambda: _answer(formula, _Stop(inherited), solver), budget, _GRACE)
    word, _, rest = text.partition(" ")
    if word == "sat":
        pairs = (pair.split("=") for pair in rest.split())
        return Status.SAT, Reason.NONE, {name: int(bits) for name, bits in pairs}
    if word == "unsat":
        return Status.UNSAT, Reason.NONE, {}
    if word == "failed":
        raise RuntimeError(f"{solver} refused a formula of ours: {rest}")
    if reason is Reason.NONE:
        reason = Reason[rest]
    return Status.TIMEOUT if reason is Reason.DEADLINE else Status.UNKNOWN, reason, {}


def _answer(formula: BitvectorFormula, stop: _Stop, solver: str) -> str:
    """In the child: ``sat x1=3 x2=0 ...``, ``unsat``, ``unknown REASON`` or ``failed`` and why."""
    try:
        word, assignment = BACKENDS[solver](formula, stop)
    except BudgetExpired:
        word, assignment = "unknown", {}
    except Exception as error:  # noqa: BLE001 - the parent raises it, and no verdict comes of it
        return f"failed {type(error).__name__}: {error}"
    if word == "unknown":
        return f"unknown {(stop.reason or Reason.INCOMPLETE).name}"
    return " ".join([word, *(f"{name}={bits}" for name, bits in assignment.items())])


class _Stop:
    """The callback: true once the deadline has passed or the process has grown by more than the
    budget's memory."""

    def __init__(self, budget: Budget) -> None:
        import psutil

        self.reason = Reason.NONE
        self._budget = budget
        self._process = psutil.Process()
        self._ceiling = self._process.memory_info().rss + budget.memory
        self._calls = 0

    def __call__(self) -> bool:
        if self.reason is not Reason.NONE:
            return True
        if self._budget.is_expired():
            self.reason = Reason.DEADLINE
        elif self._calls % _CALLS_PER_LOOK == 0 and self._process.memory_info().rss > self._ceiling:
            self.reason = Reason.MEMORY
        self._calls += 1
        return self.reason is not Reason.NONE

    def check(self) -> None:
        """The same question between steps of ours; an exception carries the answer."""
        if self():
            raise BudgetExpired("the bit-vector solver was stopped while its formula was built")


def _boolector(formula: BitvectorFormula, stop: _Stop) -> tuple[str, dict[str, int]]:
    from pyboolector import Boolector, BtorOption

    solver = Boolector()
    solver.Set_opt(BtorOption.BTOR_OPT_MODEL_GEN, 1)
    solver.Set_term(lambda _: stop(), (None,))
    nodes: list[Any] = []
    for number, term in enumerate(formula.terms):
        if number % _TERMS_PER_LOOK == 0:
            stop.check()
        nodes.append(_boolector_node(solver, term, nodes))
    for assertion in formula.assertions:
        solver.Assert(nodes[assertion])
    word = {solver.SAT: "sat", solver.UNSAT: "unsat"}.get(solver.Sat(), "unknown")
    if word != "sat":
        return word, {}
    named = [
        (term, node)
        for term, node in zip(formula.terms, nodes, strict=True)
        if term.operator == "variable"
    ]
    # a bit that does not matter is printed as x; zero is as good as one for it
    return word, {str(term.data): int(node.assignment.replace("x", "0"), 2) for term, node in named}


def _boolector_node(solver: Any, term: BitvectorTerm, nodes: list[Any]) -> Any:
    args = [nodes[arg] for arg in term.args]
    if term.operator == "variable":
        return solver.Var(solver.BitVecSort(term.width or 1), str(term.data))
    if term.operator == "constant":
        return solver.Const(int(term.data), term.width or 1)
    if term.operator == "extract":
        return solver.Slice(args[0], int(term.data) + term.width - 1, int(term.data))
    if term.operator == "zero_extend":
        return solver.Uext(args[0], term.width - args[0].width)
    if term.operator == "sign_extend":
        return solver.Sext(args[0], term.width - args[0].width)
    return getattr(solver, _BOOLECTOR_CALLS[term.operator])(*args)


def _bitwuzla(formula: BitvectorFormula, stop: _Stop) -> tuple[str, dict[str, int]]:
    """Through the exported script: what another user's solver would read is what is solved here."""
    import bitwuzla

    options = bitwuzla.Options()
    options.set(bitwuzla.Option.PRODUCE_MODELS, True)
    parser = bitwuzla.Parser(bitwuzla.TermManager(), options)
    parser.configure_terminator(stop)
    stop.check()
    parser.parse(smtlib_script(formula), True, False)
    stop.check()
    solver = parser.bitwuzla()
    solver.configure_terminator(stop)
    result = solver.check_sat()
    word = {bitwuzla.Result.SAT: "sat", bitwuzla.Result.UNSAT: "unsat"}.get(result, "unknown")
    if word != "sat":
        return word, {}
    assignment: dict[str, int] = {}
    for symbol in parser.get_declared_funs():
        if symbol.symbol() is not None and symbol.sort().is_bv():
            assignment[symbol.symbol()] = int(solver.get_value(symbol).value(2), 2)
    return word, assignment


_BOOLECTOR_CALLS = {
    "bvadd": "Add",
    "bvmul": "Mul",
    "bvneg": "Neg",
    "bvnot": "Not",
    "concat": "Concat",
    "ite": "Cond",
    "bvult": "Ult",
    "bvule": "Ulte",
    "bvslt": "Slt",
    "bvsle": "Slte",
    "and": "And",
    "or": "Or",
}
_MODULES = {"boolector": "pyboolector", "bitwuzla": "bitwuzla"}
BACKENDS: dict[str, Callable[[BitvectorFormula, _Stop], tuple[str, dict[str, int]]]] = {
    "boolector": _boolector,
    "bitwuzla": _bitwuzla,
}
