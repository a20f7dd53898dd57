"""Checks a proof about an integer network, in plain Python integers, with no code of the prover.

**Claim.** No input of the box satisfies any case; a case is an AND of ``sum c o <= b`` over the
output integers. **State.** An interval for every element of every node. A proof has a part per
case; a part is a list of steps that shrink the state, ending with a step that closes it. Every step
is recomputed here:

``propagate``  affine steps and staircases map intervals forward; then each constraint limits each
               of its terms by what the others leave over; then staircases (and single-source
               gathers) map intervals back.
``prove``      for any numbers ``tau >= 0`` and ``lambda``, each point of the state that satisfies
               the case has ``0 >= sum tau (c o - b) >= L(tau, lambda)``, L as in
               ``dual``; so ``L > 0`` closes the part.
``tighten``    the same inequality, for one element's argument in a range: if L with this element's
               block minimised over the range only is positive, the range is impossible.
``bound``      ``q s v + sum tau (c o - b) >= L`` gives ``s v >= ceil(L / q)``, ``q > 0``, s a sign.
``clip``       the same inequality is a line over the inputs, ``0 >= c + g x``; so for a value
               ``v = w x + b`` of an affine node on the input, with ``q > 0`` and ``t >= 0``,
               ``q s v >= q s b + t c + min (q s w + t g) x``.
``split``      integers: ``v <= k`` or ``v >= k + 1``; both parts must close.
``empty``      some interval is empty.
``enumerate``  the inputs left are few, and each of them breaks a constraint.

Every number is an ``int``: a tree that holds anything else is refused before a step is looked at
(``documents``), so no arithmetic here is ever rounded. ``_WORK`` bounds what a certificate can
ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from bitcrown.check.certificates.documents import (
    CertificateJudgement,
    Reject,
    content_digest,
    need,
    require_strict,
)
from bitcrown.check.certificates.integers.affine import Integers, LinearRows
from bitcrown.check.certificates.integers.dual import (
    Dual,
    Goal,
    clipped_end,
    dual_bound,
    signed_end,
)
from bitcrown.check.certificates.integers.network import IntegerCircuit
from bitcrown.check.certificates.integers.points import Points
from bitcrown.check.certificates.integers.property import Claim, IntegerConstraint, claim_of
from bitcrown.check.certificates.integers.state import State
from bitcrown.check.certificates.integers.windows import joint_work
from bitcrown.check.certificates.shape import require_certificate, require_property

_MAX_POINTS = 1 << 13
_WORK = 1 << 32
"""Weights, thresholds and window members that may be looked at in all; some minutes."""
_BATCHED = 64
"""How many of them are looked at in the time of one where points are evaluated together."""
_Case = list[IntegerConstraint]
_Wanted = Callable[[IntegerCircuit, Claim], Claim]


def check_integer_proof(
    network: Any, prop: Any, certificate: Any, wanted: _Wanted | None = None
) -> CertificateJudgement:
    """Does ``certificate`` prove that no input of ``prop``'s box satisfies any of its cases on
    ``network``?

    All three are parsed JSON: the canonical network, ``{"low", "high", "cases"}``, and what the
    prover wrote. ``wanted(network, claim)`` gives what has to be refuted where these two are not
    the question but an answer's reading of it; it raises ``Reject`` where they miss a part of the
    question.
    """
    try:
        for content in (network, prop, certificate):
            require_strict(content)
        require_certificate(certificate)
        require_property(prop)
        compiled = IntegerCircuit(bound_to(certificate, "network", network))
        claim = claim_of(bound_to(certificate, "property", prop), compiled)
        if wanted is not None:
            claim = wanted(compiled, claim)
        return IntegerProof(compiled, claim, certificate).run()
    except Reject as problem:
        return CertificateJudgement(False, str(problem))
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as problem:
        return CertificateJudgement(False, f"malformed: {type(problem).__name__} {problem}")


def bound_to(certificate: Any, name: str, content: Any) -> Any:
    """``content``, if the certificate is whole, and about the network or property that ``content``
    is."""
    need(
        certificate["format"] == "bitcrown-integer-certificate-1",
        "the certificate has an unknown format",
    )
    need(
        content_digest({k: v for k, v in certificate.items() if k != "digest"})
        == certificate["digest"],
        "digest differs",
    )
    need(certificate[name] == content_digest(content), f"the certificate is for another {name}")
    return content


class IntegerProof:
    """One certificate; ``run`` works through its parts."""

    def __init__(self, network: IntegerCircuit, claim: Claim, certificate: dict[str, Any]) -> None:
        self.net, self.claim, self.cases = network, claim, claim.cases
        self.parts, self.roots, self.trunk = (
            certificate["parts"],
            certificate["roots"],
            certificate["trunk"],
        )
        self.points: Points | None = None
        self.work = _WORK
        low = [max(a, b) for a, b in zip(claim.low, network.low[0], strict=True)]
        high = [min(a, b) for a, b in zip(claim.high, network.high[0], strict=True)]
        self.root = State([low, *network.low[1:]], [high, *network.high[1:]], {0})

    def spend(self, work: int) -> None:
        self.work -= work
        need(self.work > 0, f"the certificate asks for more than {_WORK} operations")

    def run(self) -> CertificateJudgement:
        need(len(self.roots) == len(self.cases), "there is not one proof per case")
        if not self.root.is_empty():
            self.propagate(self.root)
        no_case: _Case = []
        for place, step in enumerate(self.trunk):
            self.step(self.root, no_case, step, f"trunk step {place}")
        todo = [(part, case, self.root.copy()) for case, part in enumerate(self.roots)]
        seen: set[int] = set()
        while todo:
            number, case, state = todo.pop()
            need(
                0 <= number < len(self.parts) and number not in seen,
                f"part {number} is missing or used twice",
            )
            seen.add(number)
            where = f"case {case} part {number}"
            need(bool(self.parts[number]), f"{where} is empty")
            for place, step in enumerate(self.parts[number][:-1]):
                self.step(state, self.cases[case], step, f"{where} step {place}")
            todo += [
                (part, case, child)
                for part, child in self.close(state, case, self.parts[number][-1], where)
            ]
        need(len(seen) == len(self.parts), "the certificate has parts that nothing refers to")
        return CertificateJudgement(True, f"accepted: {len(self.cases)} cases, {len(seen)} parts")

    def propagate(self, state: State) -> None:
        self.spend(self.net.terms)
        state.forward(self.net)

    def step(self, state: State, case: _Case, step: list[Any], where: str) -> None:
        """One step that shrinks the state."""
        kind = step[0]
        if kind == "propagate":
            if not state.is_empty():
                self.propagate(state)
                state.constrain(self.net, case)
                state.backward(self.net)
        elif kind == "tighten":
            _, tau, slopes, entries = step
            dual = self.dual(state, self.goal(case, tau, where), slopes)
            old = state.copy()
            for entry in entries:
                self.tighten(old, state, dual, entry, where)
        elif kind == "clip":
            _, tau, slopes, entries = step
            dual = self.dual(state, self.goal(case, tau, where), slopes)
            old = state.copy()
            for entry in entries:
                self.clip(old, state, dual, entry, where)
        else:
            need(kind == "bound", f"{where}: unknown step")
            old = state.copy()
            for node, element, sign, weight, tau, slopes in step[1]:
                need(sign in (1, -1) and weight > 0, f"{where}: bad sign or weight")
                self.index(node, element, where)
                # q s v + sum tau (c o - b) >= L, and the sum is not positive
                goal, constant = self.goal(case, tau, where)
                row = goal.setdefault(node, [0] * self.net.sizes[node])
                row[element] += sign * weight
                value = self.dual(old, (goal, constant), slopes).value
                state.narrow(node, element, *signed_end(sign, weight, value))

    def close(
        self, state: State, case: int, step: list[Any], where: str
    ) -> list[tuple[int, State]]:
        """The last step of a part: nothing is left, or two parts are."""
        kind = step[0]
        if kind == "prove":
            _, tau, slopes = step
            value = self.dual(state, self.goal(self.cases[case], tau, where), slopes).value
            need(value > 0, f"{where}: the bound is {value}, which proves nothing")
        elif kind == "empty":
            need(state.is_empty(), f"{where}: no interval is empty")
        elif kind == "enumerate":
            self.enumerate(state, case, where)
        else:
            need(kind == "split", f"{where}: does not end with a closing step")
            node, element, value, first, second = step[1:]
            self.index(node, element, where)
            below, above = state.copy(), state.copy()
            below.narrow(node, element, None, value)
            above.narrow(node, element, value + 1, None)
            return [(first, below), (second, above)]
        return []

    def index(self, node: int, element: int, where: str) -> None:
        need(0 <= node < len(self.net.nodes), f"{where}: no node {node}")
        need(0 <= element < self.net.sizes[node], f"{where}: node {node} has no element {element}")

    def goal(self, case: _Case, tau: list[int], where: str) -> Goal:
        """Coefficients of ``sum tau (c o - b)`` on the output, and its constant."""
        need(
            len(tau) == len(case) and all(t >= 0 for t in tau),
            f"{where}: multipliers do not fit the case",
        )
        row = [0] * self.net.sizes[self.net.output]
        for t, (terms, _) in zip(tau, case, strict=True):
            for i, c in terms.items():
                row[i] += t * c
        return {self.net.output: row}, -sum(
            t * bound for t, (_, bound) in zip(tau, case, strict=True)
        )

    def dual(self, state: State, goal: Goal, slopes: list[Any]) -> Dual:
        self.spend(self.net.terms + joint_work(self.net, slopes))
        return dual_bound(self.net, state, goal, slopes)

    def tighten(self, old: State, state: State, dual: Dual, entry: Integers, where: str) -> None:
        """Both ends of one interval: what is cut off below and above has to be impossible."""
        node, e, low, high = entry
        self.index(node, e, where)
        now_low, now_high = old.low[node][e], old.high[node][e]
        for first, last in ((now_low, min(low - 1, now_high)), (max(high + 1, now_low), now_high)):
            is_cut = first > last or dual.excludes(self.net, old, node, e, (first, last))
            need(is_cut, f"{where}: node {node} element {e} may lie in [{first}, {last}]")
        state.narrow(node, e, low, high)

    def clip(self, old: State, state: State, dual: Dual, entry: Integers, where: str) -> None:
        node, e, sign, weight, times = entry
        self.index(node, e, where)
        step = self.net.compiled.get(node)
        reads = isinstance(step, LinearRows) and step.sources <= {0}
        need(reads, f"{where}: node {node} does not read the input")
        need(sign in (1, -1) and weight > 0 and times >= 0, f"{where}: bad sign or weight")
        state.narrow(node, e, *clipped_end(self.net, old, dual, entry))

    def enumerate(self, state: State, case: int, where: str) -> None:
        """Every input left is evaluated; each must break the case."""
        count = 1
        for a, b in zip(state.low[0], state.high[0], strict=True):
            count *= max(b - a + 1, 0)
            need(count <= _MAX_POINTS, f"{where}: too many inputs to enumerate")
        self.spend(count * self.net.terms // _BATCHED)
        points = [
            list(p)
            for p in product(
                *(range(a, b + 1) for a, b in zip(state.low[0], state.high[0], strict=True))
            )
        ]
        self.points = self.points or Points(self.net)
        for point, low, high in zip(points, *self.points.outputs(points), strict=True):
            need(
                self.claim.is_broken(case, low, high),
                f"{where}: input {point[:8]} may satisfy the case",
            )
