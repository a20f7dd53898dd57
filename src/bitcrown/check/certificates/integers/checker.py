"""Checks a proof about an integer network, in plain Python integers, with no code of the prover.

**Claim.** No input of the box satisfies any case; a case is an AND of ``sum c o <= b`` over the
output integers. **State.** An interval for every element of every node. A proof has a part per
case; a part is a list of steps that shrink the state, ending with a step that closes it. Every step
is recomputed here:

``propagate``  affine steps and staircases map intervals forward; then each constraint limits each
               of its terms by what the others leave over; then staircases (and single-source
               gathers) map intervals back.
``prove``      for any numbers ``tau >= 0`` and ``lambda``, each point of the state that satisfies
               the case has ``0 >= sum tau (c o - b) >= L(tau, lambda)``, L as below; so
               ``L > 0`` closes the part.
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
(``strict_json``), so no arithmetic here is ever rounded. ``WORK`` bounds what a certificate can ask
for.

**L**: going backwards, coefficients ``mu`` on a staircase output are traded for ``lambda`` on its
argument ``a``, at the price of ``min { mu S(a) - lambda a }`` over the argument's interval,
attained at an end of it or of a level; affine steps transpose; a maximum over a window costs
``min { mu max(x) - lambda x }``. The input box ends it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from bitcrown.check.certificates.integers.network import (
    Affine,
    Network,
    Pool,
    Reject,
    Row,
    Stairs,
    State,
    need,
)
from bitcrown.check.certificates.integers.points import Points
from bitcrown.check.certificates.integers.property import Claim, Rule, claim_of
from bitcrown.check.certificates.shape import require_certificate, require_property
from bitcrown.check.certificates.strict_json import Malformed, require_strict

MAX_POINTS = 1 << 13
WORK = 1 << 32
"""Weights, thresholds and window members that may be looked at in all; some minutes."""
BATCHED = 64
"""How many of them are looked at in the time of one where points are evaluated together."""
Case = list[Rule]
Wanted = Callable[[Network, Claim], Claim]
Slopes = dict[int, dict[tuple[int, ...], int]]


class Finding(NamedTuple):
    """Whether the certificate is accepted, and otherwise the first thing wrong with it."""

    accepted: bool
    message: str


class Dual(NamedTuple):
    """L, and the coefficients (mu, lambda) that met each staircase and the input."""

    value: int
    outer: dict[int, Row]
    inner: dict[int, Row]
    first: Row


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON form (sorted keys, no blanks)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check(network: Any, prop: Any, certificate: Any, wanted: Wanted | None = None) -> Finding:
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
        compiled = Network(bound_to(certificate, "network", network))
        claim = claim_of(bound_to(certificate, "property", prop), compiled)
        if wanted is not None:
            claim = wanted(compiled, claim)
        return Checker(compiled, claim, certificate).run()
    except (Reject, Malformed) as problem:
        return Finding(False, str(problem))
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as problem:
        return Finding(False, f"malformed: {type(problem).__name__} {problem}")


def bound_to(certificate: Any, name: str, content: Any) -> Any:
    """``content``, if the certificate is whole, and about the network or property that ``content``
    is."""
    need(
        certificate["format"] == "bitcrown-integer-certificate-1",
        "the certificate has an unknown format",
    )
    need(
        digest({k: v for k, v in certificate.items() if k != "digest"}) == certificate["digest"],
        "digest differs",
    )
    need(certificate[name] == digest(content), f"the certificate is for another {name}")
    return content


class Checker:
    """One certificate; ``run`` works through its parts."""

    def __init__(self, network: Network, claim: Claim, certificate: dict[str, Any]) -> None:
        self.net, self.claim, self.cases = network, claim, claim.cases
        self.parts, self.roots, self.trunk = (
            certificate["parts"],
            certificate["roots"],
            certificate["trunk"],
        )
        self.points: Points | None = None
        self.work = WORK
        low = [max(a, b) for a, b in zip(claim.low, network.low[0], strict=True)]
        high = [min(a, b) for a, b in zip(claim.high, network.high[0], strict=True)]
        self.root = State([low, *network.low[1:]], [high, *network.high[1:]], {0})

    def spend(self, work: int) -> None:
        self.work -= work
        need(self.work > 0, f"the certificate asks for more than {WORK} operations")

    def run(self) -> Finding:
        need(len(self.roots) == len(self.cases), "there is not one proof per case")
        if not self.root.is_empty():
            self.forward(self.root)
        no_case: Case = []
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
        return Finding(True, f"accepted: {len(self.cases)} cases, {len(seen)} parts")

    def step(self, state: State, case: Case, step: list[Any], where: str) -> None:
        """One step that shrinks the state."""
        kind = step[0]
        if kind == "propagate":
            if not state.is_empty():
                self.forward(state)
                self.constrain(state, case)
                self.backward(state)
        elif kind == "tighten":
            _, tau, slopes, entries = step
            dual = self.dual(state, self.goal(case, tau, where), slopes)
            old = state.copy()
            for node, element, low, high in entries:
                self.tighten(old, state, dual, [node, element, low, high], where)
        elif kind == "clip":
            _, tau, slopes, entries = step
            dual = self.dual(state, self.goal(case, tau, where), slopes)
            self.clip(state, dual, entries, where)
        else:
            need(kind == "bound", f"{where}: unknown step")
            old = state.copy()
            for node, element, sign, weight, tau, slopes in step[1]:
                need(sign in (1, -1) and weight > 0, f"{where}: bad sign or weight")
                self.index(node, element, where)
                goal, constant = self.goal(case, tau, where)
                row = goal.setdefault(node, [0] * self.net.sizes[node])
                row[element] += sign * weight
                least = -(-self.dual(old, (goal, constant), slopes).value // weight)
                state.narrow(node, element, *((least, None) if sign > 0 else (None, -least)))

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

    def goal(self, case: Case, tau: list[int], where: str) -> tuple[dict[int, Row], int]:
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

    def dual(self, state: State, goal: tuple[dict[int, Row], int], slopes: list[Any]) -> Dual:
        """L for these multipliers on this state."""
        coefficients, total = goal[0], goal[1]
        self.spend(self.net.terms)
        given: Slopes = {}
        for node, entries in slopes:
            need(node not in given, f"node {node} has its multipliers twice")
            given[node] = {tuple(entry[:-1]): entry[-1] for entry in entries}
        outer: dict[int, Row] = {}
        inner: dict[int, Row] = {}
        for number in reversed(range(1, len(self.net.nodes))):
            mu = coefficients.pop(number, [0] * self.net.sizes[number] if number in given else None)
            if mu is None:
                continue
            step = self.net.compiled[number]
            if isinstance(step, Affine):
                total += sum(m * b for m, b in zip(mu, step.bias, strict=True) if m)
                for m, row in zip(mu, step.rows, strict=True):
                    if m:
                        for s, e, w in row:
                            if s not in coefficients:
                                coefficients[s] = [0] * self.net.sizes[s]
                            coefficients[s][e] += m * w
                continue
            assert isinstance(step, Stairs | Pool)
            source = step.source
            low, high = state.low[source], state.high[source]
            pulled = coefficients.setdefault(source, [0] * self.net.sizes[source])
            own = given.get(number, {})
            if isinstance(step, Stairs):
                outer[number], inner[number] = mu, [own.get((e,), 0) for e in range(len(mu))]
                for e, (m, slope) in enumerate(zip(mu, inner[number], strict=True)):
                    if m or slope:
                        total += step.block(e, m, slope, low[e], high[e])
                        pulled[e] += slope
                continue
            for i, m in enumerate(mu):
                row_slopes = [own.get((i, place), 0) for place, _ in step.places[i]]
                members = step.members[i]
                total += step.block(
                    m, row_slopes, [low[e] for e in members], [high[e] for e in members]
                )
                for e, slope in zip(members, row_slopes, strict=True):
                    pulled[e] += slope
        first = coefficients.get(0, [0] * self.net.sizes[0])
        total += sum(
            min(c * a, c * b) for c, a, b in zip(first, state.low[0], state.high[0], strict=True)
        )
        return Dual(total, outer, inner, first)

    def tighten(self, old: State, state: State, dual: Dual, entry: Row, where: str) -> None:
        """Both ends of one interval: each removed range must be impossible by one of the element's
        blocks."""
        node, e, low, high = entry
        self.index(node, e, where)
        now_low, now_high = old.low[node][e], old.high[node][e]
        for first, last in ((now_low, min(low - 1, now_high)), (max(high + 1, now_low), now_high)):
            if first > last:
                continue
            chances = []
            if node == 0:
                c = dual.first[e]
                chances.append(min(c * first, c * last) - min(c * now_low, c * now_high))
            for number, mu in dual.outer.items():
                step = self.net.compiled[number]
                if isinstance(step, Stairs) and step.source == node:
                    slope = dual.inner[number][e]
                    least = step.block(e, mu[e], slope, now_low, now_high)
                    chances.append(step.block(e, mu[e], slope, first, last) - least)
            possible = not chances or dual.value + max(chances) <= 0
            need(not possible, f"{where}: node {node} element {e} may lie in [{first}, {last}]")
        state.narrow(node, e, low, high)

    def clip(self, state: State, dual: Dual, entries: list[Row], where: str) -> None:
        """Values of affine nodes on the input where ``c + g x``, a lower bound of the violated
        constraints, is <= 0."""
        low, high = state.low[0], state.high[0]
        constant = dual.value - sum(
            min(c * a, c * b) for c, a, b in zip(dual.first, low, high, strict=True)
        )
        for node, e, sign, weight, times in entries:
            self.index(node, e, where)
            step = self.net.compiled[node]
            need(
                isinstance(step, Affine) and step.sources <= {0},
                f"{where}: node {node} does not read the input",
            )
            assert isinstance(step, Affine)
            need(sign in (1, -1) and weight > 0 and times >= 0, f"{where}: bad sign or weight")
            line = [times * c for c in dual.first]
            for _, i, w in step.rows[e]:
                line[i] += sign * weight * w
            value = sign * weight * step.bias[e] + times * constant
            value += sum(c * (a if c > 0 else b) for c, a, b in zip(line, low, high, strict=True))
            least = -(-value // weight)
            state.narrow(node, e, *((least, None) if sign > 0 else (None, -least)))

    def forward(self, state: State) -> None:
        self.spend(self.net.terms)
        for number in range(1, len(self.net.nodes)):
            step = self.net.compiled[number]
            assert step is not None
            sources = step.sources if isinstance(step, Affine) else {step.source}
            if state.dirty.isdisjoint(sources):
                continue
            if isinstance(step, Affine):
                low, high = step.ends(state.low, state.high), step.ends(state.high, state.low)
            else:
                low, high = step.image(state.low[step.source], state.high[step.source])
            state.meet(number, low, high)
        state.dirty.clear()

    def constrain(self, state: State, case: Case) -> None:
        low, high = list(state.low[self.net.output]), list(state.high[self.net.output])
        for terms, bound in case:
            ends = {i: c * (low[i] if c > 0 else high[i]) for i, c in terms.items()}
            room = bound - sum(ends.values())
            for i, c in terms.items():
                if c > 0:
                    high[i] = min(high[i], (room + ends[i]) // c)
                elif c < 0:
                    low[i] = max(low[i], -((room + ends[i]) // -c))
        state.meet(self.net.output, low, high)

    def backward(self, state: State) -> None:
        for number in reversed(range(len(self.net.nodes))):
            step, node = self.net.compiled[number], self.net.nodes[number]
            if number not in state.dirty:
                continue
            if isinstance(step, Stairs):
                source = step.source
                ends = state.low[number], state.high[number], state.low[source], state.high[source]
                state.meet(source, *step.preimage(*ends))
            elif node["op"] == "gather" and len(node["sources"]) == 1:
                source = node["sources"][0]
                low, high = list(state.low[source]), list(state.high[source])
                for i, e in enumerate(node["index"]):
                    low[e], high[e] = (
                        max(low[e], state.low[number][i]),
                        min(high[e], state.high[number][i]),
                    )
                state.meet(source, low, high)

    def enumerate(self, state: State, case: int, where: str) -> None:
        """Every input left is evaluated; each must break the case."""
        count = 1
        for a, b in zip(state.low[0], state.high[0], strict=True):
            count *= max(b - a + 1, 0)
            need(count <= MAX_POINTS, f"{where}: too many inputs to enumerate")
        self.spend(count * self.net.terms // BATCHED)
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
