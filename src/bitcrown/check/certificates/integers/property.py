"""What a certificate is about: a box of input integers, and cases that no input of it may satisfy.

A case of the proof is an AND of ``sum k_i o_i <= B`` over output integers ``o``. Where the file's
outputs ``y_i = v_i(o_i)`` are not evenly spaced (float32 products of a scale), such a case is only
*implied* by the property's own, ``sum c_i y_i <= b`` (or ``<``): the proof refutes more than it has
to. That it is implied is checked here: for any ``t > 0``

    sum k_i o_i  =  t sum c_i y_i - sum (t c_i v_i(o_i) - k_i o_i)  <=  t b - sum_i min_o (t c_i
    v_i(o) - k_i o),

and the last number, rounded down, must not exceed ``B``. An input that is evaluated, on the other
hand, is judged by the property's own case.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

from bitcrown.check.certificates.documents import integer, integer_list, need
from bitcrown.check.certificates.integers.affine import Integers
from bitcrown.check.certificates.integers.network import IntegerCircuit

_MOST_VALUES = 1 << 20


class IntegerConstraint(NamedTuple):
    """``sum k o <= bound`` over output integers; ``terms`` maps an output to its k."""

    terms: dict[int, int]
    bound: int

    def may_hold(self, low: Integers, high: Integers) -> bool:
        """For some outputs between ``low`` and ``high``: the least left side is small enough."""
        return sum(k * (low if k > 0 else high)[i] for i, k in self.terms.items()) <= self.bound


class RealConstraint(NamedTuple):
    """``sum c y <= bound`` (``<`` if strict) over the real values of the outputs."""

    terms: dict[int, Fraction]
    bound: Fraction
    strict: bool

    def allows(self, least: Fraction) -> bool:
        return least < self.bound or (least == self.bound and not self.strict)


class OutputValues:
    """The real values of one output: ``of(o)`` for ``low <= o <= high``, nondecreasing."""

    def __init__(self, low: int, known: Sequence[Fraction]) -> None:
        need(0 < len(known) <= _MOST_VALUES, "an output has no values, or too many")
        need(
            all(a <= b for a, b in zip(known, known[1:], strict=False)),
            "the values of an output decrease",
        )
        self.low, self.high, self.known = low, low + len(known) - 1, known

    def of(self, o: int) -> Fraction:
        return self.known[o - self.low]

    def least(self, c: Fraction, k: int) -> Fraction:
        """``min_o (c v(o) - k o)`` over all o."""
        if k == 0:
            return min(c * self.known[0], c * self.known[-1])
        return min(c * v - k * o for o, v in enumerate(self.known, self.low))


class EvenValues(OutputValues):
    """``first + step (o - low)`` with ``step >= 0``, without a table: outputs that are wide
    integers."""

    def __init__(self, low: int, high: int, step: Fraction, first: Fraction) -> None:
        need(low <= high and step >= 0, "an output has no values, or decreases")
        self.low, self.high, self.step, self.first = low, high, step, first

    def of(self, o: int) -> Fraction:
        return self.first + self.step * (o - self.low)

    def least(self, c: Fraction, k: int) -> Fraction:
        return min(c * self.of(o) - k * o for o in (self.low, self.high))


class Claim(NamedTuple):
    """``cases``: what the proof refutes; ``real[n]``: the property's cases that case n stands for,
    None if unknown.

    Nothing asked depends on a case that stands for none: it need not be refuted.
    """

    low: Integers
    high: Integers
    cases: list[list[IntegerConstraint]]
    outputs: list[OutputValues]
    real: list[list[list[RealConstraint]] | None]

    def is_broken(self, case: int, low: Integers, high: Integers) -> bool:
        """Whether no output between ``low`` and ``high`` satisfies the case, or any real one that
        it stands for."""
        if not all(rule.may_hold(low, high) for rule in self.cases[case]):
            return True
        real = self.real[case]
        return real is not None and all(
            any(not rule.allows(least_left_side(rule, self.outputs, low, high)) for rule in rules)
            for rules in real
        )


def least_left_side(
    rule: RealConstraint, outputs: list[OutputValues], low: Integers, high: Integers
) -> Fraction:
    """The least left side for output integers between ``low`` and ``high``."""
    return sum(
        (c * outputs[i].of((low if c > 0 else high)[i]) for i, c in rule.terms.items()), Fraction(0)
    )


def follows(rule: IntegerConstraint, real: RealConstraint, outputs: list[OutputValues]) -> bool:
    """Whether every output of the whole range that satisfies ``real`` satisfies ``rule``."""
    ends = [k * (outputs[i].high if k > 0 else outputs[i].low) for i, k in rule.terms.items()]
    if sum(ends) <= rule.bound:
        return True
    times = _ratio(rule, real, outputs)
    if times is None:
        return False
    limit = times * real.bound
    for i in rule.terms.keys() | real.terms.keys():
        limit -= outputs[i].least(times * real.terms.get(i, Fraction(0)), rule.terms.get(i, 0))
    return (ceil(limit) - 1 if real.strict else floor(limit)) <= rule.bound


def _ratio(
    rule: IntegerConstraint, real: RealConstraint, outputs: list[OutputValues]
) -> Fraction | None:
    """The t for which the widest term of ``real`` has, from end to end, the slope that it has in
    ``rule``."""
    best, found = Fraction(0), None
    for i, c in real.terms.items():
        rise = c * (outputs[i].of(outputs[i].high) - outputs[i].of(outputs[i].low))
        if abs(rise) > best:
            best, found = (
                abs(rise),
                Fraction(rule.terms.get(i, 0) * (outputs[i].high - outputs[i].low)) / rise,
            )
    return found if found is not None and found > 0 else None


def is_impossible(rules: list[RealConstraint], outputs: list[OutputValues]) -> bool:
    """Whether a real case holds nowhere, because one rule of it holds for no outputs at all."""
    low, high = [values.low for values in outputs], [values.high for values in outputs]
    return any(not rule.allows(least_left_side(rule, outputs, low, high)) for rule in rules)


def implies_case(
    case: list[IntegerConstraint], rules: list[RealConstraint], outputs: list[OutputValues]
) -> bool:
    """Whether every rule of the proof's case follows from one rule of the property's."""
    return all(any(follows(rule, real, outputs) for real in rules) for rule in case)


def claim_of(form: dict[str, Any], network: IntegerCircuit) -> Claim:
    """The claim in a property's JSON form. Raises ``Reject`` and what malformed JSON raises."""
    size, outputs = network.sizes[0], network.sizes[network.output]
    low, high = (
        integer_list(form[name], size, "the box of the property") for name in ("low", "high")
    )
    cases = [[_rule(constraint, outputs) for constraint in case] for case in form["cases"]]
    claim = Claim(low, high, cases, [], [None] * len(cases))
    return _with_real(claim, form["real"], network) if "real" in form else claim


def _rule(constraint: dict[str, Any], outputs: int) -> IntegerConstraint:
    terms = {integer(i): integer(c) for i, c in constraint["terms"]}
    need(len(terms) == len(constraint["terms"]), "a constraint mentions an output twice")
    need(all(0 <= i < outputs for i in terms), "a constraint names no output")
    return IntegerConstraint(terms, integer(constraint["bound"]))


def _with_real(claim: Claim, form: dict[str, Any], network: IntegerCircuit) -> Claim:
    """The claim with the property's own cases, one for each, every one of which must imply the
    proof's."""
    tables = [_values(entry) for entry in form["outputs"]]
    need(len(tables) == network.sizes[network.output], "there is not one list of values per output")
    require_covered(tables, network)
    need(len(form["cases"]) == len(claim.cases), "there is not one real case per case")
    real = [[_real_rule(constraint, len(tables)) for constraint in case] for case in form["cases"]]
    for number, (case, rules) in enumerate(zip(claim.cases, real, strict=True)):
        need(
            implies_case(case, rules, tables),
            f"case {number} does not follow from the property's own",
        )
    return claim._replace(outputs=tables, real=[[rules] for rules in real])


def _values(entry: dict[str, Any]) -> OutputValues:
    low = integer(entry["low"])
    if "step" in entry:
        return EvenValues(
            low, integer(entry["high"]), _fraction(entry["step"]), _fraction(entry["first"])
        )
    unit, rows = integer(entry["denominator"]), entry["numerators"]
    need(unit > 0, "a denominator is not positive")
    return OutputValues(
        low, [Fraction(n, unit) for n in integer_list(rows, len(rows), "the values of an output")]
    )


def require_covered(outputs: list[OutputValues], network: IntegerCircuit) -> None:
    """Every output that the network may have over its declared range has a value."""
    low, high = network.low[network.output], network.high[network.output]
    for values, a, b in zip(outputs, low, high, strict=True):
        need(values.low <= a and b <= values.high, "an output may be an integer that has no value")


def _real_rule(constraint: dict[str, Any], outputs: int) -> RealConstraint:
    terms = {integer(i): _fraction(value) for i, value in constraint["terms"]}
    need(len(terms) == len(constraint["terms"]), "a constraint mentions an output twice")
    need(all(0 <= i < outputs for i in terms), "a constraint names no output")
    need(constraint["strict"] in (0, 1), "a constraint is neither strict nor not")
    return RealConstraint(terms, _fraction(constraint["bound"]), bool(constraint["strict"]))


def _fraction(pair: Any) -> Fraction:
    numerator, denominator = integer_list(pair, 2, "a fraction")
    need(denominator > 0, "a denominator is not positive")
    return Fraction(numerator, denominator)
